"""Penalties through the discriminator's loss, on critics whose input gradient is known in closed form."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxgan import adversarial, losses, penalties
from jaxgan.augment import Augment
from jaxgan.game import PlayerState, State

SHAPE = (2, 3, 1)
RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
BATCH = {"image": jnp.asarray(REAL), "label": jnp.zeros(4, jnp.int32), "row": jnp.arange(4)}
KEY = jax.random.key(7)


# Programs that run once or twice: without LLVM's optimiser they compile in half the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Constant(nn.Module):
    """Generated images are a parameter, whatever the latent."""

    latent: int = 1

    @nn.compact
    def __call__(self, z, label=None, train=False):
        image = self.param("image", nn.initializers.zeros, SHAPE)
        return jnp.broadcast_to(image, (len(z), *SHAPE))


class Linear(nn.Module):
    """D(x) = <w, x>, of gradient w."""

    mixes_batch: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x, label=None, train=False):
        return jnp.sum(x * self.param("w", nn.initializers.ones, SHAPE), axis=(1, 2, 3))


class Curved(nn.Module):
    """D(x) = <v, tanh(W x + b)>, of gradient Wᵀ (v (1 - tanh²)): both orders of its derivatives are at work."""

    mixes_batch: bool = False

    @nn.compact
    def __call__(self, x, label=None, train=False):
        x = nn.Dense(5, name="first", bias_init=nn.initializers.normal(0.5))(x.reshape(len(x), -1))
        return nn.Dense(1, name="last", use_bias=False)(jnp.tanh(x))[:, 0]


def curved(params, x):
    """Logits (b,) and input gradients (b, pixels) of `Curved`, in NumPy's float64."""
    w, b, v = params["first"]["kernel"], params["first"]["bias"], params["last"]["kernel"][:, 0]
    t = np.tanh(x.reshape(len(x), -1) @ w + b)
    return t @ v, ((1 - t**2) * v) @ w.T


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def state_of(disc_params, image, images=0):
    players = {
        "disc": PlayerState(disc_params, {}, None, None),
        "gen": PlayerState({"image": jnp.float32(image)}, {}, None, None),
    }
    return State(jnp.int32(0), jnp.uint32(images), KEY, players, {})


def run(critic, disc_params, image, terms, lazy=0, augment=None, images=0, loss=losses.wasserstein, real=REAL):
    """(value, metrics), gradients of the discriminator's loss, or of its penalties alone every `lazy` steps."""
    pair = adversarial.Pair(Constant(), critic, augment=augment)
    if lazy:
        function = functools.partial(adversarial.penalty_loss, pair, terms, lazy)
    else:
        function = functools.partial(adversarial.disc_loss, pair, loss, terms)
    state, batch = state_of(disc_params, image, images), BATCH | {"image": jnp.asarray(real)}
    value = jax.value_and_grad(lambda p: function({"disc": p}, state, batch, KEY), has_aux=True)
    (total, (metrics, variables)), grads = quick(value)(disc_params)
    assert variables == {"disc": {}}
    return (float(total), {k: float(v) for k, v in metrics.items()}), grads


W = np.linspace(-1, 2, 6).reshape(SHAPE)
FAKE = np.full(SHAPE, 0.5)


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("lazy", [0, 16])
def test_linear_critic(scale, lazy):
    """Augmentation x -> s x stands inside the gradient: of D(s x) it is s w, whose square is s² ||w||²."""
    augment = Augment(lambda keys, x, p: scale * x) if scale != 1 else None
    square = scale**2 * np.sum(W**2)
    terms = (penalties.r1(2.0), penalties.r2(0.5), penalties.wgan_gp(10.0))
    (total, metrics), grads = run(Linear(), {"w": jnp.float32(W)}, FAKE, terms, lazy, augment)
    names = ("penalty", "penalty_1", "penalty_2")
    values = np.array([square / 2, square / 2, (np.sqrt(square) - 1) ** 2])
    np.testing.assert_allclose([metrics[n] for n in names], values, rtol=1e-5)
    penalty = values @ [2, 0.5, 10]
    # d/dw of s²||w||²/2 is s² w, of (s||w|| - 1)² is 2 (s||w|| - 1) s w / ||w||
    slope = (2.5 * scale**2 + 20 * (np.sqrt(square) - 1) * scale / np.linalg.norm(W)) * W
    if lazy:
        assert total == pytest.approx(16 * penalty, rel=1e-5)
        np.testing.assert_allclose(grads["w"], 16 * slope, rtol=1e-5)
    else:
        apart = scale * np.sum(W * (FAKE - REAL.mean(0)))  # E D(fake) - E D(real)
        assert metrics["adversarial"] == pytest.approx(apart, rel=1e-5)
        assert total == pytest.approx(apart + penalty, rel=1e-5)
        np.testing.assert_allclose(grads["w"], slope + scale * (FAKE - REAL.mean(0)), rtol=1e-4)


# The points of WGAN-GP are known where all images are one: there ε x + (1 - ε) x is x.
CASES = {
    "r1": ((penalties.r1(4.0),), lambda real, fake: 2 * np.mean(np.sum(real**2, -1))),
    "r2": ((penalties.r2(4.0),), lambda real, fake: 2 * np.mean(np.sum(fake**2, -1))),
    "r1+r2": (
        (penalties.r1(4.0), penalties.r2(1.0)),
        lambda real, fake: 2 * np.mean(np.sum(real**2, -1)) + 0.5 * np.mean(np.sum(fake**2, -1)),
    ),
    "wgan_gp": ((penalties.wgan_gp(3.0),), lambda real, fake: 3 * np.mean((np.linalg.norm(fake, axis=-1) - 1) ** 2)),
}


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("way", ["one pass", "two passes", "lazy"])
def test_second_order_gradients(name, way):
    """Those of the parameters, against central differences of a float64 formula; real and fake in one pass or two."""
    terms, formula = CASES[name]
    critic = Curved(mixes_batch=way == "two passes")
    params = critic.init(jax.random.key(3), BATCH["image"])["params"]
    image = REAL[0]
    real_images = REAL if name != "wgan_gp" else np.broadcast_to(image, REAL.shape)

    def objective(p):
        (real_logits, real), (fake_logits, fake) = (
            curved(p, np.float64(real_images)),
            curved(p, np.float64([image] * 4)),
        )
        adversarial = 0 if way == "lazy" else np.mean(np.log1p(np.exp(-real_logits)) + np.log1p(np.exp(fake_logits)))
        return adversarial + (8 if way == "lazy" else 1) * formula(real, fake)

    def difference(path, index, h=1e-5):
        def at(sign):
            p = jax.tree.map(np.copy, double(params))
            p[path[0]][path[1]][index] += sign * h
            return objective(p)

        return (at(1) - at(-1)) / (2 * h)

    lazy = 8 * (way == "lazy")
    (total, _), grads = run(critic, params, image, terms, lazy, loss=losses.non_saturating, real=real_images)
    assert total == pytest.approx(objective(double(params)), rel=1e-5)
    for path in (("first", "kernel"), ("first", "bias"), ("last", "kernel")):
        given = np.asarray(grads[path[0]][path[1]])
        wanted = [difference(path, index) for index in np.ndindex(given.shape)]
        np.testing.assert_allclose(given.ravel(), wanted, rtol=1e-4, atol=2e-5)


def test_weight_follows_the_images():
    terms = (penalties.r1(lambda images: 1.0 + images),)
    for lazy, times in ((0, 1), (4, 4)):
        totals = [run(Linear(), {"w": jnp.float32(W)}, REAL.mean(0), terms, lazy, images=n)[0][0] for n in (0, 9)]
        np.testing.assert_allclose(totals, times * np.sum(W**2) / 2 * np.array([1, 10]), rtol=1e-5)


def test_augmentation_that_differs_by_image_and_copy():
    """Each image, real and generated, is augmented by itself; the penalty sees each one's own factor."""

    def scale(keys, x):
        return jax.vmap(lambda key, x: x * jax.random.uniform(key, minval=1, maxval=5))(keys, x)

    both = penalties.r1(1.0), penalties.r2(1.0)
    (_, metrics), _ = run(
        Linear(),
        {"w": jnp.ones(SHAPE)},
        np.ones(SHAPE),
        both,
        augment=Augment(lambda keys, x, p: scale(keys, x)),
        real=np.ones_like(REAL),
    )
    # Linear in an image of ones: the logit is s * 6, and the squared gradient s² * 6 of the same s.
    assert metrics["real"] != pytest.approx(metrics["fake"])
    for logit, penalty in (("real", "penalty"), ("fake", "penalty_1")):
        mean, square = metrics[logit] / 6, metrics[penalty] / 3
        assert 1 < mean < 5 and square > mean**2 * (1 + 1e-3)  # not one factor for all of them


def test_generator_gradient_passes_the_augmentation():
    """Of softplus(-D(3 x)) and softplus(D(real) - D(fake)), with respect to the constant image x."""
    pair = adversarial.Pair(Constant(), Linear(), augment=Augment(lambda keys, x, p: 3 * x))
    state = state_of({"w": jnp.float32(W)}, FAKE)
    fake, real = 3 * np.sum(W * FAKE), 3 * np.sum(W * REAL, axis=(1, 2, 3))
    for loss, slope in ((losses.non_saturating, -fake), (losses.relativistic, real - fake)):
        function = functools.partial(adversarial.gen_loss, pair, loss)
        grad, _ = quick(jax.grad(function, has_aux=True))({"gen": {"image": jnp.float32(FAKE)}}, state, BATCH, KEY)
        np.testing.assert_allclose(grad["gen"]["image"], -3 * W * np.mean(1 / (1 + np.exp(-slope))), rtol=1e-5)


def test_functions_of_gradients():
    gradient = jnp.float32(RNG.normal(size=(5, 3, 4, 2)))
    square = np.sum(np.float64(gradient) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(penalties.squared_norm(gradient), square, rtol=1e-6)
    np.testing.assert_allclose(penalties.zero_centred(gradient), square / 2, rtol=1e-6)
    np.testing.assert_allclose(penalties.one_centred(gradient), (np.sqrt(square) - 1) ** 2, rtol=1e-5)
    half = gradient.astype(jnp.bfloat16)  # sums over pixels are float32, whatever comes in
    assert penalties.squared_norm(half).dtype == jnp.float32
    np.testing.assert_allclose(penalties.squared_norm(half), np.sum(np.float64(half) ** 2, axis=(1, 2, 3)), rtol=1e-6)


def test_one_centred_at_zero():
    """The penalty of a vanishing gradient is 1 and flat; near it, and beside other images, all is finite."""
    gradient = jnp.float32([[0, 0], [1e-30, 0], [3, 4]])
    value, slope = jax.vmap(jax.value_and_grad(lambda g: penalties.one_centred(g[None])[0]))(gradient)
    np.testing.assert_allclose(value, [1, 1, 16], rtol=1e-6)
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(slope[0], 0)
    np.testing.assert_allclose(slope[2], [8 * 0.6, 8 * 0.8], rtol=1e-6)
    (total, _), grads = run(Linear(), {"w": jnp.zeros(SHAPE)}, FAKE, (penalties.wgan_gp(10.0),))
    assert total == 10 and np.isfinite(grads["w"]).all()


def test_between_is_uniform_and_by_row():
    rows = jnp.arange(4000)
    real, fake = jnp.ones((4000, 2, 2, 1)), jnp.full((4000, 2, 2, 1), -1.0)
    keys = adversarial.image_keys(KEY, rows)
    points = np.asarray(quick(penalties.between)(keys, real, fake))
    epsilon = (points[:, 0, 0, 0] + 1) / 2
    assert (points == points[:, :1, :1]).all()  # one number an image
    assert scipy.stats.kstest(epsilon, "uniform").pvalue > 0.01
    assert len(np.unique(epsilon)) > 3990 and abs(np.corrcoef(epsilon[1:], epsilon[:-1])[0, 1]) < 0.05
    # A function of the row in the global batch, wherever that row stands.
    there = penalties.between(adversarial.image_keys(KEY, rows[7:9]), real[:2], fake[:2])
    np.testing.assert_array_equal(there, points[7:9])


def test_between_mixes_each_pair():
    """ε = (x̂ - fake) / (real - fake) is one number for each pair, never one of another pair's."""
    fake = jnp.float32(RNG.normal(size=REAL.shape))
    points = penalties.between(adversarial.image_keys(KEY, jnp.arange(4)), BATCH["image"], fake)
    epsilon = np.float64(points - fake) / np.float64(BATCH["image"] - fake)
    np.testing.assert_allclose(epsilon, np.broadcast_to(epsilon.mean((1, 2, 3), keepdims=True), REAL.shape), atol=1e-4)
    assert ((epsilon > 0) & (epsilon < 1)).all()


def test_weight_clipping():
    optimizer = optax.chain(optax.sgd(1.0), penalties.weight_clipping(0.01))
    params = {"w": jnp.float32([0.5, -0.5, 0.005, -0.005, 0.0])}
    gradient = {"w": jnp.float32([0.0, 0.0, 0.001, 0.1, -0.003])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    clipped = optax.apply_updates(params, updates)["w"]
    np.testing.assert_allclose(clipped, [0.01, -0.01, 0.004, -0.01, 0.003], atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_weight_clipping_holds_from_step_to_step(seed):
    """p + (clip(p + u) - p) is within the limit but for the last bit."""
    optimizer = penalties.weight_clipping(0.01)
    rng = np.random.default_rng(seed)
    params = jnp.float32(rng.uniform(-0.01, 0.01, 10_000))
    updates, _ = optimizer.update(jnp.float32(rng.normal(size=10_000)), optimizer.init(params), params)
    assert np.abs(optax.apply_updates(params, updates)).max() <= 0.01 * (1 + 2e-7)


PENALTIES = [
    name
    for name, make in vars(penalties).items()
    if callable(make) and getattr(make, "__annotations__", {}).get("return") is penalties.Penalty
]


@pytest.mark.parametrize("name", PENALTIES)
def test_every_penalty_has_finite_values_and_gradients(name):
    critic = Curved()
    params = critic.init(jax.random.key(3), BATCH["image"])["params"]
    term = getattr(penalties, name)(2.0)
    (total, metrics), grads = run(critic, params, FAKE, (term,), lazy=1)
    assert total == pytest.approx(2 * metrics["penalty"]) and total > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads)) and np.abs(grads["first"]["kernel"]).max() > 0


def test_discovery():
    assert set(PENALTIES) >= {"r1", "r2", "wgan_gp"}
