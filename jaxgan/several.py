"""Several plays of one game at once, from different seeds: every array of the players has a leading axis of them.

    game = several(game, 3)

On a GPU small networks leave most of the device idle, and three runs in one program take little longer than one. All
see the same examples, in the same order; their first weights and all noise are their own.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxgan.game import Batch, Game, State, Tree


@dataclasses.dataclass(frozen=True)
class Several(Game):
    """(A Game in all that a run asks of it; its metrics are means over the plays.)"""

    count: int = 1

    def init(self, key: jax.Array, batch: Batch, extras: Tree = None) -> State:
        init_key, root = jax.random.split(key)
        one = Game(self.players, self.moves)

        def players(key: jax.Array) -> dict:
            return one.init(key, batch, extras).players

        keys = jax.vmap(lambda i: jax.random.fold_in(init_key, i))(jnp.arange(self.count))
        return State(jnp.int32(0), jnp.uint32(0), root, jax.vmap(players)(keys), {} if extras is None else extras)

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        one = Game(self.players, self.moves)

        def play(i, players):
            now = state.replace(key=jax.random.fold_in(state.key, i), players=players)
            after, metrics = one.step(now, batch)
            return after.players, (after.step, after.images), metrics

        out = (0, None, 0)
        players, (step, images), metrics = jax.vmap(play, out_axes=out)(jnp.arange(self.count), state.players)
        return state.replace(step=step, images=images, players=players), jax.tree.map(jnp.mean, metrics)


def several(game: Game, count: int) -> Game:
    """`count` plays of `game` at once; of one, the game itself."""
    return game if count == 1 else Several(game.players, game.moves, count)


def each(tree: Tree, count: int) -> list[Tree]:
    """What belongs to each play of a tree that holds `count` of them."""
    return [tree] if count == 1 else [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]
