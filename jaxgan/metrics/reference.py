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
from jaxgan.metrics.embed import Embedded, Network
from jaxgan.sources import Source

KEPT = 50_000  # images whose features stay in memory, for what compares pairs; the moments are those of all


class Reference(NamedTuple):
    name: str  # of the data set, as the table shows it
    seen: Embedded  # of at most KEPT images, in random order
    moments: frechet.Moments  # of all that were asked for
    labels: np.ndarray | None  # (n,) of `seen`; None for an unlabelled set
    rows: np.ndarray  # (n,) of `seen` in the data set
    total: int  # images behind the moments


def reference(
    network: Network,
    source: Source,
    count: int = 0,
    cache: epath.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Reference:
    """Of `count` images of the source in random order (0: all of them), from the folder `cache` where it has them.

    What is kept there is found by a digest of the images and labels themselves (or of the files and all that is done
    to them), the split, which is part of these, the number of images, and the network with what it does to an image.
    """
    if count < 0 or count > source.num_examples:
        raise InputError(f"{count} reference images: {source.name} has {source.num_examples:,}; expected at most these")
    count = count or source.num_examples
    rows = np.random.default_rng(0).permutation(source.num_examples)[:count]
    path = None
    if cache is not None:
        code = hashlib.sha256(repr((network.name, network.digest, source.shape, count)).encode())
        code.update(content(source, rows))
        path = epath.Path(cache) / "reference" / f"{network.name}-{code.hexdigest()[:32]}.npz"
    labels = source.read(rows[:KEPT])["label"] if source.num_classes > 1 else None
    found = _read(path) if path else None
    if found is None:
        found = _measure(network, source, rows, devices)
        if path:
            _write(path, *found)
    seen, moments = found
    return Reference(source.name, seen, moments, labels, rows[:KEPT], count)


def content(source: Source, rows: np.ndarray) -> bytes:
    """What tells these images from any others."""
    if source.identity:
        return source.identity()
    code = hashlib.sha256()
    for start in range(0, len(rows), 1024):
        part = source.read(rows[start : start + 1024])
        code.update(part["image"].tobytes())
    return code.digest()


def _measure(network: Network, source: Source, rows: np.ndarray, devices: Sequence[jax.Device] | None):
    parts = []
    total = frechet.Accumulator()
    for start in range(0, len(rows), KEPT):
        part = embed.embed(network, embed.parts_of(source, rows[start : start + KEPT]), devices)
        total.add(part.features)
        parts += [part] if not start else []
    return parts[0], total.moments()


def _write(path: epath.Path, seen: Embedded, moments: frechet.Moments) -> None:
    arrays = {"features": seen.features, "mean": moments.mean, "covariance": moments.covariance}
    if seen.logits is not None:
        arrays["logits"] = seen.logits
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the features the next time
        files.write(path, buffer.getbuffer())


def _read(path: epath.Path) -> tuple[Embedded, frechet.Moments] | None:
    """What was kept, or None: no file, or one that is not whole (a zip has checksums)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        return Embedded(arrays["features"], arrays.get("logits")), frechet.Moments(arrays["mean"], arrays["covariance"])
    except Exception:  # a damaged zip shows as many kinds of error, and each means: make it again
        return None
