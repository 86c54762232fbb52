"""KID against the formula as it is printed, in float64, over the same subsets."""

import numpy as np
import pytest
from feature_sets import KINDS, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgan.errors import InputError
from jaxgan.metrics import kid


def kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def plain(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    total = -2 * kernel(x, y).mean()
    for z in (x, y):
        pairs = kernel(z, z)
        total += (pairs.sum() - np.trace(pairs)) / (len(z) * (len(z) - 1))
    return total


def scale(x, y):
    """What an absolute error of MMD² is relative to: 1, or the kernel's largest value if that is larger."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return max(1.0, *((np.square(z).sum(1).max() / z.shape[1] + 1) ** 3 for z in (x, y)))


def agree(real, fake, subsets, size, full):
    rows = kid.draw(len(real), len(fake), subsets, size, 3)
    expected = np.array([plain(real[a], fake[b]) for a, b in rows])
    # 1e-6 for features as they come out of networks (a kernel up to about 1e3); of others, what float64 has.
    error = max(1e-9, 1e-14 * scale(real, fake))
    found = kid.kid(real, fake, subsets=subsets, subset_size=size, seed=3, full=full)
    assert found.mean == pytest.approx(expected.mean(), abs=error)
    assert found.std == pytest.approx(expected.std(), abs=error)
    np.testing.assert_allclose(kid.over(real, fake, rows), expected, rtol=0, atol=error)
    assert (found.full is not None) is full
    if full:
        assert found.full == pytest.approx(plain(real, fake), abs=error)
        assert kid.mmd(real, fake) == pytest.approx(found.full, abs=error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("full", [True, False])
def test_kid_is_the_formula(kind, full):
    agree(*pair(kind, 500, 400, 64), 4, 150, full)


def test_blocks_have_borders(monkeypatch):
    monkeypatch.setattr(kid, "ROWS", 64)
    monkeypatch.setattr(kid, "COLUMNS", 100)
    agree(*pair("plain", 300, 257, 32), 4, 130, True)


def test_2048_features():
    agree(*pair("plain", 300, 300, 2048), 2, 200, True)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d"), [(10_000, 64), (5000, 2048)])
def test_many_samples(n, d):
    agree(*pair("plain", n, n - 1, d), 20, 1000, True)


def test_subsets_are_drawn_without_replacement_and_by_the_seed():
    rows = kid.draw(50, 40, 6, 30, 0)
    assert rows.shape == (6, 2, 30)
    assert all(len(set(side)) == 30 for subset in rows for side in subset)
    assert rows[:, 0].max() == 49 and rows[:, 1].max() == 39
    assert np.array_equal(rows, kid.draw(50, 40, 6, 30, 0))
    assert not np.array_equal(rows, kid.draw(50, 40, 6, 30, 1))


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.integers(2, 20), st.integers(1, 8))
def test_invariances(seed, n, m, d):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    turn, near = np.linalg.qr(rng.normal(size=(d, d)))[0], {"rel": 1e-9, "abs": 1e-10 * scale(x, y)}
    assert kid.mmd(x, y) == pytest.approx(plain(x, y), **near)
    assert kid.mmd(y, x) == pytest.approx(kid.mmd(x, y), **near)
    assert kid.mmd(rng.permutation(x), rng.permutation(y)) == pytest.approx(kid.mmd(x, y), **near)
    assert kid.mmd(x @ turn, y @ turn) == pytest.approx(kid.mmd(x, y), **near)


def test_its_expectation_is_zero_of_one_distribution():
    rng = np.random.default_rng(0)
    values = [kid.mmd(*rng.normal(size=(2, 20, 4))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def test_what_cannot_be_measured():
    x = np.zeros((20, 3), np.float32)
    with pytest.raises(InputError, match="KID subsets of 1000 of 20 real and 9 generated samples: expected at most 9"):
        kid.kid(x, x[:9])
    with pytest.raises(InputError, match="0 KID subsets of 5 samples: expected 1 or more"):
        kid.kid(x, x, subsets=0, subset_size=5)
    with pytest.raises(InputError, match="subsets of 1 samples"):
        kid.kid(x, x, subset_size=1)
    with pytest.raises(InputError, match="generated features: 1 samples, expected at least 2"):
        kid.mmd(x, x[:1])
    with pytest.raises(InputError, match="3 dimensions, generated ones 2"):
        kid.mmd(x, x[:, :2])
    with pytest.raises(InputError, match="real features: inf in row 0, column 0"):
        kid.mmd(x + np.inf, x)
