"""Convolutions of any stride and their transposes, as functions and as Flax layers."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers import conv_cpu
from jaxgan.layers.spectral import SpectralNorm

Pads = tuple[tuple[int, int], tuple[int, int]]


def same_padding(size: Sequence[int], kernel: int, stride: int) -> Pads:
    """Padding of both axes with which a convolution maps `size` (h, w) to ceil(size / stride)."""

    def one(n: int) -> tuple[int, int]:
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        return total // 2, total - total // 2

    return one(size[0]), one(size[1])


_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """What is traced inside gets XLA's own convolutions on every backend: to count their arithmetic, to compare."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def by_hand() -> bool:
    return jax.default_backend() == "cpu" and not _plain.get()


def conv(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Convolution: x (b, h, w, c), w (k, k, c, d) -> (b, oh, ow, d) with oh = (h + sum(pads[0]) - k) // stride + 1."""
    function = conv_cpu.conv if by_hand() else conv_cpu.conv_xla
    return function(x, w, stride, pads)


def conv_transpose(y: jax.Array, w: jax.Array, stride: int, pads: Pads, size: tuple[int, int]) -> jax.Array:
    """The transpose of `conv` as a map of x: y (b, oh, ow, d), w (k, k, c, d) -> (b, *size, c).

    `pads` and `size` are those of the convolution (b, *size, c) -> (b, oh, ow, d) that it transposes.
    """
    if by_hand():
        return conv_cpu.conv_transpose(y, w, stride, pads, size)
    x = jax.ShapeDtypeStruct((y.shape[0], *size, w.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: conv_cpu.conv_xla(x, w, stride, pads), x)(y)[0]


def _four_shifts(w: jax.Array) -> jax.Array:
    """(k, k, ...) -> (k + 1, k + 1, ...): the full convolution with 2x2 ones."""
    w = jnp.pad(w, ((0, 0), (0, 1), (0, 0), (0, 0))) + jnp.pad(w, ((0, 0), (1, 0), (0, 0), (0, 0)))
    return jnp.pad(w, ((0, 1), (0, 0), (0, 0), (0, 0))) + jnp.pad(w, ((1, 0), (0, 0), (0, 0), (0, 0)))


class Conv(nn.Module):
    """Convolution (b, h, w, c) -> (b, ceil(h / stride), ceil(w / stride), features), or 'VALID'.

    spectral: the kernel is divided by its largest singular value; `train` matters then alone.
    up: of the image enlarged to twice its size, each pixel four times: (b, h, w, c) -> (b, 2h, 2w, features).
    down: followed by the means of 2x2 pixels: (b, 2h, 2w, c) -> (b, h, w, features).

    With either, the kernel is odd, the stride 1, and the whole one convolution of stride 2 with a kernel one wider: the
    sum of the kernel's four shifts. Less than half the products for 3x3, and no image of the size between.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: str = "SAME"
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    spectral: bool = False
    up: bool = False
    down: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        w = self.param("kernel", self.kernel_init, (self.kernel, self.kernel, x.shape[-1], self.features))
        w = SpectralNorm()(w, train) if self.spectral else w
        same = self.padding == "SAME"
        x = x.astype(self.dtype)
        if self.up or self.down:
            assert self.kernel % 2 and self.stride == 1 and same and not (self.up and self.down)
            pads = (((self.kernel - 1) // 2,) * 2,) * 2
        if self.up:
            w = _four_shifts(w[::-1, ::-1].swapaxes(2, 3)).astype(self.dtype)
            x = conv_transpose(x, w, 2, pads, (2 * x.shape[1], 2 * x.shape[2]))
        elif self.down:
            x = conv(x, (_four_shifts(w) / 4).astype(self.dtype), 2, pads)
        else:
            pads = same_padding(x.shape[1:3], self.kernel, self.stride) if same else ((0, 0), (0, 0))
            x = conv(x, w.astype(self.dtype), self.stride, pads)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


class ConvTranspose(nn.Module):
    """Transpose of the 'SAME' convolution from `size` (h, w): (b, ceil(h/s), ceil(w/s), c) -> (b, h, w, features).

    With `size` = None it transposes a 'VALID' one: (b, 1, 1, c) -> (b, k, k, features), many generators' first.
    The kernel is (k, k, features, c), as the convolution that it transposes has it.
    """

    features: int
    kernel: int = 4
    stride: int = 2
    size: tuple[int, int] | None = None
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.param("kernel", self.kernel_init, (self.kernel, self.kernel, self.features, x.shape[-1]))
        if self.size is None:
            height, width = ((n - 1) * self.stride + self.kernel for n in x.shape[1:3])
            size = (height, width)
            pads = ((0, 0), (0, 0))
        else:
            size, pads = self.size, same_padding(self.size, self.kernel, self.stride)
        x = conv_transpose(x.astype(self.dtype), w.astype(self.dtype), self.stride, pads, size)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x
