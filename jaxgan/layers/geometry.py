"""Affine maps of images without aliasing (arXiv:2006.06676, appendix B.2)."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxgan.layers import wavelet


def product(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """Matrices a @ b of images or coordinates, in float32 whatever the networks use."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def turn(angle: jax.Array) -> jax.Array:
    """Angles (...) -> rotations (..., 2, 2) of columns (x, y)."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def warp(images: jax.Array, linear: jax.Array, offset: jax.Array) -> jax.Array:
    """Moves images (b, h, w, c): the pixel at (x, y) from the centre shows what was at linear @ (x, y) + offset.

    linear: (b, 2, 2). offset: (b, 2), in pixels. Both map places of the output to places of the input.

    The image is doubled by an orthogonal wavelet (sym6), looked up bilinearly at twice the resolution, and halved by
    the transposed filter. Outside it continues as its reflection, without end: what is doubled is one period of that,
    (4h - 4, 4w - 4), 16 times the memory of the image, and places are taken modulo the period. The authors pad as far
    as the batch at hand reaches, by reflection up to the image's own size and by zeros beyond: within that reach the
    two are equal, and here shapes are static and an image does not depend on the others of its batch.

    An image whose map is the identity passes bit for bit.
    """
    _, h, w, _ = images.shape
    planes = images.transpose(0, 3, 1, 2)  # (b, c, h, w), so that doubling and halving are plain products
    planes = product(wavelet.doubling(h), product(planes, wavelet.doubling(w).T))  # (b, c, 4h - 4, 4w - 4)

    cy, cx = (h - 1) / 2, (w - 1) / 2
    y = jnp.arange(-wavelet.MARGIN, 2 * h + wavelet.MARGIN)[:, None] / 2 - cy
    x = jnp.arange(-wavelet.MARGIN, 2 * w + wavelet.MARGIN)[None, :] / 2 - cx

    def look(planes, linear, offset):
        rows = linear[1, 0] * x + linear[1, 1] * y + offset[1] + cy
        columns = linear[0, 0] * x + linear[0, 1] * y + offset[0] + cx
        return bilinear(planes, 2 * rows, 2 * columns)

    planes = jax.vmap(look)(planes, linear, offset)  # (b, c, 2h + 12, 2w + 12)
    planes = product(wavelet.halving(h), product(planes, wavelet.halving(w).T))  # (b, c, h, w)
    moved = jnp.any(linear != jnp.eye(2), (1, 2)) | jnp.any(offset != 0, 1)
    return jnp.where(moved[:, None, None, None], planes.transpose(0, 2, 3, 1), images)


def bilinear(planes: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Planes (c, h, w), which repeat without end, at fractional places (m, n) -> (c, m, n)."""
    _, h, w = planes.shape

    def neighbours(places: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        floor = jnp.floor(places)
        first = floor.astype(jnp.int32) % size
        return first, jnp.where(first == size - 1, 0, first + 1), places - floor

    top, bottom, down = neighbours(rows, h)
    left, right, across = neighbours(columns, w)
    flat = planes.reshape(-1, h * w)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return flat.at[:, row * w + column].get(mode="promise_in_bounds")

    above = (1 - across) * at(top, left) + across * at(top, right)
    below = (1 - across) * at(bottom, left) + across * at(bottom, right)
    return (1 - down) * above + down * below


def translate(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Image (h, w, c) moved by whole pixels (down, right), zeros where nothing was."""
    h, w, c = image.shape
    padded = jnp.pad(image, ((h, h), (w, w), (0, 0)))
    return lax.dynamic_slice(padded, (h - shift[0], w - shift[1], 0), (h, w, c))
