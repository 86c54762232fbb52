"""The smallest game there is: one player, one number, a parabola; for runs of many calls, and of exact arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgan import data, loop
from jaxgan.config import Common
from jaxgan.game import Game, Move, Player
from jaxgan.sources import from_arrays


def game(rate):
    """Gradient descent on x²/2 from x = 1: after n steps x is (1 - rate)^n. (Noise of no size makes it use its key.)"""

    def loss(params, state, batch, key):
        noise = 0 * jax.random.normal(key)
        return 0.5 * jnp.sum(params["one"]["x"] ** 2) + noise, ({}, {})

    return Game({"one": Player(lambda key, batch: ({"x": jnp.ones(())}, {}), optax.sgd(rate))}, (Move("one", loss),))


def run(workdir, rate=0.1, sample=None, evaluate=None, best=None, **options):
    base = Common(
        workdir=str(workdir), batch_size=2, steps=20, steps_per_call=5, checkpoint_every=10, tensorboard=False
    )
    config = dataclasses.replace(base, **options)
    loop.setup(config)
    loop.check(config)
    images = from_arrays("noise", np.zeros((4, 2, 2), np.uint8))
    feed = data.place(images, batch_size=2, devices=jax.devices()[:1])
    example = {"image": np.zeros((1, 2, 2, 1), np.float32), "label": np.zeros(1, np.int32), "row": np.arange(1)}
    return loop.run(
        game(rate),
        feed,
        config,
        example=example,
        devices=jax.devices()[:1],
        about={},
        sample=sample,
        evaluate=evaluate,
        best=best,
    )
