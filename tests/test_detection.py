"""Scores of anomalies against scikit-learn, by hand, and by drawing again."""

import numpy as np
import pytest
from sklearn import metrics

from jaxgan.errors import InputError
from jaxgan.metrics import detection


def draw(n=400, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    anomalous = rng.random(n) < 0.2
    scores = rng.normal(size=n) + anomalous
    return (scores.round(1) if ties else scores), anomalous


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_areas_are_those_of_scikit_learn(seed, ties):
    scores, anomalous = draw(seed=seed, ties=ties)
    assert detection.auroc(scores, anomalous) == pytest.approx(metrics.roc_auc_score(anomalous, scores), abs=1e-12)
    expected = metrics.average_precision_score(anomalous, scores)
    assert detection.average_precision(scores, anomalous.astype(int)) == pytest.approx(expected, abs=1e-12)


def test_areas_by_hand():
    # Of the six pairs, 5 > 3, 5 > 1, 5 > 0, 1 > 0 are won, 1 = 1 is half, 1 < 3 is lost.
    scores, anomalous = np.array([3, 5, 1, 1, 0]), np.array([0, 1, 1, 0, 0])
    assert detection.auroc(scores, anomalous) == 4.5 / 6
    # The two of score 1 come together, at precision 2 / 4.
    assert detection.average_precision(scores, anomalous) == 0.5 * 1 + 0.5 * 0.5
    assert detection.auroc([0, 0, 0], [1, 0, 0]) == 0.5
    assert detection.auroc([np.inf, 1, -np.inf], [1, 0, 0]) == 1


@pytest.mark.parametrize("share", [None, 0.05, 0.3, 1.0])
def test_f1_where_a_share_is_flagged(share):
    scores, anomalous = draw(ties=False)
    found = detection.f1_at_share(scores, anomalous, share)
    count = anomalous.sum() if share is None else round(share * len(scores))
    flagged = np.argsort(np.argsort(-scores)) < count
    assert found.flagged == count == flagged.sum()
    assert found.f1 == pytest.approx(metrics.f1_score(anomalous, flagged))
    assert found.precision == pytest.approx(metrics.precision_score(anomalous, flagged))
    assert found.recall == pytest.approx(metrics.recall_score(anomalous, flagged))
    assert share is not None or found.f1 == found.precision == found.recall


def test_equal_scores_share_the_flags():
    # One flag is left for three that are equal, one of them an anomaly.
    found = detection.f1_at_share(np.array([9, 5, 5, 5, 0]), np.array([1, 1, 0, 0, 0]))
    assert found.recall == pytest.approx((1 + 1 / 3) / 2)


def test_a_threshold_keeps_its_rate_over_draws():
    """Split conformal: (n + 1 - k) / (n + 1) of new normal scores lie above, in the mean over held-out sets."""
    rng = np.random.default_rng(0)
    for n, rate in ((19, 0.05), (30, 0.1), (99, 0.25)):
        above = [1 - detection.threshold(rng.random(n), rate) for _ in range(4000)]
        k = np.ceil(np.round((n + 1) * (1 - rate), 9))
        assert np.mean(above) == pytest.approx((n + 1 - k) / (n + 1), abs=4 * np.std(above) / np.sqrt(4000))
        assert rate - 1 / (n + 1) < (n + 1 - k) / (n + 1) <= rate + 1e-12
    assert detection.threshold(np.arange(19.0), 0.05) == 18
    assert detection.threshold(np.arange(99.0), 0.25) == 74
    # The largest of so few.
    assert (detection.enough(0.05), detection.enough(0.05, above=1)) == (19, 39)
    assert detection.threshold(np.arange(38.0), 0.05) == 37 and detection.threshold(np.arange(39.0), 0.05) == 37


def test_the_interval_holds_the_area_of_other_draws():
    """Of a known area: normal scores N(0, 1), anomalous N(1, 1), so Φ(1 / √2)."""
    inside = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        anomalous = np.arange(300) < 60
        found = detection.bootstrap(rng.normal(size=300) + anomalous, anomalous, repeats=200, seed=seed)
        assert found.low < found.auroc < found.high
        inside.append(found.low < 0.7602499 < found.high)
    assert 0.85 <= np.mean(inside) <= 1.0
    scores, anomalous = draw()
    found = detection.bootstrap(scores, anomalous, seed=1)
    assert found == detection.bootstrap(scores, anomalous, seed=1) != detection.bootstrap(scores, anomalous, seed=2)
    # Hanley and McNeil's standard error (1982) gives nearly the same width.
    a, m, n = found.auroc, anomalous.sum(), (~anomalous).sum()
    q, r = a / (2 - a), 2 * a**2 / (1 + a)
    error = np.sqrt((a * (1 - a) + (m - 1) * (q - a**2) + (n - 1) * (r - a**2)) / (m * n))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.15)


@pytest.mark.parametrize("measure", [detection.auroc, detection.average_precision, detection.f1_at_share])
def test_what_cannot_be_measured(measure):
    for scores, anomalous, message in (
        ([1, np.nan], [0, 1], "nan of example 1"),
        ([1, 2], [0, 0], "2 examples, all normal"),
        ([1, 2], [1, 1], "2 examples, all anomalous"),
        ([1, 2], [0, 2], "label 2: expected 0"),
        ([1, 2], [0, 1, 1], r"labels of shape \(3,\)"),
        ([], [], r"shape \(0,\)"),
    ):
        with pytest.raises(InputError, match=message):
            measure(np.array(scores), np.array(anomalous))


def test_what_gives_no_threshold():
    for scores, rate, message in (
        (np.arange(18), 0.05, "18 normal scores .* expected 19 or more"),
        (np.arange(9), 0.0, "rate 0.0"),
        (np.array([0, np.nan]), 0.5, "normal scores: nan of example 1"),
    ):
        with pytest.raises(InputError, match=message):
            detection.threshold(scores, rate)
    with pytest.raises(InputError, match=r"share 1\.5"):
        detection.f1_at_share(np.arange(2), np.arange(2), 1.5)
    with pytest.raises(InputError, match="0 resamples"):
        detection.bootstrap(np.arange(2), np.arange(2), repeats=0)
