"""Networks with weights from NumPy: to compile JAX's own draws takes longer than most of what is tested with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def drawn(module, *inputs, seed=0, **options):
    """Variables of a Flax module: parameters of the scale of a new network, none of them 0, all else above 0."""
    shapes = jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), *inputs)
    rng = np.random.default_rng(seed)
    positive = lambda x: np.abs(0.5 * rng.normal(size=x.shape)).astype(x.dtype) + x.dtype.type(0.1)  # noqa: E731
    rest = {name: jax.tree.map(positive, tree) for name, tree in shapes.items() if name != "params"}
    return {"params": _normal(shapes["params"], rng), **rest}


def begun(game, batch, seed=0):
    """The state of a game before its first step: parameters as above, variables of 1."""
    shapes = jax.eval_shape(game.init, jax.random.key(0), batch)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(_zeros, shapes)
    for name, player in shapes.players.items():
        params, ones = _normal(player.params, rng), jax.tree.map(lambda x: np.ones(x.shape, x.dtype), player.variables)
        ema = None if player.ema is None else params
        state.players[name] = state.players[name].replace(params=params, variables=ones, ema=ema)
    return jax.device_put(state)


def _normal(shapes, rng):
    fan_in = lambda x: np.sqrt(np.prod(x.shape[:-1])) if x.ndim > 1 else 10  # noqa: E731
    return jax.tree.map(lambda x: (rng.normal(size=x.shape) / fan_in(x)).astype(x.dtype), shapes)


def _zeros(leaf):
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key(2) if key else np.zeros(leaf.shape, leaf.dtype)
