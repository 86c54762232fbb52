"""Convolutions with the kernel's columns on one side of a matrix product, and its rows on the other.

The product of m shifted copies of an image with the weights of m rows has all m² taps, for as much arithmetic as that
of m² shifted copies, which are m times as many to write and to read again; m images are left to be added up. It takes
in m - 1 rows more than the smaller image has.

Shapes: z (..., h, w, c), y (..., oh, ow, d) with oh = h - m + 1, w (m, m, c, d).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxgan.layers.cpu import as_bits, sums


@as_bits
def columns(z: jax.Array, m: int) -> jax.Array:
    """(..., h, w, c) -> (..., h, ow, m, c): its copies shifted by columns."""
    ow = z.shape[-2] - m + 1
    return jnp.stack([lax.slice_in_dim(z, v, v + ow, axis=-2) for v in range(m)], -2)


@as_bits
def rows(y: jax.Array, m: int) -> jax.Array:
    """(..., oh, ow, d) -> (..., h, ow, m, d): its copies shifted by rows, zeros around them."""
    h = y.shape[-3] + m - 1
    y = jnp.pad(y, [(0, 0)] * (y.ndim - 3) + [(m - 1, m - 1), (0, 0), (0, 0)])
    return jnp.stack([lax.slice_in_dim(y, m - 1 - u, m - 1 - u + h, axis=-3) for u in range(m)], -2)


def sum_of_rows(products: jax.Array) -> jax.Array:
    """(..., h, ow, m, d) -> (..., oh, ow, d), the transpose of `rows`."""
    h, _, m, _ = products.shape[-4:]
    shifted = [lax.slice_in_dim(products[..., u, :], u, u + h - m + 1, axis=-3) for u in range(m)]
    return functools.reduce(jnp.add, shifted)


def sum_of_columns(products: jax.Array) -> jax.Array:
    """(..., h, ow, m, c) -> (..., h, w, c), the transpose of `columns`."""
    m, none = products.shape[-2], [(0, 0)] * (products.ndim - 3)
    shifted = [jnp.pad(products[..., v, :], [*none, (v, m - 1 - v), (0, 0)]) for v in range(m)]
    return functools.reduce(jnp.add, shifted)


def _sums(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (..., m, c), kernel (m, c, m, d) -> (..., m, d), in float32 at least."""
    m, d = kernel.shape[2:]
    return sums(x.reshape(-1, m * x.shape[-1]), kernel.reshape(-1, m * d), 1, 0).reshape(*x.shape[:-2], m, d)


def correlate(z: jax.Array, w: jax.Array) -> jax.Array:
    """z, w -> y: the sum over u, v of z[:, i + u, j + v] w[u, v]."""
    return sum_of_rows(_sums(columns(z, w.shape[0]), w.transpose(1, 2, 0, 3))).astype(z.dtype)


def spread(y: jax.Array, w: jax.Array) -> jax.Array:
    """y, w -> z: the transpose of `correlate` as a map of z."""
    return sum_of_columns(_sums(rows(y, w.shape[0]), w.transpose(0, 3, 1, 2))).astype(y.dtype)
