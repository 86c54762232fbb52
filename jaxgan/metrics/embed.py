"""What metrics see of images: the features, and where it has classes the logits, of one network, on every device.

    network = classifier(judge)                          # or inception(weights), pixels(shape)
    real = embed(network, parts_of(source), devices)    # Embedded: features (n, d), logits (n, k)

Generated images are rounded to whole grey levels first, as every published protocol that goes by files
does: both sides have been through the same quantisation.
"""

import collections
import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgan import layout, lookup, numerics
from jaxgan.data import to_float
from jaxgan.errors import InputError, unknown
from jaxgan.images import to_uint8
from jaxgan.layers.resize import RESIZINGS
from jaxgan.metrics.judge import Judge
from jaxgan.models import inception as published
from jaxgan.sources import Source

FEATURES = ("classifier", "inception", "pixels")
MOST = 12_288  # values of an image, 64x64x3
AHEAD = 2  # batches on the devices while the host collects results


@dataclasses.dataclass(frozen=True)
class Network:
    """A pure function of parameters and images, and what tells it from others.

    function: (params, images (b, h, w, c) in [-1, 1]) -> features (b, d), and logits (b, k) or None.
    digest: of the weights and of all that happens to an image, so that stored features are never those of another.
    labelled: whether the k classes are those of the data set, so that a sample can be of the class that was asked for.
    """

    name: str
    digest: str
    function: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]
    params: Any = None
    labelled: bool = False
    batch: int = 256


class Embedded(NamedTuple):
    features: np.ndarray  # (n, d) float32
    logits: np.ndarray | None  # (n, k) float32


def pixels(shape: tuple[int, int, int]) -> Network:
    """The pixels themselves, in [-1, 1]: what it costs nothing to have, and tells little of large images.

    InputError for images of more than `MOST` values, whose covariance would take gigabytes.
    """
    if math.prod(shape) > MOST:
        raise InputError(f"pixels as features: images of {shape} have over {MOST:,} values; --size makes them smaller")
    return Network("pixels", f"pixels-{'x'.join(map(str, shape))}", _flat)


def _flat(params: Any, images: jax.Array) -> tuple[jax.Array, None]:
    return images.reshape(images.shape[0], -1), None


def named(
    name: str,
    source: Source,
    judge: Callable[[], Judge],
    cache: epath.PathLike,
    weights: str = "",
    resize: str = "tensorflow",
) -> Network:
    """The network of --features: `classifier` (of `judge`), `inception`, `pixels`, or a Network `pkg.module:name`.

    weights, resize: of Inception (`inception`).
    """
    if name == "classifier":
        return classifier(judge())
    if name == "inception":
        return inception(weights or None, cache, resize)
    if name == "pixels":
        return pixels(source.shape)
    if ":" not in name:
        raise unknown("features", name, FEATURES, "or your own: pkg.module:name")
    return lookup.member("features", name, sys.modules[__name__], Network)


def classifier(judge: Judge) -> Network:
    """The last hidden layer of a classifier of the data set itself: for images that are none of ImageNet's.

    Of an unlabelled set it tells how far an image was turned, which are no classes of samples: there are no logits.
    """
    told, labelled = digest(judge.params, judge.classifier), judge.labels is not None
    return Network("classifier", told, _classifies(judge.classifier, labelled), judge.params, labelled)


def inception(weights: str | None, cache: epath.PathLike, resizing: str = "tensorflow") -> Network:
    """The network of FID, whose weights file is looked for at `weights`, or else in the folder `cache`.

    resizing: as TensorFlow 1 did, which published figures have, or antialiased (arXiv:2104.11222).
    """
    if resizing not in RESIZINGS:
        raise unknown("resizing", resizing, RESIZINGS)
    params = published.weights(weights, cache)
    function: Any = published.Inception(RESIZINGS[resizing]).apply
    return Network("inception", digest(params, resizing), function, params, batch=64)


@functools.cache
def _classifies(module: nn.Module, labelled: bool) -> Callable:
    def function(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        outputs: Any = module.apply(params, images)
        logits, features = outputs
        return features, logits if labelled else None

    return function


def parts_of(source: Source, rows: np.ndarray, size: int = 1024) -> Iterator[np.ndarray]:
    """Real images uint8 (b, h, w, c), in the order of `rows`."""
    for start in range(0, len(rows), size):
        yield source.read(rows[start : start + size])["image"]


@numerics.fixed()
def embed(network: Network, parts: Iterable[np.ndarray], devices: Sequence[jax.Device] | None = None) -> Embedded:
    """All images of `parts`, uint8 (b, h, w, c) or float in [-1, 1], a batch at a time over the devices.

    The same for any division into parts. InputError for no images at all.
    """
    devices = list(devices or jax.devices()[:1])
    mesh = Mesh(np.asarray(devices), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    size = -(-network.batch // len(devices)) * len(devices)
    params = jax.device_put(network.params, whole)
    pending: collections.deque[tuple[Any, int]] = collections.deque()
    features: list[np.ndarray] = []
    logits: list[np.ndarray] = []

    def collect() -> None:
        found, count = pending.popleft()
        for kept, x in zip((features, logits), jax.device_get(found), strict=True):
            if x is not None:
                kept.append(x[:count])

    for batch, count in batches(parts, size):
        pending.append((_apply(network.function, params, jax.device_put(batch, split)), count))
        if len(pending) > AHEAD:
            collect()
    while pending:
        collect()
    if not features:
        raise InputError("no images to evaluate; expected at least one")
    return Embedded(np.concatenate(features), np.concatenate(logits) if logits else None)


def batches(parts: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """uint8 (size, h, w, c) and how many of them count: the last is filled up, so that one program does for all."""
    held: list[np.ndarray] = []
    for part in parts:
        layout.check(part.shape, "images to evaluate")
        for start in range(0, len(part), size):  # in slices, so that no large part is copied as a whole
            held.append(to_uint8(part[start : start + size]))
            if sum(map(len, held)) >= size:
                joined = np.concatenate(held)
                yield joined[:size], size
                held = [joined[size:]]
    rest = np.concatenate(held) if held else np.zeros(0)
    if len(rest):
        yield rest[np.minimum(np.arange(size), len(rest) - 1)], len(rest)


@functools.partial(jax.jit, static_argnums=0)
def _apply(function: Callable, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    with jax.default_matmul_precision("highest"):
        return function(params, to_float(images))


@numerics.fixed()
@functools.partial(jax.jit, static_argnums=0)
def features(function: Callable, params: Any, images: jax.Array) -> jax.Array:
    """Of images in [-1, 1] as they are, not rounded to bytes: for differences smaller than these."""
    with jax.default_matmul_precision("highest"):
        return function(params, images)[0]


def digest(tree: Any, *how: Any) -> str:
    """Of weights, their names, and whatever else matters: 24 hexadecimal digits."""
    code = hashlib.sha256(repr(how).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        code.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        code.update(np.ascontiguousarray(leaf).tobytes())
    return code.hexdigest()[:24]
