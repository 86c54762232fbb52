"""Resizing as evaluation protocols have it, bit by bit where it matters: two small matrix products, one an axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Resizing = Callable[[int, int], np.ndarray]  # size, new size -> float32 (new size, size)


def tensorflow(size: int, new: int) -> np.ndarray:
    """(new, size): bilinear, as TensorFlow 1 has it: pixel i is taken at i size / new, and nothing is averaged.

    So a larger image loses what lies between, and every image is shifted by up to half a pixel.
    """
    # The coordinates are float32 there too: at the far end of 300 pixels they are off by 3e-5 of one.
    at = np.arange(new, dtype=np.float32) * (np.float32(size) / np.float32(new))
    low = np.minimum(at.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((new, size), np.float32)
    np.add.at(matrix, (np.arange(new), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(new), high), at - low)
    return matrix


def antialias(size: int, new: int) -> np.ndarray:
    """(new, size): Pillow's bicubic of float images, as clean-fid has it (arXiv:2104.11222).

    Cubic convolution with a = -1/2 around pixel centres, widened where the image shrinks and cut off at its borders.
    """
    scale = size / new
    width = max(scale, 1.0)
    matrix = np.zeros((new, size))
    for i in range(new):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - 2 * width + 0.5), 0), min(int(centre + 2 * width + 0.5), size)
        x = np.abs((np.arange(first, last) - centre + 0.5) / width)
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = np.where(x < 1, near, np.where(x < 2, far, 0))
        matrix[i, first:last] = weight / weight.sum()
    return matrix.astype(np.float32)


RESIZINGS: dict[str, Resizing] = {"tensorflow": tensorflow, "antialias": antialias}


def resize(x: jax.Array, size: tuple[int, int], resizing: Resizing) -> jax.Array:
    """float32 (b, h, w, c) -> (b, *size, c); an image of that size stays as it is.

    In full precision whatever the default is: products in bfloat16 would leave 8 bits of a pixel.
    """
    _, height, width, _ = x.shape
    if height != size[0]:
        x = jnp.einsum("ih,bhwc->biwc", resizing(height, size[0]), x, precision="highest")
    if width != size[1]:
        x = jnp.einsum("jw,biwc->bijc", resizing(width, size[1]), x, precision="highest")
    return x
