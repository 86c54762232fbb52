"""The inception score, agreement with labels, and intervals, against sums written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from jaxgan.errors import InputError
from jaxgan.metrics import agreement, inception_score, repeats


def plain_score(p, splits):
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        divergence = [sum(a * np.log(a / b) for a, b in zip(row, part.mean(0), strict=True) if a > 0) for row in part]
        scores.append(np.exp(np.mean(divergence)))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize(("spread", "splits"), [(1.0, 10), (30.0, 3), (0.0, 1)])
def test_inception_score(spread, splits):
    logits = (spread * np.random.default_rng(0).normal(size=(503, 12)) + 50).astype(np.float32)
    p = softmax(logits.astype(np.float64), axis=1)
    found = inception_score.from_logits(logits, splits)
    assert found == pytest.approx(plain_score(p, splits), rel=1e-9, abs=1e-9)
    assert inception_score.from_probabilities(p, splits) == pytest.approx(found, rel=1e-9, abs=1e-9)
    single = inception_score.from_probabilities(p.astype(np.float32), splits)
    assert single == pytest.approx(found, rel=1e-5, abs=1e-6)
    assert inception_score.from_logits(logits + 1e3 * np.ones((503, 1)), splits) == pytest.approx(found, rel=1e-4)


def test_inception_score_has_closed_forms():
    sure = 1e4 * np.eye(10)[np.arange(1000) % 10]
    assert inception_score.from_logits(sure) == pytest.approx((10, 0))
    assert inception_score.from_probabilities(np.eye(10)[np.arange(1000) % 10]) == pytest.approx((10, 0))
    assert inception_score.from_logits(np.zeros((50, 7))) == pytest.approx((1, 0))
    # Sorted by class, each split has one: shuffled they have all.
    in_order = sure[np.argsort(sure.argmax(1))]
    assert inception_score.from_logits(in_order).mean == pytest.approx(1)
    assert inception_score.from_logits(in_order, seed=0).mean > 9
    assert inception_score.from_logits(sure, 1) == pytest.approx(inception_score.from_logits(sure, 1, seed=3))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 9))
def test_inception_score_lies_between_one_and_the_classes(seed, n, classes):
    logits = np.random.default_rng(seed).normal(0, 5, (n, classes))
    found = inception_score.from_logits(logits, 1)
    assert 1 - 1e-12 <= found.mean <= classes + 1e-9 and found.std == 0
    assert inception_score.from_logits(logits[::-1], 1).mean == pytest.approx(found.mean)


def test_no_inception_score():
    with pytest.raises(InputError, match="logits: 9 samples, expected at least 10, one for each split"):
        inception_score.from_logits(np.zeros((9, 3)))
    with pytest.raises(InputError, match="0 splits"):
        inception_score.from_logits(np.zeros((9, 3)), 0)
    with pytest.raises(InputError, match="pass logits to from_logits"):
        inception_score.from_probabilities(np.zeros((20, 3)))
    with pytest.raises(InputError, match="nan in row 3, column 0"):
        inception_score.from_logits(np.where(np.arange(20) == 3, np.nan, 0.0)[:, None])


def test_agreement():
    asked, predicted = np.array([0, 0, 1, 1, 1, 3]), np.array([0, 1, 1, 1, 0, 3])
    found = agreement.agreement(predicted, asked, 4)
    assert found.accuracy == pytest.approx(4 / 6)
    np.testing.assert_allclose(found.per_class, [1 / 2, 2 / 3, np.nan, 1])
    np.testing.assert_allclose(found.asked, np.array([2, 3, 0, 1]) / 6)
    np.testing.assert_allclose(found.shown, np.array([2, 3, 0, 1]) / 6)
    assert found.total_variation == found.kl == 0
    other = agreement.agreement([2, 2, 2, 2], [0, 1, 2, 3], 4)
    assert (other.accuracy, other.total_variation, other.kl) == pytest.approx((0.25, 0.75, np.log(4)))
    assert agreement.agreement([1, 0], [0, 0], 2).kl == np.inf
    assert agreement.total_variation([0.5, 0.5, 0], [0, 0.5, 0.5]) == pytest.approx(0.5)
    assert agreement.kl([1, 0], [0.5, 0.5]) == pytest.approx(np.log(2))


def test_no_agreement():
    with pytest.raises(InputError, match="2 predicted labels for 1"):
        agreement.agreement([0, 1], [0], 2)
    with pytest.raises(InputError, match="labels from 0 to 2: expected 0 to 1"):
        agreement.shares([0, 2], 2)
    with pytest.raises(InputError, match="expected integers"):
        agreement.shares([0.5], 2)
    with pytest.raises(InputError, match="that sum to 2 and 1"):
        agreement.kl([1, 1], [0.5, 0.5])


def test_intervals():
    # Student's t of 4 degrees of freedom, 97.5%: 2.776.
    found = repeats.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found == pytest.approx((3.0, 2.7764451 * np.sqrt(2.5 / 5)), rel=1e-6)
    values = np.random.default_rng(0).normal(7, 2, (4000, 4))
    held = np.mean([abs(mean - 7) <= half for mean, half in map(repeats.interval, values)])
    assert held == pytest.approx(0.95, abs=0.015)
    for wrong, message in (([1.0], "2 repeats or more"), ([1.0, np.nan], "nan of repeat 1")):
        with pytest.raises(InputError, match=message):
            repeats.interval(wrong)
    with pytest.raises(InputError, match="level of confidence 95"):
        repeats.interval([1.0, 2.0], 95)


def test_a_figure_is_shown_whatever_it_is():
    for values, text in (
        ([], "-"),
        ([1234.0], "1,234"),
        ([0.123456] * 2, "0.1235"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], "3 ± 2"),
        ([np.nan], "nan"),
        ([np.inf], "inf"),
        ([1.0, -np.inf], "-inf"),
        ([np.float64(np.nan), 1.0], "nan"),
        ([np.inf, -np.inf], "nan"),
    ):
        assert repeats.shown(values) == text
