"""The three maps of a convolution for a CPU, fast in every order of derivative and inside a `lax.scan`.

XLA runs all of them well on GPUs and TPUs (see `conv`); on a CPU only the plain forward convolution, and its weight
gradients almost stand still inside a scan.

A convolution of stride s is one of stride 1 over blocks of s x s pixels stacked in the channels. For that, there are
several ways: see `way`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxgan.layers import crossed, winograd
from jaxgan.layers.cpu import as_bits, even_parts, map_parts, sum_parts, sums

Pads = tuple[tuple[int, int], tuple[int, int]]


def conv_xla(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


class Way(NamedTuple):
    """The three maps of a convolution of stride 1 without padding: z (b, h, w, c), w (m, m, c, d), y (b, oh, ow, d)."""

    correlate: Callable[[jax.Array, jax.Array], jax.Array]  # z, w -> y
    spread: Callable[[jax.Array, jax.Array], jax.Array]  # y, w -> z
    contract: Callable[[jax.Array, jax.Array], jax.Array]  # z, y -> w


# --- taps: all shifted copies side by side, and one matrix product


def _product(x: jax.Array, y: jax.Array, i: int, j: int) -> jax.Array:
    return sums(x, y, i, j).astype(x.dtype)


@as_bits
def _taps(z: jax.Array, m: int) -> jax.Array:
    """(b, h, w, c) -> (b oh ow, m² c)."""
    oh, ow = z.shape[1] - m + 1, z.shape[2] - m + 1
    shifted = [z[:, u : u + oh, v : v + ow] for u in range(m) for v in range(m)]
    return jnp.stack(shifted, 3).reshape(-1, m * m * z.shape[3])


def _taps_correlate(z: jax.Array, w: jax.Array) -> jax.Array:
    m, _, c, d = w.shape
    y = _product(_taps(z, m), w.reshape(m * m * c, d), 1, 0)
    return y.reshape(z.shape[0], z.shape[1] - m + 1, z.shape[2] - m + 1, d)


def _taps_spread(y: jax.Array, w: jax.Array) -> jax.Array:
    m, _, c, d = w.shape
    parts = sums(y.reshape(-1, d), w.reshape(m * m * c, d), 1, 1).reshape(*y.shape[:3], m, m, c)
    pads = [((0, 0), (u, m - 1 - u), (v, m - 1 - v), (0, 0)) for u in range(m) for v in range(m)]
    shifted = [jnp.pad(parts[:, :, :, i // m, i % m], pad) for i, pad in enumerate(pads)]
    return functools.reduce(jnp.add, shifted).astype(y.dtype)


def _taps_contract(z: jax.Array, y: jax.Array) -> jax.Array:
    m, c, d = z.shape[1] - y.shape[1] + 1, z.shape[3], y.shape[3]
    return _product(_taps(z, m), y.reshape(-1, d), 0, 0).reshape(m, m, c, d)


# The same with the shifted copies of y, for an image of few channels there: w turned by half a circle maps y to z.


def _turned(w: jax.Array) -> jax.Array:
    return w[::-1, ::-1].transpose(0, 1, 3, 2)


@as_bits
def _full(y: jax.Array, m: int) -> jax.Array:
    return jnp.pad(y, ((0, 0), (m - 1, m - 1), (m - 1, m - 1), (0, 0)))


def _taps_of_y_correlate(z: jax.Array, w: jax.Array) -> jax.Array:
    m = w.shape[0]
    return _taps_spread(z, _turned(w))[:, m - 1 : z.shape[1], m - 1 : z.shape[2]]


def _taps_of_y_spread(y: jax.Array, w: jax.Array) -> jax.Array:
    return _taps_correlate(_full(y, w.shape[0]), _turned(w))


def _taps_of_y_contract(z: jax.Array, y: jax.Array) -> jax.Array:
    return _turned(_taps_contract(_full(y, z.shape[1] - y.shape[1] + 1), z))


# --- direct: XLA's forward convolution for two maps, and one matrix product for the third


def _direct_correlate(z: jax.Array, w: jax.Array) -> jax.Array:
    return conv_xla(z, w, 1, ((0, 0), (0, 0)))


def _direct_spread(y: jax.Array, w: jax.Array) -> jax.Array:
    return conv_xla(_full(y, w.shape[0]), _turned(w), 1, ((0, 0), (0, 0)))


def _direct_contract(z: jax.Array, y: jax.Array) -> jax.Array:
    (b, rows, columns, c), d, m = z.shape, y.shape[3], z.shape[1] - y.shape[1] + 1
    # With y padded to the pitch of z, tap (u, v) is an offset of u * columns + v in the flattened image, so that every
    # shifted copy is contiguous.
    y = jnp.pad(y, ((0, 0), (0, m - 1), (0, m - 1), (0, 0))).reshape(b * rows * columns, d)
    reach = (m - 1) * (columns + 1)
    y = jnp.pad(y, ((reach, 0), (0, 0)))
    n = b * rows * columns
    offsets = [reach - (u * columns + v) for u in range(m) for v in range(m)]
    shifted = jnp.stack([lax.slice_in_dim(y, o, o + n) for o in offsets], 1).reshape(n, m * m * d)
    w = _product(z.reshape(n, c), shifted, 0, 0)
    return w.reshape(c, m, m, d).transpose(1, 2, 0, 3)


# --- bfloat16: taps of a part of the images at a time. Its products are so fast (AMX) that all else is memory. 3x3 taps
# are crossed where the rows that this adds do not count: a step of the residual nets takes .88 to .92 of its time so
# with JAX 0.11.2, .91 to .96 with 0.10.2.


@as_bits
def _window(z: jax.Array, u: int, v: int, oh: int, ow: int) -> jax.Array:
    return z[:, u : u + oh, v : v + ow]


def _each_tap(z: jax.Array, m: int) -> list[jax.Array]:
    """m² of (b oh ow, c)."""
    oh, ow = z.shape[1] - m + 1, z.shape[2] - m + 1
    return [_window(z, u, v, oh, ow).reshape(-1, z.shape[3]) for u in range(m) for v in range(m)]


def _parts_correlate(z: jax.Array, w: jax.Array) -> jax.Array:
    m, _, c, d = w.shape
    oh, ow = z.shape[1] - m + 1, z.shape[2] - m + 1

    def part(z):
        if m == 3 and oh >= 16:
            return crossed.correlate(z, w)
        taps = [sums(x, u, 1, 0) for x, u in zip(_each_tap(z, m), w.reshape(m * m, c, d), strict=True)]
        return functools.reduce(jnp.add, taps).astype(z.dtype).reshape(-1, oh, ow, d)

    return map_parts(part, lax.optimization_barrier(z), _parts(z, (oh, ow), max(c, d)))


def _parts_spread(y: jax.Array, w: jax.Array) -> jax.Array:
    (b, oh, ow, d), m, c = y.shape, w.shape[0], w.shape[2]
    parts = _parts(y, (oh, ow), max(c, d))
    if m == 3 and oh >= 8:
        return map_parts(lambda y: crossed.spread(y, w), lax.optimization_barrier(y), parts)
    if (oh + m - 1) * (ow + m - 1) > 1.3 * oh * ow:  # the products of a wide padding take longer than sums of m² images
        return _taps_spread(y, w)
    return map_parts(lambda y: _taps_of_y_spread(y, w), y, 1 if m * m * b * oh * ow <= WORTH_PARTS else parts)


def _parts_contract(z: jax.Array, y: jax.Array) -> jax.Array:
    """XLA has no fast product over the first axis of both operands, so y is turned: before it is made a matrix, or XLA
    would take the turn for a part of the products, and compute them in float32. The products end at a barrier, or it
    would swap their operands instead of turning them, and find no product of that kind at all."""
    (oh, ow, d), m, c = y.shape[1:], z.shape[1] - y.shape[1] + 1, z.shape[3]

    def part(z, y):
        turned = lax.optimization_barrier(y.reshape(y.shape[0], -1, d).transpose(2, 0, 1)).reshape(d, -1)
        return jnp.stack([sums(turned, x, 1, 0) for x in _each_tap(z, m)])  # (m², d, c)

    z, y = lax.optimization_barrier((z, y))  # or XLA computes them again for each product
    total = sum_parts(part, (z, y), _parts(y, (oh, ow), max(c, d)))
    return lax.optimization_barrier(total).transpose(0, 2, 1).astype(z.dtype).reshape(m, m, c, d)


# So that a part of the batch stays in the cache, it has so many places of the output, and no more numbers in its wider
# image; but at least one example. A 3x3 convolution of 64 images of 32x32 pixels and 256 channels takes half the time
# so, or a third; 2x2 taps of 512 channels at 16x16 places went from 314 to 674 and from 252 to 446 GFLOP/s (correlate,
# contract; JAX 0.11.2). Where taps of y are spread, fewer places times taps than WORTH_PARTS are not worth a loop.
PLACES = 4096
NUMBERS = 2**20
WORTH_PARTS = 100_000


def _parts(images: jax.Array, out: Sequence[int], channels: int) -> int:
    places = images.shape[0] * out[0] * out[1]
    return even_parts(images.shape[0], -(-places // min(PLACES, -(-NUMBERS // channels))))


TAPS = Way(_taps_correlate, _taps_spread, _taps_contract)
TAPS_OF_Y = Way(_taps_of_y_correlate, _taps_of_y_spread, _taps_of_y_contract)
TAPS_IN_PARTS = Way(_parts_correlate, _parts_spread, _parts_contract)
DIRECT = Way(_direct_correlate, _direct_spread, _direct_contract)
WINOGRAD = Way(winograd.correlate, winograd.spread, winograd.contract)  # fewer products


def way(m: int, c: int, d: int, out: Sequence[int], dtype: Any = jnp.float32) -> Way:
    """The fastest way of each map for z of c and y of d channels.

    Measured inside a scan, batch 64, float32, two Xeon cores with AVX-512 whose matrix product runs at 273 GFLOP/s (c
    counts the s² pixels of a block; GFLOP/s as a plain convolution would count them: correlate, spread, contract):

        out    m  c     d      taps          direct         winograd, 2x2  winograd, 4x4
        32x32  2  12    64    163 249  93   108 104  19     48  31  40     24  36  35
        16x16  2  64    32    125 266  39   101 207  82    142 122  71    126 129  55
        16x16  2  128   64    136 200  75    57 272 106    225 131  96    248 228 115
        16x16  2  256   128   159 193 120    91 269 128    218 193 167    216 206 215
        8x8    2  256   128   210 306 163   210 226 144    305 276 181    312 229 208
        8x8    2  512   256   255 302 205    93 239 168    365 285 252    374 390 351
        4x4    2  1024  512   279 301 265   213 176 175    250 241 408    139 128 350
        2x2    2  256   128   152 172 126   118  69  78    100  97 153     37  34  64
        32x32  3  32    32     45 122  29    26 194  32    152  79  72    202 155  80
        32x32  3  64    64     78 158  53    49 225  60    216 132 110    204 148 158
        16x16  3  128   128   137 187  98    87 237  82    337 184 157    398 313 271
        16x16  3  256   256   174 248 140    80 232 122    346 275 258    429 336 378
        8x8    3  128   128   181 214 125   173 177  68    371 315 175    254 300 305
        32x32  3  128   3     131 124  89     3 118  40     22  12   6     27  14  11    (taps of y)

    On two AMD EPYC cores (190 GFLOP/s; without tiles of 4x4) the same won, except at 4x4 pixels: Winograd's 259 and 203
    stood against 179 and 137 of taps. XLA's own weight gradient ran there at 0.6 to 1.2 GFLOP/s.

    In bfloat16, which a Xeon multiplies by AMX, taps in parts, with all that a stride takes, beside float32:

        out    m  c     d      JAX 0.10.2    0.11.2         float32, 0.10.2
        16x16  2  256   128    262 328 197    590 430  470   168 209 164
        8x8    2  512   256    387 460 343    800 921  804   265 261 269
        4x4    2  1024  512    420 559 649    1068 1502 796  240 250 400
        32x32  3  256   256    454 572 375    912 783  803   482 378 399
        16x16  3  128   128    438 599 257    840 606  631   513 359 272
        8x8    3  128   128    670 716 357    601 753  610   326 284 298
    """
    if min(c, d) <= 16:
        return TAPS if c <= d else TAPS_OF_Y
    if jnp.dtype(dtype).itemsize < 4:  # of which Winograd's sums would lose more bits than there are to lose
        return TAPS_IN_PARTS
    if m == 1 or out[0] * out[1] <= 9:
        return TAPS
    if m not in winograd.TAPS or c < 32:
        return DIRECT
    if winograd.products(winograd.side(m, out), m, out) > 0.7 * m * m * out[0] * out[1]:
        return DIRECT
    if c >= (512 if m == 2 else 128):
        return WINOGRAD
    return WINOGRAD._replace(spread=(TAPS if m == 2 and out[0] * out[1] <= 64 else DIRECT).spread)


# --- any stride and padding. The sums that end some ways are behind a barrier: XLA would fuse them into each of their
# consumers, the moments of a batch norm, its scaling, an activation, and read four shifted images there instead of one
# (1.05 times the time of a step of DCGAN-32, 1.07 of SNGAN's: medians of 12 and 6 alternating runs).


def correlate(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """x (b, h, w, c), w (k, k, c, d) -> (b, oh, ow, d)."""
    folded, out = _fold_kernel(w, stride), _out(x, w, stride, pads)
    m, _, c, d = folded.shape
    correlate = way(m, c, d, out, x.dtype).correlate
    if correlate is DIRECT.correlate:  # XLA strides faster than it goes over blocks
        return conv_xla(x, w, stride, pads)
    return lax.optimization_barrier(correlate(_space_to_depth(x, stride, pads, m, out), folded))


def spread(y: jax.Array, w: jax.Array, stride: int, pads: Pads, size: tuple[int, int]) -> jax.Array:
    """y (b, oh, ow, d), w (k, k, c, d) -> (b, *size, c)."""
    folded = _fold_kernel(w, stride)
    m, _, c, d = folded.shape
    z = way(m, c, d, y.shape[1:3], y.dtype).spread(y, folded)
    return lax.optimization_barrier(_depth_to_space(z, stride, pads, size))


def contract(x: jax.Array, y: jax.Array, stride: int, pads: Pads, kernel: int) -> jax.Array:
    """x (b, h, w, c), y (b, oh, ow, d) -> (k, k, c, d): sum over b, i, j of x[b, s i + u, s j + v] y[b, i, j]."""
    m, out = -(-kernel // stride), y.shape[1:3]
    z = _space_to_depth(x, stride, pads, m, out)
    return _unfold_kernel(way(m, z.shape[3], y.shape[3], out, x.dtype).contract(z, y), stride, kernel)


def _out(x: jax.Array, w: jax.Array, stride: int, pads: Pads) -> tuple[int, int]:
    h, width = ((n + sum(p) - w.shape[0]) // stride + 1 for n, p in zip(x.shape[1:3], pads, strict=True))
    return h, width


def _block_pads(n: int, pads: tuple[int, int], stride: int, m: int, out: int) -> tuple[int, int, int]:
    """Padding (negative: a crop) that turns n pixels into the whole blocks that the kernel reaches."""
    return pads[0], (out - 1 + m) * stride - n - pads[0], 0


@as_bits
def _space_to_depth(x: jax.Array, s: int, pads: Pads, m: int, out: Sequence[int]) -> jax.Array:
    b, h, w, c = x.shape
    zero = jnp.zeros((), x.dtype)
    config = [(0, 0, 0), _block_pads(h, pads[0], s, m, out[0]), _block_pads(w, pads[1], s, m, out[1]), (0, 0, 0)]
    x = lax.pad(x, zero, config)
    h, w = x.shape[1] // s, x.shape[2] // s
    # Not a transposition: a step of DCGAN takes .96 to .98 of its time so in float32, .82 to .95 in bfloat16.
    rows = x.reshape(b, h, s, w, s * c)
    return jnp.concatenate([rows[:, :, i] for i in range(s)], 3)


@as_bits
def _depth_to_space(x: jax.Array, s: int, pads: Pads, size: tuple[int, int]) -> jax.Array:
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, s, c // s).transpose(0, 1, 3, 2, 4).reshape(b, h * s, w * s, c // (s * s))
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
