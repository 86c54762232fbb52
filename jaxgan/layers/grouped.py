"""Grouped convolutions (arXiv:1611.05431): channels in groups, each of which sees its own alone.

The convolution and its weight gradient are written out here, each the custom derivative of the other, as in `conv.py`;
the input gradient is the convolution with the kernel turned. There are several ways to compute the two, for XLA's own
are slow on a CPU: see `way`.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxgan.layers import crossed
from jaxgan.layers.bias import biased
from jaxgan.layers.conv import Pads, by_hand
from jaxgan.layers.cpu import as_bits, even_parts, map_parts, sum_parts, sums


class Way(NamedTuple):
    """x (b, h, w, c), w (k, k, c / groups, d), y (b, h, w, d), k odd, 'SAME'; group i has the i-th part of c and d."""

    correlate: Callable[[jax.Array, jax.Array, int], jax.Array]  # x, w, groups -> y
    contract: Callable[[jax.Array, jax.Array, int, int], jax.Array]  # x, y, groups, k -> w


def _exact(dtype: Any) -> lax.Precision | None:
    """No TF32 in float32, whatever the surrounding precision is when a derivative comes to be traced."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _pads(k: int) -> Pads:
    return ((k // 2, k // 2), (k // 2, k // 2))


# --- XLA's own


def _xla_correlate(x: jax.Array, w: jax.Array, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        _pads(w.shape[0]),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=_exact(x.dtype),
    )


def _xla_contract(x: jax.Array, y: jax.Array, groups: int, k: int) -> jax.Array:
    w = jax.ShapeDtypeStruct((k, k, x.shape[3] // groups, y.shape[3]), x.dtype)
    return jax.linear_transpose(lambda w: _xla_correlate(x, w, groups), w)(y)[0]


# --- crossed: the kernel's columns on one side of a batch of matrix products, its rows on the other

CACHE = 3 * 2**20  # bytes of a part's k shifted copies in float32, of the wider image


@as_bits
def _by_group(x: jax.Array, groups: int, pads: Pads = ((0, 0), (0, 0))) -> jax.Array:
    """(b, h, w, c), padded -> (groups, b, h, w, c / groups)."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return x.reshape(*x.shape[:3], groups, -1).transpose(3, 0, 1, 2, 4)


@as_bits
def _turned_columns(x: jax.Array, k: int) -> jax.Array:
    """(groups, b, h, w, c) -> (groups, k, c, b, h, w - k + 1): `crossed.columns`, turned before they are copied."""
    ow = x.shape[3] - k + 1
    x = lax.optimization_barrier(x.transpose(0, 4, 1, 2, 3))
    return jnp.stack([x[..., v : v + ow] for v in range(k)], 1)


def _products(x: jax.Array, y: jax.Array, i: int, j: int) -> jax.Array:
    return sums(x, y, i, j, batch=1, precision=_exact(x.dtype))


def _parts(x: jax.Array, k: int, d: int) -> int:
    b, h, w, c = x.shape
    return even_parts(b, -(-k * 4 * b * h * w * max(c, d) // CACHE))


def _crossed_correlate(x: jax.Array, w: jax.Array, groups: int) -> jax.Array:
    k, d = w.shape[0], w.shape[3]
    kernel = w.reshape(k, k, -1, groups, d // groups).transpose(3, 1, 2, 0, 4).reshape(groups, -1, k * d // groups)

    def part(x):
        copies = crossed.columns(_by_group(x, groups, _pads(k)), k)
        products = _products(copies.reshape(groups, -1, kernel.shape[1]), kernel, 2, 1)
        y = crossed.sum_of_rows(products.reshape(*copies.shape[:4], k, -1))
        return y.transpose(1, 2, 3, 0, 4).reshape(*x.shape[:3], d).astype(x.dtype)

    return map_parts(part, lax.optimization_barrier(x), _parts(x, k, d))


def _crossed_contract(x: jax.Array, y: jax.Array, groups: int, k: int) -> jax.Array:
    c, d = x.shape[3] // groups, y.shape[3] // groups

    def part(x, y):
        x = _by_group(x, groups, _pads(k))
        rows = crossed.rows(_by_group(y, groups), k).reshape(groups, -1, k * d)
        if x.dtype == jnp.bfloat16:  # 1.4 times as fast (JAX 0.11.2, a Xeon's AMX), in float32 slower
            return _products(_turned_columns(x, k).reshape(groups, k * c, -1), rows, 2, 1)
        return _products(crossed.columns(x, k).reshape(groups, -1, k * c), rows, 1, 1)

    total = sum_parts(part, lax.optimization_barrier((x, y)), _parts(x, k, y.shape[3]))
    w = lax.optimization_barrier(total).astype(x.dtype).reshape(groups, k, c, k, d)
    return w.transpose(3, 1, 2, 0, 4).reshape(k, k, c, groups * d)


XLA = Way(_xla_correlate, _xla_contract)
CROSSED = Way(_crossed_correlate, _crossed_contract)


# --- fewer and larger groups: more products, most of them with zeros, but larger ones


def merged(way: Way, channels: int) -> Way:
    """Groups side by side in dense blocks of `channels` at most; the kernel has zeros off its diagonal blocks."""

    def merge(c: int, d: int, groups: int) -> int:
        largest = max(c, d) // groups
        return max((m for m in range(1, groups + 1) if groups % m == 0 and m * largest <= channels), default=1)

    def correlate(x, w, groups):
        k, _, c, d = w.shape
        m = merge(x.shape[3], d, groups)
        blocks = w.reshape(k, k, 1, c, groups // m, m, d // groups)
        diagonal = jnp.eye(m, dtype=w.dtype)[:, None, None, :, None]
        return way.correlate(x, (blocks * diagonal).reshape(k, k, m * c, d), groups // m)

    def contract(x, y, groups, k):
        c, d = x.shape[3], y.shape[3]
        m = merge(c, d, groups)
        w = way.contract(x, y, groups // m, k).reshape(k, k, m, c // groups, groups // m, m, d // groups)
        w = jnp.stack([w[:, :, i, :, :, i] for i in range(m)], 4)
        return w.reshape(k, k, c // groups, d)

    return Way(correlate, contract)


_chosen: contextvars.ContextVar[Way | None] = contextvars.ContextVar("chosen", default=None)


@contextlib.contextmanager
def using(way: Way) -> Iterator[None]:
    """What is traced inside computes grouped convolutions in this way: to compare them."""
    token = _chosen.set(way)
    try:
        yield
    finally:
        _chosen.reset(token)


def way() -> Way:
    """The way of the backend, unless `using` says another.

    On a CPU: measured inside a scan, two cores of a Xeon with AMX, in GFLOP/s that count the products of the groups
    alone (correlate, contract), JAX 0.10.2, 0.11.2:

        b   out    c     groups   XLA's own    crossed, float32   bfloat16
        32  4x4    768   48       22 2, 40 1   40 32, 57 31       36 31, 64 46
        16  8x8    768   48       20 1, 46 1   48 36, 62 40       37 41, 73 70
        8   16x16  768   48       12 0, 48 0   50 41, 72 44       39 33, 72 74
        4   32x32  768   48       12 0, 46 0   48 42, 47 44       33 30, 87 76
        8   8x8    1536  96       19 0, 46 0   38 37, 63 37       36 37, 66 56
        64  4x4    128   8        27 2, 40 3   39 45, 48 29       47 37, 67 59
        64  8x8    128   8        18 0, 43 0   56 51, 63 56       47 43, 80 73
        64  16x16  128   8        13 0, 44 0   61 58, 78 58       38 35, 90 82
        64  32x32  128   8        11 0, 38 0   52 51, 59 53       36 35, 89 79

    One group after the other, as a dense convolution, ran at 29 to 87 and 19 to 38 in float32, and a step of R3GAN
    (width 64, batch 32) took 1.4 times as long with it (0.11.2; 1.2 with 0.10.2), for its weight gradients above all.

    Elsewhere XLA's own, which on a GPU are cuDNN's grouped kernels, without a byte of memory beside (as compiled for an
    H100 by JAX 0.11). Merged groups are for a GPU that says otherwise. As TPU compilers count it, in ms and MiB for
    64x32x32x1536 in 96 groups, bfloat16 (correlate, contract):

        chip   XLA's own          in 12 groups       crossed
        v4     4.1 4.1, 771 768   4.6 3.8, 448 512   32 30, 3469 2532
        v5e    2.7 2.7, 768 768   3.1 2.6, 448 512   21 20, 3469 2532
    """
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    return CROSSED if by_hand() else XLA


# --- the layer


def conv(x: jax.Array, w: jax.Array, groups: int) -> jax.Array:
    """x (b, h, w, c), w (k, k, c / groups, d) -> (b, h, w, d)."""
    return _conv(x, w, groups, way())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, w: jax.Array, groups: int, way: Way) -> jax.Array:
    return way.correlate(x, w, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _weight_gradient(x: jax.Array, y: jax.Array, groups: int, way: Way, k: int) -> jax.Array:
    return way.contract(x, y, groups, k)


def _turned(w: jax.Array, groups: int) -> jax.Array:
    """The kernel of the transpose: half a circle, and each group's inputs and outputs exchanged."""
    k, _, c, d = w.shape
    w = w[::-1, ::-1].reshape(k, k, c, groups, d // groups)
    return w.transpose(0, 1, 4, 3, 2).reshape(k, k, d // groups, groups * c)


def _conv_bwd(groups, way, operands, y):
    x, w = operands
    return _conv(y, _turned(w, groups), groups, way), _weight_gradient(x, y, groups, way, w.shape[0])


def _weight_gradient_bwd(groups, way, k, operands, w):
    x, y = operands
    return _conv(y, _turned(w, groups), groups, way), _conv(x, w, groups, way)


_conv.defvjp(lambda x, w, *_: (_conv(x, w, *_), (x, w)), _conv_bwd)
_weight_gradient.defvjp(lambda x, y, *_: (_weight_gradient(x, y, *_), (x, y)), _weight_gradient_bwd)


class GroupedConv(nn.Module):
    """(b, h, w, c) -> (b, h, w, features), 'SAME', in `groups` that divide c and `features`; the kernel is odd."""

    features: int
    groups: int
    kernel: int = 3
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, c = self.kernel, x.shape[-1]
        assert k % 2 and c % self.groups == 0 and self.features % self.groups == 0
        w = self.param("kernel", self.kernel_init, (k, k, c // self.groups, self.features))
        x = conv(x.astype(self.dtype), w.astype(self.dtype), self.groups)
        if self.use_bias:
            x = biased(self, x)
        return x
