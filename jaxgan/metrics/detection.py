"""How well scores tell anomalies from what is normal: a higher score is more anomalous; float64 on the host.

auroc              chance that an anomaly scores above a normal example, ties counting half
average_precision  precision over recall, summed over the steps of recall; its floor is the share of anomalies
f1_at_share        F1 where so many of the highest scores are flagged as there are anomalies: the protocol of
                   DAGMM (openreview BJJLHbb0-), EGBAD (arXiv:1802.06222) and ALAD (arXiv:1812.02288) for tables
threshold          where to flag for a chosen rate of false alarms, from normal scores alone
"""

import math
from typing import NamedTuple

import numpy as np

from jaxgan.errors import InputError


class Flagged(NamedTuple):
    f1: float
    precision: float
    recall: float
    flagged: int  # how many examples


class Bootstrap(NamedTuple):
    auroc: float
    low: float
    high: float


def auroc(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """Scores (n,) and labels (n,), bool or 0 and 1, some of either: the statistic of Mann and Whitney over its maximum.

    Raises InputError for scores that are NaN and for labels of one class only.
    """
    return _auroc(*_counts(*checked(scores, anomalous))[1:])


def average_precision(scores: np.ndarray, anomalous: np.ndarray) -> float:
    """Σ (recall_i - recall_i-1) precision_i over the distinct scores, highest first. Arguments as of `auroc`."""
    _, normal, anomalies = _counts(*checked(scores, anomalous))
    hits, flagged = np.cumsum(anomalies[::-1]), np.cumsum((normal + anomalies)[::-1])
    return float(np.sum(anomalies[::-1] * (hits / flagged)) / hits[-1])


def f1_at_share(scores: np.ndarray, anomalous: np.ndarray, share: float | None = None) -> Flagged:
    """F1, precision and recall where the `share` highest scores are flagged; without one, the share of anomalies.

    At that share the three are one number. Among equal scores that do not all fit, each is flagged with the same
    chance, and the figures are the expected ones. Scores and labels as of `auroc`.
    """
    scores, anomalous = checked(scores, anomalous)
    if share is not None and not 0 < share <= 1:
        raise InputError(f"share {share} of examples to flag: expected above 0 and at most 1")
    total, n = int(anomalous.sum()), len(scores)
    count = total if share is None else max(round(share * n), 1)
    cut = np.partition(scores, n - count)[n - count]
    above, equal = scores > cut, scores == cut
    hits = float(anomalous[above].sum() + anomalous[equal].mean() * (count - above.sum()))
    return Flagged(2 * hits / (count + total), hits / count, hits / total, count)


def threshold(normal_scores: np.ndarray, rate: float) -> float:
    """Flagging scores above it raises a false alarm for at most `rate` of new normal examples.

    It is the k-th smallest of the n scores given, k = ceil((n + 1)(1 - rate)): split conformal prediction (arXiv:
    2107.07511, section 1). What holds: if the normal scores and a new normal one are exchangeable, which takes scores
    that neither training nor the choice of a model has seen, the new one is flagged with a chance of at most `rate`
    and, scores being distinct, more than rate - 1 / (n + 1). The chance is over both draws: given these n, the rate is
    one draw of Beta(n + 1 - k, k), with a standard deviation of about sqrt(rate (1 - rate) / n). Nothing is said of how
    many anomalies are found. Of fewer than 2 / rate - 1 scores (39, at a rate of 0.05) it is the largest: a single
    outlier among them decides it.
    Raises InputError for NaN, a rate outside of (0, 1), or fewer scores than the rate takes, 1 / rate - 1.
    """
    scores = _finite(normal_scores, "normal scores")
    if not 0 < rate < 1:
        raise InputError(f"false-positive rate {rate}: expected above 0 and below 1, such as 0.05")
    n = len(scores)
    # Rounded first: (n + 1)(1 - rate) of 19 scores and 0.05 is 19.000000000000004 - one too many - on some machines.
    k = math.ceil(round((n + 1) * (1 - rate), 9))
    if k > n:
        raise InputError(f"{n} normal scores for a false-positive rate of {rate}: expected {enough(rate)} or more")
    return float(np.partition(scores, k - 1)[k - 1])


def enough(rate: float, above: int = 0) -> int:
    """How many normal scores it takes for a threshold with `above` of them beyond it: (1 + above) / rate - 1."""
    return math.ceil(round((1 + above) / rate, 9)) - 1


def bootstrap(
    scores: np.ndarray, anomalous: np.ndarray, *, repeats: int = 1000, level: float = 0.95, seed: int = 0
) -> Bootstrap:
    """AUROC and its percentile interval over resamples of the normal examples and, apart, of the anomalies.

    It tells what another test set would change, not another training. Scores and labels as of `auroc`.
    """
    if repeats < 1 or not 0 < level < 1:
        raise InputError(f"{repeats} resamples at level {level}: expected 1 or more, at a level between 0 and 1")
    place, normal, anomalies = _counts(*checked(scores, anomalous))
    rng, found = np.random.default_rng(seed), np.empty(repeats)
    places = [np.repeat(place, counts) for counts in (normal, anomalies)]
    for i in range(repeats):
        drawn = [np.bincount(rng.choice(of, len(of)), minlength=len(place)) for of in places]
        found[i] = _auroc(*drawn)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Bootstrap(_auroc(normal, anomalies), float(low), float(high))


def checked(scores: np.ndarray, anomalous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores float64 and the labels bool, (n,) each. Raises InputError as `auroc` says."""
    scores, labels = _finite(scores, "scores"), np.asarray(anomalous)
    if labels.shape != scores.shape:
        raise InputError(f"labels of shape {labels.shape} for scores {scores.shape}: expected one a score")
    strange = labels[(labels != 0) & (labels != 1)]
    if len(strange):
        raise InputError(f"label {strange[0]}: expected 0 for normal and 1 for anomalous")
    labels = labels.astype(bool)
    if labels.all() or not labels.any():
        raise InputError(
            f"{len(labels)} examples, all {'anomalous' if labels.all() else 'normal'}: expected some of both"
        )
    return scores, labels


def _finite(scores: np.ndarray, name: str) -> np.ndarray:
    """Infinite scores have their place in the order, so only NaN is refused."""
    found = np.asarray(scores, np.float64)
    if found.ndim != 1 or not len(found):
        raise InputError(f"{name} of shape {found.shape}: expected (n,), n >= 1")
    if np.isnan(found).any():
        raise InputError(f"{name}: nan of example {int(np.isnan(found).argmax())}, expected numbers")
    return found


def _counts(scores: np.ndarray, anomalous: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the distinct scores in order, and how many normal and how many anomalous examples are at each."""
    distinct, place = np.unique(scores, return_inverse=True)
    m = len(distinct)
    return np.arange(m), np.bincount(place[~anomalous], minlength=m), np.bincount(place[anomalous], minlength=m)


def _auroc(normal: np.ndarray, anomalies: np.ndarray) -> float:
    below = np.cumsum(normal) - normal / 2
    return float(np.sum(below * anomalies) / (normal.sum() * anomalies.sum()))
