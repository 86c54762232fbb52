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

from jaxgan.layers import conv_cpu
from jaxgan.layers.conv import by_hand
from jaxgan.layers.dense import biased


class Way(NamedTuple):
    """x (b, h, w, c), w (k, k, c / groups, d), y (b, h, w, d), k odd, 'SAME'; group i has the i-th part of c and d."""

    correlate: Callable[[jax.Array, jax.Array, int], jax.Array]  # x, w, groups -> y
    contract: Callable[[jax.Array, jax.Array, int, int], jax.Array]  # x, y, groups, k -> w


def _exact(dtype: Any) -> lax.Precision | None:
    """No TF32 in float32, whatever the surrounding precision is when a derivative comes to be traced."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _pads(k: int) -> conv_cpu.Pads:
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


# --- batched: all shifted copies of every group side by side, and one batch of matrix products


def _taps(x: jax.Array, groups: int, k: int) -> jax.Array:
    """(b, h, w, c) -> (groups, b h w, k² c / groups)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, groups, c // groups).transpose(3, 0, 1, 2, 4)
    x = jnp.pad(x, ((0, 0), (0, 0), *_pads(k), (0, 0)))
    shifted = [x[:, :, u : u + h, v : v + w] for u in range(k) for v in range(k)]
    return jnp.stack(shifted, 4).reshape(groups, b * h * w, -1)


def _batched_correlate(x: jax.Array, w: jax.Array, groups: int) -> jax.Array:
    k, _, c, d = w.shape
    w = w.reshape(k * k * c, groups, d // groups)
    y = lax.dot_general(_taps(x, groups, k), w, (((2,), (0,)), ((0,), (1,))), _exact(x.dtype))
    return y.reshape(groups, *x.shape[:3], -1).transpose(1, 2, 3, 0, 4).reshape(*x.shape[:3], d)


def _batched_contract(x: jax.Array, y: jax.Array, groups: int, k: int) -> jax.Array:
    d = y.shape[3]
    y = y.reshape(-1, groups, d // groups)
    w = lax.dot_general(_taps(x, groups, k), y, (((1,), (0,)), ((0,), (1,))), _exact(x.dtype))
    return w.transpose(1, 0, 2).reshape(k, k, x.shape[3] // groups, d)


# --- loop: one group after the other, each a dense convolution, and the batch in parts that stay in the cache

CACHE = 2**20  # bytes of shifted copies


def _dense(size: int) -> conv_cpu.Way:
    """For an image of so many pixels; see `way`."""
    return conv_cpu.TAPS if size <= 49 else conv_cpu.DIRECT


def _part(x: jax.Array, i: jax.Array, groups: int) -> jax.Array:
    size = x.shape[-1] // groups
    return lax.dynamic_slice_in_dim(x, i * size, size, x.ndim - 1)


def _loop_correlate(x: jax.Array, w: jax.Array, groups: int) -> jax.Array:
    shape, d = x.shape[:3], w.shape[3]
    dense = _dense(shape[1] * shape[2]).correlate
    x = jnp.pad(x, ((0, 0), *_pads(w.shape[0]), (0, 0)))

    def body(i, y):
        part = dense(_part(x, i, groups), _part(w, i, groups))
        return lax.dynamic_update_slice_in_dim(y, part, i * (d // groups), 3)

    return lax.fori_loop(0, groups, body, jnp.zeros((*shape, d), x.dtype))


def _loop_contract(x: jax.Array, y: jax.Array, groups: int, k: int) -> jax.Array:
    (b, h, w, c), d = x.shape, y.shape[3]
    parts = conv_cpu.even_parts(b, -(-k * k * 4 * b * h * w * (d // groups) // CACHE))
    dense = _dense(h * w).contract
    x = jnp.pad(x, ((0, 0), *_pads(k), (0, 0)))

    def one(i):
        pairs = (a.reshape(parts, b // parts, *a.shape[1:]) for a in (_part(x, i, groups), _part(y, i, groups)))
        zero = jnp.zeros((k, k, c // groups, d // groups), x.dtype)
        return lax.scan(lambda sum, pair: (sum + dense(*pair), None), zero, tuple(pairs))[0]

    total = lax.map(one, jnp.arange(groups))  # (groups, k, k, c / groups, d / groups)
    return total.transpose(1, 2, 3, 0, 4).reshape(k, k, c // groups, d)


XLA = Way(_xla_correlate, _xla_contract)
BATCHED = Way(_batched_correlate, _batched_contract)
LOOP = Way(_loop_correlate, _loop_contract)


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

    On a CPU: measured inside a scan with JAX 0.10.2 on two AMD EPYC cores with AVX-512, busy with other work as well,
    so in GFLOP of a grouped convolution for each second of processor time (correlate, contract):

        b   out    c     groups   XLA's own   batched   loop
        32  4x4    768   48        17   .     13  11    35  25
        16  8x8    768   48        17   .      8   7    34  21
        8   16x16  768   48         8   .      7   7    29  24
        4   32x32  768   48         9   .      7   7    27  20
        8   8x8    1536  96        15   .      7   7    29  20
        32  7x7    128   8         16   2     21  12    36  23
        32  14x14  128   8         18   .      6   6    27  27
        32  28x28  64    4          8   .      7   7    34  27

    The loop's dense convolution of one group, by taps and direct: 4x4x768 23 21 and 21 15, 7x7x128 55 36 and 50 32,
    8x8x768 29 20 and 33 22, 14x14x128 22 24 and 34 20. Groups merged by twos or fours came out slower on the whole.

    Elsewhere XLA's own, which on a GPU are cuDNN's grouped kernels, without a byte of memory beside (as compiled for an
    H100 by JAX 0.11; the shifted copies take 14 GB at 512x32x32x1536, and nine times the traffic). As TPU compilers
    count it, in ms and MiB for 64x32x32x1536 in 96 groups, bfloat16 (correlate, contract):

        chip   XLA's own          in 12 groups       batched
        v4     4.1 4.1, 771 768   4.6 3.8, 448 512   45 45, 6144 6144
        v5e    2.7 2.7, 768 768   3.1 2.6, 448 512   30 30, 6144 6144
    """
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    return LOOP if by_hand() else XLA


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
