"""ALAD's game (see `alad`) with three things added, and scored by three residuals. All of it is ours.

Rows have to come back: the squared residual of G(E(x)) is a part of the loss. Latents of rows have to lie where latents
lie, with mean 0 and covariance I (`joint.prior`), or the length of E(x) would say nothing. Both of rows with noise, lest
a few hundred of them be learnt by heart. And a fourth discriminator learns to tell rows from the same rows moved away
from where they belong: by noise in all directions, or along the difference of two other rows, which keeps what columns
have in common, by lengths from a fraction of a deviation to several. That is no game, for nobody answers it, but
noise-contrastive estimation of where rows are dense (Gutmann and Hyvärinen, AISTATS 2010). It finds what the residual
misses: combinations that are rare, although the networks can draw them.

The score is a sum over the residual of the row, the length of its latent, and the verdict of the fourth discriminator.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import softplus

from jaxgan import adversarial
from jaxgan.anomaly import alad, parts
from jaxgan.anomaly.joint import prior
from jaxgan.anomaly.parts import Networks, Plan, Residuals, Weights
from jaxgan.game import Game, Move, Player
from jaxgan.models.alad import Critic

RECONSTRUCTION = 1.0  # weight of the mean squared residual
NOISE = 0.5  # standard deviation of what is added to the row that the encoder sees
JITTER = 0.2  # and to the rows of the contrast, so that a few hundred of them are not learnt by heart
REACH = (0.5, 10.0)  # least and greatest length of a move, per column, in the units of the encoding


def networks(shape: Sequence[int], width: int, latent: int, dtype: Any) -> Networks:
    near = Critic(2 * width, spectral=False, dtype=dtype)
    return alad.networks(shape, width, latent, dtype) | {"near": near}


def game(networks: Networks, plan: Plan, trained: Weights) -> Game:
    near = networks["near"]

    def disc_loss(params, state, batch, key):
        z_key, noise_key, move_key = jax.random.split(key, 3)
        x, keys = batch["image"], functools.partial(adversarial.image_keys, rows=batch["row"])
        z = adversarial.latents(z_key, batch["row"], networks["gen"].latent)
        total, variables = alad.judged(networks, params, state, x, z)
        seen = x + JITTER * normal(keys(noise_key), x.shape[1:])
        logits, _ = near.apply({"params": params["near"]}, jnp.concatenate([seen, moved(seen, keys(move_key))]))
        real, fake = jnp.split(logits, 2)
        contrast = jnp.mean(softplus(-real)) + jnp.mean(softplus(fake))
        return total + contrast, ({"contrast": contrast}, variables)

    def loss(params, state, batch, key):
        z_key, noise_key = jax.random.split(key)
        x = batch["image"]
        z = adversarial.latents(z_key, batch["row"], networks["gen"].latent)
        total, _ = alad.confused(networks, params, state, x, z)
        noisy = x + NOISE * normal(adversarial.image_keys(noise_key, batch["row"]), x.shape[1:])
        enc, gen = (
            functools.partial(networks[name].apply, parts.with_params(state.players[name], params[name]))
            for name in ("enc", "gen")
        )
        found = enc(noisy)
        row = jnp.mean(parts.squared(x - gen(found)))
        return total + RECONSTRUCTION * row + prior(found), ({"row": row}, {})

    players = alad.players(networks, plan) | {"near": Player(parts.start(near), plan.adam(alad.RATE))}
    movers = (*alad.critics(networks), "near")
    return Game(players, (Move(movers, disc_loss, name="disc"), Move(("gen", "enc"), loss, name="gen")))


def normal(keys: jax.Array, shape: Sequence[int]) -> jax.Array:
    """N(0, I): (b, *shape), each row by its key (b,)."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def moved(x: jax.Array, keys: jax.Array) -> jax.Array:
    """Rows (b, d) elsewhere, each by its key (b,): every other one by noise, the rest along differences of rows."""
    low, high = map(math.log, REACH)
    sizes, noises = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    length = jnp.exp(jax.vmap(lambda key: jax.random.uniform(key, (1,), minval=low, maxval=high))(sizes))
    difference = (jnp.roll(x, 1, 0) - jnp.roll(x, 2, 0)) / math.sqrt(2)
    even = jnp.arange(len(x))[:, None] % 2 == 0
    return x + length * jnp.where(even, normal(noises, x.shape[1:]), difference)


def residuals(networks: Networks, weights: Weights, images: jax.Array) -> Residuals:
    found = networks["enc"].apply(weights["enc"], images)
    again = networks["gen"].apply(weights["gen"], found)
    verdict, _ = networks["near"].apply(weights["near"], images)
    scores = {"row": parts.squared(images - again), "latent": parts.squared(found), "contrast": softplus(-verdict)}
    return Residuals(scores, again)
