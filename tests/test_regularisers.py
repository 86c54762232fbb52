"""Regularisers, packing, looking ahead and adaptive augmentation, on games small enough for pencil and paper."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgan import adversarial, augment, losses, penalties, regularisers
from jaxgan.game import State

SHAPE, B = (1, 2, 1), 4
RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(B, *SHAPE)).astype(np.float32)
BATCH = {"image": jnp.asarray(REAL), "row": jnp.arange(B)}
KEY = jax.random.key(5)
W, IMAGE = np.array([0.5, -2.0]), np.array([1.5, 0.25])


class Constant(nn.Module):
    """Generated images are a parameter, whatever the latent."""

    latent: int = 1

    @nn.compact
    def __call__(self, z, label=None, train=False):
        image = self.param("image", lambda key: jnp.float32(IMAGE.reshape(SHAPE)))
        return jnp.broadcast_to(image, (len(z), *SHAPE))


class Linear(nn.Module):
    """D(x) = <w, x>."""

    mixes_batch: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x, label=None, train=False):
        x = x.reshape(len(x), -1)
        return x @ self.param("w", lambda key: jnp.repeat(jnp.float32(W), x.shape[1] // 2))


def game_of(loss=losses.wasserstein, pack=1, augmentation=None, rate=0.1, **options):
    pair = adversarial.Pair(Constant(), Linear(), augment=augmentation, pack=pack)
    sgd = optax.sgd(rate)
    game = adversarial.game(pair, loss, gen_optimizer=sgd, disc_optimizer=sgd, **options)
    return game, game.init(KEY, BATCH)


def disc_metrics(game, state):
    loss = game.moves[0].loss
    total, (metrics, variables) = loss({"disc": state.players["disc"].params}, state, BATCH, KEY)
    return float(total), {name: float(x) for name, x in metrics.items()}, variables["disc"]


def logits():
    return REAL.reshape(B, -1) @ W, np.full(B, IMAGE @ W)


def test_lecam_twice():
    """First against the batch's own means, then against averages that keep 0.9 of them; and it survives a step."""
    game, state = game_of(regularisers=[regularisers.lecam(0.3, decay=0.9)])
    real, fake = logits()
    expected = np.mean((real - fake.mean()) ** 2) + np.mean((fake - real.mean()) ** 2)
    total, metrics, kept = disc_metrics(game, state)
    assert metrics["lecam"] == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(metrics["adversarial"] + 0.3 * expected, rel=1e-5)
    disc = state.players["disc"].replace(params={"w": 2 * state.players["disc"].params["w"]}, variables=kept)
    again = state.replace(players=state.players | {"disc": disc})
    α_real, α_fake = (0.9 * x.mean() + 0.1 * 2 * x.mean() for x in (real, fake))
    expected = np.mean((2 * real - α_fake) ** 2) + np.mean((2 * fake - α_real) ** 2)
    assert disc_metrics(game, again)[1]["lecam"] == pytest.approx(expected, rel=1e-5)
    stepped, _ = jax.jit(game.step)(state, jax.tree.map(lambda x: x[None], BATCH))
    assert float(stepped.players["disc"].variables["lecam"]["count"]) == 1


def test_consistency_at_reals_and_fakes():
    """T doubles an image: the squared change of a linear critic's logit is its square."""
    double = lambda keys, x: 2 * x  # noqa: E731
    terms = [regularisers.consistency(double, 10.0), regularisers.consistency_fake(double, 5.0)]
    game, state = game_of(regularisers=terms)
    real, fake = logits()
    total, metrics, _ = disc_metrics(game, state)
    assert metrics["consistency"] == pytest.approx(np.mean(real**2), rel=1e-5)
    assert metrics["consistency_fake"] == pytest.approx(np.mean(fake**2), rel=1e-5)
    more = 10 * np.mean(real**2) + 5 * np.mean(fake**2)
    assert total == pytest.approx(metrics["adversarial"] + more, rel=1e-5)


class Classes(nn.Module):
    """The verdict and two class logits, all linear."""

    mixes_batch: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x, label=None, train=False):
        assert label is None
        return x.reshape(len(x), -1) @ self.param("w", lambda key: jnp.float32(MATRIX))


MATRIX = np.array([[0.5, 1.0, -1.0], [-2.0, 0.3, 0.7]])


def test_auxiliary_classifier():
    """Cross-entropies of both images by hand; R1 is that of the verdict alone."""
    label = np.array([0, 1, 1, 0])
    batch = BATCH | {"label": jnp.asarray(label)}
    pair = adversarial.Pair(Constant(), Classes(), conditional=True, auxiliary=True)
    sgd, terms = optax.sgd(0.1), [regularisers.auxiliary("disc", 2.0), regularisers.auxiliary("gen", 0.5)]
    game = adversarial.game(
        pair,
        losses.wasserstein,
        gen_optimizer=sgd,
        disc_optimizer=sgd,
        regularisers=terms,
        penalties=[penalties.r1(1.0)],
    )
    state = game.init(KEY, batch)
    total, (metrics, _) = game.moves[0].loss({"disc": state.players["disc"].params}, state, batch, KEY)

    def cross_entropy(x):
        scores = np.float64(x) @ MATRIX[:, 1:]
        return np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(B), label])

    fake = np.tile(IMAGE, (B, 1))
    expected = cross_entropy(REAL.reshape(B, -1)) + cross_entropy(fake)
    assert float(metrics["auxiliary"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["penalty"]) == pytest.approx(0.5 * np.sum(MATRIX[:, 0] ** 2), rel=1e-5)
    more = 2 * expected + float(metrics["penalty"])
    assert float(total) == pytest.approx(float(metrics["adversarial"]) + more, rel=1e-5)
    total, (metrics, _) = game.moves[-1].loss({"gen": state.players["gen"].params}, state, batch, KEY)
    assert float(metrics["auxiliary"]) == pytest.approx(cross_entropy(fake), rel=1e-5)
    assert float(total) == pytest.approx(-(IMAGE @ MATRIX[:, 0]) + 0.5 * cross_entropy(fake), rel=1e-5)


def test_flip_and_shift_moves_whole_images():
    """A spike in the middle stays one spike, at most four pixels away; both ways round, all shifts equally likely."""
    images = jnp.zeros((512, 13, 13, 1)).at[:, 6, 7].set(1.0)
    moved = np.asarray(regularisers.flip_and_shift(jax.random.split(KEY, 512), images))[..., 0]
    np.testing.assert_array_equal(moved.sum((1, 2)), 1)
    rows, columns = np.nonzero(moved)[1:]
    assert set(rows) == set(range(2, 11)) and set(columns) == set(range(1, 12))  # 5 or 7, and up to 4 more
    assert abs(rows.mean() - 6) < 4 * 2.58 / np.sqrt(512)


def test_orthogonal_of_the_generator_alone():
    game, _ = game_of(regularisers=[regularisers.orthogonal("gen")])
    assert "regularisers" in game.moves[-1].loss.keywords and not game.moves[0].loss.keywords["regularisers"]


@pytest.mark.parametrize("moves", [1, 3])
def test_unrolled_gradient(moves):
    """Of a bilinear game: after k moves w is w - kη(g - r̄), so the generator's loss -<w, g> has the slope below.

    The discriminator itself stays where it was.
    """
    game, state = game_of(unroll=moves, rate=0.1)
    gen = state.players["gen"].params
    loss = game.moves[-1].loss
    grad, _ = jax.grad(loss, has_aux=True)({"gen": gen}, state, BATCH, KEY)
    mean = REAL.reshape(B, -1).mean(0)
    expected = -(W - moves * 0.1 * (IMAGE - mean)) + moves * 0.1 * IMAGE
    np.testing.assert_allclose(grad["gen"]["image"].reshape(-1), expected, rtol=1e-5)


def test_a_look_ahead_sees_the_penalties():
    """With R1, whose slope is γ w, each of the k moves shrinks w by a = 1 - ηγ first; lazily as in every step."""
    for every in (1, 16):
        game, state = game_of(unroll=3, rate=0.1, penalties=[penalties.r1(2.0)], penalty_every=every)
        grad, _ = jax.grad(game.moves[-1].loss, has_aux=True)({"gen": state.players["gen"].params}, state, BATCH, KEY)
        a, mean = 1 - 0.1 * 2.0, REAL.reshape(B, -1).mean(0)
        total = 0.1 * (1 + a + a**2)
        expected = -(a**3 * W - total * (IMAGE - mean)) + total * IMAGE
        np.testing.assert_allclose(grad["gen"]["image"].reshape(-1), expected, rtol=1e-5)


@pytest.mark.parametrize("disc_steps", [1, 5])
def test_a_lazy_penalty_weighs_as_much_as_in_every_move(disc_steps):
    """Over 16 steps, of a discriminator that stands still: γ/2 ||w||² for each of its moves."""
    total = {}
    for every in (1, 16):
        game, state = game_of(penalties=[penalties.r1(3.0)], penalty_every=every, disc_steps=disc_steps)
        disc = {"disc": state.players["disc"].params}
        of = [game.moves[0]] if every == 1 else [game.moves[1]]
        plain, _ = game_of()[0].moves[0].loss(disc, state, BATCH, KEY)
        loss = sum(move.loss(disc, state, BATCH, KEY)[0] - (plain if every == 1 else 0) for move in of)
        total[every] = loss * sum(move.times * 16 / move.every for move in of)
    assert float(total[1]) == pytest.approx(16 * disc_steps * 3.0 / 2 * np.sum(W**2), rel=1e-5)
    assert float(total[16]) == pytest.approx(float(total[1]), rel=1e-5)


def test_packed_images_stand_side_by_side():
    x = jnp.arange(4 * 1 * 2 * 3).reshape(4, 1, 2, 3)
    y = adversarial.packed(x, 2)
    assert y.shape == (2, 1, 2, 6)
    np.testing.assert_array_equal(y[1, 0, 1], np.concatenate([x[2, 0, 1], x[3, 0, 1]]))
    points = adversarial.packed(x.reshape(8, 3), 4)
    np.testing.assert_array_equal(points[0], np.arange(12))


def test_pairs_are_judged_together():
    """PacGAN2 of a linear critic: a logit of two images, whose gradient's square is that of both."""
    terms = [penalties.r1(1.0), penalties.r2(1.0)]
    game, state = game_of(pack=2, penalties=terms)
    real, fake = logits()
    _, metrics, _ = disc_metrics(game, state)
    assert metrics["real"] == pytest.approx(2 * real.mean(), rel=1e-5)
    assert metrics["fake"] == pytest.approx(2 * fake.mean(), rel=1e-5)
    assert metrics["penalty"] == pytest.approx(0.5 * 2 * np.sum(W**2), rel=1e-5)
    stepped, _ = jax.jit(game.step)(state, jax.tree.map(lambda x: x[None], BATCH))
    assert np.isfinite(stepped.players["gen"].params["image"]).all()


def test_dragan_stands_near_the_reals():
    keys = adversarial.image_keys(KEY, jnp.arange(B))
    shift = np.asarray(penalties.around(keys, jnp.asarray(REAL), jnp.zeros(0))) - REAL
    assert shift.min() >= 0 and shift.max() <= 0.5 * REAL.std() and len(np.unique(shift)) == shift.size
    many = jnp.asarray(RNG.normal(size=(2000, 8, 8, 1)), jnp.float32)
    shift = penalties.around(adversarial.image_keys(KEY, jnp.arange(2000)), many, jnp.zeros(0)) - many
    found = np.asarray(shift / (0.5 * many.std())).mean((1, 2, 3))  # about α / 2 of an image
    assert found.mean() == pytest.approx(1 / 4, abs=0.01) and found.std() == pytest.approx(12**-0.5 / 2, abs=0.01)


@pytest.mark.parametrize("probability", [0.25, lambda images: images / 8, augment.Adaptive(0.6, 100.0, interval=1)])
def test_probability_of_augmentation(probability):
    """x -> x (1 + p) shows in the logits which p the critic saw: a number, a schedule, or the player's variable."""
    apply = lambda keys, x, p: x * (1 + p)  # noqa: E731
    game, state = game_of(augmentation=augment.Augment(apply, probability))
    state = state.replace(images=jnp.uint32(4))
    adaptive = isinstance(probability, augment.Adaptive)
    if adaptive:
        disc = state.players["disc"]
        disc = disc.replace(variables=disc.variables | {"augment": {"probability": jnp.float32(0.5)}})
        state = state.replace(players=state.players | {"disc": disc})
    p = 0.25 if probability == 0.25 else 0.5
    real, _ = logits()
    _, metrics, variables = disc_metrics(game, state)
    assert metrics["real"] == pytest.approx((1 + p) * real.mean(), rel=1e-5)
    if adaptive:  # four images of a hundred, up or down by whether E sign D(real) exceeds the target
        step = 0.04 * np.sign(np.sign(real).mean() - 0.6)
        assert float(variables["augment"]["probability"]) == pytest.approx(0.5 + step)
        assert metrics["augment"] == pytest.approx(0.5 + step)
    else:
        assert metrics["augment"] == p


def test_weights_may_follow_the_images():
    term = regularisers.Regulariser("one", lambda view: (jnp.float32(1), view.variables), weight=lambda images: images)
    game, state = game_of(regularisers=[term])
    total, metrics, _ = disc_metrics(game, state.replace(images=jnp.uint32(7)))
    assert total == pytest.approx(metrics["adversarial"] + 7, rel=1e-5)


def test_state_type():
    _, state = game_of(regularisers=[regularisers.lecam()])
    assert isinstance(state, State)
    shapes = functools.partial(jax.tree.map, jnp.shape)
    assert shapes(state.players["disc"].variables) == {"lecam": {"real": (), "fake": (), "count": ()}}
