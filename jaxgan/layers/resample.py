"""Resampling with a low-pass filter (arXiv:1912.04958): twice as large, half as large, and the filter alone.

The filter is separable: `taps` along both axes, convolved, normalised to sum 1, with zeros around the image. It is
written as a sum of shifted images, and only at the places that are kept (polyphase): inserted zeros are not multiplied,
and nothing is computed to be thrown away. Its derivatives are the same sums with the taps in reverse. All are taken in
float32.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Taps = tuple[float, ...]
BINOMIAL: Taps = (1, 3, 3, 1)


def up(x: jax.Array, taps: Sequence[float] = BINOMIAL) -> jax.Array:
    """(b, h, w, c) -> (b, 2h, 2w, c): zeros between the pixels, the filter, times four.

    Four times the transpose of `down` with the taps in reverse.
    """
    taps = tuple(2 * f for f in _normal(taps))
    return _wide(lambda x: _up(_up(x, taps, 1), taps, 2), x)


def down(x: jax.Array, taps: Sequence[float] = BINOMIAL) -> jax.Array:
    """(b, h, w, c) -> (b, ceil(h / 2), ceil(w / 2), c): the filter, and every second pixel."""
    _, h, w, _ = x.shape
    if h % 2 or w % 2:
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    taps = _normal(taps)
    return _wide(lambda x: _down(_down(x, taps, 1), taps, 2), x)


def filter(x: jax.Array, taps: Sequence[float], pads: tuple[int, int]) -> jax.Array:
    """(b, h, w, c) -> (b, h + sum(pads) - k + 1, w + sum(pads) - k + 1, c) for k taps, zeros around the image."""
    return _wide(lambda x: _filter(x, _normal(taps), tuple(pads)), x)


def _normal(taps: Sequence[float]) -> Taps:
    return tuple(float(f) / sum(taps) for f in taps)


def _wide(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return function(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


def _start(k: int) -> int:
    """Zeros before an image that a filter of k taps halves: 1 for four."""
    return (k - 1) // 2


def _pad(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Negative pads crop."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) for low, high in pads])


def _sum(x: jax.Array, axis: int, terms: Sequence[tuple[int, float]], size: int) -> jax.Array:
    """y[n] = the sum of f x[n + shift] over (shift, f) of `terms`, n < size, with zeros around x."""
    if not terms:
        return jnp.zeros_like(lax.slice_in_dim(x, 0, size, axis=axis))
    first, last = min(s for s, _ in terms), max(s for s, _ in terms)
    around = (-first, size + last - x.shape[axis])
    x = _pad(x, [around if i == axis else (0, 0) for i in range(x.ndim)])
    parts = [lax.slice_in_dim(x, s - first, s - first + size, axis=axis) * f for s, f in terms]
    return functools.reduce(jnp.add, parts)


# Along one axis of even size.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _down(x: jax.Array, taps: Taps, axis: int) -> jax.Array:
    """y[n] = sum over j of taps[k - 1 - j] x[2n + j - start]."""
    k, size = len(taps), x.shape[axis] // 2
    pixels = x.reshape(*x.shape[:axis], size, 2, *x.shape[axis + 1 :])
    places = [(j - _start(k), taps[k - 1 - j]) for j in range(k)]
    phases = []
    for r in range(2):
        terms = [(place // 2, f) for place, f in places if place % 2 == r]
        phases.append(_sum(lax.index_in_dim(pixels, r, axis + 1, keepdims=False), axis, terms, size))
    return phases[0] + phases[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _up(x: jax.Array, taps: Taps, axis: int) -> jax.Array:
    """The transpose of `_down` with the taps in reverse: y[2n + j - start] = sum over j of taps[j] x[n]."""
    k, size = len(taps), x.shape[axis]
    places = [(j - _start(k), taps[j]) for j in range(k)]
    phases = [_sum(x, axis, [(-(place // 2), f) for place, f in places if place % 2 == r], size) for r in range(2)]
    return jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _filter(x: jax.Array, taps: Taps, pads: tuple[int, int]) -> jax.Array:
    """Along both axes. Padded once for both: XLA:CPU is several times slower with a pad before each sum."""
    k = len(taps)
    x = _pad(x, [(0, 0), pads, pads, (0, 0)])
    for axis in (1, 2):
        x = _sum(x, axis, [(j, taps[k - 1 - j]) for j in range(k)], x.shape[axis] - k + 1)
    return x


def _down_bwd(taps, axis, _, y):
    return (_up(y, taps[::-1], axis),)


def _up_bwd(taps, axis, _, y):
    return (_down(y, taps[::-1], axis),)


def _filter_bwd(taps, pads, _, y):
    low, high = pads
    return (_filter(y, taps[::-1], (len(taps) - 1 - low, len(taps) - 1 - high)),)


_down.defvjp(lambda x, *_: (_down(x, *_), None), _down_bwd)
_up.defvjp(lambda x, *_: (_up(x, *_), None), _up_bwd)
_filter.defvjp(lambda x, *_: (_filter(x, *_), None), _filter_bwd)
