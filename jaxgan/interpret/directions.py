"""Directions of a latent space along which images change, found without labels.

sefa       eigenvectors of AᵀA, A the weight of all layers that take the point: Shen and Zhou 2020, arXiv:2007.06600
ganspace   principal components of early activations, regressed to the point: Härkönen et al. 2020, arXiv:2004.02546
jacobian   right singular vectors of the derivative of one image: what changes it most, and how many ways there are
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgan import numerics


class Directions(NamedTuple):
    """Unit vectors, the one with the most effect first; the sign of each is such that its largest entry is positive."""

    vectors: np.ndarray  # (k, d)
    values: np.ndarray  # (k,) eigenvalues, variances or singular values
    share: np.ndarray  # (k,) of their sum over all, k or not; of singular values, of the sum of squares


def sefa(weight: np.ndarray, k: int) -> Directions:
    """The k directions n, |n| = 1, with the largest |A n|² (eq. 6 and 8), of A (outputs, d)."""
    values, vectors = np.linalg.eigh(weight.T @ weight)
    values = np.maximum(values, 0)
    order = np.argsort(-values)[:k]
    return Directions(_signed(vectors.T[order]), values[order], values[order] / max(values.sum(), 1e-300))


def ganspace(activations: np.ndarray, points: np.ndarray, k: int) -> Directions:
    """Of activations (n, ...) at points (n, d), n > 1: the principal components with the largest variance, and the
    directions U of the space that go with them, the least squares of sum |U x - (z - mean z)|², x (n, k) the
    coordinates along the components (section 3.1)."""
    centred = activations.reshape(len(activations), -1).astype(np.float64)
    centred = centred - centred.mean(0)
    # The same coordinates by the smaller of the two products.
    if centred.shape[0] <= centred.shape[1]:
        values, left = np.linalg.eigh(centred @ centred.T)
        values, left = np.maximum(values[::-1], 0), left[:, ::-1]
        coordinates = left * np.sqrt(values)
    else:
        values, right = np.linalg.eigh(centred.T @ centred)
        values, right = np.maximum(values[::-1], 0), right[:, ::-1]
        coordinates = centred @ right
    k = min(k, int((values > 1e-10 * values[0]).sum()))
    x = coordinates[:, :k]
    u, *_ = np.linalg.lstsq(x, points - points.mean(0), rcond=None)  # (k, d)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-300)
    variances = values / (len(centred) - 1)
    return Directions(_signed(u), variances[:k], values[:k] / max(values.sum(), 1e-300))


@numerics.fixed()
def jacobian(render: Callable[[jax.Array], jax.Array], point: jax.Array, block: int = 64) -> np.ndarray:
    """dG/dp (h w c, d) at one point (d,), in blocks of columns.

    A column is the transpose of the transpose, J v = (u -> Jᵀ u)ᵀ v, since convolutions on a CPU have a backward pass
    of their own and no forward one. There are fewer columns than pixels.
    """
    d = point.shape[0]

    @jax.jit
    def columns(directions: jax.Array) -> jax.Array:
        image, pull = jax.vjp(lambda p: render(p[None])[0].reshape(-1), point)
        _, push = jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(image))
        return jax.vmap(lambda direction: push(direction)[0])(directions)

    eye = np.eye(d, dtype=np.float32)
    block = min(block, d)
    starts = range(0, d, block)
    found = [np.asarray(columns(eye[np.minimum(np.arange(i, i + block), d - 1)]))[: d - i] for i in starts]
    return np.concatenate(found).T.astype(np.float64)


class Spectrum(NamedTuple):
    directions: Directions  # right singular vectors: unit steps of the point
    changes: np.ndarray  # (k, h w c) left singular vectors: what they do to the image
    singular: np.ndarray  # (min(h w c, d),) all of them
    rank: float  # effective


def spectrum(derivative: np.ndarray, k: int) -> Spectrum:
    """The singular value decomposition of a Jacobian (h w c, d)."""
    left, singular, right = np.linalg.svd(derivative, full_matrices=False)
    k = min(k, len(singular))
    signs = _signs(right[:k])
    power = singular**2 / max((singular**2).sum(), 1e-300)
    found = Directions(right[:k] * signs, singular[:k], power[:k])
    return Spectrum(found, left.T[:k] * signs, singular, effective_rank(singular))


def effective_rank(singular: np.ndarray) -> float:
    """exp of the entropy of σ / Σσ (Roy and Vetterli 2007): 1 for one direction, n for n of equal weight."""
    p = np.asarray(singular, np.float64)
    p = p[p > 0] / max(p.sum(), 1e-300)
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def walks(points: np.ndarray, direction: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Points (n, d) and unit direction (d,) -> (n, steps, d), so many units along it."""
    return points[:, None] + steps[None, :, None] * direction


def spread(points: np.ndarray, direction: np.ndarray) -> float:
    """Standard deviation of points (n, d) along a unit direction: 1 for N(0, I)."""
    return float(np.std(points @ direction))


def _signs(vectors: np.ndarray) -> np.ndarray:
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    return np.where(largest < 0, -1.0, 1.0)


def _signed(vectors: np.ndarray) -> np.ndarray:
    return vectors * _signs(vectors)
