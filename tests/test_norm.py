"""Batch normalisation and spectral normalisation against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import collectives
from jaxgan.layers import BatchNorm, Conv, Dense, SpectralNorm
from jaxgan.layers.norm import ConditionalBatchNorm, FiLM

# Programs that are compiled for one example each.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def assert_near(given, wanted):
    for g, w in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5 * max(1, np.abs(w).max()))


def batches(n=5, offset=0.0, shape=(6, 3, 2, 4)):
    rng = np.random.default_rng(1)
    return [rng.normal(offset + i, 1 + i, shape).astype(np.float32) for i in range(n)]


def normalised(x, params, epsilon=1e-5, mean=None, var=None):
    """Batch normalisation in float64, with the batch's own moments unless others are given."""
    x = np.float64(x)
    mean = x.mean((0, 1, 2)) if mean is None else mean
    var = x.var((0, 1, 2)) if var is None else var
    return (x - mean) / np.sqrt(var + epsilon) * np.float64(params["scale"]) + np.float64(params["bias"])


PARAMS = {"scale": jnp.float32([1, 2, 0.5, -1]), "bias": jnp.float32([0, 1, -1, 3])}


@pytest.mark.parametrize("momentum", [0.5, 0.99])
def test_batch_norm(momentum):
    """The running moments are the plain average of 1 / (1 - momentum) batches, then an exponential one."""
    module = BatchNorm(momentum=momentum)
    train = jax.jit(lambda v, x: module.apply({"params": PARAMS, **v}, x, True, mutable=["batch_stats"]))
    x = batches()
    variables = module.init(jax.random.key(0), x[0], True)
    assert {k: v.shape for k, v in variables["params"].items()} == {"scale": (4,), "bias": (4,)}
    state = {"batch_stats": variables["batch_stats"]}
    assert float(state["batch_stats"]["count"]) == 0  # initialisation is not training
    mean, var = np.zeros(4), np.zeros(4)
    for i, batch in enumerate(x):
        y, state = train(state, batch)
        np.testing.assert_allclose(y, normalised(batch, PARAMS), rtol=1e-4, atol=2e-5)
        keep = min(momentum, i / (i + 1))
        mean = keep * mean + (1 - keep) * np.float64(batch).mean((0, 1, 2))
        var = keep * var + (1 - keep) * np.float64(batch).var((0, 1, 2))
        stats = state["batch_stats"]
        np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    if momentum == 0.99:
        np.testing.assert_allclose(stats["mean"], np.mean([b.mean((0, 1, 2)) for b in x], axis=0), rtol=1e-5)
    y = module.apply({"params": PARAMS, **state}, x[0], False)
    np.testing.assert_allclose(y, normalised(x[0], PARAMS, mean=mean, var=var), rtol=1e-5, atol=1e-5)


def test_batch_norm_of_a_large_offset():
    """Once the running mean is near, E[x²] - E[x]² around it loses nothing; at first it may cost a few digits."""
    module = BatchNorm()
    x = [10 * b.std() + np.float32(300) + b for b in batches(2)]
    state = {"batch_stats": module.init(jax.random.key(0), x[0], True)["batch_stats"]}
    for batch, tolerance in zip(x, (0.2, 1e-3), strict=True):
        y, state = module.apply({"params": PARAMS, **state}, batch, True, mutable=["batch_stats"])
        np.testing.assert_allclose(y, normalised(batch, PARAMS), atol=tolerance)


def test_batch_norm_over_dense_features_and_its_gradient():
    """(b, c) too; and the gradient, by x and the parameters, is that of the float64 formula (central differences)."""
    module, x = BatchNorm(), np.float32(np.random.default_rng(2).normal(size=(5, 4)))
    stats = module.init(jax.random.key(0), x, True)["batch_stats"]

    def loss(params, x):
        y, _ = module.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y))

    by_params, by_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, x)
    formula = lambda params, x: np.sum(np.sin(normalised(x[:, None, None], params)))  # noqa: E731

    def difference(function, value, index, h=1e-6):
        def at(step):
            moved = np.array(value, np.float64)
            moved[index] += step
            return function(moved)

        return (at(h) - at(-h)) / (2 * h)

    wanted = [difference(lambda v: formula(PARAMS, v), x, i) for i in np.ndindex(x.shape)]
    np.testing.assert_allclose(np.ravel(by_x), wanted, atol=2e-5)
    for name in PARAMS:
        wanted = [difference(lambda v, n=name: formula(PARAMS | {n: v}, x), PARAMS[name], (i,)) for i in range(4)]
        np.testing.assert_allclose(by_params[name], wanted, atol=2e-5)


def test_batch_norm_is_synchronised():
    """Halves of a batch on two devices give the outputs, moments and gradients of the whole on one."""
    module, x = BatchNorm(), batches(1)[0]
    target = jnp.float32(np.random.default_rng(3).normal(size=x.shape))
    stats = module.init(jax.random.key(0), x, True)["batch_stats"]

    def loss(params, x, target):
        y, new = module.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(y - target) * y), (y, new["batch_stats"])

    def step(params, x, target):
        grads, (y, new) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x, target)
        return collectives.mean(grads[0]), grads[1] / collectives.size(), y, new

    whole = jax.jit(step)(PARAMS, x, target)
    mapped = jax.pmap(step, axis_name=collectives.AXIS, in_axes=(None, 0, 0))
    halves = jax.block_until_ready(mapped(PARAMS, x.reshape(2, 3, *x.shape[1:]), target.reshape(2, 3, *x.shape[1:])))
    for part in (halves[0], halves[3]):
        assert all(np.array_equal(leaf[0], leaf[1]) for leaf in jax.tree.leaves(part))
    first = jax.tree.map(lambda a: a[0], (halves[0], halves[3]))
    assert_near((first[0], first[1]), (whole[0], whole[3]))
    assert_near([halves[i].reshape(x.shape) for i in (1, 2)], [whole[1], whole[2]])


def test_collectives():
    """Identities on one device; over two, a mean and a gather in the order of devices, with its derivative."""
    x = jnp.arange(6.0).reshape(2, 3)
    assert collectives.size() == 1 and collectives.mean(x) is x and collectives.gather(x) is x

    def gathered(x):
        everything, pull = jax.vjp(collectives.gather, x)
        return everything, pull(jnp.arange(6.0))[0], collectives.mean({"x": x}), jnp.float32(collectives.size())

    everything, back, mean, size = jax.block_until_ready(jax.pmap(gathered, axis_name=collectives.AXIS)(x))
    np.testing.assert_array_equal(everything, [np.arange(6)] * 2)
    np.testing.assert_array_equal(back, 2 * np.arange(6).reshape(2, 3))  # each entry is used on both devices
    np.testing.assert_array_equal(mean["x"], [[1.5, 2.5, 3.5]] * 2)
    np.testing.assert_array_equal(size, [2, 2])


def test_batch_norm_of_classes():
    rng = np.random.default_rng(0)
    x, label = rng.normal(3, 2, (6, 4, 5, 2)), np.array([0, 2, 1, 1, 0, 2])
    scale, bias = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    norm = BatchNorm(num_classes=3)
    variables = norm.init(jax.random.key(0), jnp.float32(x), True, label)
    assert variables["params"]["scale"].shape == (3, 2)
    params = {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}
    y, _ = norm.apply({**variables, "params": params}, jnp.float32(x), True, label, mutable="batch_stats")
    plain = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    expected = plain * scale[label][:, None, None] + bias[label][:, None, None]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_spectral_norm_is_the_largest_singular_value():
    """After enough power iterations; one a training pass, none otherwise. Its gradient is that of w / (v^T w u)."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 3, 4, 5))
    largest = np.linalg.svd(w.reshape(-1, 5))[1][0]
    norm, now = SpectralNorm(), jnp.float32(w)
    variables = norm.init(jax.random.key(0), now, True)
    before = variables["spectral"]["u"]
    assert np.linalg.norm(before) == pytest.approx(1, abs=1e-6)
    _, same = norm.apply(variables, now, False, mutable="spectral")
    np.testing.assert_array_equal(same["spectral"]["u"], before)
    _, once = norm.apply(variables, now, True, mutable="spectral")
    v = w.reshape(-1, 5) @ np.float64(before)
    u = w.reshape(-1, 5).T @ v
    np.testing.assert_allclose(once["spectral"]["u"], u / np.linalg.norm(u), atol=1e-6)
    for _ in range(100):
        y, variables = norm.apply(variables, now, True, mutable="spectral")
    np.testing.assert_allclose(y, w / largest, rtol=1e-4, atol=1e-6)
    u = np.float64(variables["spectral"]["u"])
    v = w.reshape(-1, 5) @ u / largest
    weights = rng.normal(size=w.shape)

    def total(w):
        return jnp.sum(norm.apply(variables, w, False) * weights)

    sigma = v @ w.reshape(-1, 5) @ u
    by_sigma = -(weights * w).sum() / sigma**2
    expected = weights / sigma + by_sigma * np.outer(v, u).reshape(w.shape)
    np.testing.assert_allclose(jax.grad(total)(now), expected, rtol=1e-3, atol=1e-5)


def test_dense_and_convolution_are_normalised():
    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 4, 4, 3)))
    conv, dense = Conv(5, 3, spectral=True), Dense(5, spectral=True)
    for layer, inputs in ((conv, x), (dense, x.reshape(2, -1))):
        variables = layer.init(jax.random.key(0), inputs, True)
        scaled = {**variables, "params": jax.tree.map(lambda p: 7 * p if p.ndim > 1 else p, variables["params"])}
        for _ in range(30):
            _, state = layer.apply(scaled, inputs, True, mutable="spectral")
            scaled = {**scaled, **state}
        y = layer.apply(scaled, inputs)
        w = np.float64(variables["params"]["kernel"])
        plain = type(layer)(5, **({"kernel": 3} if layer is conv else {}))
        w = w / np.linalg.svd(w.reshape(-1, 5))[1][0]
        expected = plain.apply({"params": {**variables["params"], "kernel": w}}, inputs)
        np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spectral", [False, True])
def test_batch_norm_of_a_condition(spectral):
    """Gain 1 + A c and bias B c of the normalised image, in training and with the moments that it has kept."""
    rng = np.random.default_rng(0)
    x, condition, (a, b) = rng.normal(3, 2, (6, 4, 5, 2)), rng.normal(size=(6, 3)), rng.normal(size=(2, 3, 2))
    norm = ConditionalBatchNorm(epsilon=1e-4, spectral=spectral)
    params = {"gain": {"kernel": jnp.float32(a)}, "bias": {"kernel": jnp.float32(b)}}

    @quick
    def both(params, x, condition):
        variables = norm.init(jax.random.key(0), x, condition, True)
        assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, params)
        state = {name: tree for name, tree in variables.items() if name != "params"}

        def step(state, _):
            y, state = norm.apply({"params": params, **state}, x, condition, True, mutable=list(state))
            return state, y

        state, y = jax.lax.scan(step, state, length=50)
        return state, y[-1], norm.apply({"params": params, **state}, 2 * x, condition, False)

    state, trained, sampled = both(params, jnp.float32(x), jnp.float32(condition))
    assert set(state) == {"batch_stats", "spectral"} if spectral else {"batch_stats"}
    assert float(state["batch_stats"]["count"]) == 50
    if spectral:
        a, b = (w / np.linalg.svd(w)[1][0] for w in (a, b))
    gain, bias = ((offset + condition @ w)[:, None, None] for offset, w in ((1, a), (0, b)))
    deviation = np.sqrt(x.var((0, 1, 2)) + 1e-4)
    np.testing.assert_allclose(trained, (x - x.mean((0, 1, 2))) / deviation * gain + bias, atol=2e-5)
    np.testing.assert_allclose(sampled, (2 * x - x.mean((0, 1, 2))) / deviation * gain + bias, atol=5e-5)


def test_film():
    rng = np.random.default_rng(0)
    x, condition, (a, b), (c, d) = (rng.normal(size=s) for s in ((6, 4, 5, 2), (6, 3), (2, 3, 2), (2, 2)))
    params = {"gain": {"kernel": a, "bias": c}, "bias": {"kernel": b, "bias": d}}
    params = jax.tree.map(jnp.float32, params)
    expected = x * (1 + condition @ a + c)[:, None, None] + (condition @ b + d)[:, None, None]
    np.testing.assert_allclose(FiLM().apply({"params": params}, x, condition), expected, atol=1e-5)
    # Over dense features too, and in half precision.
    dense = x[:, 0, 0] * (1 + condition @ a + c) + condition @ b + d
    y = FiLM(dtype=jnp.bfloat16).apply({"params": params}, x[:, 0, 0], condition)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), dense, atol=0.1)
