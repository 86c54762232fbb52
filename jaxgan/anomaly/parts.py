"""What methods of anomaly detection have in common."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgan import critic, schedule
from jaxgan.game import Batch, Optimizer, PlayerState, State

Networks = Mapping[str, Any]  # of Flax modules: what `apply` returns is known to nobody else
Weights = Mapping[str, Any]
FALL = 0.05  # of the learning rates, from the first to the last image: no average of weights is needed then


class Residuals(NamedTuple):
    """scores: {name: (b,)}, each above 0 and greater the less normal. images: (b, h, w, c), what normal would be."""

    scores: dict[str, jax.Array]
    images: jax.Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """images: those of the whole training. rate: a factor of every learning rate."""

    images: float
    rate: float = 1.0

    def adam(self, rate: float, b1: float = 0.5, b2: float = 0.999) -> Optimizer:
        """Adam whose rate falls along half a cosine."""
        at = schedule.anneal((self.rate * rate, FALL * self.rate * rate), self.images)
        return lambda images: optax.adam(schedule.at(at, images), b1, b2)


def start(module: nn.Module, *inputs: Any) -> Any:
    """The `init` of a Player: of a network that is shown a batch's images first, then `inputs`, arrays of one row."""

    def init(key: jax.Array, batch: Batch) -> tuple[Any, Any]:
        tiled = [jnp.tile(x, (batch["image"].shape[0], 1)) for x in inputs]
        variables = dict(module.init(key, batch["image"], *tiled))
        return variables.pop("params"), variables

    return init


def decoder(module: nn.Module) -> Any:
    """The same of a generator that is shown latents alone."""

    def init(key: jax.Array, batch: Batch) -> tuple[Any, Any]:
        variables = dict(module.init(key, jnp.zeros((batch["image"].shape[0], module.latent))))
        return variables.pop("params"), variables

    return init


def of(state: State) -> dict[str, Any]:
    """The weights of all players, averaged where the game keeps an average."""
    return {name: _weights(player, player.averaged) for name, player in state.players.items()}


def beginning(state: State, weights: Weights) -> State:
    """The first state of a game, whose players have these weights where there are some of their name."""
    players = dict(state.players)
    for name in weights.keys() & players.keys():
        variables = dict(weights[name])
        params = variables.pop("params")
        ema = None if players[name].ema is None else params
        players[name] = players[name].replace(params=params, variables=variables, ema=ema)
    return state.replace(players=players)


def with_params(player: PlayerState, params: Any) -> Any:
    """What Flax applies: these parameters with the player's variables."""
    return _weights(player, params)


def train(module: nn.Module, weights: Any, *inputs: Any) -> tuple[jax.Array, Any]:
    """(output, new variables) of a pass that updates batch statistics."""
    collections = [name for name in weights if name != "params"]
    output, new = module.apply(weights, *inputs, train=True, mutable=collections)
    return output, new


def features(module: nn.Module, weights: Any, images: jax.Array, *inputs: Any, **options: Any) -> jax.Array:
    """(b, d), what the discriminator's last dense layer sees."""
    _, found = critic.seen_by_last(module, weights, images, *inputs, **options)
    return found.reshape(images.shape[0], -1)


def squared(x: jax.Array) -> jax.Array:
    """Mean square of each example: (b, ...) -> (b,)."""
    return jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)))


def absolute(x: jax.Array) -> jax.Array:
    """Mean absolute value of each example: (b, ...) -> (b,)."""
    return jnp.mean(jnp.abs(x), axis=tuple(range(1, x.ndim)))


def blurred(x: jax.Array) -> jax.Array:
    """Images (b, h, w, c) under a Gaussian of a 28th of their shorter side, but of at least a pixel; zero outside.

    (Of half a pixel for those of 8 pixels or fewer, which have no edges to forgive.)
    """
    side = min(x.shape[1:3])
    sigma = max(side / 28, 1.0) if side > 8 else 0.5
    reach = round(3 * sigma)
    line = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / sigma) ** 2)
    line = line / line.sum()

    def along(x: jax.Array, axis: int) -> jax.Array:
        pads = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        n = x.shape[axis]
        padded = jnp.pad(x, pads)
        return sum(w * jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i, w in enumerate(line))

    return along(along(x, 1), 2)


def _weights(player: PlayerState, params: Any) -> dict[str, Any]:
    return {"params": params, **player.variables}
