"""Self-attention against NumPy in float64, and its derivatives against finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan.layers.attention import SelfAttention

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
rng = np.random.default_rng(0)


def parameters(c, gain=0.7):
    """Kernels (1, 1, from, to) of the maps of c channels."""
    shapes = {"query": (c, c // 8), "key": (c, c // 8), "value": (c, c // 2), "out": (c // 2, c)}
    return {n: {"kernel": rng.normal(size=(1, 1, *s)) / np.sqrt(s[0])} for n, s in shapes.items()} | {"gain": gain}


def formula(p, x):
    """Place by place; rows and columns beyond the last whole pair stand alone in their maxima."""
    b, h, w, _ = x.shape
    query, key, value = (x @ p[name]["kernel"][0, 0] for name in ("query", "key", "value"))
    windows = [(slice(i, i + 2), slice(j, j + 2)) for i in range(0, h, 2) for j in range(0, w, 2)]
    key, value = (np.stack([y[:, i, j].max((1, 2)) for i, j in windows], 1) for y in (key, value))
    y = np.empty_like(x)
    for n, i, j in np.ndindex(b, h, w):
        weights = np.exp(key[n] @ query[n, i, j])
        y[n, i, j] = x[n, i, j] + p["gain"] * (weights / weights.sum()) @ value[n] @ p["out"]["kernel"][0, 0]
    return y


@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
def test_formula(size):
    x, params = rng.normal(size=(2, *size, 16)), parameters(16)
    y = quick(SelfAttention().apply)({"params": jax.tree.map(jnp.float32, params)}, jnp.float32(x))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, formula(params, x), atol=1e-5)


def test_spectral():
    """It starts as the identity; and all four kernels are divided by their largest singular values."""
    x, params = jnp.float32(rng.normal(size=(1, 4, 4, 16))), parameters(16)
    module = SelfAttention(spectral=True)

    @quick
    def both(params, x):
        y, variables = module.init_with_output(jax.random.key(0), x)
        train = functools.partial(module.apply, mutable="spectral")
        spectral, _ = jax.lax.scan(
            lambda spectral, _: (train({"params": params, "spectral": spectral}, x, True)[1]["spectral"], None),
            variables["spectral"],
            length=500,
        )
        return y, variables["params"], module.apply({"params": params, "spectral": spectral}, x)

    start, initial, y = both(jax.tree.map(jnp.float32, params), x)
    np.testing.assert_array_equal(start, x)
    assert jax.tree.map(jnp.shape, initial) == jax.tree.map(np.shape, params) and initial["gain"] == 0
    for name in ("query", "key", "value", "out"):
        params[name] = {"kernel": params[name]["kernel"] / np.linalg.svd(params[name]["kernel"][0, 0])[1][0]}
    np.testing.assert_allclose(y, formula(params, np.float64(x)), atol=1e-5)


def test_derivatives_of_both_orders():
    """In float64: the input gradient, and the parameters' gradient of its squared norm, as in R1."""
    with jax.enable_x64(True):
        module = SelfAttention(dtype=jnp.float64)
        params, x, weights, step = parameters(8), *(rng.normal(size=(2, 4, 4, 8)) for _ in range(3))
        params = jax.tree.map(np.float64, params)
        direction = jax.tree.map(lambda p: rng.normal(size=np.shape(p)), params)

        def value(params, x):
            return jnp.sum(jnp.sin(module.apply({"params": params}, x)) * weights)

        def penalty(params):
            return jnp.sum(jnp.square(jax.grad(value, argnums=1)(params, x)))

        @quick
        def everything(h):
            moved = [jax.tree.map(lambda p, d, s=s: p + s * h * d, params, direction) for s in (-1, 1)]
            low, high = (penalty(p) for p in moved)
            first = jnp.vdot(jax.grad(value, argnums=1)(params, x), step)
            exact = jax.tree.map(jnp.vdot, jax.grad(penalty)(params), direction)
            slope = (value(params, x + h * step) - value(params, x - h * step)) / (2 * h)
            return first, slope, sum(jax.tree.leaves(exact)), (high - low) / (2 * h)

        first, slope, second, slope_of_penalty = jax.device_get(everything(1e-6))
        assert first.dtype == np.float64
        assert first == pytest.approx(slope, rel=1e-7)
        assert second == pytest.approx(slope_of_penalty, rel=1e-7)


def test_half_precision():
    """Arithmetic in bfloat16 stays near that in float32; what comes out is bfloat16."""
    x, params = jnp.float32(rng.normal(size=(1, 4, 4, 16))), jax.tree.map(jnp.float32, parameters(16))
    run = quick(lambda p: [SelfAttention(dtype=t).apply({"params": p}, x) for t in (jnp.bfloat16, jnp.float32)])
    y, wanted = run(params)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), wanted, atol=0.05)


def test_in_bfloat16_the_gains_gradient_is_summed_in_float32():
    """A sum over 131,072 numbers, which bfloat16 stops adding to at a few hundred of them."""
    x, params = jnp.float32(rng.normal(size=(8, 16, 16, 64)) + 1), jax.tree.map(jnp.float32, parameters(64))

    def slope(dtype):
        of = lambda gain: SelfAttention(dtype=dtype).apply({"params": params | {"gain": gain}}, x)  # noqa: E731
        weights = jnp.float32(x > 0)
        return jax.jit(jax.grad(lambda gain: jnp.sum(weights * of(gain).astype(jnp.float32))))(params["gain"])

    assert float(slope(jnp.bfloat16)) == pytest.approx(float(slope(jnp.float32)), rel=0.02)
