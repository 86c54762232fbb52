"""Inception score: exp of the mean KL(p(y | x) || p(y)) of a classifier's answers (arXiv:1606.03498, section 4).

Published figures take 50,000 samples in 10 splits: p(y) is the mean of a split, and the score the mean over the splits.
Samples that come sorted, as those of a conditional generator may, must be shuffled (`seed`), or a split holds few
classes and the score is too low. The score of other numbers of samples, or another classifier, does not compare.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, xlogy

from jaxgan.errors import InputError
from jaxgan.metrics.features import checked


class InceptionScore(NamedTuple):
    mean: float  # between 1 and the number of classes
    std: float  # over the splits (divided by their number); 0 of one split


def from_logits(logits: np.ndarray, splits: int = 10, seed: int | None = None) -> InceptionScore:
    """Logits (n, classes), n >= splits. In order of the rows, or, with a seed, in an order drawn from it."""
    return _score(log_softmax(_given(logits, "logits", splits, seed).astype(np.float64), axis=1), splits)


def from_probabilities(probabilities: np.ndarray, splits: int = 10, seed: int | None = None) -> InceptionScore:
    """Probabilities (n, classes), n >= splits, each row of which sums to 1 (it is divided by its sum)."""
    p = _given(probabilities, "probabilities", splits, seed).astype(np.float64)
    sums = p.sum(1)
    if p.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        raise InputError(
            f"probabilities from {p.min():.4g}, rows that sum to {sums.min():.4g} to {sums.max():.4g}: expected values "
            "from 0 and sums of 1; pass logits to from_logits"
        )
    with np.errstate(divide="ignore"):
        return _score(np.log(p / sums[:, None]), splits)


def _given(values: np.ndarray, name: str, splits: int, seed: int | None) -> np.ndarray:
    if splits < 1:
        raise InputError(f"{splits} splits of the inception score: expected 1 or more")
    values = checked(values, name, splits, "one for each split")
    return values if seed is None else values[np.random.default_rng(seed).permutation(len(values))]


def _score(log_p: np.ndarray, splits: int) -> InceptionScore:
    """As the mean of entropies: KL summed over x and y is H(mean) - mean H, without log 0."""
    n, scores = len(log_p), []
    for i in range(splits):
        logs = log_p[i * n // splits : (i + 1) * n // splits]
        p = np.exp(logs)
        q = p.mean(0)
        own = np.where(p > 0, p * np.where(p > 0, logs, 0), 0).sum(1).mean()
        scores.append(np.exp(own - xlogy(q, q).sum()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
