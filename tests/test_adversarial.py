"""Options of the two-player game that change how a loss is computed and not what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import adversarial, losses
from jaxgan.game import PlayerState, State
from jaxgan.models import dcgan, resnet

QUICK = {"xla_backend_optimization_level": 0}


def pair_of(model, remat):
    shape = (32, 32, 1)
    return adversarial.Pair(model.Generator(shape, width=4), model.Discriminator(shape, width=4), remat=remat)


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
