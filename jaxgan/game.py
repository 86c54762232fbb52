"""A GAN is a game: players own parameters, moves are losses that players step down, a step plays the moves in order.

    game = Game(
        players={"disc": Player(init_disc, adam), "gen": Player(init_gen, adam, ema=half_life)},
        moves=(Move("disc", disc_loss, times=5), Move("disc", r1_loss, every=16, draw=False), Move("gen", gen_loss)))
    state = game.init(key, batch)
    state, metrics = game.step(state, batch)

Hyper-parameters that change over a run are functions of the images seen: `optimizer` may be one that returns an Optax
transformation (`lambda images: optax.adam(rate(images), b2=beta2(images))`), `ema` one that returns a half-life, and a
loss calls one with `state.seen`. Optax's own schedules are functions of a count, and images are one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxgan import collectives, contracts, numerics
from jaxgan.errors import InputError

Tree = Any
Batch = Mapping[str, jax.Array]
Optimizer: TypeAlias = optax.GradientTransformation | Callable[[jax.Array], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Player:
    """Who owns parameters.

    init: (key, batch) -> (params, variables); `variables` are what only this player writes beside its parameters
      (batch statistics, spectral-norm vectors, an augmentation probability ...), {} if there are none.
    optimizer: an Optax transformation, or a function of the images seen that returns one.
    ema: half-life in images of the parameters' moving average, or a function of the images seen; None: no average.
    added: collections of `variables` that older versions did not store, {name: shape of a leaf -> the array that a
      checkpoint without it is resumed with}.
    """

    init: Callable[[jax.Array, Batch], tuple[Tree, Tree]]
    optimizer: Optimizer
    ema: float | Callable[[jax.Array], jax.Array] | None = None
    added: Mapping[str, Callable[[tuple[int, ...]], np.ndarray]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Move:
    """A loss that one player, or several at once, step down.

    loss: (params, state, batch, key) -> scalar, (metrics, variables). `params` is {player: parameters} of the moving
      players; whatever else the loss needs it reads from `state`. `variables` is {player: new variables}, for moving
      players only; a player left out keeps its own. `metrics` is a flat dict of scalars.
    times: how often the move is played in a row, each time with new examples and keys.
    every: play only in every so manieth step (lazy regularisation).
    draw: take new examples from the data; False: see those of the move before (its last, if it was repeated).
    accumulate: micro-batches whose gradients are averaged, for a batch that does not fit in memory.
    """

    players: str | tuple[str, ...]
    loss: Callable[[Tree, "State", Batch, jax.Array], tuple[jax.Array, tuple[dict, dict]]]
    times: int = 1
    every: int = 1
    draw: bool = True
    accumulate: int = 1
    name: str = ""

    @property
    def movers(self) -> tuple[str, ...]:
        return (self.players,) if isinstance(self.players, str) else tuple(self.players)

    @property
    def title(self) -> str:
        return self.name or "+".join(self.movers)


class PlayerState(flax.struct.PyTreeNode):
    params: Tree
    variables: Tree
    optimizer: Tree
    ema: Tree  # averaged parameters, or None

    @property
    def averaged(self) -> Tree:
        """The parameters to sample with: the moving average where there is one."""
        return self.params if self.ema is None else self.ema


class State(flax.struct.PyTreeNode):
    """All that changes in a run (and `extras`, frozen networks and constants, which nothing writes)."""

    step: jax.Array  # int32
    images: jax.Array  # uint32, images seen: the batch size a step, whatever the number of moves
    key: jax.Array  # the root key; every other is a fold_in of it
    players: dict[str, PlayerState]
    extras: Tree

    @property
    def seen(self) -> jax.Array:
        """Images seen as float32, for schedules: Optax's own subtract, and unsigned integers would wrap."""
        return self.images.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Game:
    players: Mapping[str, Player]
    moves: tuple[Move, ...]

    def __post_init__(self):
        titles = [move.title for move in self.moves]
        strangers = {p for move in self.moves for p in move.movers} - set(self.players)
        if strangers:
            raise InputError(f"moves of {sorted(strangers)}, but the players are {sorted(self.players)}")
        if len(set(titles)) < len(titles):
            raise InputError(f"moves need names of their own, not {titles}: their metrics would overwrite each other")
        if not self.moves or not self.moves[0].draw:
            raise InputError("the first move of a game draws examples: draw=True")
        for move in self.moves:
            if "/" in move.title:
                raise InputError(f"a move's name has no slash, {move.title!r}: one ends it in 'move/metric'")
            if min(move.times, move.every, move.accumulate) < 1:
                raise InputError(f"times, every and accumulate of move {move.title!r} are at least 1")

    @property
    def draws(self) -> int:
        """Batches of new examples that a step takes."""
        return sum(move.times for move in self.moves if move.draw)

    def slowed(self, factor: float) -> "Game":
        """The same game with every update multiplied by `factor`, as if by its learning rate; states fit both."""
        players = {
            name: dataclasses.replace(player, optimizer=_slowed(player.optimizer, factor))
            for name, player in self.players.items()
        }
        return dataclasses.replace(self, players=players)

    @numerics.fixed()
    def init(self, key: jax.Array, batch: Batch, extras: Tree = None) -> State:
        """The state before the first step. `batch` holds examples (b, ...) and serves for its shapes."""
        init_key, root = jax.random.split(key)
        players = {}
        for i, (name, player) in enumerate(sorted(self.players.items())):
            made = player.init(jax.random.fold_in(init_key, i), batch)
            params, variables = contracts.check_init(name, made)
            optimizer = _at(player.optimizer, jnp.float32(0)).init(params)
            # Copied, because a donated state must not hold the same buffer twice.
            ema = None if player.ema is None else jax.tree.map(jnp.copy, params)
            players[name] = PlayerState(params, variables, optimizer, ema)
        return State(jnp.int32(0), jnp.uint32(0), root, players, {} if extras is None else extras)

    @numerics.fixed()
    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """Plays every move once, on one device's share of the batch.

        batch: arrays (draws, b, ...), one entry for each new draw of examples, with "row" (draws, b) among them: the
          place of each example in the global batch.
        Returns the next state and the flat metrics {"move/name": scalar}, means over devices; those of a move that was
          not played (`every`) are 0.
        """
        contracts.check_draws(batch, self.draws)
        step_key = jax.random.fold_in(state.key, state.step)
        metrics: dict[str, jax.Array] = {}
        drawn = 0
        for i, move in enumerate(self.moves):
            first = drawn if move.draw else drawn - 1
            examples = {name: x[first : first + move.times] for name, x in batch.items()}
            drawn += move.times if move.draw else 0
            state, played = self._play(move, state, examples, jax.random.fold_in(step_key, i))
            metrics |= {f"{move.title}/{name}": value for name, value in played.items()}
        images = next(iter(batch.values())).shape[1] * collectives.size()
        # Schedules are evaluated at the images seen before the step, those of the averages too.
        players = {n: p.replace(ema=_average(self.players[n], p, state, images)) for n, p in state.players.items()}
        state = state.replace(step=state.step + 1, images=state.images + jnp.uint32(images), players=players)
        return state, metrics

    def added(self) -> dict[str, Callable[[tuple[int, ...]], np.ndarray]]:
        """`Player.added` of all players by the prefix of the leaves' names, for `Checkpoints.restore`."""
        return {
            f"players/{name}/variables/{collection}/": fill
            for name, player in self.players.items()
            for collection, fill in player.added.items()
        }

    def _play(self, move: Move, state: State, examples: Batch, key: jax.Array) -> tuple[State, dict]:
        """All repetitions of one move, in the steps in which it is played."""

        def once(state, k):
            share = jax.tree.map(lambda x: x[k if move.draw else 0], examples)
            return self._update(move, state, share, jax.random.fold_in(key, k))

        def play(state):
            if move.times == 1:
                return once(state, 0)
            state, metrics = lax.scan(once, state, jnp.arange(move.times))
            return state, jax.tree.map(lambda x: x.mean(0), metrics)

        if move.every == 1:
            return play(state)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(play, state)[1])
        return lax.cond(state.step % move.every == 0, play, lambda state: (state, nothing), state)

    def _update(self, move: Move, state: State, batch: Batch, key: jax.Array) -> tuple[State, dict]:
        """One repetition: gradients, one mean over the devices, one step of each moving player."""
        gradients, metrics, variables = collectives.mean(_gradients(move, state, batch, key))
        players = dict(state.players)
        for name in move.movers:
            player = players[name]
            optimizer = _at(self.players[name].optimizer, state.seen)
            updates, optimizer_state = optimizer.update(gradients[name], player.optimizer, player.params)
            params = optax.apply_updates(player.params, updates)
            players[name] = player.replace(params=params, optimizer=optimizer_state, variables=variables[name])
        return state.replace(players=players), metrics

    def average(self, stacked: Mapping[str, np.ndarray], first_step: int) -> dict[str, float]:
        """Metrics of consecutive steps (n,), from `first_step` on -> means over the steps that played their move."""
        steps = first_step + np.arange(len(next(iter(stacked.values()))))
        every = {move.title: move.every for move in self.moves}
        played = {name: steps % every[name.split("/", 1)[0]] == 0 for name in stacked}
        return {n: float(np.mean(v[played[n]], dtype=np.float64)) for n, v in stacked.items() if played[n].any()}


def _gradients(move: Move, state: State, batch: Batch, key: jax.Array) -> tuple[Tree, dict, dict]:
    """Gradients, metrics and new variables of the moving players, over `move.accumulate` micro-batches."""
    params = {name: state.players[name].params for name in move.movers}

    def gradients(variables, part, key):
        players = state.players | {n: state.players[n].replace(variables=v) for n, v in variables.items()}
        now = state.replace(players=players)

        def loss(params):
            return contracts.check_move(move.title, move.loss(params, now, part, key), variables)

        (value, (metrics, new)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return variables | {n: v for n, v in new.items() if n in variables}, (grads, {"loss": value} | metrics)

    variables = {name: state.players[name].variables for name in move.movers}
    if move.accumulate == 1:
        variables, (grads, metrics) = gradients(variables, batch, key)
        return grads, metrics, variables
    parts = jax.tree.map(lambda x: x.reshape(move.accumulate, -1, *x.shape[1:]), batch)
    variables, (grads, metrics) = lax.scan(lambda v, part: gradients(v, part, key), variables, parts)
    grads, metrics = jax.tree.map(lambda x: x.mean(0), (grads, metrics))
    return grads, metrics, variables


def _average(player: Player, state: PlayerState, now: State, images: int) -> Tree:
    """The moving average after a step of `images` images: its weight halves in a half-life of images.

    now: the state whose image count is that before the step.
    """
    if player.ema is None:
        return None
    half_life = player.ema(now.seen) if callable(player.ema) else player.ema
    keep = 0.5 ** (images / jnp.maximum(half_life, 1e-8))
    return jax.tree.map(lambda average, p: p + (average - p) * keep, state.ema, state.params)


def _at(optimizer: Optimizer, images: jax.Array) -> optax.GradientTransformation:
    return optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(images)


def _slowed(optimizer: Optimizer, factor: float) -> Optimizer:
    if not isinstance(optimizer, optax.GradientTransformation):
        return lambda images: cast(optax.GradientTransformation, _slowed(optimizer(images), factor))

    def update(gradients: Tree, state: Tree, params: Tree = None, **more: Any) -> tuple[Tree, Tree]:
        updates, state = optimizer.update(gradients, state, params, **more)
        return jax.tree.map(lambda u: factor * u, updates), state

    return optax.GradientTransformation(optimizer.init, update)  # not chained: the state keeps its structure
