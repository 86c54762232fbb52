"""Wavelet filters by their defining equations; warps against SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from jaxgan.layers import geometry, wavelet


@pytest.mark.parametrize("taps, moments", [(wavelet.SYM2, 2), (wavelet.SYM6, 6)])
def test_wavelets_are_orthogonal_and_have_their_vanishing_moments(taps, moments):
    """Which, but for the choice among a few solutions, determines them (Daubechies 1992, chapter 6)."""
    n = np.arange(len(taps))
    assert len(taps) == 2 * moments
    np.testing.assert_allclose(taps.sum(), 2**0.5, atol=1e-12)
    overlaps = [taps[: len(taps) - 2 * k] @ taps[2 * k :] for k in range(moments)]
    np.testing.assert_allclose(overlaps, [1] + [0] * (moments - 1), atol=1e-11)
    np.testing.assert_allclose([(-1.0) ** n * (n / len(n)) ** k @ taps for k in range(moments)], 0, atol=1e-11)


def test_sym6_is_the_solution_that_turns_the_phase_least():
    """Of the eight solutions, all others delay some frequency that passes by another tap or more."""
    frequencies, delay = scipy.signal.group_delay((wavelet.SYM6, 1), 64)
    assert np.abs(delay[frequencies < np.pi / 2] - wavelet.PHASE).max() < 0.5


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_halving_undoes_doubling(n):
    fine = np.arange(-wavelet.MARGIN, 2 * n + wavelet.MARGIN) % (2 * wavelet.period(n))
    np.testing.assert_allclose(wavelet.halving(n) @ wavelet.doubling(n)[fine], np.eye(n), atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 6, 30])
def test_bands_have_the_frequency_response_of_their_octaves(n):
    """|H|² / 2 of Daubechies' filter of two moments is cos⁴(ω/2) (1 + 2 sin²(ω/2)); on the reflection, by FFT."""

    def low(w):
        return np.cos(w / 2) ** 4 * (1 + 2 * np.sin(w / 2) ** 2)

    size = wavelet.period(n)
    w = 2 * np.pi * np.fft.fftfreq(size)
    responses = [low(w) * low(2 * w) * low(4 * w), low(w) * low(2 * w) * low(4 * w + np.pi)]
    responses += [low(w) * low(2 * w + np.pi), low(w + np.pi)]
    x = np.random.default_rng(n).normal(size=n)
    spectrum = np.fft.fft(np.concatenate([x, x[-2:0:-1]]))
    expected = [np.fft.ifft(spectrum * r).real[:n] for r in responses]
    np.testing.assert_allclose(wavelet.bands(n) @ x, expected, atol=1e-5)
    np.testing.assert_allclose(wavelet.bank().sum(0), np.arange(43) == 21, atol=1e-12)


def reference(image, linear, offset, wide=60):
    """The warp of one image in float64, by explicit padding and SciPy's filters and interpolation."""
    h, w, _ = image.shape
    taps, m = wavelet.SYM6, wavelet.MARGIN
    out = np.zeros(image.shape)
    for c in range(image.shape[2]):
        fine = np.pad(np.float64(image[:, :, c]), wide, mode="reflect")
        for axis in (0, 1):
            fine = scipy.signal.upfirdn(2**0.5 * taps, fine, up=2, axis=axis)
        half = (np.array([w, h]) - 1) / 2
        y, x = np.mgrid[-m : 2 * h + m, -m : 2 * w + m] / 2
        at = np.einsum("ij,jyx->iyx", linear, np.stack([x - half[0], y - half[1]])) + (offset + half)[:, None, None]
        places = 2 * (at + wide) + wavelet.PHASE
        looked = scipy.ndimage.map_coordinates(fine, places[::-1], order=1, mode="constant", cval=np.nan)
        for axis in (0, 1):
            looked = scipy.signal.upfirdn(taps[::-1] / 2**0.5, looked, down=2, axis=axis)
        out[:, :, c] = looked[m : m + h, m : m + w]
    return out


def maps(rng, count):
    angle, zoom, squeeze = rng.uniform(-np.pi, np.pi, count), 2 ** rng.normal(0, 0.4, count), 2 ** rng.normal(0, 0.4)
    linear = np.array([[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] for a in angle])
    return np.float32(linear * zoom[:, None, None] @ np.diag([squeeze, 1 / squeeze])), rng.normal(0, 2, (count, 2))


@pytest.mark.parametrize("shape", [(11, 11, 1), (7, 12, 2)])
def test_warp_is_the_reference(shape):
    rng = np.random.default_rng(0)
    images = np.float32(rng.uniform(-1, 1, (6, *shape)))
    linear, offset = maps(rng, 6)
    offset = np.float32(offset)
    expected = [reference(*each) for each in zip(images, np.float64(linear), np.float64(offset), strict=True)]
    warped = jax.jit(geometry.warp)(images, linear, offset)
    assert np.isfinite(expected).all() and np.abs(warped - images).max() > 0.5
    np.testing.assert_allclose(warped, expected, atol=1e-5)


def test_maps_that_need_no_interpolation():
    """Nothing moves: bit for bit. Whole pixels: the image itself, shifted, its border pixels mirrored, not repeated."""
    rng = np.random.default_rng(1)
    images = np.float32(rng.uniform(-1, 1, (2, 6, 9, 3)))
    images[0] = images[1]
    linear, offset = np.stack([np.eye(2)] * 2), np.array([[0.0, 0.0], [2.0, -1.0]])
    still, moved = jax.jit(geometry.warp)(images, jnp.float32(linear), jnp.float32(offset))
    np.testing.assert_array_equal(still, images[0])
    # The pixel at (x, y) shows what was at (x + 2, y - 1).
    padded = np.pad(images[0], ((1, 0), (0, 2), (0, 0)), mode="reflect")
    np.testing.assert_allclose(moved, padded[:-1, 2:], atol=2e-6)


def test_gradient_of_a_warp_is_its_transpose():
    rng = np.random.default_rng(2)
    linear, offset = maps(rng, 2)
    x, y = (np.float32(rng.normal(size=(2, 6, 9, 2))) for _ in range(2))

    @jax.jit
    def both(x, y):
        warped, pull = jax.vjp(lambda x: geometry.warp(x, linear, jnp.float32(offset)), x)
        return warped, pull(y)[0]

    warped, back = both(x, y)
    assert float(np.vdot(warped, y)) == pytest.approx(float(np.vdot(x, back)), rel=1e-5)


@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (-4, 5), (1, 0)])
def test_translation_fills_with_zeros(shift):
    image = np.random.default_rng(3).normal(size=(4, 5, 2)).astype(np.float32)
    expected = scipy.ndimage.shift(image, (*shift, 0), order=0, mode="constant")
    np.testing.assert_array_equal(geometry.translate(jnp.array(image), jnp.array(shift)), expected)
