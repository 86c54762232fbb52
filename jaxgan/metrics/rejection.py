"""Discriminator rejection sampling (arXiv:1810.06758): those of a generator's samples that its discriminator lets pass.

A discriminator that cross-entropy has trained to its end gives the logit log p(x) / q(x), of the densities of data and
samples, and one of the relativistic loss gives it up to a constant, which drops out here. To accept x with probability
p(x) / (M q(x)), M the largest ratio, turns samples into data; of images, whose ratios are huge, it would accept none.
"""

import numpy as np
from scipy.special import expit

# The losses under whose optimum logits are log density ratios, up to a constant.
LOSSES = ("minimax", "non_saturating", "relativistic")
EPSILON = 1e-8  # keeps the verdict at the maximum finite


def verdicts(logits: np.ndarray, maximum: float) -> np.ndarray:
    """F(x) = d - log(1 - e^(d - ε)), where d = D̃(x) - D̃_M <= 0: its sigmoid is the ratio over M.

    Logits (n,), and the largest that is known, D̃_M, which none of them exceeds -> (n,).
    """
    below = np.asarray(logits, np.float64) - maximum
    return below - np.log(-np.expm1(below - EPSILON))


def acceptance(logits: np.ndarray, maximum: float, percentile: float | None = None) -> np.ndarray:
    """The probability (n,) with which each sample is kept: σ(F(x) - γ).

    percentile: γ is this percentile of F over these samples, so that one there is kept in one case of two. The lower,
      the more are kept, and the less they are selected. None: γ = 0, exact rejection sampling.
    """
    found = verdicts(logits, maximum)
    return expit(found - (0.0 if percentile is None else np.percentile(found, percentile)))
