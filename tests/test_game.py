"""Toy games whose results are worked out by hand: quadratics stepped down by SGD."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgan.game import Game, Move, Player
from jaxgan.schedule import anneal

RATE = 0.1


# Programs that run once or twice: without LLVM's optimiser they compile in half the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def player(optimizer=None, ema=None, start=1.0, variables=None):
    def init(key, batch):
        return {"w": jnp.float32(start)}, {} if variables is None else {k: jnp.float32(v) for k, v in variables.items()}

    return Player(init, optimizer or optax.sgd(RATE), ema)


def batch(values):
    """(draws, b) numbers -> a batch of them."""
    values = jnp.asarray(values, jnp.float32)
    return {"x": values, "row": jnp.broadcast_to(jnp.arange(values.shape[1]), values.shape)}


def towards(name):
    """Half the mean squared distance of a player's parameter from the examples: gradient w - mean(x)."""

    def loss(params, state, batch, key):
        return 0.5 * jnp.mean(jnp.square(params[name]["w"] - batch["x"])), ({"x": batch["x"].mean()}, {})

    return loss


def start(game, b=2, **kwargs):
    return game.init(jax.random.key(0), {"x": jnp.zeros(b), "row": jnp.arange(b)}, **kwargs)


@functools.cache
def compiled(step):
    return quick(step)


def play(game, state, x):
    return compiled(game.step)(state, x)


def weight(state, name="a"):
    return float(state.players[name].params["w"])


def step_towards(w, x, rate=RATE):
    return w - rate * (w - np.mean(x))


def test_times_takes_new_examples_each_time():
    game = Game({"a": player()}, (Move("a", towards("a"), times=3),))
    x = np.array([[1, 3], [5, 7], [-9, 0]])
    assert game.draws == 3
    state, metrics = play(game, start(game), batch(x))
    w, losses = 1.0, []
    for row in x:
        losses.append(0.5 * np.mean((w - row) ** 2))
        w = step_towards(w, row)
    assert weight(state) == pytest.approx(w, rel=1e-6)
    assert float(metrics["a/loss"]) == pytest.approx(np.mean(losses), rel=1e-6)  # the mean over the repetitions
    assert float(metrics["a/x"]) == pytest.approx(x.mean(), rel=1e-6)
    assert int(state.images) == 2 and int(state.step) == 1  # the batch size, whatever the number of draws


def test_draw_false_sees_the_last_draw_before_it():
    moves = (
        Move("a", towards("a"), times=2),
        Move("b", towards("b"), times=2, draw=False, name="again"),
        Move("b", towards("b"), draw=False, name="and_again"),
        Move("c", towards("c")),
    )
    game = Game({n: player() for n in "abc"}, moves)
    assert game.draws == 3
    x = np.array([[1, 3], [5, 7], [-9, 1]])
    state, metrics = play(game, start(game), batch(x))
    assert [float(metrics[f"{m}/x"]) for m in ("a", "again", "and_again", "c")] == [4, 6, 6, -4]
    b = 1.0
    for _ in range(3):
        b = step_towards(b, x[1])
    assert weight(state, "b") == pytest.approx(b, rel=1e-6)
    assert weight(state, "c") == pytest.approx(step_towards(1.0, x[2]), rel=1e-6)


def test_every():
    """Played in steps 0, 3, 6; 0 in the metrics otherwise, which `average` leaves out, wherever a call begins."""
    moves = (Move("a", towards("a")), Move("b", towards("b"), every=3, times=2))
    game = Game({n: player() for n in "ab"}, moves)
    state, b, rows, expected = start(game), 1.0, [], []
    for i in range(7):
        x = np.array([[0, 0], [i + 1, i + 2], [i + 3, 5 - i]])
        before = state.players["b"]
        state, metrics = play(game, state, batch(x))
        rows.append(jax.device_get(metrics))
        expected.append(0.0)
        if i % 3 == 0:
            for row in x[1:]:
                expected[-1] += 0.5 * np.mean((b - row) ** 2) / 2
                b = step_towards(b, row)
        else:
            assert jax.tree.map(np.array, state.players["b"]) == jax.tree.map(np.array, before)
        assert weight(state, "b") == pytest.approx(b, rel=1e-6)
    losses = np.array([row["b/loss"] for row in rows])
    np.testing.assert_allclose(losses, expected, rtol=1e-6)

    def average(first, last):
        return game.average({k: np.array([row[k] for row in rows[first:last]]) for k in rows[0]}, first)

    assert average(0, 7)["b/loss"] == pytest.approx(np.mean(losses[[0, 3, 6]]))
    assert average(1, 5)["b/loss"] == pytest.approx(losses[3])
    assert average(2, 7)["a/loss"] == pytest.approx(np.mean([row["a/loss"] for row in rows[2:]]))
    assert set(average(4, 6)) == {"a/loss", "a/x"}  # no step of these played b


def test_simultaneous_and_alternating_players():
    """The zero-sum game a * b: together both see the old values, in turns the second sees the new one."""

    def gain(params, state, batch, key):  # a steps down a * b, b up: one loss for both, by the sign of b's gradient
        a, b = (params.get(n, state.players[n].params)["w"] for n in "ab")
        frozen = jax.lax.stop_gradient
        return a * frozen(b) - frozen(a) * b, ({}, {})

    players = {"a": player(start=3.0), "b": player(start=2.0)}
    x = batch([[0, 0], [0, 0]])
    together = Game(players, (Move(("a", "b"), gain),))
    assert together.moves[0].title == "a+b"
    state, metrics = play(together, start(together), batch([[0, 0]]))
    assert weight(state, "a") == pytest.approx(3 - RATE * 2) and weight(state, "b") == pytest.approx(2 + RATE * 3)
    assert set(metrics) == {"a+b/loss"}
    turns = Game(players, (Move("a", gain), Move("b", gain)))
    state, _ = play(turns, start(turns), x)
    assert weight(state, "a") == pytest.approx(2.8) and weight(state, "b") == pytest.approx(2 + RATE * 2.8)


def test_accumulate_is_the_full_batch():
    """Gradients and metrics are those of the whole batch; variables pass from one micro-batch to the next."""

    def loss(params, state, batch, key):
        seen = state.players["a"].variables
        new = {"sum": seen["sum"] + batch["x"].sum(), "calls": seen["calls"] + 1}
        rows = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(batch["row"])
        return jnp.mean(jnp.square(params["a"]["w"] * batch["x"] + rows)), ({"x": batch["x"].mean()}, {"a": new})

    x = batch([[1, -2, 3, 5, 8, 2]])
    results = {}
    for parts in (1, 2, 6):
        game = Game({"a": player(variables={"sum": 0, "calls": 0})}, (Move("a", loss, accumulate=parts),))
        state, metrics = play(game, start(game, 6), x)
        results[parts] = {k: float(v) for k, v in metrics.items()} | {"w": weight(state)}
        variables = state.players["a"].variables
        assert float(variables["sum"]) == 17 and float(variables["calls"]) == parts
    assert results[2] == pytest.approx(results[1], rel=1e-6) and results[6] == pytest.approx(results[1], rel=1e-6)


def test_ema_forgets_half_in_a_half_life():
    def stays_at_zero(params, state, batch, key):
        return 0 * params["a"]["w"], ({}, {})

    game = Game({"a": player(ema=64.0), "b": player()}, (Move("a", stays_at_zero),))
    state = start(game)
    assert float(state.players["a"].ema["w"]) == 1 and state.players["b"].ema is None
    jump = state.players["a"].replace(params={"w": jnp.float32(0.0)})  # from 1 to 0 before the first step
    state = state.replace(players=state.players | {"a": jump})
    for i in range(32):  # 32 steps of 2 images
        state, _ = play(game, state, batch([[0, 0]]))
        assert float(state.players["a"].ema["w"]) == pytest.approx(0.5 ** ((i + 1) / 32), rel=1e-5)
    assert int(state.images) == 64 and float(state.players["a"].averaged["w"]) == pytest.approx(0.5, rel=1e-5)
    assert float(state.players["b"].averaged["w"]) == 1


def test_ema_half_life_follows_the_images():
    """The half-life of a step is that at the images before it; a half-life of 0 copies the parameters."""
    game = Game({"a": player(ema=lambda images: images)}, (Move("a", towards("a")),))
    state, w, average = start(game, 4), 1.0, 1.0
    for i in range(1, 4):
        state, _ = play(game, state, batch([[0, 2, 4, 6 * i]]))
        w = step_towards(w, [0, 2, 4, 6 * i])
        half_life = 4 * i - 4
        average = w + (average - w) * (0.5 ** (4 / half_life) if half_life else 0)
        assert float(state.players["a"].ema["w"]) == pytest.approx(average, rel=1e-5)


def test_learning_rate_and_beta2_follow_the_images():
    """Adam in NumPy with the schedule of R3GAN; the first step has the values at 0 images."""
    rate, beta2 = anneal((0.1, 0.02), 8), anneal((0.5, 0.9), 16)
    game = Game({"a": player(lambda images: optax.adam(rate(images), 0.3, beta2(images)))}, (Move("a", towards("a")),))
    assert anneal((0.25,), 8) == 0.25
    line = anneal((0.1, 0.02), 8, "linear")
    np.testing.assert_allclose([line(jnp.float32(t)) for t in (0, 2, 6, 9)], [0.1, 0.08, 0.04, 0.02], rtol=1e-6)
    state = start(game)
    w, m, v = 1.0, 0.0, 0.0
    for i in range(8):
        images = 2 * i
        lr = 0.1 + 0.5 * (1 - math.cos(math.pi * min(images / 8, 1))) * (0.02 - 0.1)
        b2 = 0.5 + 0.5 * (1 - math.cos(math.pi * min(images / 16, 1))) * (0.9 - 0.5)
        x = [math.cos(i), 2 * i - 3]
        g = w - np.mean(x)
        m, v = 0.3 * m + 0.7 * g, b2 * v + (1 - b2) * g * g
        w -= lr * (m / (1 - 0.3 ** (i + 1))) / (math.sqrt(v / (1 - b2 ** (i + 1))) + 1e-8)
        state, _ = play(game, state, batch([x]))
        assert weight(state) == pytest.approx(w, rel=1e-5)
    assert lr == pytest.approx(0.02)  # annealed to its end


def test_optax_schedules_take_images():
    game = Game(
        {"a": player(lambda images: optax.sgd(optax.piecewise_constant_schedule(0.5, {3: 0.1})(images)))},
        (Move("a", towards("a")),),
    )
    state, w = start(game), 1.0
    for rate in (0.5, 0.5, 0.05):  # at 0, 2 and 4 images
        state, _ = play(game, state, batch([[4, 6]]))
        w = step_towards(w, [4, 6], rate)
        assert weight(state) == pytest.approx(w, rel=1e-6)


def test_every_move_and_repetition_has_a_key_of_its_own():
    def draw(params, state, batch, key):
        number = jax.random.uniform(key)
        return params["a"]["w"] * number, ({"number": number}, {})

    moves = (Move("a", draw, times=3, name="x"), Move("a", draw, name="y"), Move("a", draw, name="z", draw=False))
    game = Game({"a": player(optax.sgd(1.0))}, moves)
    state, seen, w = start(game), [], 1.0
    first = state
    for _ in range(3):
        before = weight(state)
        state, metrics = play(game, state, batch(np.zeros((4, 2))))
        x, y, z = (float(metrics[f"{n}/number"]) for n in "xyz")
        seen += [x, y, z]
        # The three repetitions of x step by their three numbers: not thrice the same.
        assert before - weight(state) == pytest.approx(3 * x + y + z, abs=1e-5)
    assert len(set(seen)) == 9
    one = Game(game.players, (Move("a", draw, name="x"),))
    _, metrics = play(one, start(one), batch(np.zeros((1, 2))))
    assert float(metrics["x/number"]) != pytest.approx(seen[0])  # the mean of three differs from the first of them
    again, metrics = play(game, first, batch(np.zeros((4, 2))))
    assert float(metrics["x/number"]) == seen[0] and w == weight(first)  # a function of the state alone
    other = game.init(jax.random.key(1), {"x": jnp.zeros(2), "row": jnp.arange(2)})
    assert float(play(game, other, batch(np.zeros((4, 2))))[1]["x/number"]) != seen[0]
    assert jnp.array_equal(jax.random.key_data(again.key), jax.random.key_data(first.key))


def test_variables_of_moving_players_alone_are_kept():
    def meddle(params, state, batch, key):
        w = next(iter(params.values()))["w"]
        new = {n: {"n": p.variables["n"] + 1} for n, p in state.players.items()}
        return w * 0, ({}, new)

    def silent(params, state, batch, key):
        return params["b"]["w"] * 0, ({}, {})

    players = {n: player(variables={"n": i}) for i, n in enumerate("abc")}
    game = Game(players, (Move("a", meddle, times=2), Move("b", silent), Move(("a", "c"), meddle, accumulate=2)))
    state, _ = play(game, start(game), batch(np.zeros((4, 2))))
    assert {n: float(p.variables["n"]) for n, p in state.players.items()} == {"a": 4, "b": 1, "c": 4}


def test_later_moves_read_what_earlier_ones_wrote():
    def count(params, state, batch, key):
        return params["a"]["w"] * 1.0, ({}, {"a": {"n": state.players["a"].variables["n"] + 1}})

    def look(params, state, batch, key):
        a = state.players["a"]
        return params["b"]["w"] * 0, ({"n": a.variables["n"], "w": a.params["w"]}, {})

    game = Game({n: player(variables={"n": 0}) for n in "ab"}, (Move("a", count), Move("b", look)))
    _, metrics = play(game, start(game), batch(np.zeros((2, 2))))
    assert float(metrics["b/n"]) == 1 and float(metrics["b/w"]) == pytest.approx(1 - RATE)


def test_extras_and_players_that_rest_stay_as_they_are():
    def loss(params, state, batch, key):
        return params["a"]["w"] * state.extras["scale"], ({}, {"extras": {"scale": jnp.float32(0)}})

    game = Game({"a": player(), "b": player(optax.adam(0.1), ema=8.0)}, (Move("a", loss),))
    state = start(game, extras={"scale": jnp.float32(4)})
    after, _ = play(game, state, batch([[0, 0]]))
    assert weight(after) == pytest.approx(1 - RATE * 4)
    assert float(after.extras["scale"]) == 4
    assert jax.tree.map(np.array, after.players["b"]) == jax.tree.map(np.array, state.players["b"])
    assert start(game).extras == {}


def test_players_start_apart_and_from_the_key():
    def init(key, batch):
        return {"w": jax.random.normal(key, (3,))}, {}

    game = Game({n: Player(init, optax.sgd(1.0)) for n in "ab"}, (Move("a", towards("a")),))
    one, same, other = (game.init(jax.random.key(i), batch([[0]])) for i in (0, 0, 1))
    weights = [s.players[n].params["w"] for s in (one, other) for n in "ab"]
    assert len({w.tobytes() for w in map(np.array, weights)}) == 4
    assert np.array_equal(same.players["a"].params["w"], weights[0])
    assert jnp.issubdtype(one.key.dtype, jax.dtypes.prng_key)
    assert (one.step.dtype, one.images.dtype, int(one.images)) == (jnp.int32, jnp.uint32, 0)


@pytest.mark.parametrize(
    ("moves", "words"),
    [
        ((), "first move"),
        ((Move("a", None, draw=False),), "draw=True"),
        ((Move("stranger", None),), "stranger"),
        ((Move(("a", "stranger"), None),), "stranger"),
        ((Move("a", None), Move("a", None)), "names of their own"),
        ((Move("a", None, times=0),), "at least 1"),
        ((Move("a", None, every=0),), "at least 1"),
        ((Move("a", None, accumulate=-1),), "at least 1"),
    ],
)
def test_a_bad_game_is_refused(moves, words):
    with pytest.raises(ValueError, match=words):
        Game({"a": player()}, moves)


def test_compiled_and_plain_calls_agree():
    moves = (
        Move("a", towards("a"), times=2),
        Move("b", towards("b"), every=2, draw=False),
        Move(("a", "c"), lambda p, s, x, k: (towards("a")(p, s, x, k)[0] + towards("c")(p, s, x, k)[0], ({}, {}))),
    )
    game = Game({n: player(optax.adam(0.1), ema=10.0) for n in "abc"}, moves)
    plain = fast = start(game)
    step = quick(game.step)
    for i in range(3):
        x = batch(np.random.default_rng(i).normal(size=(3, 2)))
        plain, plain_metrics = game.step(plain, x)
        fast, fast_metrics = step(fast, x)
        assert plain_metrics.keys() == fast_metrics.keys()
        for p, c in zip(
            jax.tree.leaves((plain.players, plain_metrics)),
            jax.tree.leaves((fast.players, fast_metrics)),
            strict=True,
        ):
            np.testing.assert_allclose(p, c, rtol=1e-5, atol=1e-6)
    assert int(fast.step) == 3 and int(fast.images) == 6
