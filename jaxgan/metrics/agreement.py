"""Does a conditional generator make the class that it was asked for, and an unconditional one each class as often?

The classes are a classifier's guesses, so its own mistakes on real images are the best that can be expected: quote its
accuracy beside these. Accuracy under a classifier of real images is called GAN-test (arXiv:1807.09499, section 3).
"""

from typing import NamedTuple

import numpy as np

from jaxgan.errors import InputError


class Agreement(NamedTuple):
    accuracy: float  # share of the samples that show the class that was asked for
    per_class: np.ndarray  # (k,) the same of each class that was asked for; NaN of one that was not
    asked: np.ndarray  # (k,) share of each class among those that were asked for
    shown: np.ndarray  # (k,) share of each class among those that are shown
    total_variation: float  # between the two, 0 to 1
    kl: float  # KL(shown || asked) in nats; infinite if a class is shown that was never asked for


def agreement(predicted: np.ndarray, asked: np.ndarray, classes: int) -> Agreement:
    """Labels (n,) in range(classes): what a classifier sees in each sample, and what it was to be."""
    shown, wanted = shares(predicted, classes), shares(asked, classes)
    predicted, asked = np.asarray(predicted), np.asarray(asked)
    if len(predicted) != len(asked):
        raise InputError(f"{len(predicted)} predicted labels for {len(asked)} that were asked for: expected as many")
    right = predicted == asked
    counts = np.bincount(asked, minlength=classes)
    per_class = np.where(counts, np.bincount(asked[right], minlength=classes) / np.maximum(counts, 1), np.nan)
    return Agreement(float(right.mean()), per_class, wanted, shown, total_variation(shown, wanted), kl(shown, wanted))


def shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels (n,) in range(classes), n >= 1 -> the share (classes,) of each."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise InputError(f"labels of shape {labels.shape} and type {labels.dtype}: expected integers (n,), n >= 1")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels from {labels.min()} to {labels.max()}: expected 0 to {classes - 1}")
    return np.bincount(labels, minlength=classes) / len(labels)


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """½ Σ |p - q| of shares (k,): 0 of equal ones, 1 of those that have no class in common."""
    p, q = _shares(p, q)
    return float(np.abs(p - q).sum() / 2)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) = Σ p log(p / q) of shares (k,), in nats; infinite if q lacks a class of p."""
    p, q = _shares(p, q)
    some = p > 0
    if (q[some] == 0).any():
        return float("inf")
    return float(max(np.sum(p[some] * np.log(p[some] / q[some])), 0.0))


def _shares(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    for given in (p, q):
        # Written so that NaN is refused.
        if given.ndim != 1 or given.shape != p.shape or not (given.min() >= 0 and abs(given.sum() - 1) < 1e-6):
            raise InputError(
                f"shares of shapes {p.shape} and {q.shape} that sum to {p.sum():.6g} and {q.sum():.6g}: expected (k,) "
                "each, none negative, of sum 1"
            )
    return p, q
