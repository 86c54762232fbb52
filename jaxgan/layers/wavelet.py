"""Wavelet filters as matrices that act along one axis of an image, its endless reflection at both borders included.

A matrix costs more products than its filter has taps, but these run as one matrix product, and so does the gradient:
inside a scan on a CPU, for 64x64 images, twice as fast as sums of shifted images, and four times in the gradient.
"""

import functools

import numpy as np

# Orthogonal low-pass filters of two and six vanishing moments (Daubechies' least asymmetric ones; sums sqrt(2)).
SYM2 = np.array([1 - 3**0.5, 3 - 3**0.5, 3 + 3**0.5, 1 + 3**0.5]) / (4 * 2**0.5)
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
PHASE = 5  # the tap of SYM6 with which a pixel meets itself: pixel n stands at 2n of the doubled image
MARGIN = 6  # what `halving` reads beyond each end of the doubled image


def period(n: int) -> int:
    """Pixels after which the reflection of n pixels at both ends, those not repeated, begins again."""
    return max(2 * (n - 1), 1)


def reflected(places: np.ndarray, n: int) -> np.ndarray:
    """The pixel, of n, that is seen at any place of the endless reflection."""
    places = places % period(n)
    return np.minimum(places, period(n) - places) if n > 1 else places


@functools.cache
def doubling(n: int) -> np.ndarray:
    """(2 period(n), n): one period of the reflection at twice the resolution, interpolated by SYM6."""
    matrix = np.zeros((2 * period(n), n))
    fine = np.arange(len(matrix))
    for tap, value in enumerate(SYM6):
        seen = fine + PHASE - tap
        even = seen % 2 == 0
        np.add.at(matrix, (fine[even], reflected(seen[even] // 2, n)), 2**0.5 * value)
    return matrix.astype(np.float32)


@functools.cache
def halving(n: int) -> np.ndarray:
    """(n, 2n + 2 MARGIN): from places -MARGIN to 2n + MARGIN - 1 of a doubled image; it undoes `doubling` exactly."""
    matrix = np.zeros((n, 2 * n + 2 * MARGIN))
    for tap, value in enumerate(SYM6):
        matrix[np.arange(n), 2 * np.arange(n) + tap - PHASE + MARGIN] = value / 2**0.5
    return matrix.astype(np.float32)


def bank() -> np.ndarray:
    """(4, 43): filters of the octaves [0, 1/8], [1/8, 1/4], [1/4, 1/2] and [1/2, 1] of the frequencies; their sum is 1.

    With L(z) = H(z) H(1/z) / 2 and R(z) = L(-z) of SYM2: L(z) L(z²) L(z⁴), L(z) L(z²) R(z⁴), L(z) R(z²), R(z).
    """
    low = np.convolve(SYM2, SYM2[::-1]) / 2
    high = low * (-1.0) ** (np.arange(len(low)) - len(low) // 2)

    def octave(taps: np.ndarray, times: int) -> np.ndarray:  # taps of z^times
        spread = np.zeros(times * (len(taps) - 1) + 1)
        spread[::times] = taps
        return spread

    lows = np.convolve(low, octave(low, 2))
    filters = [np.convolve(lows, octave(x, 4)) for x in (low, high)] + [np.convolve(low, octave(high, 2)), high]
    longest = len(filters[0])
    return np.stack([np.pad(taps, (longest - len(taps)) // 2) for taps in filters])


@functools.cache
def bands(n: int) -> np.ndarray:
    """(4, n, n): the filters of `bank` on n pixels and their reflection."""
    filters = bank()
    matrices = np.zeros((len(filters), n, n))
    pixels = np.arange(n)
    for tap, values in enumerate(filters.T):
        seen = reflected(pixels + tap - filters.shape[1] // 2, n)
        matrices[:, pixels, seen] += values[:, None]
    return matrices.astype(np.float32)
