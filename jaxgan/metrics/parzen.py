"""Log-likelihood of real images under a Parzen window of samples, the figure of the first papers on GANs.

A Gaussian of standard deviation σ stands on each of 10,000 samples; σ is chosen on validation images; reported is the
mean log-density of the test images, in nats, pixels in [0, 1] (Breuleux et al. 2011, doi:10.1162/NECO_a_00189;
arXiv:1406.2661, section 5). It compares with published figures and tells little else: in so many dimensions it
prefers the centres of clusters to the images themselves (arXiv:1511.01844, section 3.2).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.scipy.special import logsumexp

from jaxgan import mmd

SIGMAS = np.geomspace(0.05, 0.8, 13)  # of pixels in [0, 1]; 1.26 times the one before
FINER = np.geomspace(1 / 1.26, 1.26, 9)  # times the best of those; half a step of it costs less than half a nat
FIRST = 1000  # validation images that choose among SIGMAS; all choose among the finer ones
ROWS = 256  # images of one compiled call, each of which meets all samples


class Parzen(NamedTuple):
    mean: float  # log-density of a test image, nats
    error: float  # standard error of that mean, over the test images
    sigma: float
    validation: float  # the mean that σ was chosen by


def evaluate(samples: np.ndarray, validation: np.ndarray, test: np.ndarray) -> Parzen:
    """Samples, validation and test images (n, ...) with values in [0, 1]; two or more test images."""
    coarse, _ = best(samples, validation[:FIRST], SIGMAS)
    sigma, mean = best(samples, validation, coarse * FINER)
    (densities,) = log_densities(samples, test, [sigma])
    return Parzen(float(densities.mean()), float(densities.std(ddof=1) / np.sqrt(len(densities))), sigma, mean)


def best(samples: np.ndarray, images: np.ndarray, sigmas: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The σ under which the images are most likely, and their mean log-density."""
    means = log_densities(samples, images, sigmas).mean(1)
    i = int(np.argmax(means))
    return float(sigmas[i]), float(means[i])


def log_densities(samples: np.ndarray, images: np.ndarray, sigmas: Sequence[float] | np.ndarray) -> np.ndarray:
    """log (1/n) Σ_i N(image; sample_i, σ² I): (len(sigmas), number of images), float64.

    Distances and the sum in float32, their large constants in float64.
    """
    samples, images = (np.asarray(x, np.float32).reshape(len(x), -1) for x in (samples, images))
    sigmas = np.asarray(sigmas, np.float64)
    scales = (0.5 / np.square(sigmas)).astype(np.float32)
    parts = []
    for start in range(0, len(images), ROWS):
        # The last part is filled up, so that every call has one compiled shape.
        rows = np.minimum(np.arange(start, start + ROWS), len(images) - 1)
        parts.append(jax.device_get(_exponents(samples, images[rows], scales)))
    exponents = np.concatenate(parts, axis=1)[:, : len(images)].astype(np.float64)
    n, d = samples.shape
    return exponents - np.log(n) - 0.5 * d * np.log(2 * np.pi * np.square(sigmas))[:, None]


@jax.jit
def _exponents(samples: jax.Array, images: jax.Array, scales: jax.Array) -> jax.Array:
    """log Σ_i exp(-s |image - sample_i|²) for each scale s: (scales, images)."""
    distances = mmd.squared_distances(images, samples)
    return jax.lax.map(lambda s: logsumexp(-s * distances, axis=1), scales)
