"""Convolutions of plain Flax in the compiled call: in the order of axes that XLA:CPU is fast in inside a loop."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.extend import core

from jaxgan import adversarial, losses, parallel, penalties
from jaxgan.canonical import canonical_convolutions
from jaxgan.critic import Critic
from jaxgan.game import Game, Move, Player
from jaxgan.interpret import saliency
from jaxgan.models import dcgan

QUICK = {"xla_backend_optimization_level": 0}


class Plain(nn.Module):
    """All kinds of convolutions that somebody writes without a thought of jaxgan.layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4, kernel_dilation=2)(x))
        x = nn.relu(nn.ConvTranspose(4, (4, 4), strides=(2, 2))(x))
        w = self.param("w", nn.initializers.normal(), (3, 4, 2, 2))  # OIHW, as of another library
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NCHW"))


def game():
    """A loss with a gradient penalty, repeated, in every second step, and of micro-batches: loops and branches."""
    net = Plain()

    def loss(params, state, batch, key):
        def value(x):
            return net.apply({"params": params["p"]}, x).mean()

        slope = jax.grad(value)(batch["image"])
        return value(batch["image"]) + 1e3 * jnp.square(slope).sum(), ({}, {})

    def init(key, batch):
        return net.init(key, batch["image"])["params"], {}

    moves = Move("p", loss, times=2), Move("p", loss, every=2, draw=False, accumulate=2, name="lazy")
    return Game({"p": Player(init, optax.sgd(0.1))}, moves)


def inputs(steps):
    x = np.random.default_rng(0).normal(size=(1, steps, 2, 4, 8, 8, 3)).astype(np.float32)
    row = np.broadcast_to(np.arange(4, dtype=np.int32), (1, steps, 2, 4))
    example = {"image": x[0, 0, 0], "row": row[0, 0, 0]}
    state = jax.jit(game().init, compiler_options=QUICK)(jax.random.key(0), example)
    return state, {"image": x, "row": row}


def convolutions(text):
    """What each convolution of a compiled program says of its axes and groups."""
    found = [line for line in text.splitlines() if " convolution(" in line]
    return [re.search(r"dim_labels=([\w>\-]+)", line)[1] + " batch_group" * ("batch_group" in line) for line in found]


def test_no_convolution_of_the_compiled_call_is_one_that_a_loop_makes_slow():
    state, feed = inputs(2)
    call = parallel.compile_steps(game(), lambda _, batch: batch, jax.devices()[:1])
    compiled = call.lower(state, {}, feed).compile(compiler_options=QUICK)
    kinds = convolutions(compiled.as_text())
    assert len(kinds) > 20 and set(kinds) == {"b01f_01io->b01f"}

    plain = jax.jit(lambda s, feed: lax.scan(game().step, s, feed)).lower(state, jax.tree.map(lambda x: x[0], feed))
    slow = convolutions(plain.compile(compiler_options=QUICK).as_text())
    assert {"f01b_i01o->01bf", "b01f_01oi->b01f"} < set(slow), "the game has nothing to mend"


def test_the_compiled_call_computes_what_the_steps_compute():
    state, feed = inputs(2)
    step = jax.jit(game().step, compiler_options=QUICK)
    expected, rows = state, []
    for i in range(2):
        expected, metrics = step(expected, jax.tree.map(lambda x, i=i: x[0, i], feed))
        rows.append(metrics)
    call = parallel.compile_steps(game(), lambda _, batch: batch, jax.devices()[:1])
    before = jax.tree.map(np.asarray, state.players["p"].params)
    after, stacked = call.lower(state, {}, feed).compile(compiler_options=QUICK)(state, {}, feed)
    for one, other, first in zip(
        jax.tree.leaves(expected.players), jax.tree.leaves(after.players), jax.tree.leaves(before), strict=True
    ):
        assert np.abs(one - first).max() > 1e-4
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for name, values in stacked.items():
        np.testing.assert_allclose([row[name] for row in rows], values, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 2


@pytest.mark.parametrize(
    "numbers, x, w, options",
    [
        (("NHWC", "HWIO", "NHWC"), (4, 6, 5, 4), (3, 2, 2, 6), {"feature_group_count": 2}),
        (("CWNH", "OHIW", "WNCH"), (3, 6, 4, 7), (5, 3, 3, 2), {"lhs_dilation": (2, 1), "rhs_dilation": (1, 2)}),
        (("NCHW", "OIHW", "NCHW"), (6, 3, 5, 5), (4, 3, 3, 3), {"batch_group_count": 2}),
        (("NCW", "OIW", "NCW"), (2, 3, 9), (4, 3, 3), {}),
        (("NCHW", "OIHW", "NCHW"), (2, 3, 3, 3), (4, 3, 5, 5), {"lhs_dilation": (2, 2)}),  # a larger window
        (("NDHWC", "DHWIO", "NCDHW"), (2, 4, 5, 6, 3), (2, 3, 1, 3, 4), {}),
    ],
)
def test_a_convolution_of_any_order_of_axes_and_its_gradients_are_what_they_were(numbers, x, w, options):
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (x, w))
    strides = (2,) + (1,) * (x.ndim - 3)
    conv = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=[(0, 1)] * (x.ndim - 2),
        dimension_numbers=numbers,
        **options,
    )

    def function(x, w):
        y, pull = jax.vjp(conv, x, w)
        return y, pull(jnp.sin(y))

    turned = canonical_convolutions(function)
    used = {eqn.params["dimension_numbers"] for eqn in all_convolutions(jax.make_jaxpr(turned)(x, w).jaxpr)}
    assert len(used) == 1
    for one, other in zip(jax.tree.leaves(function(x, w)), jax.tree.leaves(turned(x, w)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def all_convolutions(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive is lax.conv_general_dilated_p:
            yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from all_convolutions(inner)


def test_other_platforms_and_the_networks_of_the_library_are_left_as_they_are():
    shape = (8, 8, 1)
    pair = adversarial.Pair(dcgan.Generator(shape, latent=4, width=16), dcgan.Discriminator(shape, width=16))
    own = adversarial.game(
        pair,
        losses.hinge,
        gen_optimizer=optax.adam(1e-3),
        disc_optimizer=optax.adam(1e-3),
        penalties=[penalties.r1(1.0)],
    )
    batch = {"image": np.zeros((1, 4, *shape), np.float32), "row": np.zeros((1, 4), np.int32)}
    state = jax.eval_shape(own.init, jax.random.key(0), {name: x[0] for name, x in batch.items()})
    one, other = (str(jax.make_jaxpr(f)(state, batch)) for f in (own.step, canonical_convolutions(own.step)))
    assert one.count("conv_general_dilated") == other.count("conv_general_dilated")
    assert one.count("transpose[") == other.count("transpose[") and one.count("jit[") == other.count("jit[")

    def slow(x):
        return jax.grad(lambda x: Plain().apply({"params": params}, x).sum())(x)

    x = np.zeros((2, 8, 8, 3), np.float32)
    params = jax.eval_shape(Plain().init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: np.ones(p.shape, p.dtype), params)
    one, other = (str(jax.make_jaxpr(f)(x)) for f in (slow, canonical_convolutions(slow, "gpu")))
    assert one == other != str(jax.make_jaxpr(canonical_convolutions(slow, "cpu"))(x))


class Judge(nn.Module):
    shape: tuple = (8, 8, 3)
    num_classes: int = 0

    @nn.compact
    def __call__(self, x, label=None, train=False):
        return nn.Conv(4, (3, 3))(x).sum((1, 2, 3)) + (nn.Conv(4, (3, 3))(x) ** 3).mean((1, 2, 3))


def test_saliency_of_a_plain_network_has_no_slow_convolution_in_its_loop():
    judge, x = Judge(), np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    params = judge.init(jax.random.key(0), x)["params"]
    expected = np.abs(jax.grad(lambda x: judge.apply({"params": params}, x).sum())(x)).max(-1)
    np.testing.assert_allclose(saliency.saliency(Critic(judge, params, {}), x), expected, rtol=1e-5)
    lowered = saliency._gradients.lower(judge, {"params": params}, x, None, np.zeros((2, *x.shape), np.float32))
    assert set(convolutions(lowered.compile(compiler_options=QUICK).as_text())) == {"b01f_01io->b01f"}
