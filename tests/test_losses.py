import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import losses

ALL = {name: loss for name, loss in vars(losses).items() if isinstance(loss, losses.Loss)}
each = pytest.mark.parametrize("name", sorted(ALL))

# Logits at which float64 formulas written as in the papers, with log and exp, are still exact enough to compare with.
RNG = np.random.default_rng(0)
REAL, FAKE = RNG.uniform(-15, 15, (2, 64))


def sigmoid(t):
    return 1 / (1 + np.exp(-t))


# {loss: (disc(real, fake), gen(fake, real))}, each the quantity that is minimised, in float64.
PAPERS = {
    "minimax": (
        lambda real, fake: -(np.log(sigmoid(real)) + np.log(1 - sigmoid(fake))),
        lambda fake, real: np.log(1 - sigmoid(fake)),
    ),
    "non_saturating": (
        lambda real, fake: -(np.log(sigmoid(real)) + np.log(1 - sigmoid(fake))),
        lambda fake, real: -np.log(sigmoid(fake)),
    ),
    "least_squares": (
        lambda real, fake: (real - 1) ** 2 / 2 + (fake - 0) ** 2 / 2,
        lambda fake, real: (fake - 1) ** 2 / 2,
    ),
    "wasserstein": (lambda real, fake: -(real - fake), lambda fake, real: -fake),
    "hinge": (
        lambda real, fake: -np.minimum(0, -1 + real) - np.minimum(0, -1 - fake),
        lambda fake, real: -fake,
    ),
    # arXiv:2501.05441, eq. 2 with f(t) = -log(1 + exp(-t)), for a critic that is high on real images: the sign of D is
    # a convention, and of the two players one has f(D(x) - D(G(z))), the other f(D(G(z)) - D(x)), both to maximise.
    "relativistic": (
        lambda real, fake: np.log(1 + np.exp(-(real - fake))),
        lambda fake, real: np.log(1 + np.exp(-(fake - real))),
    ),
}

# Worked out by hand at real = 2, fake = -1: softplus(-2) = .126928, softplus(-1) = .313262, softplus(1) = 1.313262,
# softplus(-3) = .048587, softplus(3) = 3.048587.
BY_HAND = {
    "minimax": (0.440190, -0.313262),
    "non_saturating": (0.440190, 1.313262),
    "least_squares": (1.0, 2.0),
    "wasserstein": (-3.0, 1.0),
    "hinge": (0.0, 1.0),
    "relativistic": (0.048587, 3.048587),
}


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_papers(name):
    disc, gen = PAPERS[name]
    real, fake = jnp.float32(REAL), jnp.float32(FAKE)
    real64, fake64 = np.float64(real), np.float64(fake)
    np.testing.assert_allclose(ALL[name].disc(real, fake), disc(real64, fake64), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(ALL[name].gen(fake, real), gen(fake64, real64), rtol=2e-6, atol=1e-6)
    at_two, at_minus_one = jnp.array([2.0]), jnp.array([-1.0])
    given = float(ALL[name].disc(at_two, at_minus_one)[0]), float(ALL[name].gen(at_minus_one, at_two)[0])
    assert given == pytest.approx(BY_HAND[name], abs=1e-6)


@each
def test_shape_and_extremes(name):
    """(b,) in, (b,) out, finite, with finite gradients, wherever training drives the logits."""
    values = jnp.array([-100.0, -20.0, -1.0, -0.0, 0.0, 1.0, 20.0, 100.0])
    real, fake = (x.ravel() for x in jnp.meshgrid(values, values))
    for loss in (ALL[name].disc(real, fake), ALL[name].gen(fake, real)):
        assert loss.shape == real.shape and loss.dtype == jnp.float32
        assert np.isfinite(loss).all()
    for function in (lambda r, f: ALL[name].disc(r, f).sum(), lambda r, f: ALL[name].gen(f, r).sum()):
        for gradient in jax.grad(function, argnums=(0, 1))(real, fake):
            assert np.isfinite(gradient).all()


@each
def test_direction(name):
    """A critic that is wrong raises real logits and lowers fakes; a generator that loses raises its fakes' logits."""
    low, high = jnp.float32(RNG.uniform([[-0.9], [0.1]], [[-0.1], [0.9]], (2, 100)))
    by_real, by_fake = jax.grad(lambda r, f: ALL[name].disc(r, f).sum(), argnums=(0, 1))(low, high)
    assert (by_real < 0).all() and (by_fake > 0).all()
    assert (jax.grad(lambda f: ALL[name].gen(f, high).sum())(low) < 0).all()


@each
def test_each_image_for_itself(name):
    """Losses see pairs, never the batch; and a generator that is not `paired` can be called without real logits."""
    real, fake = jnp.float32(REAL[:5]), jnp.float32(FAKE[:5])
    whole = ALL[name].disc(real, fake), ALL[name].gen(fake, real)
    for i in range(5):
        one = ALL[name].disc(real[i : i + 1], fake[i : i + 1]), ALL[name].gen(fake[i : i + 1], real[i : i + 1])
        np.testing.assert_allclose([x[0] for x in one], [x[i] for x in whole], rtol=1e-6)
    by_real = jax.grad(lambda r: ALL[name].gen(fake, r).sum())(real)
    assert bool((by_real != 0).any()) == ALL[name].paired
    if not ALL[name].paired:
        np.testing.assert_array_equal(ALL[name].gen(fake, None), whole[1])


def test_gradients_do_not_vanish_where_they_must_not():
    """At a logit of -20 the saturating generator learns nothing, the others still do (arXiv:1406.2661, section 3)."""
    slope = {}
    for name in PAPERS:
        slope[name] = jax.grad(lambda f, gen=ALL[name].gen: gen(f, jnp.zeros(1))[0])(jnp.array([-20.0])).item()
    assert slope["minimax"] == pytest.approx(-sigmoid(-20.0), rel=1e-5)
    assert slope["non_saturating"] == pytest.approx(-1) and slope["relativistic"] == pytest.approx(-1)
    assert slope["hinge"] == slope["wasserstein"] == -1 and slope["least_squares"] == -21
