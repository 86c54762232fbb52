"""The real side of a comparison: features of the data set, made once and kept under everything that they depend on."""

import contextlib
import hashlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from jaxgan import files
from jaxgan.errors import InputError
from jaxgan.metrics import embed, frechet
from jaxgan.metrics.embed import Network
from jaxgan.sources import Source

KEPT = 50_000  # images whose features stay in memory, for what compares pairs; the moments are those of all


class Reference(NamedTuple):
    features: np.ndarray  # (n, d) of at most KEPT images, in random order
    moments: frechet.Moments  # of all that were asked for
    rows: np.ndarray  # (n,) of `features` in the data set
    total: int  # images behind the moments


def reference(
    network: Network,
    source: Source,
    count: int = 0,
    cache: epath.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Reference:
    """Of `count` images of the source in random order (0: all of them), from the folder `cache` where it has them.

    What is kept there is found by a digest of the images themselves (or of the files and all that is done to them), the
    split being part of these, of their number, and of the network with what it does to an image.
    """
    if count < 0 or count > source.num_examples:
        raise InputError(f"{count} reference images: {source.name} has {source.num_examples:,}; expected at most these")
    count = count or source.num_examples
    if count < 2:
        raise InputError(f"{count} reference images of {source.name}: expected at least 2, which have a covariance")
    rows = np.random.default_rng(0).permutation(source.num_examples)[:count]
    path = None
    if cache is not None:
        code = hashlib.sha256(repr((network.name, network.digest, source.shape, count)).encode())
        code.update(content(source, rows))
        path = epath.Path(cache) / "reference" / f"{network.name}-{code.hexdigest()[:32]}.npz"
    found = _read(path) if path else None
    if found is None:
        found = _measure(network, source, rows, devices)
        if path:
            _write(path, *found)
    return Reference(*found, rows[:KEPT], count)


def content(source: Source, rows: np.ndarray) -> bytes:
    """What tells these images from any others."""
    if source.identity:
        return source.identity()
    code = hashlib.sha256()
    for start in range(0, len(rows), 1024):
        part = source.read(rows[start : start + 1024])
        code.update(part["image"].tobytes())
    return code.digest()


def _measure(
    network: Network, source: Source, rows: np.ndarray, devices: Sequence[jax.Device] | None
) -> tuple[np.ndarray, frechet.Moments]:
    first, total = None, frechet.Accumulator()
    for start in range(0, len(rows), KEPT):
        found = embed.embed(network, embed.parts_of(source, rows[start : start + KEPT]), devices).features
        total.add(found)
        first = found if first is None else first
    assert first is not None
    return first, total.moments()


def _write(path: epath.Path, features: np.ndarray, moments: frechet.Moments) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, features=features, mean=moments.mean, covariance=moments.covariance)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the features the next time
        files.write(path, buffer.getbuffer())


def _read(path: epath.Path) -> tuple[np.ndarray, frechet.Moments] | None:
    """What was kept, or None: no file, or one that is not whole (a zip has checksums)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return stored["features"], frechet.Moments(stored["mean"], stored["covariance"])
    except Exception:  # a damaged zip shows as many kinds of error, and each means: make it again
        return None
