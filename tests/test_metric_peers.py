"""The same figures as torch-fidelity and prdc, where these are installed."""

import contextlib
import io

import numpy as np
import pytest
from feature_sets import KINDS, pair

from jaxgan.metrics import frechet, inception_score, kid, neighbours

SIZES = [(600, 64), pytest.param(500, 2048, marks=pytest.mark.slow), pytest.param(3000, 2048, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("torch_fidelity")
    return pytest.importorskip("torch")


def near(name, found, expected, rel=0.0, abs=0.0):
    print(f"{name}: {found:.10g} here, {expected:.10g} there, {found - expected:.2g} apart")
    assert found == pytest.approx(expected, rel=rel, abs=abs), name


# Copies lie on the surface of balls, and which side they come out on is rounding in the other packages.
DISTINCT = [kind for kind in KINDS if kind != "copies"]


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("kind", ["plain", "offset"])
def test_fid_is_that_of_torch_fidelity(torch, kind, n, d):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    sets = pair(kind, n, n, d)
    there = [fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in sets]
    expected = fid_statistics_to_metric(*there, False)["frechet_inception_distance"]
    near(f"FID {kind} {n} x {d}", frechet.distance(*map(frechet.moments, sets)), expected, rel=1e-4)


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_kid_is_that_of_torch_fidelity(torch, kind, n, d):
    """On the subsets that its generator draws: generated samples first there, so they are the first ones here."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    first, second = (x.astype(np.float64) for x in pair(kind, n, n, d))
    size, subsets = 200, 6
    expected = kid_features_to_metric(
        torch.from_numpy(first),
        torch.from_numpy(second),
        kid_subsets=subsets,
        kid_subset_size=size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
        rng_seed=2020,
        verbose=False,
    )
    legacy = np.random.RandomState(2020)
    rows = np.stack([[legacy.choice(n, size, replace=False) for _ in range(2)] for _ in range(subsets)])
    values = kid.over(first, second, rows)
    largest = max(1.0, (np.square(np.concatenate([first, second])).sum(1).max() / d + 1) ** 3)
    for name, found in (("mean", values.mean()), ("std", values.std())):
        there = expected[f"kernel_inception_distance_{name}"]
        near(f"KID {name} {kind} {n} x {d}", found, there, abs=max(1e-9, 1e-14 * largest))


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_is_that_of_torch_fidelity(torch, splits):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = np.random.default_rng(0).normal(0, 3, (1003, 100)).astype(np.float32)
    expected = isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=False)
    found = inception_score.from_logits(logits, splits)
    near("IS mean", found.mean, expected["inception_score_mean"], rel=1e-9)
    near("IS std", found.std, expected["inception_score_std"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("kind", DISTINCT)
def test_precision_and_recall_are_those_of_torch_fidelity(torch, kind, n, d):
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = (x.astype(np.float64) for x in pair(kind, n, n - 100, d))
    offset = real.mean(0)  # its products cancel far from 0
    expected = prc_features_to_metric(
        torch.from_numpy(fake - offset),
        torch.from_numpy(real - offset),
        prc_neighborhood=3,
        prc_batch_size=10_000,
        save_cpu_ram=False,
        verbose=False,
    )
    found = neighbours.neighbours(real, fake)
    near(f"precision {kind} {n} x {d}", found.precision, expected["precision"], abs=1e-6 + 1.01 / len(fake))
    near(f"recall {kind} {n} x {d}", found.recall, expected["recall"], abs=1e-6 + 1.01 / len(real))


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("kind", DISTINCT)
def test_density_and_coverage_are_those_of_prdc(kind, n, d):
    prdc = pytest.importorskip("prdc")
    real, fake = (x.astype(np.float64) for x in pair(kind, n, n - 100, d))
    offset = real.mean(0)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = prdc.compute_prdc(real - offset, fake - offset, 5)
    found = neighbours.neighbours(real, fake, k=5, density_k=5)
    most = 5 if kind == "clusters" else 1  # counts apart: its products have six digits left of a distance within one
    for name, count in (
        ("precision", len(fake)),
        ("recall", len(real)),
        ("density", 5 * len(fake)),
        ("coverage", len(real)),
    ):
        near(f"{name} {kind} {n} x {d}", getattr(found, name), expected[name], abs=(most + 0.01) / count)
