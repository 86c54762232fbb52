"""Convolutions of any stride and their transposes, as functions and as Flax layers.

A convolution y = x * w, its input gradient and its weight gradient are three bilinear maps, and the derivatives of each
are the other two: so each is the custom derivative of the others here, on every backend, and gradient penalties, which
differentiate a gradient, stay on the same fast paths. What a backend adds is how it computes the three.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers import conv_cpu
from jaxgan.layers.bias import biased
from jaxgan.layers.spectral import SpectralNorm

Pads = conv_cpu.Pads


def same_padding(size: Sequence[int], kernel: int, stride: int) -> Pads:
    """Padding of both axes with which a convolution maps `size` (h, w) to ceil(size / stride)."""

    def one(n: int) -> tuple[int, int]:
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        return total // 2, total - total // 2

    return one(size[0]), one(size[1])


_backend = contextvars.ContextVar("backend", default="")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """What is traced inside, in this thread, is for this backend ("cpu", "gpu", "tpu") and not for the default one."""
    assert name in ("cpu", "gpu", "tpu", "xla"), name
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def plain() -> contextlib.AbstractContextManager[None]:
    """What is traced inside gets XLA's own convolutions on every backend: to count their arithmetic, to compare."""
    return backend("xla")


def by_hand() -> bool:
    return maps() is CPU


class Maps(NamedTuple):
    """x (b, h, w, c), w (k, k, c, d), y (b, oh, ow, d) with oh = (h + sum(pads[0]) - k) // stride + 1."""

    correlate: Callable[..., jax.Array]  # x, w, stride, pads -> y
    spread: Callable[..., jax.Array]  # y, w, stride, pads, size -> x
    contract: Callable[..., jax.Array]  # x, y, stride, pads, k -> w


def _spread(y: jax.Array, w: jax.Array, stride: int, pads: Pads, size: tuple[int, int]) -> jax.Array:
    x = jax.ShapeDtypeStruct((y.shape[0], *size, w.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: conv_cpu.conv_xla(x, w, stride, pads), x)(y)[0]


def _contract(x: jax.Array, y: jax.Array, stride: int, pads: Pads, kernel: int) -> jax.Array:
    w = jax.ShapeDtypeStruct((kernel, kernel, x.shape[3], y.shape[3]), x.dtype)
    return jax.linear_transpose(lambda w: conv_cpu.conv_xla(x, w, stride, pads), w)(y)[0]


def _contract_gpu(x: jax.Array, y: jax.Array, stride: int, pads: Pads, kernel: int) -> jax.Array:
    """XLA knows a weight gradient by its window, y, being larger than w. Of a smaller one it makes a forward
    convolution, whose result lies in memory as no other weight does, and turns Adam's moments in every step."""
    oh, ow, d = y.shape[1:]
    if max(oh, ow) > kernel:
        return _contract(x, y, stride, pads, kernel)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = stride * (oh - 1) + 1, stride * (ow - 1) + 1
    shifted = [x[:, u : u + rows : stride, v : v + columns : stride] for u in range(kernel) for v in range(kernel)]
    taps = jnp.stack(shifted, 3).reshape(-1, kernel * kernel * x.shape[3])
    w = jnp.dot(y.reshape(-1, d).T, taps).reshape(d, kernel, kernel, -1)
    return w.transpose(1, 2, 3, 0)


# Where XLA's own derivatives are good, a transposed convolution's weight gradient still is not: XLA writes it with a
# window turned by half a circle, which its GPU compiler does not know for a weight gradient, and hands cuDNN a forward
# convolution whose kernel is a whole image (32x32 dilated pixels in DCGAN-64), of as few outputs as there are weights.
# As that of the convolution which it transposes, it is cuDNN's own.
XLA = Maps(conv_cpu.conv_xla, _spread, _contract)
GPU = XLA._replace(contract=_contract_gpu)
CPU = Maps(conv_cpu.correlate, conv_cpu.spread, conv_cpu.contract)


def maps() -> Maps:
    """Those of the backend."""
    return {"cpu": CPU, "gpu": GPU}.get(_backend.get() or jax.default_backend(), XLA)


def conv(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Convolution: x (b, h, w, c), w (k, k, c, d) -> (b, oh, ow, d) with oh = (h + sum(pads[0]) - k) // stride + 1."""
    return _conv(x, w, _how(), stride, pads)


def conv_transpose(y: jax.Array, w: jax.Array, stride: int, pads: Pads, size: tuple[int, int]) -> jax.Array:
    """The transpose of `conv` as a map of x: y (b, oh, ow, d), w (k, k, c, d) -> (b, *size, c).

    `pads` and `size` are those of the convolution (b, *size, c) -> (b, oh, ow, d) that it transposes.
    """
    return _conv_transpose(y, w, _how(), stride, pads, size)


class How(NamedTuple):
    """What is chosen where a convolution is called, and holds for its derivatives, which are traced elsewhere."""

    maps: Maps
    precision: str | None


def _how() -> How:
    return How(maps(), jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]


# Statics come last: how, stride, padding, and the size that cannot be read off the operands.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, w, how, stride, pads):
    with jax.default_matmul_precision(how.precision):
        return how.maps.correlate(x, w, stride, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv_transpose(y, w, how, stride, pads, size):
    with jax.default_matmul_precision(how.precision):
        return how.maps.spread(y, w, stride, pads, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _weight_gradient(x, y, how, stride, pads, kernel):
    with jax.default_matmul_precision(how.precision):
        return how.maps.contract(x, y, stride, pads, kernel)


def _conv_bwd(how, stride, pads, operands, y):
    x, w = operands
    by_x = _conv_transpose(y, w, how, stride, pads, x.shape[1:3])
    return by_x, _weight_gradient(x, y, how, stride, pads, w.shape[0])


def _conv_transpose_bwd(how, stride, pads, size, operands, x):
    y, w = operands
    return _conv(x, w, how, stride, pads), _weight_gradient(x, y, how, stride, pads, w.shape[0])


def _weight_gradient_bwd(how, stride, pads, kernel, operands, w):
    x, y = operands
    return _conv_transpose(y, w, how, stride, pads, x.shape[1:3]), _conv(x, w, how, stride, pads)


_conv.defvjp(lambda x, w, *_: (_conv(x, w, *_), (x, w)), _conv_bwd)
_conv_transpose.defvjp(lambda y, w, *_: (_conv_transpose(y, w, *_), (y, w)), _conv_transpose_bwd)
_weight_gradient.defvjp(lambda x, y, *_: (_weight_gradient(x, y, *_), (x, y)), _weight_gradient_bwd)


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
            x = biased(self, x)
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
            x = biased(self, x)
        return x
