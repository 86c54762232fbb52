"""Exact nearest neighbours and comparisons of distances, by float32 products on the device.

|x - y|² = |x|² + |y|² - 2 x·y is one matrix product, but little of it remains of two points that are near each other.
So the device only sorts out: each of its distances comes with a bound on its error, relative to |x|² + |y|² from the
mean of the points. What lies within the bound of a decision, tens of pairs in a million, is settled on the host by
Σ (x - y)² in float64; and where that is much of a block (tight clusters far apart), by a product in float64 before.
Results are those of float64 throughout, and do not depend on the device or on the blocks. (One limit: in a cluster of
more than `WIDE` points, narrower than 10⁻⁵ of the distance to the next, that product does not tell which are nearest.)

Internally distances are squared and times `Points.scale`², a power of two that keeps float32 in its range.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgan.metrics.features import ROWS, blocks

COLUMNS = 2048  # of a block of distances on the device, 8 MiB of ROWS of them
EXTRA = 3  # candidates beside the k nearest; the last one's bound proves that no other comes before these
WIDE = 32  # of these where that proof fails, and distances are computed anew in float64
PAIRS = 512  # pairs whose coordinates are gathered at a time
TINY = 2.0**-100  # products of coordinates below 2^-126 become 0, which is 2^-24 of this and less
CROWDED = 300  # a float64 product settles more than one pair in so many, sums of squares fewer


@dataclasses.dataclass(frozen=True)
class Points:
    given: np.ndarray  # (n, d) float32 or float64
    centred: np.ndarray  # (n, d) float32, (given - centre) * scale
    squares: np.ndarray  # (n,) float32, their squared lengths
    centre: np.ndarray  # (d,) float64
    scale: float

    def __len__(self) -> int:
        return len(self.given)

    def take(self, rows: np.ndarray) -> "Points":
        return dataclasses.replace(self, given=self.given[rows], centred=self.centred[rows], squares=self.squares[rows])

    def exact(self, rows: np.ndarray | slice) -> np.ndarray:
        """(rows, d) float64, centred and scaled."""
        moved = self.given[rows] - self.centre
        moved *= self.scale
        return moved


class Block(NamedTuple):
    """Rows of points on the device, filled up with zeros to one compiled shape."""

    x: jax.Array  # (b, d)
    squares: jax.Array  # (b,)
    ids: jax.Array  # (b,) row numbers; negative where filled up


def points(*sets: np.ndarray) -> list[Points]:
    """Sets (n, d) of features that are to be compared, centred by the mean of the first."""
    centre = sets[0].mean(0, dtype=np.float64)
    largest = max(float(np.abs(x[rows] - centre).max()) for x in sets for rows in blocks(len(x), ROWS))
    scale = float(2.0 ** -np.ceil(np.log2(largest))) if largest else 1.0
    made = []
    for x in sets:
        centred, squares = np.empty(x.shape, np.float32), np.empty(len(x), np.float32)
        for rows in blocks(len(x), ROWS):
            moved = (x[rows] - centre) * scale
            centred[rows], squares[rows] = moved, np.einsum("nd,nd->n", moved, moved)
        made.append(Points(x, centred, squares, centre, scale))
    return made


def block(x: Points, rows: slice, most: int) -> Block:
    """At most `most` rows, filled up to the next power of two, or to as many as the other blocks of these points."""
    size = min(most, 1 << (len(x) - 1).bit_length())
    count = rows.stop - rows.start
    ids = np.full(size, -1, np.int32)
    ids[:count] = np.arange(rows.start, rows.stop)
    return Block(
        jnp.asarray(padded(x.centred[rows], size)), jnp.asarray(padded(x.squares[rows], size)), jnp.asarray(ids)
    )


def padded(x: np.ndarray, size: int, value: float = 0.0) -> np.ndarray:
    if len(x) == size:
        return x
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=value)


def bounds(x: Block, y: Block) -> tuple[jax.Array, jax.Array]:
    """Lower and upper bounds (b, c) of the squared distances, float32."""
    sums = x.squares[:, None] + y.squares
    # A product of d terms is wrong by d units at most, in any order of additions (Jeannerod and Rump 2013,
    # doi:10.1137/120894488). Mostly rounding walks at random, and √d would do; but equal terms, as of grey images, are
    # rounded alike, by 100 units of 784 on a CPU. That of the coordinates and of what is added is 8 units at most.
    slack = (sums + TINY) * (_units(x.x.shape[1]) * 2**-24)
    squared = sums - 2 * jnp.matmul(x.x, y.x.T, precision=lax.Precision.HIGHEST)
    return jnp.maximum(squared - slack, 0.0), squared + slack


def _units(d: int) -> int:
    """Of rounding, relative to |x|² + |y|², in |x|² + |y|² - 2 x·y of d dimensions."""
    return 24 + d


def least(keys: jax.Array, ids: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k smallest of each row of keys (b, c), ascending, and the ids (c,) of their columns; -1 of infinite keys."""
    values, columns = lax.top_k(-keys, min(k, keys.shape[1]))
    return -values, jnp.where(values > -jnp.inf, ids[columns], -1)


class Candidates:
    """The `keep` columns with the smallest lower bounds that each of n rows has met, over all blocks."""

    def __init__(self, n: int, keep: int) -> None:
        self.keys = np.full((n, keep), np.inf, np.float32)
        self.columns = np.full((n, keep), -1, np.int32)

    def meet(self, rows: slice, keys: jax.Array, columns: jax.Array) -> None:
        count, keep = rows.stop - rows.start, self.keys.shape[1]
        all_keys = np.concatenate([self.keys[rows], np.asarray(keys)[:count]], axis=1)
        all_columns = np.concatenate([self.columns[rows], np.asarray(columns)[:count]], axis=1)
        order = np.argsort(all_keys, axis=1, kind="stable")[:, :keep]
        self.keys[rows] = np.take_along_axis(all_keys, order, axis=1)
        self.columns[rows] = np.take_along_axis(all_columns, order, axis=1)

    def settle(
        self,
        x: Points,
        y: Points,
        k: int,
        own: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k smallest keys (n, k) in float64, ascending, and their columns, of equal keys the first that is known.

        A key is a squared distance, times the `weights` (m,) of the columns if given. Columns of infinite weight are
        left out, as are the columns `own` (n,).
        """
        keys, columns = _ranked(x, y, np.arange(len(x)), self.columns, weights)
        # float32 weights, and the product with them, are right to 2^-23.
        proved = keys[:, k - 1] <= self.keys[:, -1].astype(np.float64) * (1 - 2**-22)
        proved |= self.columns[:, -1] < 0  # every column is a candidate
        for part in blocks(int((~proved).sum()), ROWS):
            rows = np.flatnonzero(~proved)[part]
            wider = _wider(x, y, rows, k, own, weights)
            keys[rows, :k], columns[rows, :k] = (found[:, :k] for found in _ranked(x, y, rows, wider, weights))
        return keys[:, :k], columns[:, :k]


def search(x: Points, y: Points, k: int, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of y to each of x: (n, k) squared scaled distances, ascending, and rows of y.

    `own` (n,): a row of y for each of x that is not to be found, itself where x and y are one set. Ties and duplicates
    need nothing else. k is at most the number of rows that can be found. Within one set, blocks below the diagonal are
    read off those above it.
    """
    found = Candidates(len(x), k + EXTRA)
    hidden = np.full(len(x), -2, np.int32) if own is None else own.astype(np.int32)
    for right in blocks(len(y), COLUMNS):
        columns = block(y, right, COLUMNS)
        for left in blocks(len(x), ROWS):
            if x is y and left.start >= right.stop:
                break
            rows = block(x, left, ROWS)
            ids = jnp.asarray(padded(hidden[left], len(rows.ids), -2))
            above = x is y and left.stop <= right.start
            here, there = _nearest(rows, columns, ids, k + EXTRA, above)
            found.meet(left, *here)
            if above:
                found.meet(right, *there)
    return found.settle(x, y, k, own)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _nearest(x: Block, y: Block, own: jax.Array, k: int, mirrored: bool):
    """Candidates of the rows among the columns and, if `mirrored`, of the columns among the rows."""
    lower, _ = bounds(x, y)
    hidden = (x.ids[:, None] < 0) | (y.ids < 0) | (y.ids == own[:, None])
    keys = jnp.where(hidden, jnp.inf, lower)
    return least(keys, y.ids, k), least(keys.T, x.ids, k) if mirrored else ()


def pair_distances(x: Points, y: Points, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Σ (x_i - y_j)² of pairs (p,) in float64, scaled: exactly 0 of equal points, and the same both ways."""
    found = np.empty(len(rows))
    for part in blocks(len(rows), PAIRS):
        gap = x.given[rows[part]].astype(np.float64)
        gap -= y.given[columns[part]]
        gap *= x.scale
        found[part] = np.einsum("nd,nd->n", gap, gap)
    return found


def compared(
    x: Points, y: Points, rows: np.ndarray, columns: np.ndarray, limits: Sequence[np.ndarray], size: int
) -> np.ndarray:
    """Squared distances (p,) of pairs, right to which side of each of the limits (p,) they lie, or on it.

    `size` is the number of pairs that these were taken from.
    """
    if len(rows) * CROWDED < size:
        return pair_distances(x, y, rows, columns)
    found, slack = np.empty(len(rows)), np.empty(len(rows))
    some, place = np.unique(columns, return_inverse=True)
    order = np.argsort(rows, kind="stable")
    for right in blocks(len(some), COLUMNS):
        b = y.exact(some[right])
        inside = order[(place[order] >= right.start) & (place[order] < right.stop)]
        for left in np.split(inside, np.flatnonzero(np.diff(rows[inside] // (ROWS // 4))) + 1):
            if len(left):
                others, row = np.unique(rows[left], return_inverse=True)
                squared, bound = _squared(x.exact(others), b)
                found[left] = squared[row, place[left] - right.start]
                slack[left] = bound[row, place[left] - right.start]
    close = np.any([np.abs(found - limit) <= slack for limit in limits], axis=0)
    found[close] = pair_distances(x, y, rows[close], columns[close])
    return found


def _ranked(x: Points, y: Points, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray | None):
    """Candidate columns (n, keep) of rows (n,), -1 for none -> float64 keys, ascending, and columns in that order."""
    columns = np.sort(columns, axis=1)
    keys = np.full(columns.shape, np.inf)
    row, place = np.nonzero(columns >= 0)
    keys[row, place] = pair_distances(x, y, rows[row], columns[row, place])
    if weights is not None:
        keys[row, place] *= weights[columns[row, place]]
    order = np.argsort(keys, axis=1, kind="stable")
    return np.take_along_axis(keys, order, axis=1), np.take_along_axis(columns, order, axis=1)


def _wider(x: Points, y: Points, rows: np.ndarray, k: int, own: np.ndarray | None, weights: np.ndarray | None):
    """Candidates (rows, k + WIDE) by products in float64."""
    a = x.exact(rows)
    best: tuple[np.ndarray, np.ndarray] = np.zeros((len(rows), 0)), np.zeros((len(rows), 0), np.intp)
    for right in blocks(len(y), COLUMNS):
        keys, _ = _squared(a, y.exact(right))
        if weights is not None:
            some = np.isfinite(weights[right])
            keys = np.where(some, keys * np.where(some, weights[right], 0), np.inf)
        columns = np.broadcast_to(np.arange(right.start, right.stop), keys.shape)
        if own is not None:
            keys[columns == own[rows, None]] = np.inf
        keys, columns = np.concatenate([best[0], keys], axis=1), np.concatenate([best[1], columns], axis=1)
        if keys.shape[1] > k + WIDE:
            chosen = np.argpartition(keys, k + WIDE - 1, axis=1)[:, : k + WIDE]
            keys, columns = np.take_along_axis(keys, chosen, axis=1), np.take_along_axis(columns, chosen, axis=1)
        best = keys, columns
    return np.where(np.isinf(best[0]), -1, best[1])


def _squared(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of (n, d) and (m, d) in float64, and what they may be wrong by."""
    sums = np.einsum("nd,nd->n", a, a)[:, None] + np.einsum("nd,nd->n", b, b)
    squared = sums - 2 * (a @ b.T)
    sums *= _units(a.shape[1]) * 2.0**-53
    return np.maximum(squared, 0, out=squared), sums
