"""Winograd's minimal filtering F(2x2, m x m): convolutions of stride 1 with fewer products (arXiv:1509.09308).

Two neighbouring outputs of a filter of m taps need m + 1 products instead of 2m: with matrices B, G and A,

    y = A^T [(G w) * (B^T z)],      z: m + 1 inputs, w: m taps, y: 2 outputs,

and so in both directions of an image: 9 products instead of 16 for m = 2, 16 instead of 36 for m = 3. In the space of
the products the convolution is a batch of matrix products over channels; so are its transpose and its weight gradient,
which the transposed transforms yield. The transforms are sums of a few neighbours. Their rounding error in float32
stays near that of the plain sum: coefficients are 0, ±1 and, for m = 3, ±½ (the tests hold it to 4e-6 of the largest
value).

Shapes: z (b, 2T + m - 1, 2S + m - 1, c), w (m, m, c, d), y (b, 2T, 2S, d); products (a², b T S, ·) with a = m + 1.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# (B^T, G, A) for m taps; m = 2 with the points 0, 1 and infinity, m = 3 with 0, 1, -1 and infinity.
MATRICES = {
    2: (
        np.array([[1, -1, 0], [0, 1, 0], [0, 1, -1]]),
        np.array([[1, 0], [1, 1], [0, 1]]),
        np.array([[1, 0], [1, 1], [0, -1]]),
    ),
    3: (
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
        np.array([[1, 0], [1, 1], [1, -1], [0, -1]]),
    ),
}
# Transformed images of more bytes than this are worked off in parts of the batch, or they would leave the cache of
# a CPU and be written to memory and read again (32x32x64 -> 16x16x128, batch 64: weight gradient 115 -> 160 GFLOP/s).
CACHE = 5 * 2**20


def correlate(z: jax.Array, w: jax.Array) -> jax.Array:
    """z, w -> y: the sum over u, v of z[:, i + u, j + v] w[u, v]."""
    kernel, m = _kernel(w), w.shape[0]
    return _in_parts(lambda z: _output(_matmul(_data(z, m), kernel, 2, 1), z.shape, m), z, _parts(z, m, w.shape[3]))


def spread(y: jax.Array, w: jax.Array) -> jax.Array:
    """y, w -> z: the transpose of `correlate` as a map of z."""
    kernel, m = _kernel(w), w.shape[0]
    return _in_parts(lambda y: _data_t(_matmul(_output_t(y, m), kernel, 2, 2), y.shape, m), y, _parts(y, m, w.shape[2]))


def contract(z: jax.Array, y: jax.Array) -> jax.Array:
    """z, y -> w: the transpose of `correlate` as a map of w."""
    m = z.shape[1] - y.shape[1] + 1

    def part(z, y):
        # The wider operand last: XLA's matrix product with both operands transposed is faster so (110 -> 165 GFLOP/s).
        data, out = _data(z, m), _output_t(y, m)
        wider = data.shape[2] >= out.shape[2]
        return _matmul(out, data, 1, 1).transpose(0, 2, 1) if wider else _matmul(data, out, 1, 1)

    n = _parts(z, m, y.shape[3])
    if n == 1:
        return _kernel_t(part(z, y), m)
    zero = jnp.zeros(((m + 1) ** 2, z.shape[3], y.shape[3]), z.dtype)
    total, _ = lax.scan(lambda sum, zy: (sum + part(*zy), None), zero, (_split(z, n), _split(y, n)))
    return _kernel_t(total, m)


def _matmul(x: jax.Array, y: jax.Array, i: int, j: int) -> jax.Array:
    return lax.dot_general(x, y, (((i,), (j,)), ((0,), (0,))))


def _parts(images: jax.Array, m: int, other: int) -> int:
    """Parts of the batch that keep transformed images in the cache, unless the kernel is larger still."""
    b, h, w, c = images.shape
    products = (m + 1) ** 2 * 4
    needed = -(-products * b * (h // 2) * (w // 2) * max(c, other) // max(CACHE, products * c * other))
    return next((n for n in range(needed, 4 * needed) if b % n == 0), 1)


def _split(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(parts, -1, *x.shape[1:])


def _in_parts(function: Callable[[jax.Array], jax.Array], x: jax.Array, parts: int) -> jax.Array:
    if parts == 1:
        return function(x)
    y = lax.map(function, _split(x, parts))
    return y.reshape(-1, *y.shape[2:])


def _apply(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """The linear combinations of `parts` that the rows of a small matrix say; zeros and ones cost nothing."""

    def combine(row: np.ndarray) -> jax.Array:
        terms = [x if k == 1 else -x if k == -1 else x * float(k) for k, x in zip(row, parts, strict=True) if k]
        return functools.reduce(jnp.add, terms)

    return [combine(row) for row in matrix]


def _data(z: jax.Array, m: int) -> jax.Array:
    """B^T z B of every tile: z -> (a², b T S, c)."""
    t, s = ((n - m + 1) // 2 for n in z.shape[1:3])
    matrix = MATRICES[m][0]
    rows = jnp.stack(_apply(matrix, [z[:, j : j + 2 * t - 1 : 2] for j in range(m + 1)]))  # (a, b, T, w, c)
    both = _apply(matrix, [rows[:, :, :, j : j + 2 * s - 1 : 2] for j in range(m + 1)])
    return jnp.stack(both, 1).reshape((m + 1) ** 2, -1, z.shape[3])


def _data_t(products: jax.Array, y_shape: Sequence[int], m: int) -> jax.Array:
    """The transpose of `_data`: tiles overlap by m - 1 and are added up."""
    b, h, w, _ = y_shape
    q = products.reshape(m + 1, m + 1, b, h // 2, w // 2, -1)
    matrix = MATRICES[m][0].T

    def interleave(q, axis):
        """(a, ..., T, ...) -> its sums at even and at odd places: (..., T + 1, ...) each."""
        first, second = [(0, 0)] * (q.ndim - 1), [(0, 0)] * (q.ndim - 1)
        first[axis], second[axis] = (0, 1), (1, 0)
        d = _apply(matrix, list(q))  # tile t adds d[j][t] at place 2t + j
        even = jnp.pad(d[0], first) + jnp.pad(d[2], second)
        odd = jnp.pad(d[1], first) + (jnp.pad(d[3], second) if m == 3 else 0)
        return even, odd

    rows = interleave(q, 2)  # (a, b, T + 1, S, c)
    places = [jnp.stack(interleave(row, 2), 3) for row in rows]  # (b, T + 1, S + 1, 2, c)
    z = jnp.stack(places, 2).reshape(b, h + 2, w + 2, -1)
    return z[:, : h + m - 1, : w + m - 1]


def _output(products: jax.Array, z_shape: Sequence[int], m: int) -> jax.Array:
    """A^T p A of every tile: (a², b T S, d) -> y."""
    b, t, s = z_shape[0], (z_shape[1] - m + 1) // 2, (z_shape[2] - m + 1) // 2
    p = products.reshape(m + 1, m + 1, b, t, s, -1)
    matrix = MATRICES[m][2].T
    rows = [jnp.stack(_apply(matrix, list(row)), 3) for row in _apply(matrix, list(p))]  # (b, T, S, 2, d)
    return jnp.stack(rows, 2).reshape(b, 2 * t, 2 * s, -1)


def _output_t(y: jax.Array, m: int) -> jax.Array:
    """The transpose of `_output`: y -> (a², b T S, d)."""
    matrix = MATRICES[m][2]
    rows = _apply(matrix, [y[:, 0::2], y[:, 1::2]])
    both = [x for row in rows for x in _apply(matrix, [row[:, :, 0::2], row[:, :, 1::2]])]
    return jnp.stack([x.reshape(-1, x.shape[3]) for x in both])


def _kernel(w: jax.Array) -> jax.Array:
    """G w G^T: (m, m, c, d) -> (a², c, d)."""
    matrix = MATRICES[w.shape[0]][1]
    return jnp.stack([x for row in _apply(matrix, list(w)) for x in _apply(matrix, list(row))])


def _kernel_t(products: jax.Array, m: int) -> jax.Array:
    """The transpose of `_kernel`: (a², c, d) -> (m, m, c, d)."""
    p = products.reshape(m + 1, m + 1, *products.shape[1:])
    matrix = MATRICES[m][1].T
    return jnp.stack([jnp.stack(_apply(matrix, list(row))) for row in _apply(matrix, list(p))])
