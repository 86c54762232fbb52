"""Winograd's minimal filtering F(n x n, m x m): convolutions of stride 1 with fewer products (arXiv:1509.09308).

n neighbouring outputs of a filter of m taps need a = n + m - 1 products instead of n m: with matrices B, G and A,

    y = A^T [(G w) * (B^T z)],      z: a inputs, w: m taps, y: n outputs,

and so in both directions of an image: for 2x2 taps 9 products instead of 16 with n = 2 and 25 instead of 64 with n = 4,
for 3x3 taps 16 instead of 36 and 36 instead of 144. In the space of the products the convolution is a batch of matrix
products over channels; so are its transpose and its weight gradient, which the transposed transforms yield. The
transforms are sums of a few neighbours. Their rounding error in float32 grows with n: root mean square of 6e-7 of the
result's (n = 2), 2e-6 and 3e-6 (n = 4, m = 2 and 3) for 256 channels, where the plain sum has 2e-7 and bfloat16 2e-3.

Shapes: z (b, oh + m - 1, ow + m - 1, c), w (m, m, c, d), y (b, oh, ow, d); of T x S tiles, padded at the bottom and at
the right where n does not divide oh or ow; products (a², b T S, ·).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgan.layers.cpu import even_parts, map_parts, sum_parts

# Transformed images of more bytes than this are worked off in parts of the batch, or they would leave the cache of
# a CPU and be written to memory and read again. A weight gradient adds its parts up in place (32x32x64 -> 16x16x128,
# batch 64, two cores of a Xeon: 127 -> 166 GFLOP/s; of an EPYC, n = 2: 115 -> 160), the other maps have to copy theirs
# together (203 GFLOP/s with 20 MiB, 147 with 5).
CACHE = 20 * 2**20
CACHE_CONTRACT = 5 * 2**20
TAPS = (2, 3)
LEAST = 64  # pixels; below, the kernel's transform takes the time that tiles of 4x4 would save


@functools.cache
def matrices(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B^T, G, A) of F(n, m), (a, a), (a, m) and (a, n): Toom's and Cook's product of polynomials at the points 0, 1,
    -1, 2, -2 and infinity, transposed. B^T's rows are the coefficients of the polynomials that vanish at all other
    points, G and A evaluate at the points, G divided by what those polynomials are there."""
    points = [0.0, 1.0, -1.0, 2.0, -2.0][: n + m - 2]
    others = [[q for q in points if q != p] for p in points]
    b = [[*np.poly(rest)[::-1], 0.0] for rest in others] + [np.poly(points)[::-1]]
    g = [p ** np.arange(m) / np.prod(np.subtract(p, rest)) for p, rest in zip(points, others, strict=True)]
    a = [p ** np.arange(n) for p in points]
    return np.array(b), np.array([*g, np.eye(m)[-1]]), np.array([*a, np.eye(n)[-1]])


def side(m: int, out: Sequence[int]) -> int:
    """n, the outputs on a side of a tile, with the fewest products for oh x ow outputs."""
    return min((4, 2) if out[0] * out[1] >= LEAST else (2,), key=lambda n: products(n, m, out))


def products(n: int, m: int, out: Sequence[int]) -> int:
    """Of an image, for each pair of channels."""
    return (n + m - 1) ** 2 * -(-out[0] // n) * -(-out[1] // n)


def correlate(z: jax.Array, w: jax.Array) -> jax.Array:
    """z, w -> y: the sum over u, v of z[:, i + u, j + v] w[u, v]."""
    m, (oh, ow) = w.shape[0], (k - w.shape[0] + 1 for k in z.shape[1:3])
    n = side(m, (oh, ow))
    kernel, z = _kernel(w, n), _whole(z, n, (oh, ow))
    parts = _parts(z, n, m, w.shape[3], CACHE)
    return map_parts(lambda z: _output(_matmul(_data(z, n, m), kernel, 2, 1), z.shape, n, m), z, parts)[:, :oh, :ow]


def spread(y: jax.Array, w: jax.Array) -> jax.Array:
    """y, w -> z: the transpose of `correlate` as a map of z."""
    m, (oh, ow) = w.shape[0], y.shape[1:3]
    n = side(m, (oh, ow))
    kernel, y = _kernel(w, n), _whole(y, n, (oh, ow))
    parts = _parts(y, n, m, w.shape[2], CACHE)
    z = map_parts(lambda y: _data_t(_matmul(_output_t(y, n, m), kernel, 2, 2), y.shape, n, m), y, parts)
    return z[:, : oh + m - 1, : ow + m - 1]


def contract(z: jax.Array, y: jax.Array) -> jax.Array:
    """z, y -> w: the transpose of `correlate` as a map of w."""
    m, out = z.shape[1] - y.shape[1] + 1, y.shape[1:3]
    n = side(m, out)
    z, y = _whole(z, n, out), _whole(y, n, out)

    def part(z, y):
        # The wider operand last: XLA's matrix product with both operands transposed is faster so (110 -> 165 GFLOP/s).
        data, out = _data(z, n, m), _output_t(y, n, m)
        wider = data.shape[2] >= out.shape[2]
        return _matmul(out, data, 1, 1).transpose(0, 2, 1) if wider else _matmul(data, out, 1, 1)

    return _kernel_t(sum_parts(part, (z, y), _parts(z, n, m, y.shape[3], CACHE_CONTRACT)), n, m)


def _matmul(x: jax.Array, y: jax.Array, i: int, j: int) -> jax.Array:
    return lax.dot_general(x, y, (((i,), (j,)), ((0,), (0,))))


def _whole(x: jax.Array, n: int, out: Sequence[int]) -> jax.Array:
    """Padded for whole tiles."""
    return jnp.pad(x, ((0, 0), (0, -out[0] % n), (0, -out[1] % n), (0, 0)))


def _parts(images: jax.Array, n: int, m: int, other: int, cache: int) -> int:
    """Parts of the batch that keep transformed images in the cache, unless the kernel is larger still."""
    b, h, w, c = images.shape
    size = (n + m - 1) ** 2 * 4  # bytes of a tile's products, for each channel
    needed = -(-size * b * (h // n) * (w // n) * max(c, other) // max(cache, size * c * other))
    return even_parts(b, needed)


def _apply(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """The linear combinations of `parts` that the rows of a small matrix say; zeros and ones cost nothing."""

    def combine(row: np.ndarray) -> jax.Array:
        terms = [x if k == 1 else -x if k == -1 else x * float(k) for k, x in zip(row, parts, strict=True) if k]
        return functools.reduce(jnp.add, terms)

    return [combine(row) for row in matrix]


def _data(z: jax.Array, n: int, m: int) -> jax.Array:
    """B^T z B of every tile: z -> (a², b T S, c)."""
    a, (t, s) = n + m - 1, ((k - m + 1) // n for k in z.shape[1:3])
    matrix = matrices(n, m)[0]
    rows = jnp.stack(_apply(matrix, [z[:, j : j + n * t - n + 1 : n] for j in range(a)]))  # (a, b, T, w, c)
    both = _apply(matrix, [rows[:, :, :, j : j + n * s - n + 1 : n] for j in range(a)])
    return jnp.stack(both, 1).reshape(a * a, -1, z.shape[3])


def _data_t(products: jax.Array, y_shape: Sequence[int], n: int, m: int) -> jax.Array:
    """The transpose of `_data`: tiles overlap by m - 1 and are added up."""
    a, (b, h, w, _) = n + m - 1, y_shape
    q = products.reshape(a, a, b, h // n, w // n, -1)
    matrix = matrices(n, m)[0].T

    def interleave(q, axis):
        """(a, ..., T, ...) -> its sums at each of n places of a tile, and of one more tile: (..., T + 1, ...) each."""
        own, next_one = [(0, 0)] * (q.ndim - 1), [(0, 0)] * (q.ndim - 1)
        own[axis], next_one[axis] = (0, 1), (1, 0)
        d = _apply(matrix, list(q))  # tile t adds d[j][t] at place n t + j
        return [jnp.pad(d[j], own) + (jnp.pad(d[n + j], next_one) if n + j < a else 0) for j in range(n)]

    rows = interleave(q, 2)  # n of (a, b, T + 1, S, c), by `a` of the columns
    places = [jnp.stack(interleave(row, 2), 3) for row in rows]  # (b, T + 1, S + 1, n, c)
    z = jnp.stack(places, 2).reshape(b, h + n, w + n, -1)
    return z[:, : h + m - 1, : w + m - 1]


def _output(products: jax.Array, z_shape: Sequence[int], n: int, m: int) -> jax.Array:
    """A^T p A of every tile: (a², b T S, d) -> y."""
    a, b, t, s = n + m - 1, z_shape[0], (z_shape[1] - m + 1) // n, (z_shape[2] - m + 1) // n
    p = products.reshape(a, a, b, t, s, -1)
    matrix = matrices(n, m)[2].T
    rows = [jnp.stack(_apply(matrix, list(row)), 3) for row in _apply(matrix, list(p))]  # (b, T, S, n, d)
    return jnp.stack(rows, 2).reshape(b, n * t, n * s, -1)


def _output_t(y: jax.Array, n: int, m: int) -> jax.Array:
    """The transpose of `_output`: y -> (a², b T S, d)."""
    matrix = matrices(n, m)[2]
    rows = _apply(matrix, [y[:, j::n] for j in range(n)])
    both = [x for row in rows for x in _apply(matrix, [row[:, :, j::n] for j in range(n)])]
    return jnp.stack([x.reshape(-1, x.shape[3]) for x in both])


def _kernel(w: jax.Array, n: int) -> jax.Array:
    """G w G^T: (m, m, c, d) -> (a², c, d)."""
    matrix = matrices(n, w.shape[0])[1]
    return jnp.stack([x for row in _apply(matrix, list(w)) for x in _apply(matrix, list(row))])


def _kernel_t(products: jax.Array, n: int, m: int) -> jax.Array:
    """The transpose of `_kernel`: (a², c, d) -> (m, m, c, d)."""
    p = products.reshape(n + m - 1, n + m - 1, *products.shape[1:])
    matrix = matrices(n, m)[1].T
    return jnp.stack([jnp.stack(_apply(matrix, list(row))) for row in _apply(matrix, list(p))])
