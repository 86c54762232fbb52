"""Any number of metrics of one set of samples: one pass through the network, one over the distances between features.

    scores = measure(("fid", "precision_recall"), real, samples, network)    # {"frechet": 3.1, "precision": 0.7, ...}

| name | figures | arXiv |
|---|---|---|
| fid, frechet | fid: Fréchet distance in Inception's features; frechet: in any others, which is no FID | 1706.08500 |
| kid | kid, kid_std: of 100 subsets of 1,000 (or of all there are) | 1801.01401 |
| is | is, is_std: of 10 splits; of the network's classes | 1606.03498 |
| precision_recall | precision, recall: k = 3 | 1904.06991 |
| density_coverage | density, coverage: k = 5 | 2002.09797 |
| memorisation | authenticity: share of samples not nearer to a real image than its own nearest real one; of all
that a `Reference` keeps | 2102.08921 |
| accuracy | accuracy: share of samples that show the class that was asked for | 1905.10887 |

precision_recall and density_coverage take as many real images as there are samples, since they depend on the number
of either. The subsets of kid share samples where there are few, so that its deviation is no error.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxgan import contracts, lookup
from jaxgan.errors import InputError
from jaxgan.metrics import agreement, frechet, inception_score, kid, neighbours
from jaxgan.metrics.embed import Embedded, Network
from jaxgan.metrics.reference import Reference

SUBSET, SUBSETS, SPLITS = 1000, 100, 10
DENSITY_K = 5  # neighbours of density and coverage


def frechet_name(features: str) -> str:
    """The figure of the Fréchet distance: "fid" in the features that papers use, "frechet" in any others."""
    return "fid" if features == "inception" else "frechet"


def few_samples(samples: int, dimensions: int) -> str:
    """What is to be said of a Fréchet distance of fewer samples than dimensions; "" of enough."""
    if samples >= dimensions:
        return ""
    return (
        f"the Fréchet distance is of {samples:,} samples in {dimensions:,} dimensions, which makes it larger than of "
        f"many: it compares with figures of as many samples alone; expected {dimensions:,} or more"
    )


class Comparison:
    """Both sides, and what several metrics need of them, once."""

    def __init__(self, network: Network, real: Reference, fake: Embedded, asked: np.ndarray | None, seed: int = 0):
        self.network, self.real, self.fake, self.asked, self.seed = network, real, fake, asked, seed
        self.n = min(len(real.features), len(fake.features))

    @functools.cached_property
    def near(self) -> neighbours.Neighbours:
        # Few images have no five others; `density_coverage` refuses those.
        most = min(DENSITY_K, max(self.n - 1, 1))
        return neighbours.neighbours(self.real.features[: self.n], self.fake.features[: self.n], density_k=most)

    @functools.cached_property
    def distance(self) -> float:
        return frechet.distance(self.real.moments, frechet.moments(self.fake.features))

    def fid(self) -> dict[str, float]:
        return {frechet_name(self.network.name): self.distance}

    def kid(self) -> dict[str, float]:
        real, fake = self.real.features, self.fake.features
        size = min(SUBSET, self.n)
        subsets = 1 if len(real) == len(fake) == size else SUBSETS  # all of both is the same each time
        found = kid.kid(real, fake, subsets=subsets, subset_size=size, seed=self.seed, full=False)
        return {"kid": found.mean, "kid_std": found.std}

    def inception_score(self) -> dict[str, float]:
        if self.fake.logits is None:
            raise InputError(f"metric 'is' needs classes, which the features {self.network.name!r} do not tell")
        found = inception_score.from_logits(self.fake.logits, min(SPLITS, len(self.fake.logits)), self.seed)
        return {"is": found.mean, "is_std": found.std}

    def precision_recall(self) -> dict[str, float]:
        return {"precision": self.near.precision, "recall": self.near.recall}

    def density_coverage(self) -> dict[str, float]:
        if self.n <= DENSITY_K:
            raise InputError(
                f"density and coverage of {self.n} images: expected at least {DENSITY_K + 1}, k = {DENSITY_K}"
            )
        return {"density": self.near.density, "coverage": self.near.coverage}

    def memorisation(self) -> dict[str, float]:
        return {"authenticity": neighbours.memorisation(self.fake.features, self.real.features).authenticity}

    def accuracy(self) -> dict[str, float]:
        if not self.network.labelled or self.fake.logits is None:
            raise InputError(
                f"metric 'accuracy' needs the classes of the data set, which the features {self.network.name!r} do not "
                "have; expected features of a classifier of labelled images"
            )
        if self.asked is None:
            raise InputError("metric 'accuracy' needs samples of classes that were asked for: a conditional generator")
        shown = self.fake.logits.argmax(1)
        return {"accuracy": agreement.agreement(shown, self.asked, self.fake.logits.shape[1]).accuracy}


class Metric(NamedTuple):
    function: Callable[[Comparison], dict[str, float]]
    best: str | None  # the figure that tells the best checkpoint, as `checkpoint.Checkpoints` takes it; None: it cannot
    least: int = 2  # samples, and real images


METRICS = {
    "fid": Metric(Comparison.fid, "fid"),
    "frechet": Metric(Comparison.fid, "fid"),
    "kid": Metric(Comparison.kid, "kid"),
    "is": Metric(Comparison.inception_score, "max:is"),
    "precision_recall": Metric(Comparison.precision_recall, "max:recall", 4),
    "density_coverage": Metric(Comparison.density_coverage, "max:coverage", 6),
    "memorisation": Metric(Comparison.memorisation, None),
    "accuracy": Metric(Comparison.accuracy, "max:accuracy"),
}


def metric(name: str) -> Metric:
    """That of `METRICS`, or of a fork's `pkg.module:name`."""
    return METRICS[name] if name in METRICS else lookup.member("metric", name, sys.modules[__name__], Metric)


def is_of_features(name: str) -> bool:
    """Whether `metric` knows this name of --metrics, some of which need no features."""
    return name in METRICS or ":" in name


def score(name: str, comparison: Comparison) -> dict[str, float]:
    """The figures of one metric. Raises InputError for what cannot be measured, and for figures that are no numbers."""
    figures = metric(name).function(comparison)
    if not isinstance(figures, dict):
        raise InputError(f"metric {name!r} returns a {type(figures).__name__}; expected {{figure: number}}")
    return {figure: contracts.number(f"figure {figure!r} of metric {name!r}", x) for figure, x in figures.items()}


def measure(names: Any, real: Reference, fake: Embedded, network: Network, asked: np.ndarray | None = None, seed=0):
    """The figures of the metrics `names`: {name: float}. InputError for what cannot be measured, and why."""
    comparison = Comparison(network, real, fake, asked, seed)
    scores: dict[str, float] = {}
    for name in names:
        scores |= score(name, comparison)
    return scores
