"""ALAD's game (see `alad`) with three things added, and scored by three residuals. All of it is ours.

Rows have to come back: the squared residual of G(E(x)) is a part of the loss. Latents of rows have to lie where others
do, with mean 0 and covariance I (`joint.prior`), or the length of E(x) would say nothing. Both of rows with noise, lest
a few hundred be learnt by heart. And a fourth discriminator learns to tell rows from the same rows moved by a length
that it is told: by noise in all directions, or along the difference of two other rows, as columns go together. That is
no game, for nobody answers it, but noise-contrastive estimation of where rows are dense (Gutmann and Hyvärinen, AISTATS
2010), at the scale of each length. It finds what the residual misses: combinations that are rare, although the networks
can draw them.

The score is a sum over the residual of the row, the length of its latent, and the verdict of the fourth discriminator.
"""

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
REACH = (0.1, 5.0)  # least and greatest length of a move, per column, in the units of the encoding
LENGTHS = (1.0, 2.0, 4.0)  # those by which a row is scored


def networks(shape: Sequence[int], width: int, latent: int, dtype: Any) -> Networks:
    near = Critic(2 * width, spectral=False, dtype=dtype)
    return alad.networks(shape, width, latent, dtype) | {"near": near}


def game(networks: Networks, plan: Plan) -> Game:
    near = networks["near"]

    def disc_loss(params, state, batch, key):
        z_key, noise_key, length_key, move_key = jax.random.split(key, 4)
        x, rows = batch["image"], batch["row"]
        z = adversarial.latents(z_key, rows, networks["gen"].latent)
        total, variables = alad.judged(networks, params, state, x, z)
        seen, length = x + JITTER * normal(noise_key, rows, x.shape[1:]), lengths(length_key, rows)
        both = jnp.concatenate([seen, moved(seen, length, normal(move_key, rows, x.shape[1:]))])
        logits, _ = near.apply({"params": params["near"]}, both, jnp.log(jnp.tile(length, (2, 1))))
        real, fake = jnp.split(logits, 2)
        contrast = jnp.mean(softplus(-real)) + jnp.mean(softplus(fake))
        return total + contrast, ({"contrast": contrast}, variables)

    def loss(params, state, batch, key):
        z_key, noise_key = jax.random.split(key)
        x, rows = batch["image"], batch["row"]
        z = adversarial.latents(z_key, rows, networks["gen"].latent)
        total, _ = alad.confused(networks, params, state, x, z)
        found = networks["enc"].apply({"params": params["enc"]}, x + NOISE * normal(noise_key, rows, x.shape[1:]))
        row = jnp.mean(parts.squared(x - networks["gen"].apply({"params": params["gen"]}, found)))
        return total + RECONSTRUCTION * row + prior(found), ({"row": row}, {})

    players = alad.players(networks, plan)
    players["near"] = Player(parts.start(near, jnp.zeros((1, 1))), plan.adam(alad.RATE))
    movers = (*alad.critics(networks), "near")
    return Game(players, (Move(movers, disc_loss, name="disc"), Move(("gen", "enc"), loss, name="gen")))


def normal(key: jax.Array, rows: jax.Array, shape: Sequence[int]) -> jax.Array:
    """N(0, I): (b, *shape), each row by its own key."""
    return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(adversarial.image_keys(key, rows))


def lengths(key: jax.Array, rows: jax.Array) -> jax.Array:
    """(b, 1) in `REACH`, of uniform logarithm."""
    low, high = map(math.log, REACH)
    return jnp.exp(
        jax.vmap(lambda k: jax.random.uniform(k, (1,), jnp.float32, low, high))(adversarial.image_keys(key, rows))
    )


def moved(x: jax.Array, length: jax.Array, noise: jax.Array) -> jax.Array:
    """Rows (b, d) elsewhere, by a length (b, 1): every other one by noise, the rest along differences of other rows."""
    difference = (jnp.roll(x, 1, 0) - jnp.roll(x, 2, 0)) / math.sqrt(2)  # of the covariance of the rows
    even = jnp.arange(len(x))[:, None] % 2 == 0
    return x + length * jnp.where(even, noise, difference)


def residuals(networks: Networks, weights: Weights, images: jax.Array) -> Residuals:
    found = networks["enc"].apply(weights["enc"], images)
    again = networks["gen"].apply(weights["gen"], found)
    verdicts = [
        networks["near"].apply(weights["near"], images, jnp.full((len(images), 1), math.log(length)))[0]
        for length in LENGTHS
    ]
    contrast = jnp.mean(softplus(-jnp.stack(verdicts)), 0)
    return Residuals(
        {"row": parts.squared(images - again), "latent": parts.squared(found), "contrast": contrast}, again
    )
