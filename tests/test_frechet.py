"""Moments in batches, and the Fréchet distance in one line of SciPy or in the space of samples."""

import jax
import numpy as np
import pytest
import scipy.linalg
from feature_sets import KINDS, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgan.errors import InputError
from jaxgan.metrics.frechet import Accumulator, Moments, distance, moments


def by_samples(real, fake):
    """The trace of the root as a nuclear norm: singular values of the product of centred samples, by their QR."""
    x, y = (z.astype(np.float64) for z in (real, fake))
    a, b = (z - z.mean(0) for z in (x, y))
    a, b = a / np.sqrt(len(a) - 1), b / np.sqrt(len(b) - 1)
    cross = np.linalg.svd(np.linalg.qr(a, "r") @ np.linalg.qr(b, "r").T, compute_uv=False).sum()
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * cross


def by_sqrtm(real, fake):
    x, y = (z.astype(np.float64) for z in (real, fake))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(a @ b)))


def fid(real, fake):
    return distance(moments(real), moments(fake))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(600, 64), (200, 300)])
def test_distance_of_samples(kind, n, d):
    real, fake = pair(kind, n, n - 100, d)
    assert fid(real, fake) == pytest.approx(by_samples(real, fake), rel=1e-6)
    assert fid(real, real) == pytest.approx(0, abs=1e-12 * np.trace(moments(real).covariance))


@pytest.mark.parametrize("kind", ["plain", "offset"])
def test_distance_is_that_of_sqrtm(kind):
    real, fake = pair(kind, 1500, 1500, 64)
    assert fid(real, fake) == pytest.approx(by_sqrtm(real, fake), rel=1e-7)


def test_2048_features_of_few_samples():
    real, fake = pair("plain", 300, 250, 2048)
    assert fid(real, fake) == pytest.approx(by_samples(real, fake), rel=1e-8)
    assert fid(real, real) == pytest.approx(0, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(10_000, 64), (3000, 2048)])
def test_distance_of_many_samples(kind, n, d):
    real, fake = pair(kind, n, n - 100, d)
    assert fid(real, fake) == pytest.approx(by_samples(real, fake), rel=1e-6)
    assert fid(real, real) == pytest.approx(0, abs=1e-11 * np.trace(moments(real).covariance))


@pytest.mark.slow
def test_2048_features_are_those_of_sqrtm():
    real, fake = pair("plain", 5000, 5000, 2048)
    assert fid(real, fake) == pytest.approx(by_sqrtm(real, fake), rel=1e-6)


def same(a, b, rel=1e-10):
    scale = np.abs(b.covariance).max()
    np.testing.assert_allclose(a.mean, b.mean, rtol=rel, atol=rel * np.sqrt(scale))
    np.testing.assert_allclose(a.covariance, b.covariance, rtol=0, atol=rel * scale)
    assert np.array_equal(a.covariance, a.covariance.T)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_in_any_order_are_the_whole(kind):
    x, other = pair(kind, 500, 400, 96)
    whole = Moments(x.astype(np.float64).mean(0), np.cov(x.astype(np.float64), rowvar=False))
    same(moments(x), whole)
    shuffled = x[np.random.default_rng(0).permutation(len(x))]
    for rows, size in ((x, 1), (x, 128), (x, 499), (x[::-1], 64), (shuffled, 33)):
        found = Accumulator()
        for start in range(0, len(rows), size):
            found.add(rows[start : start + size])
            found.add(rows[:0])
        assert found.count == 500
        same(found.moments(), whole)
        assert distance(found.moments(), moments(other)) == pytest.approx(fid(x, other), rel=1e-9)


@pytest.mark.parametrize("kind", ["plain", "offset", "conditioned"])
def test_shares_of_devices_and_hosts_merge(kind):
    x, _ = pair(kind, 500, 10, 64)
    # Each device's own rows, and the moments of some of them sent to another host.
    shares = x[:180], x[180:]
    parts = []
    for share, device in zip(shares, jax.devices()[:2], strict=True):
        parts.append(Accumulator())
        parts[-1].add(jax.device_get(jax.device_put(share, device)))
    sent = Accumulator.of(parts[1].moments(), parts[1].count)
    for others in ([parts[1]], [sent], [Accumulator(), sent]):
        total = Accumulator()
        for part in (parts[0], *others):
            total.merge(part)
        assert total.count == 500
        same(total.moments(), moments(x))
    same(parts[0].moments(), moments(x[:180]))  # which merging has left alone
    total = Accumulator.of(moments(x[:100]), 100)
    total.add(x[100:])
    same(total.moments(), moments(x))


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 30), st.integers(1, 12))
def test_invariances(seed, n, m, d):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * rng.uniform(0.1, 3)
    expected, scale = fid(x, y), np.trace(moments(x).covariance) + np.trace(moments(y).covariance)
    turn, shift = np.linalg.qr(rng.normal(size=(d, d)))[0], 10 * rng.normal(size=d)
    near = {"rel": 1e-6, "abs": 1e-7 * scale}
    assert expected >= -1e-10 * scale
    assert fid(y, x) == pytest.approx(expected, **near)
    assert fid(x + shift, y + shift) == pytest.approx(expected, **near)
    assert fid(x @ turn, y @ turn) == pytest.approx(expected, **near)
    assert fid(3 * x, 3 * y) == pytest.approx(9 * expected, rel=1e-6, abs=1e-6 * scale)
    assert fid(rng.permutation(x), y) == pytest.approx(expected, **near)
    assert fid(x, x) == pytest.approx(0, abs=1e-8 * scale)


def test_what_cannot_be_measured():
    x = np.zeros((4, 3), np.float32)
    found = Accumulator()
    with pytest.raises(InputError, match="moments of 0 samples: expected at least 2"):
        found.moments()
    found.add(x[:1])
    with pytest.raises(InputError, match="moments of 1 samples: expected at least 2"):
        found.moments()
    with pytest.raises(InputError, match="features of 2 dimensions after those of 3"):
        found.add(x[:, :2])
    with pytest.raises(InputError, match="1 samples, expected at least 2"):
        moments(x[:1])
    with pytest.raises(InputError, match="nan in row 2, column 1"):
        moments(np.where(np.arange(12).reshape(4, 3) == 7, np.nan, x))
    with pytest.raises(InputError, match=r"shape \(4,\): expected \(n, d\)"):
        moments(x[:, 0])
    with pytest.raises(InputError, match="3 dimensions, generated ones 2"):
        distance(moments(x), moments(x[:, :2]))
    with pytest.raises(InputError, match="NaN or infinity"):
        distance(moments(x), Moments(np.zeros(3), np.full((3, 3), np.nan)))
