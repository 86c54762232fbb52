"""How two sets of features lie among each other: fidelity, diversity and copies, from the distances of all pairs.

Balls stand on the samples of one set, each up to its k-th nearest neighbour within that set, itself not counted.

    precision     share of generated samples inside of some real ball           (arXiv:1904.06991, eq. 1; k = 3)
    recall        share of real samples inside of some generated ball           (the same)
    density       real balls that a generated sample is in, over k, on average  (arXiv:2002.09797, eq. 4; k = 5)
    coverage      share of real balls with a generated sample inside            (arXiv:2002.09797, eq. 5; k = 5)
    realism       of one sample: largest radius / distance from the centre over the real balls that are no larger than
                  the median one (arXiv:1904.06991, eq. 2; k = 3)
    authenticity  share of generated samples farther from the nearest real one than that is from the nearest other real
                  one (arXiv:2102.08921, section 4.3); the rest are copies, as far as the features tell

Published figures: precision and recall of 50,000 samples on either side, in the 4,096 features of VGG-16; density and
coverage of 10,000 samples. All of them depend on the number of samples.

A sample on the very surface of a ball is inside for precision and recall (as in the paper, and in torch-fidelity) and
outside for density and coverage (as in prdc). This matters where samples are copies, and nowhere else. The papers' own
code computes distances in float16 (precision and recall) and compares balls of neighbours that may include copies of
the centre; here, too, a copy is a neighbour at distance 0, and only the sample itself is left out, by its row.

Distances are float32 products on the device, settled in float64 where that matters (`distances.py`), in blocks: memory
is that of the features in float32 and some 200 MB.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgan import numerics
from jaxgan.errors import InputError
from jaxgan.metrics.distances import (
    COLUMNS,
    EXTRA,
    Block,
    Candidates,
    Points,
    block,
    bounds,
    compared,
    least,
    padded,
    points,
    search,
)
from jaxgan.metrics.features import ROWS, blocks, both, checked


class Neighbours(NamedTuple):
    precision: float
    recall: float
    density: float
    coverage: float
    authenticity: float
    realism: np.ndarray  # (m,) of each generated sample; 1 or more: inside of a ball; infinite: an exact copy
    nearest: np.ndarray  # (m,) row of its nearest real sample
    distance: np.ndarray  # (m,) from that, Euclidean


class Nearest(NamedTuple):
    rows: np.ndarray  # (n, k) of the set that was searched, nearest first; of equally near ones, any
    distances: np.ndarray  # (n, k) Euclidean, float64


class Memorisation(NamedTuple):
    authenticity: float  # share of samples farther from their nearest training image than that from its own nearest one
    nearest: np.ndarray  # (m,) row of the nearest training image
    distance: np.ndarray  # (m,) from it
    spacing: np.ndarray  # (m,) of that image from its nearest other training image


@numerics.fixed()
def neighbours(real: np.ndarray, fake: np.ndarray, *, k: int = 3, density_k: int = 5) -> Neighbours:
    """All of the above for features (n, d) and (m, d), n, m > k, n > density_k; `k` is that of precision and recall."""
    _positive(k, density_k)
    real, fake = both(real, fake)
    checked(real, "real features", max(k, density_k) + 1, f"for the {max(k, density_k)} nearest others of each")
    checked(fake, "generated features", k + 1, f"for the {k} nearest others of each")
    reals, fakes = points(real, fake)
    within, _ = search(reals, reals, max(k, density_k), np.arange(len(real)))
    inner, wide, spacing = within[:, k - 1], within[:, density_k - 1], within[:, 0]
    outer = search(fakes, fakes, k, np.arange(len(fake)))[0][:, k - 1]
    small = (inner <= np.median(inner)) & (inner > 0)
    weights = np.where(small, 1 / np.where(small, inner, 1), np.inf)
    met = _meet(fakes, reals, inner, wide, outer, weights)
    squared, row = (found[:, 0] for found in met.nearest.settle(fakes, reals, 1))
    least_real = met.covering.settle(reals, fakes, 1)[0][:, 0]
    with np.errstate(divide="ignore"):
        realism = 1 / np.sqrt(met.realism.settle(fakes, reals, 1, weights=weights)[0][:, 0])
    realism[squared == 0] = np.inf
    return Neighbours(
        precision=float(met.precise.mean()),
        recall=float(met.recalled.mean()),
        density=float(met.inside.mean() / density_k),
        coverage=float((least_real < wide).mean()),
        authenticity=float((squared > spacing[row]).mean()),
        realism=realism,
        nearest=row,
        distance=np.sqrt(squared) / reals.scale,
    )


@numerics.fixed()
def nearest(queries: np.ndarray, among: np.ndarray | None = None, k: int = 1) -> Nearest:
    """The k nearest rows of `among` (m, d) to each query (n, d), m >= k; without it, of the other queries, n > k."""
    _positive(k)
    queries = checked(queries, "queries", 1 if among is not None else k + 1, f"for {k} neighbours")
    if among is None:
        (x,) = points(queries)
        squared, rows = search(x, x, k, np.arange(len(x)))
    else:
        among = checked(among, "features to search", k, f"for {k} neighbours")
        if queries.shape[1] != among.shape[1]:
            raise InputError(
                f"queries of {queries.shape[1]} dimensions among features of {among.shape[1]}: not the same"
            )
        y, x = points(among, queries)
        squared, rows = search(x, y, k)
    return Nearest(rows, np.sqrt(squared) / x.scale)


@numerics.fixed()
def memorisation(fake: np.ndarray, train: np.ndarray) -> Memorisation:
    """Features (m, d) of samples and (n, d) of the training set, n >= 2: only the latter's rows that are nearest to a
    sample look for their own neighbours, so a large training set costs m n distances and at most as many again."""
    train, fake = both(train, fake, 1)
    checked(train, "real features", 2, "for the nearest other of each")
    y, x = points(train, fake)
    squared, rows = (found[:, 0] for found in search(x, y, 1))
    some, place = np.unique(rows, return_inverse=True)
    spacing = search(y.take(some), y, 1, some)[0][place, 0]
    return Memorisation(float((squared > spacing).mean()), rows, np.sqrt(squared) / y.scale, np.sqrt(spacing) / y.scale)


def _positive(*ks: int) -> None:
    for k in ks:
        if k < 1:
            raise InputError(f"{k} nearest neighbours: expected 1 or more")


class _Met(NamedTuple):
    nearest: Candidates  # of fakes among reals
    covering: Candidates  # of reals among fakes
    realism: Candidates  # of fakes among reals
    precise: np.ndarray  # (m,) bool
    recalled: np.ndarray  # (n,) bool
    inside: np.ndarray  # (m,) real balls around each


def _meet(x: Points, y: Points, inner: np.ndarray, wide: np.ndarray, outer: np.ndarray, weights: np.ndarray) -> _Met:
    """Fakes x (m, d) and reals y (n, d), with squared radii inner, wide (n,), outer (m,) and realism's weights (n,)."""
    keep = 1 + EXTRA
    met = _Met(
        Candidates(len(x), keep),
        Candidates(len(y), keep),
        Candidates(len(x), keep),
        np.zeros(len(x), bool),
        np.zeros(len(y), bool),
        np.zeros(len(x), np.int64),
    )
    for right in blocks(len(y), COLUMNS):
        columns = block(y, right, COLUMNS)
        radii = [_filled(values[right], len(columns.ids)) for values in (inner, wide)]
        # A smaller weight than it is, where float32 ends, leaves a lower bound what it is.
        finite = np.where(np.isinf(weights[right]), np.inf, np.minimum(weights[right], 1e30)).astype(np.float32)
        weight = jnp.asarray(padded(finite, len(columns.ids), np.inf))
        for left in blocks(len(x), ROWS):
            rows = block(x, left, ROWS)
            found = _compare(rows, columns, *radii, _filled(outer[left], len(rows.ids)), weight, keep)
            met.nearest.meet(left, *found.nearest)
            met.realism.meet(left, *found.realism)
            met.covering.meet(right, *found.covering)
            b, c = left.stop - left.start, right.stop - right.start
            met.precise[left] |= np.asarray(found.precise)[:b]
            met.inside[left] += np.asarray(found.inside)[:b]
            met.recalled[right] |= np.asarray(found.recalled)[:c]
            i, j = np.nonzero(np.asarray(found.unsure)[:b, :c])
            i, j = i + left.start, j + right.start
            squared = compared(x, y, i, j, (inner[j], wide[j], outer[i]), b * c)
            met.precise[i[squared <= inner[j]]] = True
            met.recalled[j[squared <= outer[i]]] = True
            np.add.at(met.inside, i[squared < wide[j]], 1)
    return met


class _Found(NamedTuple):
    nearest: tuple[jax.Array, jax.Array]
    realism: tuple[jax.Array, jax.Array]
    covering: tuple[jax.Array, jax.Array]
    precise: jax.Array  # (b,)
    inside: jax.Array  # (b,)
    recalled: jax.Array  # (c,)
    unsure: jax.Array  # (b, c) pairs that are counted in none of these three


@functools.partial(jax.jit, static_argnums=6)
def _compare(
    x: Block, y: Block, inner: jax.Array, wide: jax.Array, outer: jax.Array, weights: jax.Array, keep: int
) -> _Found:
    lower, upper = bounds(x, y)

    def sides(limit: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Surely inside, and maybe; the limits are right to 2^-24."""
        sure = upper < limit * (1 - 2**-22)
        return sure, (lower <= limit * (1 + 2**-22)) & ~sure

    (precise, a), (inside, b), (recalled, c) = sides(inner), sides(wide), sides(outer[:, None])
    unsure = a | b | c
    real = (x.ids[:, None] >= 0) & (y.ids >= 0)
    unsure, counted = unsure & real, ~unsure & real
    keys = jnp.where(real, lower, jnp.inf)
    weighed = jnp.where(real & (weights < jnp.inf), lower * weights, jnp.inf)
    return _Found(
        nearest=least(keys, y.ids, keep),
        realism=least(weighed, y.ids, keep),
        covering=least(keys.T, x.ids, keep),
        precise=(precise & counted).any(1),
        inside=(inside & counted).sum(1),
        recalled=(recalled & counted).any(0),
        unsure=unsure,
    )


def _filled(values: np.ndarray, size: int) -> jax.Array:
    return jnp.asarray(padded(values, size, -np.inf).astype(np.float32))
