"""One device and two are one program; a run is the same however it is divided into calls."""

import collections
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgan import adversarial, data, losses, parallel, penalties
from jaxgan.errors import InputError
from jaxgan.models import dcgan, mlp
from jaxgan.sources import from_arrays

BATCH, STEPS = 8, 20
UNOPTIMISED = {"xla_backend_optimization_level": 0}  # by LLVM: halves the time of compilation
# As users compile, whatever tests/conftest.py says: the bits of a step depend on it.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True
COMPILATIONS = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILATIONS.append(event) if event.endswith("backend_compile_duration") else None
)


def source(shape):
    rng = np.random.default_rng(0)
    return from_arrays("noise", rng.integers(0, 256, (50, *shape), np.uint8), rng.integers(0, 3, 50))


def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


# SGD that keeps the last gradient in its state, where tests find it unrounded.
SGD = optax.chain(optax.GradientTransformation(zeros, lambda g, state, params: (g, g)), optax.sgd(0.02))


@functools.cache
def game_of(name):
    """The game and its source: networks so small that they compile in seconds, batch norm on both sides of `dcgan`."""
    if name == "dcgan":
        shape = (8, 8, 1)
        pair = adversarial.Pair(
            dcgan.Generator(shape, 3, latent=4, width=2), dcgan.Discriminator(shape, 3, width=2), conditional=True
        )
        settings = {"loss": losses.non_saturating, "ema": 50.0}
    else:
        shape = (6, 5, 1)
        pair = adversarial.Pair(mlp.Generator(shape, latent=4, widths=(8,)), mlp.Discriminator(shape, widths=(8,)))
        settings = {"loss": losses.wasserstein, "penalties": [penalties.wgan_gp(10.0)], "disc_steps": 2}
    return adversarial.game(pair, gen_optimizer=SGD, disc_optimizer=SGD, **settings), source(shape)


@functools.cache
def first_state(name):
    game, images = game_of(name)
    example = {"image": np.zeros((1, *images.shape), np.float32), "label": np.zeros(1, np.int32), "row": np.arange(1)}
    return jax.jit(game.init, compiler_options=UNOPTIMISED)(jax.random.key(3), example)


@functools.cache
def machine(name, count, optimised=False):
    """A feed and a compiled call, shared by the tests, for each length of a call is compiled once."""
    devices, (game, images) = jax.devices()[:count], game_of(name)
    feed = data.place(images, batch_size=BATCH, draws=game.draws, seed=1, devices=devices)
    call = parallel.compile_steps(game, feed.draw, devices)
    if optimised:
        return feed, ahead(call, OPTIMISED)
    return feed, ahead(call, UNOPTIMISED) if name == "dcgan" else call


def ahead(call, options):
    """Compiled ahead, by the first call of each length, and from then on bound to its shapes and shardings."""
    compiled = {}

    def run(state, resident, x):
        shapes = str(jax.tree.map(jnp.shape, x))
        if shapes not in compiled:
            compiled[shapes] = call.lower(state, resident, x).compile(compiler_options=options)
        return compiled[shapes](state, resident, x)

    return run


COMPILED = collections.Counter()  # (game, devices, steps of a call): how many of its calls compiled something


def train(name, count, lengths, watch=None, optimised=False):
    """Calls of these lengths -> the last state and the metrics {name: (steps,)}, on the host."""
    feed, call = machine(name, count, optimised)
    # A copy, because donation also takes what `replicate` had no need to copy.
    state = parallel.replicate(jax.tree.map(jnp.copy, first_state(name)), jax.devices()[:count])
    rows, step = [], 0
    for length in lengths:
        (x,) = feed.calls(step, step + length, length)
        jax.block_until_ready((state, x))
        COMPILATIONS.clear()
        before = state
        state, metrics = jax.block_until_ready(call(state, feed.resident, x))
        COMPILED[name, count, length] += bool(COMPILATIONS) and not optimised
        # What is only written, as the gradients kept by `SGD`, is no input of the program.
        given = [(player.params, player.variables, player.ema) for player in before.players.values()]
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given)), "the state handed in is not donated"
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((feed.resident, x)))
        assert {v.shape for v in metrics.values()} == {(length,)}
        rows.append(jax.device_get(metrics))
        step += length
        if watch:
            watch(step, state)
    return state, {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}


@functools.cache
def run(name, count):
    """20 calls of one step: the state before the first, after it and at the end, and the metrics."""
    seen = {0: first_state(name)}

    def watch(step, state):
        if step in (1, STEPS):  # copied: on a CPU a view by NumPy would keep the buffer from being donated
            seen[step] = jax.tree.map(jnp.copy, state)

    state, metrics = train(name, count, [1] * STEPS, watch)
    return seen, metrics, state


def plain(tree):
    """Leaves by path, keys as their data."""

    def raw(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return {jax.tree_util.keystr(path): raw(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_bits(one, other):
    one, other = plain(one), plain(other)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("name", ["dcgan", "mlp"])
def test_two_devices_train_as_one(name):
    """Batch norm, latents, labels, penalties and the order of the data are those of the whole batch."""
    (one, one_metrics, _), (two, two_metrics, _) = run(name, 1), run(name, 2)
    for player in ("disc", "gen"):
        gradients = [plain(x[1].players[player].optimizer) for x in (one, two)]
        assert max(np.abs(g).max() for g in gradients[0].values()) > 1e-3
        for path, gradient in gradients[0].items():
            np.testing.assert_allclose(gradient, gradients[1][path], rtol=1e-5, atol=1e-6, err_msg=path)
    for path, after in plain(one[1].players).items():
        np.testing.assert_allclose(after, plain(two[1].players)[path], rtol=1e-5, atol=1e-6, err_msg=path)
    for metric, values in one_metrics.items():
        np.testing.assert_allclose(values, two_metrics[metric], rtol=1e-5, atol=1e-5, err_msg=metric)
    assert int(two[STEPS].images) == int(one[STEPS].images) == BATCH * STEPS


@pytest.mark.parametrize("name", ["dcgan", "mlp"])
def test_something_is_learnt(name):
    """Guards the test above against a game that stands still, or whose losses are constants."""
    seen, metrics, _ = run(name, 2)
    assert np.isfinite(list(metrics.values())).all()
    assert len(np.unique(metrics["disc/loss"])) == len(np.unique(metrics["gen/loss"])) == STEPS
    for player, before in seen[0].players.items():
        after = plain(seen[STEPS].players[player].params)
        still = [path for path, value in plain(before.params).items() if (after[path] == value).all()]
        # A Wasserstein loss is the difference of two logits, so it never moves the last bias.
        assert still == (["['Dense_1']['bias']"] if (name, player) == ("mlp", "disc") else []), player


@pytest.mark.parametrize("name", ["dcgan", "mlp"])
def test_replicas_hold_the_same_bits(name):
    _, _, state = run(name, 2)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        assert leaf.sharding.is_fully_replicated and len(leaf.addressable_shards) == 2, path
        first, second = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert first.tobytes() == second.tobytes() and first.shape == leaf.shape, path


def test_any_division_into_calls_gives_the_same_bits():
    whole, metrics = train("mlp", 2, [4], optimised=True)
    for lengths in ([2, 2], [1] * 4):
        state, parts = train("mlp", 2, lengths, optimised=True)
        assert_same_bits(state, whole)
        assert_same_bits(parts, metrics)


def test_mapped_scans_are_the_steps_of_the_game():
    """Against `game.step` alone, jitted on one device."""
    (game, _), (feed, _), state = game_of("mlp"), machine("mlp", 1), first_state("mlp")
    step = jax.jit(lambda state, x: game.step(state, feed.draw(feed.resident, x)), compiler_options=UNOPTIMISED)
    rows = []
    for i in range(4):
        (x,) = feed.calls(i, i + 1, 1)
        state, metrics = step(state, jax.tree.map(lambda x: x[0, 0], x))
        rows.append(metrics)
    whole, stacked = train("mlp", 2, [4])
    for name in stacked:
        np.testing.assert_allclose([row[name] for row in rows], stacked[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for path, leaf in plain(state.players).items():
        np.testing.assert_allclose(leaf, plain(whole.players)[path], rtol=1e-5, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("count", [1, 2])
def test_one_compilation(count):
    """One for each length of a call: not another for the state that comes back, nor for a state put there anew."""
    for _ in range(2):
        train("mlp", count, [1, 1, 1])
    assert COMPILED["mlp", count, 1] == 1


def test_replicate():
    tree = parallel.replicate({"a": np.arange(3), "key": jax.random.key(0)}, jax.devices()[:2])
    assert [len(leaf.devices()) for leaf in jax.tree.leaves(tree)] == [2, 2]
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))


def test_devices_for():
    assert parallel.devices_for(6) == jax.devices() and parallel.devices_for(5, 1) == jax.devices()[:1]
    for arguments, words in (
        ((7,), "6 or 8"),
        ((1,), "nearest: 2"),
        ((0,), "nearest: 2"),
        ((4, 9), "has 2"),
        ((4, -1), "has 2"),
    ):
        with pytest.raises(InputError, match=words):
            parallel.devices_for(*arguments)
