"""Six steps of StyleGAN2-ADA's and of R3GAN's presets against their authors' update rules, written out in NumPy.

The networks are the project's own at a tiny width, from given weights; their losses are written anew and differentiated
by JAX. All else (Adam, its lazy correction, schedules, averages, the adaptive probability) is NumPy. Both sides are in
float64: with β1 = 0 Adam's first step is the sign of a gradient, which rounding can turn over.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import image
from jaxgan import flags, penalties
from jaxgan.game import Game
from jaxgan.layers.conv import plain
from tests import weights

STEPS, B, CLASSES, SHAPE = 6, 8, 3, (8, 8, 3)
ROWS = jnp.arange(B)
QUICK = {"xla_backend_optimization_level": 0}
quick = functools.partial(jax.jit, compiler_options=QUICK)
gradients = functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)


@pytest.fixture(autouse=True)
def double_precision(monkeypatch):
    monkeypatch.setattr(penalties, "squared_norm", lambda gradient: jnp.sum(jnp.square(gradient), (1, 2, 3)))
    with jax.enable_x64(True), plain():  # XLA's own convolutions compile faster
        yield


def negated(keys, images, p):
    """An augmentation that compiles fast: an image is negated with probability p."""
    lost = jax.vmap(jax.random.uniform)(keys) < p
    return jnp.where(lost[:, None, None, None], -images, images)


def setting(*argv):
    """The game of a preset, its networks, and the state before the first step."""
    config = flags.parse(image.Config, image.PRESETS, [*argv, "--latent=5", f"--batch_size={B}"])
    pair = image.networks(config, SHAPE, CLASSES)
    pair = dataclasses.replace(
        pair,
        generator=pair.generator.clone(dtype=jnp.float64),
        discriminator=pair.discriminator.clone(dtype=jnp.float64),
        augment=pair.augment._replace(apply=negated),
    )
    game = image.make_game(config, pair)
    example = {"image": np.zeros((1, *SHAPE), np.float32), "label": np.zeros(1, np.int32), "row": np.zeros(1, np.int32)}
    state = weights.begun(game, example)
    for name, player in state.players.items():
        params = jax.tree_util.tree_map_with_path(scaled, player.params) if "stylegan2" in argv[0] else player.params
        state.players[name] = player.replace(params=params, ema=None if player.ema is None else params)
    players = jax.tree.map(lambda x: x.astype(float) if x.dtype.kind == "f" else x, state.players)
    variables = jax.tree.map(jnp.zeros_like, players["disc"].variables)
    if variables:
        variables["augment"]["probability"] += 0.3
    players["disc"] = players["disc"].replace(variables=variables)
    return pair, game, state.replace(players=players)


def scaled(path, leaf):
    """Weights of an equalised learning rate, N(0, 1), times 100 in the mapping networks."""
    slow = any("apping" in str(entry) for entry in path) and "embed" not in str(path)
    return leaf * (math.prod(leaf.shape[:-1]) ** 0.5 if leaf.ndim > 1 else 1) * (100 if slow else 1)


def data(draws):
    rng = np.random.default_rng(5)
    return [
        {
            "image": rng.uniform(-1, 1, (draws, B, *SHAPE)),
            "label": rng.integers(0, CLASSES, (draws, B)).astype(np.int32),
            "row": np.tile(np.arange(B, dtype=np.int32), (draws, 1)),
        }
        for _ in range(STEPS)
    ]


def keys_of(key, count):
    return jax.random.split(key, count)


def per_row(key, offset=0):
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(ROWS + offset)


def latents(key, dimension):
    return jax.vmap(lambda k: jax.random.normal(k, (dimension,), jnp.float32))(per_row(key))


def generated(pair, params, variables, label, key):
    z_key, noise_key = keys_of(key, 2)
    rngs = {"noise": jax.random.fold_in(noise_key, 0)}
    z = latents(z_key, pair.generator.latent)
    changing = list(variables)
    return pair.generator.apply({"params": params, **variables}, z, label, train=True, mutable=changing, rngs=rngs)[0]


def judged(pair, params, images, label, key, p, offset=0):
    images = negated(per_row(keys_of(key, 2)[0], offset), images, p)
    return pair.discriminator.apply({"params": params}, images, label, train=True)


def softplus(x):
    return jnp.logaddexp(x, 0.0)


class Adam:
    """As in PyTorch, β1 = 0; β2 and the rate may change from step to step."""

    def __init__(self, params):
        self.params = jax.tree.map(np.float64, params)
        self.power = jax.tree.map(np.zeros_like, self.params)
        self.count = 0

    def step(self, gradient, rate, beta2):
        self.count += 1
        corrected = 1 - beta2**self.count
        self.power = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * np.float64(g) ** 2, self.power, gradient)

        def moved(x, v, g):
            return x - rate * np.float64(g) / (np.sqrt(v / corrected) + 1e-8)

        self.params = jax.tree.map(moved, self.params, self.power, gradient)


def averaged(ema, params, half_life):
    keep = 0.5 ** (B / max(half_life, 1e-8))
    return jax.tree.map(lambda old, new: new + (old - new) * keep, ema, params)


def played(game, state, batches):
    step = quick(functools.partial(Game.step.__wrapped__, game))  # in float64, of which `Game.step` makes float32
    for batch in batches:
        state, _ = step(state, batch)
    return jax.device_get(state.replace(key=None))


def move_key(state, step, move):
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, step), move), 0)


def assert_close(found, expected, before):
    for (path, a), b, old in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), jax.tree.leaves(before), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=jax.tree_util.keystr(path))
        assert np.abs(b - old).max() > 1e-4, f"{jax.tree_util.keystr(path)} stands still"


# Gradients, at the pair's networks: compiled once for both settings of StyleGAN2.


@gradients
def stylegan2_disc(pair, disc, gen, variables, batch, key, p):
    z_key, score_key, _ = keys_of(key, 3)
    real_key, fake_key = keys_of(score_key, 2)
    real, label = batch["image"], batch["label"]
    fake = generated(pair, gen, variables, label, z_key)

    def loss(disc):
        real_logits = judged(pair, disc, real, label, real_key, p)
        fake_logits = judged(pair, disc, fake, label, fake_key, p)
        return jnp.mean(softplus(fake_logits) + softplus(-real_logits)), jnp.sign(real_logits)

    return jax.grad(loss, has_aux=True)(disc)


@gradients
def stylegan2_penalty(pair, disc, batch, key, p):
    score_key = jax.random.fold_in(keys_of(key, 3)[1], 0)

    def loss(disc):
        def total(x):
            logits = judged(pair, disc, x, batch["label"], score_key, p)
            return logits.sum(), jnp.sign(logits)

        slope, signs = jax.grad(total, has_aux=True)(batch["image"])
        return jnp.mean(jnp.sum(slope**2, (1, 2, 3))) * (0.01 / 2), signs

    return jax.grad(loss, has_aux=True)(disc)


@gradients
def stylegan2_gen(pair, gen, disc, variables, batch, key, p):
    z_key, fake_key, _ = keys_of(key, 3)
    label = batch["label"]

    def loss(gen):
        fake = generated(pair, gen, variables, label, z_key)
        return jnp.mean(softplus(-judged(pair, disc, fake, label, fake_key, p)))

    return jax.grad(loss)(gen)


@gradients
def stylegan2_path(pair, gen, variables, mean, batch, key):
    z_key, map_key, noise_key, y_key = keys_of(key, 4)
    half = B // 2
    z, label = latents(z_key, pair.generator.latent)[:half], batch["label"][:half]
    y = jax.vmap(lambda k: jax.random.normal(k, SHAPE, jnp.float32))(per_row(y_key))[:half] / math.sqrt(
        SHAPE[0] * SHAPE[1]
    )

    def loss(gen):
        def apply(method, key, *inputs):
            options = {"rngs": {"noise": jax.random.fold_in(key, 0)}, "method": method, "mutable": list(variables)}
            return pair.generator.apply({"params": gen, **variables}, *inputs, train=True, **options)[0]

        ws = apply("map", map_key, z, label)
        slope = jax.grad(lambda ws: jnp.sum(apply("synthesise", noise_key, ws) * y))(ws)
        lengths = jnp.sqrt(jnp.mean(jnp.sum(slope**2, 2), 1))
        moved = mean + 0.01 * (lengths.mean() - mean)
        return 2.0 * jnp.mean((lengths - moved) ** 2), moved

    return jax.grad(loss, has_aux=True)(gen)


@pytest.mark.parametrize("path_length", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_six_steps_of_stylegan2_are_the_authors(path_length):
    """`--cfg=cifar` with ADA; then with path length and R1 in every fourth step, to play each twice."""
    more = ("--path_length=2", "--gen_learning_rate=", "--gen_beta2=", "--penalty_every=4") if path_length else ()
    pair, game, state = setting("--preset=stylegan2_cifar10", "--width=6", "--ada_images=64", *more)
    batches, variables = data(game.draws), state.players["gen"].variables
    result = played(game, state, batches)

    disc, gen = (Adam(state.players[name].params) for name in ("disc", "gen"))
    ema, p, mean, signs = gen.params, np.float64(0.3), np.float64(1.0), []
    lazy = 4 if path_length else 16
    disc_rate, disc_beta2 = 0.0025 * lazy / (lazy + 1), 0.99 ** (lazy / (lazy + 1))
    gen_rate, gen_beta2 = 0.0025 * 4 / 5, 0.99 ** (4 / 5)
    for step, batch in enumerate(batches):
        first, last = ({name: x[i] for name, x in batch.items()} for i in (0, -1))
        key = move_key(state, step, 0)
        gradient, found = stylegan2_disc(pair, disc.params, gen.params, variables, first, key, p)
        disc.step(gradient, disc_rate, disc_beta2)
        signs.append(found)
        if step % 4 == 3:  # the authors' step ends here, as their generator moves first
            p = np.maximum(p + np.sign(np.mean(np.concatenate(signs)) - 0.6) * (B * 4) / 64, 0.0)
            signs = []
        if step % lazy == 0:
            gradient, found = stylegan2_penalty(pair, disc.params, first, move_key(state, step, 1), p)
            disc.step(jax.tree.map(lambda g: lazy * g, gradient), disc_rate, disc_beta2)
            signs.append(found)
        gradient = stylegan2_gen(pair, gen.params, disc.params, variables, last, move_key(state, step, 2), p)
        gen.step(gradient, gen_rate, gen_beta2)
        if path_length and step % 4 == 0:
            gradient, mean = stylegan2_path(pair, gen.params, variables, mean, last, move_key(state, step, 3))
            gen.step(jax.tree.map(lambda g: 4 * g, gradient), gen_rate, gen_beta2)
        ema = averaged(ema, gen.params, min(500_000, step * B * 0.05))
    assert_close(result.players["disc"].params, disc.params, state.players["disc"].params)
    assert_close(result.players["gen"].params, gen.params, state.players["gen"].params)
    assert_close(result.players["gen"].ema, ema, state.players["gen"].ema)
    assert result.players["disc"].variables["augment"]["probability"] == pytest.approx(p, abs=1e-6)
    assert result.players["gen"].variables["path"]["mean"] == pytest.approx(float(mean), abs=1e-5)


def test_six_steps_of_r3gan_are_the_authors():
    """The preset of CIFAR-10 with its schedules run down in 40 images, so that the last step is at their end."""
    pair, game, state = setting("--preset=r3gan_cifar10", "--width=8", "--anneal_images=40", "--ema=0,64")
    batches = data(game.draws)
    result = played(game, state, batches)

    @quick
    def disc_gradient(disc, gen, batch, key, p, gamma):
        z_key, score_key, _ = keys_of(key, 3)
        real, label = batch["image"], batch["label"]
        fake = generated(pair, gen, {}, label, z_key)

        def loss(disc):
            def real_total(x):
                logits = judged(pair, disc, x, label, score_key, p)
                return logits.sum(), logits

            def fake_total(x):
                logits = judged(pair, disc, x, label, score_key, p, offset=1 << 20)
                return logits.sum(), logits

            r1, real_logits = jax.grad(real_total, has_aux=True)(real)
            r2, fake_logits = jax.grad(fake_total, has_aux=True)(fake)
            squares = jnp.sum(r1**2, (1, 2, 3)) + jnp.sum(r2**2, (1, 2, 3))
            return jnp.mean(softplus(fake_logits - real_logits) + gamma / 2 * squares)

        return jax.grad(loss)(disc)

    @quick
    def gen_gradient(gen, disc, batch, key, p):
        z_key, fake_key, real_key = keys_of(key, 3)
        label = batch["label"]
        real_logits = judged(pair, disc, batch["image"], label, real_key, p)

        def loss(gen):
            fake = generated(pair, gen, {}, label, z_key)
            return jnp.mean(softplus(real_logits - judged(pair, disc, fake, label, fake_key, p)))

        return jax.grad(loss)(gen)

    def scheduled(start, end, images):
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(images, 40) / 40))

    disc, gen = (Adam(state.players[name].params) for name in ("disc", "gen"))
    ema = gen.params
    for step, batch in enumerate(batches):
        images = step * B
        rate, beta2 = scheduled(2e-4, 5e-5, images), scheduled(0.9, 0.99, images)
        gamma, p = scheduled(0.05, 0.005, images), scheduled(0.0, 0.55, images)
        first, second = ({name: x[i] for name, x in batch.items()} for i in (0, 1))
        key = move_key(state, step, 0)
        disc.step(disc_gradient(disc.params, gen.params, first, key, p, gamma), rate, beta2)
        gen.step(gen_gradient(gen.params, disc.params, second, move_key(state, step, 1), p), rate, beta2)
        ema = averaged(ema, gen.params, scheduled(0, 64, images))
    assert_close(result.players["disc"].params, disc.params, state.players["disc"].params)
    assert_close(result.players["gen"].params, gen.params, state.players["gen"].params)
    assert_close(result.players["gen"].ema, ema, state.players["gen"].ema)
