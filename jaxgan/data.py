"""Data sets by name, the order of a run, and images on the devices in it: resident and drawn by the step, or a stream.

Example p of a run is `permute(seed, epoch, position, n)` with `epoch, position = divmod(p, n)`: a function of integers,
the same in NumPy and in JAX. So nothing has to be saved to resume a run, and both placements and any number of devices
and hosts give the same images, bit by bit.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgan import files, images, memory
from jaxgan.archives import idx, npz
from jaxgan.collectives import AXIS
from jaxgan.errors import InputError, unknown
from jaxgan.folders import folder
from jaxgan.sources import Kept, Source, about, from_arrays, is_own, labels, read_all, refuse_empty

__all__ = ["Feed", "Source", "flips", "labels", "load", "permute", "place", "read_all", "to_float"]

PLACEMENTS = ("auto", "resident", "stream")
READERS = 2  # threads of a stream: one takes records from the disk while the other's are decoded
# A Feistel round takes three functions. Six rounds leave no trace in chi-square tests of pairs; four do, in small sets.
# Multiples of the golden ratio lie far apart.
CHOICES = np.arange(18, dtype=np.uint32).reshape(6, 3) * np.uint32(0x9E3779B9)


def load(
    name: str,
    split: str = "train",
    *,
    data_dir: epath.PathLike | None = None,
    manual_dir: epath.PathLike | None = None,
    size: str = "",
    crop: str = "center",
    channels: int = 0,
    cache_gb: float = 4.0,
    cache: epath.PathLike | None = None,
    skip_bad: bool = False,
    prepare: bool = True,
) -> Source:
    """A source by name: `digits`, any TFDS name (`mnist`, `package/config`), `folder:DIR`, `npz:FILE` or `idx:DIR`.

    `data_dir` holds prepared TFDS data sets, `manual_dir` original files from which TFDS prepares one. `size` is `""`
    (as they are), `"64"` or `"48x64"` (h x w), `crop` what part of an image is kept (`images.fit`),
    `channels` is 0 (as they are, but files with transparency on white), 1 (grey), 3 (colour) or 4 (RGBA).
    Decoded images stay in memory if all fit `cache_gb` and it;
    when all are there, they also go into a file of the folder `cache`, which the next start reads in place of decoding.
    `prepare`: whether a TFDS data set that is not prepared yet is; else `Unprepared` says what would be.
    `skip_bad` leaves out the files of a folder that cannot be read, for which all are decoded here once.
    Raises InputError for whatever is missing, broken or ambiguous.
    """
    wanted, kind, place = images.parse_size(size) or images.window(crop), *name.partition(":")[::2]
    images.window(crop)  # for what is wrong with it
    files.check_remote(place)
    if channels < 0:
        raise InputError(
            f"channels {channels} is negative; 0 keeps the images as they are, 1 is grey, 3 colour, 4 RGBA"
        )
    if skip_bad and kind != "folder":
        raise InputError(f"--skip_bad_images is for the files of folder:DIR; given --dataset={name}")
    if kind == "folder":
        source = folder(name, place, split, wanted, crop, channels, skip_bad, cache)
    elif kind == "npz":
        return npz(name, place, split, wanted, crop, channels)
    elif kind == "idx":
        return idx(name, place, split, wanted, crop, channels)
    elif place:
        raise unknown("kind of data set", kind, ("folder", "npz", "idx"), "for example folder:DIR or npz:FILE")
    elif is_own(name) and importlib.util.find_spec(f"jaxgan.datasets.{name}.arrays"):
        # So small that it is made anew at every start: importing TFDS alone would cost a second or two.
        own = importlib.import_module(f"jaxgan.datasets.{name}.arrays")
        if split not in own.SPLITS:
            raise unknown(f"split of {name}", split, own.SPLITS)
        arrays = own.arrays(split)
        return from_arrays(name, **arrays, class_names=own.CLASSES, size=wanted, crop=crop, channels=channels)
    else:
        from jaxgan import prepared  # TFDS takes seconds to import

        source = prepared.load(name, split, data_dir, manual_dir, wanted, crop, channels, prepare)
    if source.nbytes > min(cache_gb * 2**30, memory.free()):
        return source
    file = None
    if cache is not None:
        # One file for each way of asking, overwritten when what it was read from has changed.
        wish = f"{name}-{split}-{'x'.join(map(str, source.shape))}"
        code = hashlib.sha256(repr((wish, crop)).encode()).hexdigest()[:12]
        file = epath.Path(cache).expanduser() / f"{re.sub(r'[^A-Za-z0-9]+', '-', wish)[-64:]}-{code}.decoded"
    return dataclasses.replace(source, read=Kept(source, file))


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a compiled call needs of the data."""

    draw: Callable[[dict, dict], dict]  # (resident, x) -> batch: traced inside the step, for one device and one step
    calls: Callable[[int, int, int], Iterator[dict]]  # (first_step, last_step, steps_per_call) -> x of whole calls
    like: Callable[[int], tuple[dict, dict]]  # steps of a call -> shapes and shardings of (resident, x)
    reading: concurrent.futures.Future  # of `resident`
    max_steps: int = sys.maxsize  # the most steps that fit one call
    examples: int = 0  # how many there are
    skipped: tuple[str, ...] = ()  # of the source
    source: Source | None = None
    digesting: concurrent.futures.Future | None = None  # what tells these examples from others; None: nothing does

    @property
    def about(self) -> dict[str, Any]:
        """What a run keeps of its data (`sources.check_about`)."""
        if self.source is None:
            return {"examples": self.examples, "classes": [], "num_classes": 0, "shape": []}
        return about(self.source, self.digesting.result() if self.digesting else None)

    @property
    def resident(self) -> dict[str, jax.Array]:
        """image uint8 (n, h, w, c) and label int32 (n,) on every device; {} when streaming.

        They are read in a thread from `place` on, so that programs compile meanwhile. Raises what reading raises.
        """
        return self.reading.result()


def mix(x: Any, xp: ModuleType) -> Any:
    """A bijective hash of uint32 arrays (lowbias32 of C. Wellons, "Prospecting for hash functions", 2018)."""
    x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x7FEB352D)
    x = (x ^ (x >> xp.uint32(15))) * xp.uint32(0x846CA68B)
    return x ^ (x >> xp.uint32(16))


def hashes(seed: int, epoch: Any, xp: ModuleType) -> Callable[[Any, Any], Any]:
    """Functions of uint32 arrays, each chosen by a row of `CHOICES`, as random as their seed and epoch."""
    key = mix(mix(xp.full_like(epoch, np.uint32(seed % 2**32)), xp) + epoch, xp)
    return lambda x, choice: mix(x + (key + choice), xp)


def permute(seed: int, epoch: Any, position: Any, n: int, xp: ModuleType = np, unroll: bool = False) -> Any:
    """Index of the example at `position` of `epoch`, uint32 arrays of one shape: in each epoch a permutation of [0, n).

    A Feistel network over the pairs of an a x b rectangle, a * b <= n (Black and Rogaway 2002,
    doi:10.1007/3-540-45760-7_9). The fewer than sqrt(n) numbers outside of it rest for a round; a keyed rotation then
    brings others there. Walking cycles until they fall into range, the usual way, is a loop of unknown length, for
    which a GPU waits for its host. (Of 3 elements only the rotations occur.)
    """
    a = math.isqrt(n)
    b = n // a
    a_, b_, n_, area = xp.uint32(a), xp.uint32(b), xp.uint32(n), xp.uint32(a * b)
    f = hashes(seed, epoch, xp)

    def round_(x: Any, choice: Any) -> Any:
        left, right = x // b_, x % b_
        left = (left + f(right, choice[0]) % a_) % a_
        right = (right + f(left, choice[1]) % b_) % b_
        x = xp.where(x < area, left * b_ + right, x)
        return (x + f(xp.zeros_like(x), choice[2]) % n_) % n_

    if xp is np:
        return functools.reduce(round_, CHOICES, position)
    # Unrolled it would be no slower alone, but XLA:CPU fuses that into whatever follows the gather, a mirror or an
    # augmentation, and computes it anew for every pixel: 24 ms instead of 0.1. On a GPU a round costs two kernels.
    index = lax.scan(lambda x, choice: (round_(x, choice), None), position, CHOICES, unroll=unroll)[0]
    return lax.optimization_barrier(index)


def flips(seed: int, epoch: Any, position: Any, xp: ModuleType = np) -> Any:
    """Whether the example at this place of the run is mirrored: a fair coin, bool, of the shape of `position`."""
    return hashes(seed ^ 0x5BD1E995, epoch, xp)(position, CHOICES[0, 0]) >> xp.uint32(31) == 1


def to_float(image: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1], both ends exact; the rows of a table, which are float32, as they are.

    Rounded once, and clipped so that no compiler contracts the product with a sum that follows: the bits of an image do
    not depend on the program around it.
    """
    if image.dtype == jnp.float32:
        return image
    return jnp.clip((2 * image.astype(jnp.float32) - 255) / 255, -1, 1)


def dequantized(image: jax.Array, bits: jax.Array) -> jax.Array:
    """uint8 (..., h, w, c) -> (v + u) / 128 - 1 in [-1, 1], float32, u in [0, 1) of each value a function of `bits`.

    The images that SNGAN's and WGAN-GP's authors train on. bits: uint32 (...), random, of each image. Exact but for the
    rounding of v + u.
    """
    place = jnp.arange(math.prod(image.shape[-3:]), dtype=jnp.uint32).reshape(image.shape[-3:])
    noise = mix(mix(place, jnp) ^ bits[..., None, None, None], jnp) >> jnp.uint32(8)
    return (image.astype(jnp.float32) + noise.astype(jnp.float32) * 2.0**-24) / 128 - 1


def place(
    source: Source,
    *,
    batch_size: int,
    draws: int = 1,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    placement: str = "auto",
    resident_gb: float = 4.0,
    stream_gb: float = 1.0,
    mirror: bool = False,
    dequantize: bool = False,
    prefetch: int = 2,
    read: bool = True,
    filled: bool = False,
) -> Feed:
    """Puts a source on the devices (all of the run, of every host; by default `jax.devices()`).

    Each step takes `draws` batches of `batch_size` images, counted over all devices: row r of draw d of step s is
    example p = (s * draws + d) * batch_size + r of the run. `draw` gives {"image": float32 (draws, b, h, w, c) in
    [-1, 1], "label": int32 (draws, b), "row": int32 (draws, b)}, where b = batch_size / devices and `row` counts over
    all devices. (The rows of a table: "image" (draws, b, d), as they are.)

    `resident`: every image is copied to every device once. `stream`: threads read and copy at most `prefetch` calls
    ahead, on one host and its devices no more than `stream_gb` in all, which bounds the steps of a call to `max_steps`.
    `auto`: resident where the images fit `resident_gb`. `mirror` flips every other image, chosen anew in each epoch.
    `dequantize` adds noise within a grey level to bytes (`dequantized`), new in each epoch too.
    What `calls` yields has leading axes (local devices, steps) and the sharding that `jax.pmap` expects of axis 0; the
    last call may be shorter. Its iterator raises what reading raises, and closing it ends the threads.
    Without `read` there are `draw` and `like` alone, for devices that may not be here.
    filled: refuse classes without images, where all labels are read anyway.
    Raises InputError for a batch that the devices cannot share.
    """
    devices = list(jax.devices() if devices is None else devices)
    if placement not in PLACEMENTS:
        raise unknown("placement", placement, PLACEMENTS)
    if batch_size < 1 or batch_size % len(devices):
        below = batch_size // len(devices) * len(devices)
        near = " or ".join(str(s) for s in (below, below + len(devices)) if s > 0)
        raise InputError(f"batch_size {batch_size} does not divide among {len(devices)} devices; nearest: {near}")
    if prefetch < 1:
        raise InputError(f"prefetch {prefetch} is less than the one call that a stream must read ahead")
    n, b = source.num_examples, batch_size // len(devices)
    if not 0 < n < 2**31:
        raise InputError(f"{source.name} has {n} examples; expected between 1 and 2^31 - 1")
    streamed = placement == "stream" or (placement == "auto" and source.nbytes > resident_gb * 2**30)
    local = [(i, d) for i, d in enumerate(devices) if d.process_index == jax.process_index()]
    mesh = Mesh(np.array([d for _, d in local]), (AXIS,))
    split = NamedSharding(mesh, PartitionSpec(AXIS))

    def rows_of(first: Any, row: Any, epoch: Any, xp: ModuleType) -> tuple[Any, Any]:
        # (draws,) places of first rows -> epoch and position (draws, b) of each row of this device
        position = first[..., None] + row[..., None, :].astype(xp.uint32)
        return epoch[..., None] + position // xp.uint32(n), position % xp.uint32(n)

    def head(first_step: int, steps: int) -> dict[str, np.ndarray]:
        # the place of row 0 of each draw, and the first row of each device: a few bytes a step
        p = (np.arange(first_step, first_step + steps)[:, None] * draws + np.arange(draws)) * batch_size
        epoch, position = np.divmod(p, n)
        row = np.array([i * b for i, _ in local], np.int32)
        return {
            "epoch": np.broadcast_to(epoch.astype(np.uint32), (len(local), steps, draws)),
            "position": np.broadcast_to(position.astype(np.uint32), (len(local), steps, draws)),
            "row": np.broadcast_to(row[:, None], (len(local), steps)),
        }

    def call(first_step: int, steps: int) -> dict[str, jax.Array]:
        x = head(first_step, steps)
        if streamed:
            row = x["row"][..., None] + np.arange(b, dtype=np.int32)
            epoch, position = rows_of(x["position"], row, x["epoch"], np)  # (devices, steps, draws, b)
            data = source.read(permute(seed, epoch, position, n).ravel().astype(np.int64))
            x |= {k: v.reshape(*epoch.shape, *v.shape[1:]) for k, v in data.items()}
        return jax.device_put(x, split)

    def draw(resident: dict, x: dict) -> dict:
        row = x["row"] + jnp.arange(b, dtype=jnp.int32)
        epoch, position = rows_of(x["position"], row, x["epoch"], jnp)
        if streamed:
            image, label = x["image"], x["label"]
        else:
            index = permute(seed, epoch, position, n, jnp, devices[0].platform != "cpu").astype(jnp.int32)
            image, label = (resident[k].at[index].get(mode="promise_in_bounds") for k in ("image", "label"))
        if mirror:
            flip = flips(seed, epoch, position, jnp)[..., None, None, None]
            image = jnp.where(flip, image[..., ::-1, :], image)  # (draws, b, h, w, c)
        if dequantize and image.dtype == jnp.uint8:
            bits = hashes(seed ^ 0x3C6EF372, epoch, jnp)(position, CHOICES[0, 1])
            image = dequantized(image, bits)
        return {"image": to_float(image), "label": label, "row": jnp.broadcast_to(row, label.shape)}

    def calls(first_step: int, last_step: int, steps_per_call: int) -> Iterator[dict]:
        if not 0 < steps_per_call <= max_steps:
            raise InputError(f"{steps_per_call} steps a call; stream_gb {stream_gb} has room for {max_steps}")
        starts = range(first_step, last_step, steps_per_call)
        pieces = ((s, min(steps_per_call, last_step - s)) for s in starts)
        return ahead(call, pieces, prefetch) if streamed else (call(*piece) for piece in pieces)

    def like(steps: int) -> tuple[dict, dict]:
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {k: (v.shape, v.dtype) for k, v in head(0, steps).items()}
        if streamed:
            lead = (len(local), steps, draws, b)
            shapes |= {"image": ((*lead, *source.shape), source.dtype), "label": (lead, np.int32)}
        x = {name: jax.ShapeDtypeStruct(*of, sharding=split) for name, of in shapes.items()}
        if streamed:
            return {}, x
        kept: dict[str, tuple[tuple[int, ...], Any]] = {
            "image": ((n, *source.shape), source.dtype),
            "label": ((n,), np.int32),
        }
        return {name: jax.ShapeDtypeStruct(*of, sharding=whole) for name, of in kept.items()}, x

    whole = NamedSharding(mesh, PartitionSpec())

    def resident() -> dict[str, jax.Array]:
        arrays = read_all(source)
        if filled and source.num_classes:
            refuse_empty(source, arrays["label"])
        return jax.device_put(arrays, whole)

    reading: concurrent.futures.Future = concurrent.futures.Future()
    max_steps = sys.maxsize
    if streamed:
        step_bytes = len(local) * draws * b * math.prod(source.shape) * np.dtype(source.dtype).itemsize
        # prefetched calls, the one that the devices work on, and copies on the host of those being read
        max_steps = max(1, int(stream_gb * 2**30 / ((prefetch + 1 + READERS) * step_bytes)))
        reading.set_result({})
    elif read:
        reading = in_thread(resident)
    digesting = in_thread(functools.partial(source.digest, None)) if read and source.digest else None
    return Feed(draw, calls, like, reading, max_steps, n, source.skipped, source, digesting)


def in_thread(function: Callable[[], Any]) -> concurrent.futures.Future:
    """The result of `function`, which a thread computes meanwhile."""
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="data")
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future


def ahead(function: Callable, arguments: Iterator[tuple], depth: int) -> Iterator:
    """`function(*a)` for each `a`, in order, computed by threads at most `depth` results ahead of the consumer."""
    pool = concurrent.futures.ThreadPoolExecutor(READERS, thread_name_prefix="data")
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for piece in arguments:
            pending.append(pool.submit(function, *piece))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
