"""Precision, recall, density, coverage, realism and copies against all distances in float64."""

import jax
import numpy as np
import pytest
from feature_sets import KINDS, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from jaxgan.errors import InputError
from jaxgan.metrics import distances
from jaxgan.metrics.neighbours import memorisation, nearest, neighbours


def plain(real, fake, k=3, density_k=5):
    """The definitions, of all distances."""
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    between, within, own = cdist(real, fake), cdist(real, real), cdist(fake, fake)
    for square in (within, own):
        np.fill_diagonal(square, np.inf)
    within.sort(axis=1)
    inner, wide, outer = within[:, k - 1], within[:, density_k - 1], np.sort(own, axis=1)[:, k - 1]
    small = (inner <= np.median(inner)) & (inner > 0)
    with np.errstate(divide="ignore"):
        realism = (inner[small, None] / between[small]).max(0, initial=0)
    realism[between.min(0) == 0] = np.inf
    return {
        "precision": (between <= inner[:, None]).any(0).mean(),
        "recall": (between <= outer).any(1).mean(),
        "density": (between < wide[:, None]).sum(0).mean() / density_k,
        "coverage": (between.min(1) < wide).mean(),
        "authenticity": (between.min(0) > within[between.argmin(0), 0]).mean(),
        "realism": realism,
        "distance": between.min(0),
        "nearest": between.argmin(0),
    }


def agree(real, fake, k=3, density_k=5):
    found, expected = neighbours(real, fake, k=k, density_k=density_k), plain(real, fake, k, density_k)
    # Counts are the same, not merely within one.
    for name in ("precision", "recall", "density", "coverage", "authenticity"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-12), name
    np.testing.assert_allclose(found.realism, expected["realism"], rtol=1e-9)
    np.testing.assert_allclose(found.distance, expected["distance"], rtol=1e-9)
    # Where several are equally near, any.
    gap = real[found.nearest].astype(np.float64) - fake
    np.testing.assert_allclose(np.linalg.norm(gap, axis=1), expected["distance"], rtol=1e-9)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m", "d"), [(600, 500, 64), (500, 500, 300)])
def test_neighbours_are_the_definitions(kind, n, m, d):
    agree(*pair(kind, n, m, d))


@pytest.mark.parametrize("kind", ["plain", "clusters", "copies"])
def test_blocks_have_borders(kind):
    """More than one block of rows and of columns, none of them full at the end."""
    assert distances.COLUMNS < 2100 and distances.ROWS < 1200
    agree(*pair(kind, 2100, 1200, 16))


def test_2048_features():
    agree(*pair("plain", 300, 300, 2048))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(10_000, 64), (3000, 2048)])
def test_many_samples(kind, n, d):
    agree(*pair(kind, n, n - 100, d))


@pytest.mark.parametrize("factor", [1e-18, 1e15])
def test_units_do_not_matter(factor):
    """Squares of these would leave float32."""
    real, fake = pair("plain", 60, 50, 8)
    one, other = neighbours(real, fake), neighbours(real * np.float32(factor), fake * np.float32(factor))
    assert one[:5] == other[:5]
    np.testing.assert_allclose(other.distance, one.distance * factor, rtol=1e-5)


def test_float64_features_are_told_apart_where_float32_ends():
    real, fake = (x.astype(np.float64) * 1e-9 + 1.0 for x in pair("plain", 60, 50, 8))
    assert np.ptp(real.astype(np.float32)) == 0
    agree(real, fake)


def flat(n, d, seed):
    """Grey images, whose coordinates are all alike: the roundings of their products add up."""
    return np.repeat(np.random.default_rng(seed).random((n, 1), np.float32), d, axis=1)


def near_the_mean(n, d, seed):
    """But for two: products of the coordinates end below float32's smallest number."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * 3e-19 * 10 ** rng.uniform(-1, 1, (n, 1))
    x[:2] = [[1], [-1]]
    return x.astype(np.float32)


@pytest.mark.parametrize("kind", [flat, near_the_mean])
def test_bounds_hold_and_decide_as_float64_does(kind):
    real, fake = kind(500, 784, 0), kind(400, 784, 1)
    x, y = distances.points(real, fake)
    lower, upper = distances.bounds(distances.block(x, slice(0, 500), 512), distances.block(y, slice(0, 400), 512))
    exact = distances.pair_distances(x, y, *(i.ravel() for i in np.indices((500, 400)))).reshape(500, 400)
    assert (lower[:500, :400] <= exact).all() and (exact <= upper[:500, :400]).all()
    agree(real, fake)


def test_degenerate_sets():
    x, y = pair("plain", 40, 30, 8)
    found = agree(x, x)
    assert found[:2] == (1, 1) and found.authenticity == 0 and np.isinf(found.realism).all()
    agree(x, np.repeat(x[:1], 30, axis=0))
    agree(np.repeat(x[:1], 40, axis=0), y)
    agree(np.repeat(x[:1], 40, axis=0), np.repeat(x[:1], 30, axis=0))
    agree(x[:, :1], y[:, :1])
    agree(x[:6], y[:4])
    agree(x, y, k=29, density_k=39)
    agree(x, y, k=1, density_k=1)
    far = neighbours(x, y + 1e4)
    assert far[:4] == (0, 0, 0, 0) and far.authenticity == 1


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 2.0))
def test_invariances(seed, shift):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 5)) + shift
    found = agree(x, y)
    swapped = neighbours(y, x)
    assert (swapped.precision, swapped.recall) == (found.recall, found.precision)
    order = rng.permutation(40)
    mixed = neighbours(x[order], y[rng.permutation(40)])
    assert mixed[:5] == pytest.approx(found[:5])
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert neighbours(x @ turn + 7, y @ turn + 7)[:5] == pytest.approx(found[:5])
    np.testing.assert_allclose(neighbours(x[order], y).realism, found.realism)
    assert np.array_equal(order[neighbours(x[order], y).nearest], found.nearest)


def test_every_device_gives_the_same():
    real, fake = pair("plain", 600, 500, 64)
    found = []
    for device in jax.devices()[:2]:
        with jax.default_device(device):
            found.append(neighbours(real, fake))
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", ["plain", "offset", "clusters", "copies"])
def test_nearest(kind):
    x, y = pair(kind, 600, 90, 32)
    for found, all_distances in ((nearest(y, x, 4), cdist(y.astype(float), x)), (nearest(y, k=4), cdist(y, y))):
        if len(all_distances[0]) == len(y):
            np.fill_diagonal(all_distances, np.inf)
            assert (found.rows != np.arange(len(y))[:, None]).all()
        np.testing.assert_allclose(found.distances, np.sort(all_distances, axis=1)[:, :4], rtol=1e-6)
        own = np.take_along_axis(all_distances, found.rows, axis=1)
        np.testing.assert_allclose(own, found.distances, rtol=1e-6)
        assert all(len(set(row)) == 4 for row in found.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_memorisation_is_that_of_the_one_pass(kind):
    real, fake = pair(kind, 600, 500, 64)
    found, expected = memorisation(fake, real), neighbours(real, fake)
    assert found.authenticity == expected.authenticity
    assert np.array_equal(found.nearest, expected.nearest)
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-12)
    own = nearest(real).distances[found.nearest, 0]
    np.testing.assert_allclose(found.spacing, own, rtol=1e-12)


def test_copies_are_found():
    real, fake = pair("plain", 600, 500, 64)
    stolen = np.arange(0, 500, 5)
    fake[stolen] = real[stolen] + np.float32(1e-4)
    found = memorisation(fake, real)
    assert np.array_equal(found.nearest[stolen], stolen)
    assert (found.distance < found.spacing)[stolen].all()
    assert found.authenticity <= 0.8


def test_what_cannot_be_measured():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    with pytest.raises(InputError, match="real features: 5 samples, expected at least 6, for the 5 nearest others"):
        neighbours(x[:5], x)
    with pytest.raises(
        InputError, match="generated features: 3 samples, expected at least 4, for the 3 nearest others"
    ):
        neighbours(x, x[:3])
    with pytest.raises(InputError, match="3 dimensions, generated ones 2"):
        neighbours(x, x[:, :2])
    with pytest.raises(InputError, match="0 nearest neighbours: expected 1 or more"):
        neighbours(x, x, k=0)
    with pytest.raises(InputError, match="generated features: nan in row 0, column 0"):
        neighbours(x, x * np.nan)
    with pytest.raises(InputError, match="queries: 20 samples, expected at least 21"):
        nearest(x, k=20)
    with pytest.raises(InputError, match="features to search: 2 samples, expected at least 3"):
        nearest(x, x[:2], k=3)
    with pytest.raises(InputError, match="queries of 3 dimensions among features of 2"):
        nearest(x, x[:, :2])
    with pytest.raises(InputError, match="real features: 1 samples, expected at least 2, for the nearest other"):
        memorisation(x, x[:1])
