"""Resampling against StyleGAN2's definition in NumPy: zeros between the pixels, a filter, a stride."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan.layers.resample import down, filter, up

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def upfirdn(x, taps, factor, pads, stride):
    """One axis after the other, in float64: zeros between the pixels, zeros around, a true convolution, a stride."""
    x, taps = np.float64(x), np.float64(taps) / np.sum(taps)
    for axis in (1, 2):
        spread = np.zeros([n * factor if i == axis else n for i, n in enumerate(x.shape)])
        spread[(slice(None),) * axis + (slice(None, None, factor),)] = x
        spread = np.pad(spread, [pads if i == axis else (0, 0) for i in range(4)])
        x = np.apply_along_axis(np.convolve, axis, spread, taps, "valid")
        x = x[(slice(None),) * axis + (slice(None, None, stride),)]
    return x


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [(4, 4), (7, 6), (1, 5)], ids=str)
def test_the_definition(size):
    # arXiv:1912.04958's padding: (2, 1) and (1, 1) for four taps, and one more zero behind where the size is odd.
    x, every = images(2, *size, 3), [(1, 3, 3, 1), (1, 1), (1, 2, 3, 5), (1, 4, 6, 4, 2, 1)]
    padded = np.pad(x, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)))
    results = quick(lambda x: [(up(x, taps), down(x, taps), filter(x, taps, (len(taps) - 1, 1))) for taps in every])(x)
    for taps, (larger, smaller, same) in zip(every, results, strict=True):
        k = len(taps)
        assert larger.shape == (2, 2 * size[0], 2 * size[1], 3)
        assert smaller.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 3)
        np.testing.assert_allclose(larger, 4 * upfirdn(x, taps, 2, (k // 2, k // 2 - 1), 1), atol=1e-6)
        np.testing.assert_allclose(smaller, upfirdn(padded, taps, 1, (k // 2 - 1, k // 2 - 1), 2), atol=1e-6)
        np.testing.assert_allclose(same, upfirdn(x, taps, 1, (k - 1, 1), 1), atol=1e-6)


def test_a_filter_of_odd_length_stays_where_it_is():
    """Three taps have a middle: `up` leaves it on the pixel, and is still the transpose of `down`."""
    pixel = np.zeros((1, 3, 3, 1), np.float32)
    pixel[0, 1, 1] = 1
    row = np.array([0, 0.5, 1, 0.5, 0, 0])  # twice (1, 2, 1) / 4 around place 2
    np.testing.assert_allclose(up(pixel, (1, 2, 1))[0, :, :, 0], np.outer(row, row), atol=1e-7)


@pytest.mark.parametrize("size", [(4, 6), (5, 3)], ids=str)
def test_gradients_are_the_transposes(size):
    """<A x, y> = <x, A^T y> for the gradient A^T of each, whose own gradient is A again."""
    x, every = images(2, *size, 3), [(1, 3, 3, 1), (1, 1), (1, 2, 1), (1, 2, 3, 5)]
    functions = [
        functools.partial(f, taps=t) for t in every for f in (up, down, functools.partial(filter, pads=(1, 2)))
    ]
    shapes = jax.eval_shape(lambda x: [f(x) for f in functions], x)
    ys = [images(*shape.shape, seed=i + 1) for i, shape in enumerate(shapes)]

    @quick
    def everything(x, ys):
        def one(function, y):
            a_x, transpose = jax.vjp(function, x)
            back, again = jax.vjp(lambda y: transpose(y)[0], y)
            return a_x, back, again(x)[0]

        return [one(f, y) for f, y in zip(functions, ys, strict=True)], [
            up(ys[3 * i + 1], t[::-1]) for i, t in enumerate(every)
        ]

    results, larger = everything(x, ys)
    for y, (a_x, back, again) in zip(ys, results, strict=True):
        assert abs(np.vdot(np.float64(a_x), y) - np.vdot(np.float64(x), back)) < 1e-5
        np.testing.assert_allclose(again, a_x, atol=1e-6)
    for (_, back, _), four_times in zip(results[1::3], larger, strict=True):
        np.testing.assert_allclose(4 * back, four_times[:, : size[0], : size[1]], atol=1e-6)


def test_bfloat16_is_summed_in_float32():
    half = jnp.bfloat16(images(2, 4, 4, 3))
    functions = [up, down, functools.partial(filter, taps=(1, 3, 3, 1), pads=(2, 1))]
    exact = quick(lambda x: [f(x.astype(jnp.float32)) for f in functions])(half)
    for y, wide in zip(quick(lambda x: [f(x) for f in functions])(half), exact, strict=True):
        assert y.dtype == jnp.bfloat16
        assert (y == wide.astype(jnp.bfloat16)).all()  # rounded once
