"""The ways of a convolution on a CPU, each against the sum that it stands for, and how they are chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxgan.layers import conv_cpu, dense, winograd
from jaxgan.layers.cpu import even_parts

# Programs that are compiled for one example each: twice as fast without the optimiser, and more faithful to the source.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

WAYS = {name: way for name, way in vars(conv_cpu).items() if isinstance(way, conv_cpu.Way)}


def maps(way):
    return quick(lambda z, w, y: (way.correlate(z, w), way.spread(y, w), way.contract(z, y)))


def sums(z, w, y):
    """The three maps in float64."""
    (oh, ow), m = y.shape[1:3], w.shape[0]
    correlated, spread, contracted = np.zeros_like(y), np.zeros_like(z), np.zeros_like(w)
    for u in range(m):
        for v in range(m):
            window = np.s_[:, u : u + oh, v : v + ow]
            correlated += z[window] @ w[u, v]
            spread[window] += y @ w[u, v].T
            contracted[u, v] = np.einsum("bijc,bijd->cd", z[window], y)
    return correlated, spread, contracted


SIZES = [(1, 3, 2), (2, 5, 6), (2, 7, 12), (3, 4, 7), (3, 12, 9), (4, 3, 2)]  # m, oh, ow


@pytest.mark.parametrize(
    "name, m, oh, ow", [(n, *size) for n in WAYS for size in SIZES if n != "WINOGRAD" or size[0] in winograd.TAPS]
)
def test_every_way_is_the_sum_that_it_stands_for(name, m, oh, ow):
    """The three maps against NumPy in float64."""
    rng = np.random.default_rng([m, oh, ow])
    z, w, y = (rng.normal(size=s) for s in ((4, oh + m - 1, ow + m - 1, 5), (m, m, 5, 3), (4, oh, ow, 3)))
    for got, expected in zip(maps(WAYS[name])(*map(np.float32, (z, w, y))), sums(z, w, y), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=4e-6 * np.abs(expected).max())


@pytest.mark.parametrize("m", [2, 3, 4])
def test_bfloat16_loses_no_more_than_its_rounding(m):
    """bfloat16 has 8 bits, so rounding a result once costs 2^-9 of it or less; Winograd's sums cost up to 5%."""
    rng = np.random.default_rng(m)
    z, w, y = (jnp.bfloat16(rng.normal(size=s)) for s in ((4, 7 + m, 7 + m, 96), (m, m, 96, 32), (4, 8, 8, 32)))
    way = conv_cpu.way(m, 96, 32, (8, 8), jnp.bfloat16)
    for got, expected in zip(maps(way)(z, w, y), sums(*(np.float64(x) for x in (z, w, y))), strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.float64(got) - expected
        assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 5e-3


@pytest.mark.parametrize("size", [(4, 6), (8, 9)])  # tiles of 2x2 and of 4x4
def test_parts_of_a_batch_change_nothing(size, monkeypatch):
    """What does not fit the cache is worked off in parts, here of one image."""
    rng = np.random.default_rng(0)
    (oh, ow), m = size, 2
    shapes = (6, oh + m - 1, ow + m - 1, 4), (m, m, 4, 3), (6, oh, ow, 3)
    z, w, y = (jnp.float32(rng.normal(size=s)) for s in shapes)

    def maps():
        return quick(lambda: (winograd.correlate(z, w), winograd.spread(y, w), winograd.contract(z, y)))()

    whole = maps()
    for name in ("CACHE", "CACHE_CONTRACT"):
        monkeypatch.setattr(winograd, name, 4 * winograd.products(winograd.side(m, size), m, size) * 4)
    for traced in (jax.make_jaxpr(winograd.correlate)(z, w), jax.make_jaxpr(winograd.contract)(z, y)):
        assert "scan" in str(traced)
    for a, b in zip(whole, maps(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 if size == (4, 6) else 4e-6 * np.abs(b).max())


@pytest.mark.parametrize("m, size", [(1, (8, 8)), (2, (8, 8)), (3, (4, 5)), (3, (16, 15))])
@pytest.mark.parametrize("places", [conv_cpu.PLACES, 100])
def test_bfloat16_in_parts_and_inside_a_scan(m, size, places, monkeypatch):
    """Optimised, as in training: products in bfloat16 of a kind that XLA has not would fail as they run."""
    monkeypatch.setattr(conv_cpu, "PLACES", places)
    monkeypatch.setattr(conv_cpu, "WORTH_PARTS", places)
    rng = np.random.default_rng(m)
    (oh, ow), steps = size, 2
    shapes = (steps, 6, oh + m - 1, ow + m - 1, 96), (steps, m, m, 96, 64), (steps, 6, oh, ow, 64)
    operands = [jnp.bfloat16(rng.normal(size=s)) for s in shapes]
    way = conv_cpu.way(m, 96, 64, size, jnp.bfloat16)
    assert way is conv_cpu.TAPS_IN_PARTS

    @jax.jit
    def loop(operands):
        return lax.map(
            lambda o: (way.correlate(o[0], o[1]), way.spread(o[2], o[1]), way.contract(o[0], o[2])), operands
        )

    assert str(jax.make_jaxpr(loop)(operands)).count("scan[") == (1 if places > 6 * oh * ow else 3 + (size != (4, 5)))
    got = loop(operands)
    for i in range(steps):
        for one, expected in zip(got, sums(*(np.float64(o[i]) for o in operands)), strict=True):
            assert one.dtype == jnp.bfloat16
            error = np.float64(one[i]) - expected
            assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 3e-3  # rounded once


def test_ways_are_chosen_by_their_channels_and_sizes():
    assert conv_cpu.way(2, 12, 64, (32, 32)) is conv_cpu.TAPS
    assert conv_cpu.way(3, 128, 3, (32, 32)) is conv_cpu.TAPS_OF_Y
    assert conv_cpu.way(2, 512, 256, (8, 8)) is conv_cpu.WINOGRAD
    assert conv_cpu.way(2, 256, 128, (16, 16)) == conv_cpu.WINOGRAD._replace(spread=conv_cpu.DIRECT.spread)
    assert conv_cpu.way(2, 256, 128, (8, 8)) == conv_cpu.WINOGRAD._replace(spread=conv_cpu.TAPS.spread)
    assert conv_cpu.way(2, 512, 256, (8, 8), jnp.bfloat16) is conv_cpu.TAPS_IN_PARTS
    assert conv_cpu.way(2, 256, 128, (7, 7)) is conv_cpu.DIRECT  # padded to 8x8, too little is saved
    assert conv_cpu.way(7, 256, 128, (8, 8)) is conv_cpu.DIRECT
    # Products of an image and a pair of channels: 9, 4x4 tiles of 2x2; 25, 2x2 tiles of 4x4.
    assert [winograd.side(2, size) for size in ((4, 4), (8, 8), (6, 12))] == [2, 4, 4]
    assert winograd.products(2, 2, (8, 8)) == 144 and winograd.products(4, 2, (7, 8)) == 100


def test_parts_of_a_batch():
    assert [even_parts(*case) for case in ((6, 4), (8, 3), (4, 9), (4, 0), (61, 4), (62, 20))] == [6, 4, 4, 1, 1, 31]
    images = jax.ShapeDtypeStruct((64, 16, 16, 1), jnp.bfloat16)  # 16,384 places
    assert [conv_cpu._parts(images, (16, 16), channels) for channels in (64, 256, 512, 2**21)] == [4, 4, 8, 64]


def test_a_dense_layer_in_bfloat16_and_two_derivatives():
    """Of ||∇ₓ||² too, as a gradient penalty has it; all within bfloat16's rounding, against float64."""
    rng = np.random.default_rng(0)
    x, w, v = (jnp.bfloat16(rng.normal(size=s)) for s in ((64, 96), (96, 32), (64, 32)))

    def loss(x, w):  # quadratic in each of the two
        y = dense.product(x, w).astype(jnp.float32)
        return jnp.sum(y * v.astype(jnp.float32)) + 0.5 * jnp.sum(y * y)

    def penalty(x, w):
        return jnp.sum(jnp.square(jax.grad(loss)(x, w).astype(jnp.float32)))

    assert "conv_general" not in str(jax.make_jaxpr(dense.product)(x.astype(jnp.float32), w.astype(jnp.float32)))
    found = (*quick(jax.grad(loss, (0, 1)))(x, w), quick(jax.grad(penalty, 1))(x, w))
    x, w, v = (np.float64(a) for a in (x, w, v))
    y = x @ w + v
    g = y @ w.T  # by x; ||g||² = tr(y wᵀ w yᵀ), of which y = x w + v depends on w too
    expected = (g, x.T @ y, 2 * (x.T @ (g @ w) + g.T @ y))
    for got, exact in zip(found, expected, strict=True):
        assert got.dtype == jnp.bfloat16
        assert np.abs(np.float64(got) - exact).max() < 0.02 * np.abs(exact).max()
