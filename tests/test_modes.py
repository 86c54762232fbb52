"""Modes found, their quality, balance and width: values worked out by hand, and samples of the true mixture."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxgan.errors import InputError
from jaxgan.metrics.modes import modes, reverse_kl, truncated_variance

RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)
LINE = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]])  # with σ = 1


def test_by_hand():
    """Three modes on a line, σ 1: two samples in the first, one in the second, one 3.01 σ from it, one between."""
    points = [[-1, 0], [1, 0], [10, 2.99], [10, -3.01], [5, 0]]
    found = modes(points, LINE, 1.0)
    assert found.found == 2 and found.high_quality == 0.6
    assert found.counts.tolist() == [2, 1, 0]
    assert found.reverse_kl == pytest.approx(2 / 3 * math.log(2) + 1 / 3 * math.log(1))
    # Squared distances from the mean of their mode: 1, 1, 0 in x, none in y; three samples less two means.
    assert found.spread == pytest.approx(np.array([math.sqrt(2 / truncated_variance(2)), 0]))


def test_samples_of_the_mixture_are_perfect():
    rng = np.random.default_rng(0)
    n, sigma = 200_000, 0.01
    points = RING[rng.integers(0, 8, n)] + sigma * rng.normal(size=(n, 2))
    found = modes(points, RING, sigma)
    share = 1 - math.exp(-4.5)  # 0.98889; its standard error here is 0.0002
    assert found.found == 8 and found.high_quality == pytest.approx(share, abs=1e-3)
    assert found.reverse_kl < 1e-3 and found.spread == pytest.approx([1, 1], abs=0.01)
    assert modes(points[:2500], RING, sigma).found == 8


@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.8, 0.3)])
def test_spread_is_that_of_each_coordinate_whatever_else_is_wrong(scale):
    """Modes too narrow, half a σ off their places, with a tenth of the samples astray, and one twice as heavy."""
    rng = np.random.default_rng(1)
    n = 100_000
    centres = RING + np.array([0.005, 0])
    points = centres[np.maximum(rng.integers(-1, 8, n), 0)] + 0.01 * np.array(scale) * rng.normal(size=(n, 2))
    points[: n // 10] = 0
    found = modes(points, RING, 0.01)
    assert found.spread == pytest.approx(np.array(scale) / math.sqrt(truncated_variance(2)), rel=0.01)
    assert found.high_quality == pytest.approx(0.9, abs=1e-3)
    assert found.reverse_kl == pytest.approx(2 / 9 * math.log(16 / 9) + 7 / 9 * math.log(8 / 9), abs=2e-3)


def test_modes_too_wide_show_in_spread_and_quality():
    """A flat disc of 3σ is the widest that counts: E x² = 9σ² / 4."""
    rng = np.random.default_rng(2)
    n = 100_000
    radius, angle = 3 * np.sqrt(rng.uniform(size=n)), rng.uniform(0, 2 * np.pi, n)
    points = LINE[rng.integers(0, 3, n)] + (radius * np.stack([np.cos(angle), np.sin(angle)])).T
    assert modes(points, LINE, 1.0).spread == pytest.approx([1.5 / math.sqrt(truncated_variance(2))] * 2, rel=0.01)
    wide = modes(LINE[rng.integers(0, 3, n)] + 1.5 * rng.normal(size=(n, 2)), LINE, 1.0)
    assert wide.high_quality == pytest.approx(1 - math.exp(-2), abs=3e-3) and wide.spread.min() > 1.2


def test_no_sample_in_any_mode_is_the_worst():
    for points in (np.full((5, 2), np.nan), np.full((5, 2), 100.0)):
        found = modes(points, LINE, 1.0)
        assert found.found == 0 and found.high_quality == 0 and found.reverse_kl == math.log(3)
        assert found.spread.tolist() == [0, 0] and found.counts.tolist() == [0, 0, 0]


def test_reverse_kl_against_scipy():
    rng = np.random.default_rng(3)
    counts = rng.poisson(3.0, 1000)  # a twentieth of these classes are missing, as of stacked digits
    assert reverse_kl(counts) == pytest.approx(scipy.stats.entropy(counts, np.ones(1000)))
    assert reverse_kl([7, 7, 7]) == 0
    assert reverse_kl([0, 9, 0, 0]) == pytest.approx(math.log(4))
    for wrong in ([], [0, 0], [1, -1, 3], [[1]], [math.nan]):
        with pytest.raises(InputError, match="counts"):
            reverse_kl(wrong)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_truncated_variance_against_an_integral(d):
    """E |x|² / d of a Gaussian cut off at 3: in polar coordinates."""
    above, below = (scipy.integrate.quad(lambda r, p=p: r**p * np.exp(-(r**2) / 2), 0, 3)[0] for p in (d + 1, d - 1))
    assert truncated_variance(d) == pytest.approx(above / below / d, rel=1e-9)


def test_truncated_variance_of_the_plane():
    cut = math.exp(-4.5)
    assert truncated_variance(2) == pytest.approx(1 - 4.5 * cut / (1 - cut), rel=1e-12)


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.zeros((4, 3)), np.zeros(4)])
def test_wrong_shapes(points):
    with pytest.raises(InputError, match="samples of shape"):
        modes(points, RING, 0.01)
