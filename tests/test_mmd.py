"""Kernels and the maximum mean discrepancy against NumPy in float64, sums worked out by hand, and two devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from jaxgan import collectives, mmd

BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)


def exact_kernel(x, y, bandwidths):
    distances = cdist(x, y, "sqeuclidean")
    return sum(np.exp(-distances / (2 * sigma)) for sigma in bandwidths)


def exact_biased(x, y, bandwidths):
    within = exact_kernel(x, x, bandwidths).mean() + exact_kernel(y, y, bandwidths).mean()
    return within - 2 * exact_kernel(x, y, bandwidths).mean()


def exact_unbiased(x, y, bandwidths):
    total = -2 * exact_kernel(x, y, bandwidths).mean()
    for z in (x, y):
        pairs = exact_kernel(z, z, bandwidths)
        total += (pairs.sum() - np.trace(pairs)) / (len(z) * (len(z) - 1))
    return total


def sample(n, d, seed, scale=1.0):
    """Sparse, as images of digits are, in [0, scale]."""
    rng = np.random.default_rng(seed)
    return (scale * rng.random((n, d)) * (rng.random((n, d)) < 0.3)).astype(np.float32)


@pytest.mark.parametrize(("d", "far"), [(784, 0.0), (784, 100.0), (32, 0.0), (1, 0.0)])
def test_squared_distances(d, far):
    """Relative to the distance, also where both samples lie far from 0, and never below 0."""
    x, y = sample(50, d, 0) + np.float32(far), sample(60, d, 1) + np.float32(far)
    found = np.asarray(mmd.squared_distances(x, y))
    exact = cdist(x.astype(np.float64), y, "sqeuclidean")
    size = max(1.0, d / 10)  # of a typical distance; nothing holds for two points that all but coincide
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5 * size)
    own = np.asarray(mmd.squared_distances(x, x))
    assert own.min() >= 0 and np.abs(np.diag(own)).max() < 1e-5 * size


@pytest.mark.parametrize(("d", "bandwidths"), [(784, BANDWIDTHS), (32, (1.0,))], ids=["pixels", "codes"])
def test_mmd_against_float64(d, bandwidths):
    """As the paper has it, with an MMD² of a hundredth of the kernel's values, which cancel in it."""
    x, y = sample(300, d, 0), sample(200, d, 1, 0.8)
    kernel = mmd.gaussian(bandwidths)
    found = jax.jit(lambda x, y: jnp.stack([mmd.biased(kernel, x, y), mmd.unbiased(kernel, x, y)]))(x, y)
    assert found.dtype == jnp.float32
    exact = [
        function(x.astype(np.float64), y.astype(np.float64), bandwidths) for function in (exact_biased, exact_unbiased)
    ]
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_the_gradient_against_finite_differences():
    x, y = sample(20, 6, 0), sample(15, 6, 1, 0.8)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: mmd.root(mmd.biased(mmd.gaussian((1.0, 0.2)), x, y))))(x))
    direction = np.random.default_rng(2).normal(size=x.shape)
    step = 1e-5
    ahead, behind = (np.sqrt(exact_biased(x + s * direction, y, (1.0, 0.2))) for s in (step, -step))
    np.testing.assert_allclose((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-4)


def test_kernels_by_hand():
    x, y = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 0.0]])
    assert mmd.polynomial(x, y).tolist() == [[274.625, 1.0]]  # (11 / 2 + 1)³ and 1³
    # |x - y|² is 8 and 5, and σ is a variance.
    expected = [[np.exp(-4 / 2) + np.exp(-4 / 4), np.exp(-2.5 / 2) + np.exp(-2.5 / 4)]]
    np.testing.assert_allclose(mmd.gaussian((2.0, 4.0))(x, y), expected, rtol=1e-6)


def test_unbiased_is_so_and_biased_by_how_much():
    """Over all samples of two from {0, 1, 3} and three from {1, 2}, with the kernel x y, whose MMD² is (E x - E y)².

    The mean of the V-statistic exceeds it by var(x) / 2 + var(y) / 3: (14/9) / 2 + (1/4) / 3.
    """
    xs = jnp.array(list(itertools.product((0.0, 1.0, 3.0), repeat=2)))[..., None]
    ys = jnp.array(list(itertools.product((1.0, 2.0), repeat=3)))[..., None]

    def linear(x, y):
        return x @ y.T

    def mean(function):
        pairs = jax.vmap(lambda x: jax.vmap(lambda y: function(linear, x, y))(ys))(xs)
        assert pairs.shape == (9, 8)
        return float(pairs.mean())

    population = (4 / 3 - 3 / 2) ** 2
    assert mean(mmd.unbiased) == pytest.approx(population, abs=1e-6)
    assert mean(mmd.biased) == pytest.approx(population + 7 / 9 + 1 / 12, abs=1e-6)


@jax.jit
def both(x, y):
    kernel = mmd.gaussian((0.5, 4.0))
    return jnp.stack([mmd.biased(kernel, x, y), mmd.unbiased(kernel, x, y)])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 3), st.floats(-5, 5))
def test_what_holds_of_any_samples(seed, scale, shift):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(6, 3)).astype(np.float32) * np.float32(scale) for _ in range(2))
    here = np.asarray(both(x, y))
    assert here[0] > -1e-6 and here[0] > here[1]
    np.testing.assert_allclose(both(y, x), here, atol=2e-6)
    np.testing.assert_allclose(both(rng.permutation(x), rng.permutation(y)), here, atol=2e-6)
    np.testing.assert_allclose(both(x + np.float32(shift), y + np.float32(shift)), here, atol=1e-5)
    assert abs(both(x, rng.permutation(x))[0]) < 1e-6


def test_the_root_has_a_gradient_everywhere():
    values = jnp.array([0.25, 0.0, -1e-8, 1e-12])
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(mmd.root)))(values)
    np.testing.assert_allclose(value, [0.5, 0, 0, 1e-6], rtol=1e-6)
    np.testing.assert_allclose(gradient, [1, 0, 0, 5e5], rtol=1e-6)


def test_two_devices_see_the_whole_batch():
    """Value, and the gradient of parameters after the mean over devices that a game takes."""
    x, y, weight = sample(8, 4, 0), sample(8, 4, 1, 0.2), jnp.linspace(0.5, 1.5, 4)
    kernel = mmd.gaussian((1.0,))

    def loss(weight, x, y):
        return mmd.root(mmd.biased(kernel, x * weight, y)) + mmd.unbiased(kernel, x * weight, y) ** 2

    def step(weight, x, y):
        value, gradient = jax.value_and_grad(loss)(weight, x, y)
        return value, collectives.mean(gradient)

    value, gradient = jax.jit(step)(weight, x, y)
    shares = (x.reshape(2, 4, 4), y.reshape(2, 4, 4))
    values, gradients = jax.pmap(step, collectives.AXIS, in_axes=(None, 0, 0))(weight, *shares)
    np.testing.assert_allclose(values, [value, value], rtol=1e-5)
    np.testing.assert_allclose(gradients, [gradient, gradient], rtol=1e-4)
    for term in (mmd.biased, mmd.unbiased):
        assert abs(jax.jit(term, static_argnums=0)(kernel, x * weight, y)) > 0.01
