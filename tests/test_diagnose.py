"""The diagnosis of a training GAN: numbers that are known, verdicts by hand, and trainings ruined on purpose."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgan import adversarial, data, losses
from jaxgan.errors import InputError
from jaxgan.game import Game, Move, PlayerState, State
from jaxgan.metrics import diagnose
from jaxgan.metrics.diagnose import Diagnosis, birthday, held_out, judged, reach, spread
from jaxgan.models import mlp

FINE = {
    "accuracy": 0.75,
    "gap": 0.5,
    "steepness": 0.1,
    "memory": 0.55,
    "diversity": 0.9,
    "duplicates": 0.01,
    "support": 9000.0,
    "gradient_disc": 1.0,
    "gradient_gen": 0.5,
}


@pytest.mark.parametrize(
    "word, reason, history",
    [
        ("healthy", "accuracy 0.75, memory 0.55, diversity 0.90, duplicates 0.01", [{}]),
        ("healthy", "", [{"accuracy": 0.99}, {"accuracy": 0.949}]),
        ("healthy", "", [{"accuracy": 0.8}, {"accuracy": 0.99}]),  # once is not enough
        ("discriminator wins", "99.0% of unseen", [{"accuracy": 0.8}, {"accuracy": 0.95}, {"accuracy": 0.99}]),
        ("discriminator wins", "at least 95%", [{"accuracy": 0.95}]),
        ("discriminator wins", "by heart: .* chance 0.80", [{"memory": 0.5}, {"memory": 0.8}]),
        ("healthy", "", [{"memory": 0.8}, {"memory": 0.74}]),
        (
            "collapsing",
            "25% of the samples have a twin, .* drew from 40 images",
            [{"duplicates": 0.25, "support": 40.0}],
        ),
        ("healthy", "", [{"duplicates": 0.25}, {"duplicates": 0.09}]),
        ("collapsing", "0.30 times as far apart", [{"diversity": 0.3}]),
        ("collapsing", "fell from 0.90 to 0.60", [{"diversity": 0.6}, {}, {"diversity": 0.8}, {"diversity": 0.6}]),
        ("healthy", "", [{"diversity": 1.2}, {"diversity": 0.64}, {"diversity": 0.6}]),  # the first counts for nothing
        ("diverging", "20 per unit", [{"steepness": 20.0}]),
        (
            "diverging",
            "gradient_gen 60 is 120 times its median",
            [{}, {"gradient_gen": 0.1}, {}, {"gradient_gen": 60.0}],
        ),
        ("healthy", "", [{}, {}, {"gradient_gen": 49.0}]),
        ("diverging", "not finite: gap, gradient_disc", [{}, {"gap": math.nan, "gradient_disc": math.inf}]),
        # Several symptoms at once: the cause goes before its consequence.
        ("diverging", "", [{"steepness": 20.0, "accuracy": 1.0, "duplicates": 1.0}]),
        ("discriminator wins", "", [{"accuracy": 1.0, "duplicates": 1.0, "diversity": 0.2}]),
    ],
)
def test_verdicts(word, reason, history):
    found = diagnose.diagnose([FINE | row for row in history])
    assert found.word == word
    assert re.search(reason, found.reason), found.reason


def test_a_verdict_takes_what_there_is():
    assert diagnose.diagnose([{}]).word == "healthy"
    assert diagnose.diagnose([{"duplicates": 0.5}]).word == "collapsing"
    assert diagnose.diagnose([{"memory": 0.9}]).word == "discriminator wins"


def test_distances_are_those_of_numpy():
    x = np.random.default_rng(0).normal(size=(9, 4, 3)) + 1e4
    x[7] = x[2]
    rows = x.reshape(9, 12)
    expected = np.array([[np.linalg.norm(a - b) for a in rows] for b in rows])
    found = spread(x)
    i, j = np.triu_indices(9, 1)
    np.testing.assert_allclose(found.distances, expected[i, j], rtol=1e-9, atol=1e-6)
    assert found.mean == pytest.approx(expected[i, j].mean())
    np.fill_diagonal(expected, np.inf)
    np.testing.assert_allclose(found.nearest, expected.min(0), rtol=1e-9, atol=1e-6)
    # Of nine nearest distances two are 0: the hundredth part is too, and a set may hold an image twice.
    assert reach(found) == 1e-3 * found.mean


def test_the_birthday_of_365_days():
    """23 people: with 22 it is 0.476, with 23 it is 0.507. Here as many twins as a year has, 1 in 365."""
    born = birthday(np.where(np.arange(3650) < 10, 0.0, 1.0), 0.5)
    assert born.support == pytest.approx(365)
    assert 22 < born.batch < 23.1
    # The approximation of the docstring.
    assert born.batch * (born.batch - 1) / (2 * math.log(2)) == pytest.approx(365, rel=0.01)
    assert birthday(np.ones(100), 0.5).support == 100  # no twins: at least so many
    assert birthday(np.zeros(100), 0.5) == (2.0, 1.0)  # nothing but twins


def test_the_birthday_test_finds_a_known_support():
    """100 images, 64 draws with a little noise each; the batch against the paper's way of looking for it."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (100, 4, 4, 1))
    supports, batches, first = [], [], []
    for _ in range(60):
        drawn = rng.integers(100, size=64)
        found = birthday(spread(images[drawn] + rng.normal(0, 1e-3, (64, 4, 4, 1))).distances, 0.1)
        supports.append(found.support)
        batches.append(found.batch)
        first += [next(s for s in range(2, 64) if len(set(order[:s])) < s) for order in (drawn, drawn[::-1])]
    assert np.mean((np.array(supports) > 50) & (np.array(supports) < 200)) > 0.95
    assert np.median(supports) == pytest.approx(100, rel=0.1)
    assert np.median(batches) == pytest.approx(np.median(first), abs=1.5)
    assert np.median(batches) == pytest.approx(12.3, abs=0.7)  # 1/2 + √(1/4 + 2 ln 2 · 100)


def diagnosis_of(real):
    return Diagnosis(look=lambda state: None, real=real)


def test_diversity():
    rng = np.random.default_rng(0)
    real = rng.uniform(-1, 1, (200, 3, 3, 2)).astype(np.float32)
    measure = diagnosis_of(real).diversity
    same = measure(np.broadcast_to(real[:1], real.shape))
    assert same == {"diversity": 0.0, "duplicates": 1.0, "birthday": 2.0, "support": 1.0}
    own = measure(real)
    assert own["diversity"] == 1 and own["duplicates"] == pytest.approx(diagnose.NEAR, abs=0.006)
    half = measure(0.5 * real)
    assert half["diversity"] == pytest.approx(0.5) and half["duplicates"] > 0.5
    # Four images of two hundred: they lie about as far apart as all, which the twins give away.
    four = measure(real[np.arange(200) % 4])
    assert four["diversity"] > 0.6 and four["duplicates"] == 1 and four["support"] == pytest.approx(4, rel=0.03)
    red = dataclasses.replace(diagnosis_of(real), embed=lambda x: x[..., 0])
    assert red.diversity(np.concatenate([real[..., :1], 0 * real[..., 1:]], -1)) == red.diversity(real)


def test_what_logits_say():
    """By hand: the middle of the means 3 and 0 is 1.5; of nine pairs D prefers the learnt one in six, two are even."""
    logits = {
        "real": np.array([[2.0], [3.0], [4.0]]),
        "held": np.array([1.0, 2.0, 3.0]),
        "fake": np.array([-2.0, 0, 2]),
    }
    expected = {"gap": 3.0, "held_gap": 1.0, "accuracy": (2 / 3 + 2 / 3) / 2, "memory": (6 + 2 / 2) / 9}
    assert judged(logits) == pytest.approx(expected)
    del logits["held"]
    assert judged(logits) == pytest.approx({"gap": 3.0, "accuracy": (1 + 2 / 3) / 2})


def numbers(n, shape=(2, 2, 1), name="set"):
    """Images that say their own number."""
    image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, *shape))
    return data.Source(name, n, shape, 0, lambda i: {"image": image[i], "label": np.zeros(len(i), np.int32)})


def test_held_out_images():
    source = numbers(200)
    splits = {"train": source, "test": numbers(50), "val": numbers(20)}

    def load(splits, name):
        if name not in splits:
            raise InputError(name)
        return splits[name]

    assert held_out(source, "train", functools.partial(load, splits)) == (source, splits["test"])
    assert held_out(source, "train+test[:50%]", functools.partial(load, splits)) == (source, splits["val"])
    other = splits | {"test": numbers(50, (2, 3, 1))}
    assert held_out(source, "train", functools.partial(load, other)) == (source, splits["val"])
    train, held = held_out(source, "train", functools.partial(load, {}))
    seen = [part.read(np.arange(part.num_examples))["image"][:, 0, 0, 0].tolist() for part in (train, held)]
    assert seen[1] == list(range(0, 200, 10)) and sorted(seen[0] + seen[1]) == list(range(200))
    with pytest.raises(InputError, match="19 images and no split test, validation, val"):
        held_out(numbers(19), "train", functools.partial(load, {}))
    with pytest.raises(InputError, match="a diagnosis of the 1 images of set"):
        Diagnosis.of(adversarial.Pair(None, None), numbers(40), numbers(1))


class Known:
    """A pair whose generator paints its one parameter, and whose discriminator weighs the mean pixel with its own."""

    pack = 1

    def generate(self, params, variables, batch, key):
        return jnp.full(batch["image"].shape, params), variables

    def critic(self, params, state, batch, key):
        return lambda variables, images: (params * images.mean((1, 2, 3)), variables)


def test_what_is_measured(capfd):
    moves = (
        Move("disc", lambda params, *_: (3 * params["disc"] ** 2, ({}, {}))),
        Move(("disc", "gen"), lambda params, *_: (3 * params["disc"] + 4 * params["gen"], ({}, {})), name="both"),
    )
    players = {
        "disc": PlayerState(jnp.float32(2), {}, None, None),
        "gen": PlayerState(jnp.float32(0.5), {}, None, None),
    }
    state = State(jnp.int32(7), jnp.uint32(0), jax.random.key(0), players, {})
    # All are seen, in whatever order: images of 0 to 63 and of 0, 2 ... 126; the logit of i is 2 (2 i / 255 - 1).
    train, held = numbers(64), numbers(128)
    held = dataclasses.replace(held, num_examples=64, read=lambda rows: numbers(128).read(2 * rows))
    diagnosis = Diagnosis.of(Known(), train, held, game=Game(dict.fromkeys(players), moves))
    scores = diagnosis(state)
    real, fake = (2 * (2 * value / 255 - 1) for value in (31.5, (0.5 + 1) * 255 / 2))
    assert scores["diagnose_gap"] == pytest.approx(real - fake, rel=1e-5)
    assert scores["diagnose_held_gap"] == pytest.approx(-4 / 255 * 31.5, rel=1e-5)
    # The middle, -0.253, is a pixel of 111.4: D takes every fake for real, and of the held images those of 112 to 126.
    assert scores["diagnose_accuracy"] == 8 / 64 / 2
    larger = sum(i > 2 * j for i in range(64) for j in range(64)) + 32 / 2
    assert scores["diagnose_memory"] == pytest.approx(larger / 64**2)
    assert scores["diagnose_gradient_disc"] == pytest.approx(12) and scores["diagnose_gradient_both"] == pytest.approx(
        5
    )
    # Two of n numbers are (n + 1) / 3 apart on average; here in steps of 2, in all four pixels.
    assert scores["diagnose_steepness"] == pytest.approx((fake - real) / (65 / 3 * 2 * 2 / 255 * 2), rel=1e-5)
    assert (scores["diagnose_diversity"], scores["diagnose_support"]) == (0, 1)
    assert "step 7: collapsing (100% of the samples have a twin" in capfd.readouterr().err
    without = Diagnosis.of(Known(), train, None)(state)
    assert without.keys() == scores.keys() - {
        f"diagnose_{n}" for n in ("held_gap", "memory", "gradient_disc", "gradient_both")
    }


BATCH, CALL = 64, 125


def pair_of(shape):
    return adversarial.Pair(
        mlp.Generator(shape, latent=16, widths=(64, 128)), mlp.Discriminator(shape, widths=(128, 64))
    )


def game_of(pair, disc_rate, gen_rate):
    adam = functools.partial(optax.adam, b1=0.5)
    return adversarial.game(pair, losses.non_saturating, gen_optimizer=adam(gen_rate), disc_optimizer=adam(disc_rate))


@pytest.fixture(scope="module")
def trainings():
    """(rates, steps) -> the diagnosis of a dense pair on digits and its state. One program for all rates."""
    train, held = held_out(data.load("digits"), "train", functools.partial(data.load, "digits"))
    pair = pair_of(train.shape)
    images = jnp.asarray(data.read_all(train)["image"])
    row = jnp.arange(BATCH)

    @jax.jit
    def advance(state, disc_rate, gen_rate):
        game = game_of(pair, disc_rate, gen_rate)

        def step(state, key):
            rows = jax.random.randint(key, (game.draws, BATCH), 0, len(images))
            return game.step(state, {"image": data.to_float(images[rows]), "row": row[None].repeat(game.draws, 0)})

        return jax.lax.scan(step, state, jax.random.split(jax.random.fold_in(state.key, state.step), CALL))[0]

    example = {"image": jnp.zeros((1, *train.shape)), "row": jnp.arange(1)}
    start = jax.jit(game_of(pair, 0.0, 0.0).init)(jax.random.key(0), example)
    first = Diagnosis.of(pair, train, held, game=game_of(pair, 0.0, 0.0))

    def run(disc_rate, gen_rate, steps):
        diagnosis, state = dataclasses.replace(first, history=[]), start
        for _ in range(steps // CALL):
            state = advance(state, disc_rate, gen_rate)
            scores = diagnosis(state)
        return diagnosis, scores

    return run


def words(diagnosis):
    return [diagnose.diagnose(diagnosis.history[: i + 1]).word for i in range(len(diagnosis.history))]


@pytest.mark.parametrize(
    "word, disc_rate, gen_rate, steps",
    [
        ("healthy", 5e-4, 5e-4, 500),
        ("collapsing", 0.0, 2e-3, 250),  # a discriminator that stands still has one image that it likes best
        ("discriminator wins", 2e-3, 0.0, 250),  # a generator that stands still
        ("diverging", 0.3, 0.3, 125),
    ],
)
def test_trainings(trainings, capfd, word, disc_rate, gen_rate, steps):
    diagnosis, scores = trainings(disc_rate, gen_rate, steps)
    assert words(diagnosis) == [word] * (steps // CALL)
    assert f"step {steps}: {word} (" in capfd.readouterr().err
    assert scores == {f"diagnose_{name}": value for name, value in diagnosis.history[-1].items()}
