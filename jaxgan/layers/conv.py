"""Convolutions whose gradients, of every order, are fast on a CPU too.

A convolution y = x * w, its input gradient and its weight gradient are three bilinear maps, and the derivatives of each
are the other two. XLA runs all of them well on GPUs and TPUs. On a CPU it runs only the plain forward convolution well:
measured on two AVX-512 cores at batch 64 (32x32x64 -> 16x16x128, 4x4, stride 2; GFLOP/s outside and inside a
`lax.scan`, while a matrix product ran at 155):

                      XLA          here
    forward           117 / 110    the same call
    input gradient     41 / 15      95 / 92    stride-1 convolution with s² times the channels, depth to space
    weight gradient    37 / 0.5     43 / 70    one matrix product over the flattened space-to-depth image

So on a CPU the three are written out below, each the custom derivative of the others, and gradient penalties, which
differentiate a gradient, stay on the same fast paths. Elsewhere they are `lax.conv_general_dilated` and its transpose.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]


def same_padding(size: Sequence[int], kernel: int, stride: int) -> Pads:
    """Padding of both axes with which a convolution maps `size` (h, w) to ceil(size / stride)."""

    def one(n: int) -> tuple[int, int]:
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        return total // 2, total - total // 2

    return one(size[0]), one(size[1])


def conv(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Convolution: x (b, h, w, c), w (k, k, c, d) -> (b, oh, ow, d) with oh = (h + sum(pads[0]) - k) // stride + 1."""
    return _conv_cpu(x, w, stride, pads) if jax.default_backend() == "cpu" else _conv_xla(x, w, stride, pads)


def conv_transpose(y: jax.Array, w: jax.Array, stride: int, pads: Pads, size: tuple[int, int]) -> jax.Array:
    """The transpose of `conv` as a map of x: y (b, oh, ow, d), w (k, k, c, d) -> (b, *size, c).

    `pads` and `size` are those of the convolution (b, *size, c) -> (b, oh, ow, d) that it transposes.
    """
    if jax.default_backend() == "cpu":
        return _conv_t_cpu(y, w, stride, pads, size)
    x = jax.ShapeDtypeStruct((y.shape[0], *size, w.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: _conv_xla(x, w, stride, pads), x)(y)[0]


def _conv_xla(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


# The three maps on a CPU. Statics come last: stride, padding, and the size that cannot be read off the operands.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_cpu(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return _conv_xla(x, w, stride, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_t_cpu(y: jax.Array, w: jax.Array, stride: int, pads: Pads, size: tuple[int, int]) -> jax.Array:
    w = _fold_kernel(w, stride)  # (m, m, s² c, d): stride 1 from here on
    m = w.shape[0]
    full = ((m - 1, m - 1), (m - 1, m - 1))
    x = _conv_xla(y, w[::-1, ::-1].transpose(0, 1, 3, 2), 1, full)  # (b, oh + m - 1, ow + m - 1, s² c)
    return _depth_to_space(x, stride, pads, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _weight_gradient_cpu(x: jax.Array, y: jax.Array, stride: int, pads: Pads, kernel: int) -> jax.Array:
    """x (b, h, w, c), y (b, oh, ow, d) -> (k, k, c, d): sum over b, i, j of x[b, s i + u, s j + v] y[b, i, j]."""
    m = -(-kernel // stride)
    out = y.shape[1:3]
    x = _space_to_depth(x, stride, pads, m, out)  # (b, oh + m - 1, ow + m - 1, s² c)
    b, rows, columns, c = x.shape
    # With y padded to the pitch of x, tap (u, v) is an offset of u * columns + v in the flattened image, so that every
    # shifted copy below is contiguous, and all taps together are one matrix product.
    y = jnp.pad(y, ((0, 0), (0, m - 1), (0, m - 1), (0, 0))).reshape(b * rows * columns, -1)
    reach = (m - 1) * (columns + 1)
    y = jnp.pad(y, ((reach, 0), (0, 0)))
    n = b * rows * columns
    offsets = [reach - (u * columns + v) for u in range(m) for v in range(m)]
    shifted = jnp.concatenate([lax.slice_in_dim(y, o, o + n) for o in offsets], axis=1)  # (n, m² d)
    w = lax.dot_general(x.reshape(n, c), shifted, (((0,), (0,)), ((), ())))
    w = w.reshape(c, m, m, -1).transpose(1, 2, 0, 3)  # (m, m, s² c, d)
    return _unfold_kernel(w, stride, kernel)


def _conv_bwd(stride, pads, operands, y):
    x, w = operands
    return _conv_t_cpu(y, w, stride, pads, x.shape[1:3]), _weight_gradient_cpu(x, y, stride, pads, w.shape[0])


def _conv_t_bwd(stride, pads, size, operands, x):
    y, w = operands
    return _conv_cpu(x, w, stride, pads), _weight_gradient_cpu(x, y, stride, pads, w.shape[0])


def _weight_gradient_bwd(stride, pads, kernel, operands, w):
    x, y = operands
    return _conv_t_cpu(y, w, stride, pads, x.shape[1:3]), _conv_cpu(x, w, stride, pads)


_conv_cpu.defvjp(lambda x, w, *_: (_conv_cpu(x, w, *_), (x, w)), _conv_bwd)
_conv_t_cpu.defvjp(lambda y, w, *_: (_conv_t_cpu(y, w, *_), (y, w)), _conv_t_bwd)
_weight_gradient_cpu.defvjp(lambda x, y, *_: (_weight_gradient_cpu(x, y, *_), (x, y)), _weight_gradient_bwd)


# A convolution of stride s is one of stride 1 over blocks of s x s pixels stacked in the channels.


def _block_pads(n: int, pads: tuple[int, int], stride: int, m: int, out: int) -> tuple[int, int, int]:
    """Padding (negative: a crop) that turns n pixels into the whole blocks that the kernel reaches."""
    return pads[0], (out - 1 + m) * stride - n - pads[0], 0


def _space_to_depth(x: jax.Array, s: int, pads: Pads, m: int, out: Sequence[int]) -> jax.Array:
    b, h, w, c = x.shape
    zero = jnp.zeros((), x.dtype)
    config = [(0, 0, 0), _block_pads(h, pads[0], s, m, out[0]), _block_pads(w, pads[1], s, m, out[1]), (0, 0, 0)]
    x = lax.pad(x, zero, config)
    h, w = x.shape[1] // s, x.shape[2] // s
    return x.reshape(b, h, s, w, s, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, s * s * c)


def _depth_to_space(x: jax.Array, s: int, pads: Pads, size: tuple[int, int]) -> jax.Array:
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, s, s, c // (s * s)).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * s, w * s, c // (s * s))
    zero = jnp.zeros((), x.dtype)
    crop = [(-lo, n + lo - full, 0) for n, full, (lo, _) in zip(size, (h * s, w * s), pads, strict=True)]
    return lax.pad(x, zero, [(0, 0, 0), *crop, (0, 0, 0)])


def _fold_kernel(w: jax.Array, s: int) -> jax.Array:
    k, _, c, d = w.shape
    m = -(-k // s)
    w = jnp.pad(w, ((0, m * s - k), (0, m * s - k), (0, 0), (0, 0)))
    return w.reshape(m, s, m, s, c, d).transpose(0, 2, 1, 3, 4, 5).reshape(m, m, s * s * c, d)


def _unfold_kernel(w: jax.Array, s: int, k: int) -> jax.Array:
    m, _, c, d = w.shape
    w = w.reshape(m, m, s, s, c // (s * s), d).transpose(0, 2, 1, 3, 4, 5)
    return w.reshape(m * s, m * s, c // (s * s), d)[:k, :k]


class Conv(nn.Module):
    """Convolution (b, h, w, c) -> (b, ceil(h / stride), ceil(w / stride), features), or 'VALID'."""

    features: int
    kernel: int = 3
    stride: int = 1
    padding: str = "SAME"
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.param("kernel", self.kernel_init, (self.kernel, self.kernel, x.shape[-1], self.features))
        same = self.padding == "SAME"
        pads = same_padding(x.shape[1:3], self.kernel, self.stride) if same else ((0, 0), (0, 0))
        x = conv(x.astype(self.dtype), w.astype(self.dtype), self.stride, pads)
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
