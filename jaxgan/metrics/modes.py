"""Samples of a mixture of equal Gaussians -> which modes they found, how many lie in one, how evenly, how wide.

The protocol of VEEGAN (arXiv:1705.07761) and PacGAN (arXiv:1712.04086): of 2,500 samples, one is of high quality within
3σ of a mode, and a mode is found that has such a sample. It takes no notice of the width of a mode, so a generator of k
points is perfect by it: `spread` is what they leave out.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import gammainc

from jaxgan.errors import InputError

WITHIN = 3.0  # σ


class Modes(NamedTuple):
    found: int  # modes with a sample within 3σ
    high_quality: float  # share of the samples within 3σ of a mode; for points of the plane at best 1 - e^-4.5 = 0.9889
    reverse_kl: float  # nats, of the histogram of these over the modes; log k, the worst, where there are none
    spread: np.ndarray  # (d,) standard deviation inside the modes over the true one; 0 where none is found
    counts: np.ndarray  # (k,) samples of high quality


def modes(points: np.ndarray, centres: np.ndarray, sigma: float) -> Modes:
    """points (n, d) against the mixture of N(centre, σ² I) with equal weights, centres (k, d) more than 6σ apart.

    spread: the root mean square distance, in each coordinate, of the samples of high quality from the mean of those of
    their mode, over what a Gaussian has that is cut off at 3σ. So 1 is right, and the largest possible, of a flat disc,
    is 1.54; stray samples are not in it but in `high_quality`.
    """
    points, centres = np.asarray(points, np.float64), np.asarray(centres, np.float64)
    if points.ndim != 2 or centres.ndim != 2 or points.shape[1] != centres.shape[1] or not len(points):
        raise InputError(f"samples of shape {points.shape} of modes {centres.shape}: expected (n, d) and (k, d), n > 0")
    d = points.shape[1]
    square = np.stack([np.sum(np.square(points - centre), axis=1) for centre in centres], axis=1)  # (n, k)
    nearest = np.argmin(square, axis=1)
    good = square[np.arange(len(points)), nearest] < (WITHIN * sigma) ** 2  # never of a NaN
    inside, mode = points[good], nearest[good]
    counts = np.bincount(mode, minlength=len(centres))
    sums = np.stack([np.bincount(mode, inside[:, i], len(centres)) for i in range(d)], axis=1)
    residual = inside - (sums / np.maximum(counts, 1)[:, None])[mode]
    # A mean that was measured takes a degree of freedom from each mode.
    variance = np.sum(np.square(residual), axis=0) / max(len(inside) - np.count_nonzero(counts), 1)
    return Modes(
        found=int(np.count_nonzero(counts)),
        high_quality=float(np.mean(good)),
        reverse_kl=reverse_kl(counts) if len(inside) else math.log(len(centres)),
        spread=np.sqrt(variance / truncated_variance(d)) / sigma,
        counts=counts,
    )


def reverse_kl(counts: np.ndarray) -> float:
    """KL(p || uniform) = Σ p log(k p) in nats, p the shares of `counts` (k,): 0 if even, log k if all are of one kind.

    "Reverse", since the generated distribution stands first. Also that of stacked digits, k = 1,000 classes.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 1 or not counts.sum() > 0 or (counts < 0).any():
        raise InputError(
            f"counts of shape {counts.shape}, {counts.sum():g} in all: expected (k,), of one sample or more"
        )
    p = counts[counts > 0] / counts.sum()
    return float(max(np.sum(p * np.log(len(counts) * p)), 0.0))


def truncated_variance(d: int, within: float = WITHIN) -> float:
    """Variance of a coordinate of N(0, I) of d dimensions, given a length below `within`: F(d + 2) / F(d) of χ²."""
    return float(gammainc(d / 2 + 1, within**2 / 2) / gammainc(d / 2, within**2 / 2))
