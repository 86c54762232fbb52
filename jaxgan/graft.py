"""Weights of one network as the start of another, of more or fewer classes or channels of images.

A leaf of the same name and shape is copied. Where a shape differs as the numbers of classes or channels do, each axis
is carried over by a linear map, and what it leaves open keeps the values that the new network was born with.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgan import leaves


class Change(NamedTuple):
    """How the old network differs from the new one.

    channels: of the images, old and new. A network that makes images gets for each new channel the mean of the old.
      One that sees images (`sees`) gets shares that add up to what the old ones did: a grey image weighs the same in
      it, whether it has one channel or three equal ones.
    classes: old and new; those of an axis are its last rows.
    like: where their number differs, for each new class the old one that it starts from. Empty: the first ones keep
      theirs, further ones start from the mean of all.
    """

    channels: tuple[int, int] = (1, 1)
    classes: tuple[int, int] = (0, 0)
    like: tuple[int, ...] = ()
    sees: bool = False


def graft(old: Mapping[str, Any], new: Mapping[str, Any], change: Change) -> tuple[Any, dict[str, str]]:
    """The tree `new` with what `old` has for it, and what became of each leaf that is not a copy: {name: words}.

    Both are nested dicts of arrays; the result holds NumPy arrays of the shapes and dtypes of `new`.
    """
    there, told = dict(leaves.names(old)), {}
    wanted, structure = jax.tree.flatten(new)
    grown = []
    for (name, _), leaf in zip(leaves.names(new), map(np.asarray, wanted), strict=True):
        source = np.asarray(there.pop(name)) if name in there else None
        if source is not None and source.shape == leaf.shape:
            grown.append(source.astype(leaf.dtype))
            continue
        adapted = None if source is None else _adapted(source, leaf, change)
        grown.append(leaf if adapted is None else adapted.astype(leaf.dtype))
        was = "not in the source" if source is None else f"{source.shape} in the source"
        told[name] = f"{leaf.shape}, {was}: {'initialised anew' if adapted is None else 'adapted'}"
    return jax.tree.unflatten(structure, grown), told | dict.fromkeys(there, "dropped")


def _adapted(old: np.ndarray, new: np.ndarray, change: Change) -> np.ndarray | None:
    """`old` in the shape of `new`; None where their shapes differ in another way than by `change`."""
    if old.ndim != new.ndim:
        return None
    grown, known = old.astype(np.float64), np.ones((1,) * old.ndim, bool)
    for axis, (s, t) in enumerate(zip(old.shape, new.shape, strict=True)):
        if s == t:
            continue
        carried = _carried(s, t, change)
        if carried is None:
            return None
        grown = np.moveaxis(np.tensordot(carried, grown, (1, axis)), 0, axis)
        known = known & carried.any(1).reshape([-1 if i == axis else 1 for i in range(old.ndim)])
    return np.where(known, grown, new)


def _carried(s: int, t: int, change: Change) -> np.ndarray | None:
    """The matrix (t, s) that carries an axis over: places times channels first, then classes."""
    (c_old, c_new), (k_old, k_new) = change.channels, change.classes
    both = ((c_old, c_new), (k_old, k_new))
    # Only what has changed can be why an axis has; one reason is likelier than two.
    for (c, d), (k, m) in ((both[0], (0, 0)), ((1, 1), both[1]), both):
        places, rest = divmod(s - k, c)
        if s >= k and rest == 0 and places * d + m == t:
            matrix = np.zeros((t, s))
            share = 1 / d if change.sees else 1 / c
            block = np.eye(c) if c == d else np.full((d, c), share)
            matrix[: places * d, : places * c] = np.kron(np.eye(places), block)
            matrix[places * d :, places * c :] = _classes(k, m, change.like)
            return matrix
    return None


def _classes(k: int, m: int, like: tuple[int, ...]) -> np.ndarray:
    """(m, k): which of the old classes a new one is."""
    if like and k:
        return np.eye(k)[list(like)]
    matrix = np.eye(m, k)
    if k:
        matrix[k:] = 1 / k
    return matrix
