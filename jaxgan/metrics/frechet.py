"""Fréchet distance between Gaussians fitted to two sets of features (arXiv:1706.08500, eq. 6)."""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    mean: np.ndarray  # (d,) float64
    covariance: np.ndarray  # (d, d) float64, divided by n - 1


def moments(features: np.ndarray) -> Moments:
    """Features (n, d), n >= 2."""
    features = np.asarray(features, np.float64)
    return Moments(features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], features.shape[1]))


def distance(a: Moments, b: Moments) -> float:
    """||μa - μb||² + tr(A + B - 2 (A B)^½). In float64, by the eigenvalues of the symmetric A^½ B A^½."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b.covariance @ root), 0)).sum()
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)
