"""Every way of a grouped convolution against its definition in NumPy, and against XLA's own derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxgan.layers import grouped
from jaxgan.layers.conv import plain
from jaxgan.layers.grouped import CROSSED, XLA, GroupedConv, Way, merged

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
WAYS = {
    "xla": XLA,
    "crossed": CROSSED,
    "mixed": Way(XLA.correlate, CROSSED.contract),
    "merged": merged(CROSSED, 8),
    "whole": merged(XLA, 100),
}
# b, h, w, c, d, groups, kernel
SHAPES = [(4, 8, 7, 12, 12, 6, 3), (2, 3, 1, 6, 9, 3, 5), (1, 4, 4, 4, 8, 1, 1)]


def arrays(b, h, w, c, d, groups, k):
    random = np.random.default_rng(0)
    shapes = [(b, h, w, c), (k, k, c // groups, d), (b, h, w, d)]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def reference(x, w, y, groups):
    """The sum of x w and its gradients for x and w, pulled back from y, in float64: one group, one tap at a time."""
    x, w, y = np.float64(x), np.float64(w), np.float64(y)
    k, height, width = w.shape[0], *x.shape[1:3]
    r = k // 2
    padded = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
    out, x_bar, w_bar = np.zeros(y.shape), np.zeros(padded.shape), np.zeros(w.shape)
    c, d = x.shape[3] // groups, y.shape[3] // groups
    for g in range(groups):
        i, o = slice(g * c, (g + 1) * c), slice(g * d, (g + 1) * d)
        for u in range(k):
            for v in range(k):
                window = np.s_[:, u : u + height, v : v + width, i]
                out[..., o] += padded[window] @ w[u, v, :, o]
                x_bar[window] += y[..., o] @ w[u, v, :, o].T
                w_bar[u, v, :, o] += np.einsum("bhwc,bhwd->cd", padded[window], y[..., o])
    return out, x_bar[:, r : r + height, r : r + width], w_bar


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_is_the_definition_in_both_orders(shape, monkeypatch):
    monkeypatch.setattr(grouped, "CACHE", 4096)  # the largest in four parts of its batch
    x, w, y = arrays(*shape)
    groups = shape[5]
    expected = reference(x, w, y, groups)

    def orders(conv):
        def pulled(x, w):
            out, pull = jax.vjp(conv, x, w)
            return out, *pull(y)

        def second(x, w):
            _, x_bar, w_bar = pulled(x, w)
            return jnp.sum(jnp.square(x_bar)) + jnp.sum(jnp.sin(w_bar))

        return pulled(x, w), jax.grad(second, (0, 1))(x, w)

    def native(x, w):
        pads = [(shape[6] // 2,) * 2] * 2
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=dimensions, feature_group_count=groups)

    @quick
    def everything():
        results = {"native": orders(native)}
        for name, way in WAYS.items():
            with grouped.using(way):
                results[name] = orders(lambda x, w: grouped.conv(x, w, groups))
        return results

    results = everything()
    for name, (first, second) in results.items():
        for a, b in zip(first, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max(), err_msg=name)
        for a, b in zip(second, results["native"][1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crossed_in_bfloat16_is_the_definition_up_to_its_rounding(shape, monkeypatch):
    """In parts and in one, inside a scan: XLA's own choice of a product's layout is another there."""
    x, w, y = (np.float32(jnp.bfloat16(a)) for a in arrays(*shape))
    expected = reference(x, w, y, shape[5])

    @jax.jit
    def scanned(*arrays):
        def body(carry, arrays):
            x, w, y = (a.astype(jnp.bfloat16) for a in arrays)
            with grouped.using(CROSSED):
                out, pull = jax.vjp(lambda x, w: grouped.conv(x, w, shape[5]), x, w)
            return carry, (out, *pull(y))

        return lax.scan(body, 0, [a[None] for a in arrays])[1]

    for cache in (4096, 2**20):
        monkeypatch.setattr(grouped, "CACHE", cache)
        scanned.clear_cache()
        for a, b in zip(scanned(x, w, y), expected, strict=True):
            assert a.dtype == jnp.bfloat16
            np.testing.assert_allclose(np.float32(a[0]), b, rtol=2**-8, atol=1e-5 * np.abs(b).max())


def test_merged_groups_fill_their_channels():
    """Twelve groups of 4 channels within 16: blocks of 16, of which there are three; 100 do not divide into more."""
    seen = []

    def record(x, w, groups):
        seen.append((groups, w.shape))
        return XLA.correlate(x, w, groups)

    x, w, _ = arrays(1, 2, 2, 48, 24, 12, 3)
    for channels in (16, 30, 100, 1):
        jax.eval_shape(lambda x, w, c=channels: merged(Way(record, XLA.contract), c).correlate(x, w, 12), x, w)
    assert seen == [(3, (3, 3, 16, 24)), (2, (3, 3, 24, 24)), (1, (3, 3, 48, 24)), (12, (3, 3, 4, 24))]


def test_the_layer_inside_a_scan_and_in_bfloat16():
    layer = GroupedConv(6, 3)
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 6)).astype(np.float32)
    params = layer.init(jax.random.key(0), x)["params"]
    assert params["kernel"].shape == (3, 3, 2, 6) and params["bias"].shape == (6,)
    params = {"kernel": params["kernel"], "bias": jnp.arange(6.0)}

    def loss(params, layer=layer):
        return jnp.mean(jnp.sin(layer.apply({"params": params}, x).astype(jnp.float32)))

    @quick
    def descend(params):
        return lax.scan(
            lambda p, _: (jax.tree.map(lambda p, g: p - g, p, jax.grad(loss)(p)), loss(p)), params, length=3
        )

    @quick
    def unrolled(params):
        losses = []
        with plain():
            for _ in range(3):
                losses.append(loss(params))
                params = jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params))
        return params, jnp.stack(losses)

    (one, losses), (other, others) = descend(params), unrolled(params)
    assert losses[2] < losses[0]
    np.testing.assert_allclose(losses, others, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), one, other)
    half = quick(GroupedConv(6, 3, dtype=jnp.bfloat16).apply)({"params": params}, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), layer.apply({"params": params}, x), atol=0.05)
