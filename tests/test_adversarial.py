"""Options of the two-player game that change how a loss is computed and not what."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import adversarial, losses, schedule
from jaxgan.game import PlayerState, State
from jaxgan.models import dcgan, resnet

QUICK = {"xla_backend_optimization_level": 0}


def pair_of(model, remat):
    shape = (32, 32, 1)
    return adversarial.Pair(model.Generator(shape, width=4), model.Discriminator(shape, width=4), remat=remat)


@pytest.mark.slow
@pytest.mark.parametrize("model", [dcgan, resnet])
def test_remat_changes_memory_and_not_the_gradient(model):
    b = 16
    batch = {"image": jax.random.normal(jax.random.key(1), (b, 32, 32, 1)), "row": jnp.arange(b)}
    results, sizes = [], []
    for remat in (False, True):
        pair = pair_of(model, remat)
        loss = functools.partial(adversarial.gen_loss, pair, losses.non_saturating)

        def init(key, pair=pair):
            return {"gen": pair.init_generator(key, batch), "disc": pair.init_discriminator(key, batch)}

        players = jax.jit(init, compiler_options=QUICK)(jax.random.key(0))
        players_of = {name: PlayerState(*parts, None, None) for name, parts in players.items()}
        state = State(jnp.int32(0), jnp.uint32(0), jax.random.key(0), players_of, {})

        def value(params, loss=loss, state=state):
            return loss({"gen": params}, state, batch, jax.random.key(2))

        params = players["gen"][0]
        results.append(jax.jit(jax.grad(value, has_aux=True), compiler_options=QUICK)(params)[0])
        # What a pass leaves for its gradient. (Memory tells nothing: a CPU's compiler merges what is computed twice.)
        kept = jax.eval_shape(lambda params, value=value: jax.vjp(value, params, has_aux=True)[1], params)
        sizes.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept)))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(results[0]))  # biases before batch norm have none but noise
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * largest)
    assert sizes[1] < 0.6 * sizes[0], sizes


class Mean(nn.Module):
    """A logit that is the mean pixel."""

    mixes_batch: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x, label=None, train=False):
        return x.mean((1, 2, 3)) + self.param("zero", nn.initializers.zeros, ())


def test_instance_noise_follows_its_schedule():
    """The mean of n pixels of noise has the standard deviation σ / √n; real and generated images get their own."""
    b, shape = 4096, (4, 4, 1)
    pair = adversarial.Pair(Mean(), Mean(), noise=schedule.anneal((0.8, 0.0), 1000.0))
    for seen, expected in ((0, 0.8), (500, 0.4), (1000, 0.0)):
        state = State(jnp.int32(0), jnp.uint32(seen), jax.random.key(0), {}, {})
        critic = pair.critic({"zero": 0.0}, state, {"row": jnp.arange(b)}, jax.random.key(1), copies=2)
        logits, _ = critic({}, jnp.full((2 * b, *shape), 0.25))
        first, second = logits[:b], logits[b:]
        for x in (first, second):
            assert float(x.std()) == pytest.approx(expected / 4, rel=0.05, abs=1e-6)
            assert float(x.mean()) == pytest.approx(0.25, abs=0.02)
        if expected:
            assert abs(float(jnp.corrcoef(first, second)[0, 1])) < 0.06
