"""StyleGAN2's layers against the papers' formulas in NumPy's float64: weights of each image, zeros between pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import collectives
from jaxgan.layers.equalised import EqualConv, EqualDense, leaky
from jaxgan.layers.minibatch import minibatch_std
from jaxgan.layers.modulated import ModulatedConv, modulated_conv
from jaxgan.models.stylegan2 import Styled

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def correlate(x, w, stride=1):
    """x (b, h, w, c), w (k, k, c, d) or (b, k, k, c, d), one for each image -> (b, ...), without padding."""
    x, w = np.float64(x), np.float64(w)
    k = w.shape[-3]
    h, width = x.shape[1] - k + 1, x.shape[2] - k + 1
    images = "bhwc,bcd->bhwd" if w.ndim == 5 else "bhwc,cd->bhwd"
    taps = [(u, v) for u in range(k) for v in range(k)]
    y = sum(np.einsum(images, x[:, u : u + h, v : v + width], w[..., u, v, :, :]) for u, v in taps)
    return y[:, ::stride, ::stride]


def pad(x, before, after):
    return np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))


def lowpass(x):
    """The filter (1, 3, 3, 1) / 8 along both axes, three pixels smaller."""
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    return correlate(x, taps[:, :, None, None] * np.eye(x.shape[3]))


def up(x, kernel=1):
    """Zeros between the pixels, the filter times four, and room for a convolution of that kernel."""
    b, h, w, c = x.shape
    spread = np.zeros((b, 2 * h, 2 * w, c))
    spread[:, ::2, ::2] = x
    return 4 * lowpass(pad(spread, kernel // 2 + 2, kernel // 2 + 1))


def modulated(x, w, s, demodulate, enlarge):
    """arXiv:1912.04958, eq. 1 to 3, to the letter."""
    w = np.float64(w) * np.float64(s)[:, None, None, :, None]  # (b, k, k, c, d)
    if demodulate:
        w = w / np.sqrt(np.sum(w**2, (1, 2, 3), keepdims=True) + 1e-8)
    k = w.shape[1]
    return correlate(up(x, k) if enlarge else pad(x, k // 2, k // 2), w)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def test_modulated_convolution_is_that_of_each_images_weights():
    cases = [(h, w, k, d, e) for h, w in ((4, 6), (5, 3)) for k, d, e in ((3, True, True), (3, True, False))]
    cases += [(5, 4, 1, False, False), (5, 4, 1, True, True), (3, 4, 5, True, True)]
    operands = [(normal(3, h, w, 4), normal(k, k, 4, 5), 1 + normal(3, 4)) for h, w, k, *_ in cases]

    @quick
    def everything(operands):
        ways = [{"demodulate": d, "up": e} for *_, d, e in cases]
        return [modulated_conv(*each, **way) for each, way in zip(operands, ways, strict=True)]

    for (h, w, _, demodulate, enlarge), each, y in zip(cases, operands, everything(operands), strict=True):
        assert y.shape == (3, h * (1 + enlarge), w * (1 + enlarge), 5)
        np.testing.assert_allclose(y, modulated(*each, demodulate, enlarge), rtol=1e-5, atol=1e-5)


def test_demodulated_features_have_unit_variance():
    """For inputs of unit variance, whatever the style; without it they are as large as the style."""
    x, w, s = normal(2, 24, 24, 32), normal(3, 3, 32, 16), 5 + 2 * normal(2, 32)
    both = quick(lambda x, w, s: [modulated_conv(x, w, s, demodulate=how) for how in (True, False)])(x, w, s)
    unit, raw = (np.std(y[:, 1:-1, 1:-1]) for y in both)
    assert unit == pytest.approx(1, rel=0.05) and raw == pytest.approx(np.sqrt(9 * 32 * np.mean(s**2)), rel=0.1)


def test_modulated_layer():
    """Its style is an affine map of w of unit gain that starts around 1, its kernel N(0, 1) / sqrt(fan_in)."""
    module, x, w = ModulatedConv(6, 1, demodulate=False), normal(2, 3, 3, 500), normal(2, 700)
    y, variables = quick(module.init_with_output)(jax.random.key(0), x, w)
    params = jax.device_get(variables["params"])
    kernel, affine = params["kernel"], params["affine"]
    assert kernel.shape == (1, 1, 500, 6) and affine["kernel"].shape == (700, 500)
    assert np.std(kernel) == pytest.approx(1, rel=0.05) and (affine["bias"] == 1).all()
    s = np.float64(w) @ np.float64(affine["kernel"]) / np.sqrt(700) + 1
    assert np.std(s) == pytest.approx(1, rel=0.1)
    wanted = np.einsum("bhwc,bc,cd->bhwd", np.float64(x), s, np.float64(kernel[0, 0])) / np.sqrt(500)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_equalised_dense():
    """Stored a hundred times as large, used as if it were not: it learns at a hundredth of the speed."""
    x, layer = normal(4, 600), EqualDense(300, rate=0.01, bias=2.0)

    @quick
    def everything(x):
        y, variables = layer.init_with_output(jax.random.key(0), x)
        return variables["params"], y, layer.apply(jax.tree.map(lambda p: p + 1, variables), x) - y

    params, y, difference = jax.device_get(everything(x))
    assert np.std(params["kernel"]) == pytest.approx(100, rel=0.02) and params["bias"][0] == pytest.approx(200)
    wanted = np.float64(x) @ np.float64(params["kernel"]) * 0.01 / np.sqrt(600) + 2
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    slower = np.repeat(0.01 * (x.sum(1, keepdims=True) / np.sqrt(600) + 1), 300, axis=1)
    np.testing.assert_allclose(difference, slower, atol=1e-4)


def test_equalised_convolution():
    """As it is; and halving: the filter, a convolution with a stride of 2, the paddings of both around the filter."""
    x = normal(2, 6, 4, 3)
    layers = [EqualConv(5), EqualConv(5, down=True), EqualConv(5, 1, use_bias=False, down=True)]

    @quick
    def everything(x):
        drawn = [layer.init(jax.random.key(0), x)["params"] for layer in layers]
        drawn = jax.tree.map(lambda p: p + 0.5, drawn)  # a bias that is not zero
        return drawn, [layer.apply({"params": p}, x) for layer, p in zip(layers, drawn, strict=True)]

    (same, half, point), found = everything(x)
    wanted = [
        correlate(pad(x, 1, 1), same["kernel"]) / np.sqrt(27) + 0.5,
        correlate(lowpass(pad(x, 2, 2)), half["kernel"], 2) / np.sqrt(27) + 0.5,
        correlate(lowpass(pad(x, 1, 1))[:, ::2, ::2], point["kernel"]) / np.sqrt(3),
    ]
    assert "bias" not in point and found[1].shape == (2, 3, 2, 5)
    for y, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(y, w, rtol=1e-5, atol=1e-5)


def test_leaky():
    x = np.float32([-200, -1, 0, 1, 300])
    free, clamped, half = quick(lambda x: (leaky(x), leaky(x, 50.0), leaky(x.astype(jnp.bfloat16), 50.0)))(x)
    np.testing.assert_allclose(free, np.sqrt(2) * np.float32([-40, -0.2, 0, 1, 300]), rtol=1e-6)
    np.testing.assert_allclose(clamped, [-50, -np.sqrt(0.08), 0, np.sqrt(2), 50], rtol=1e-6)
    assert half.dtype == jnp.bfloat16


def test_minibatch_standard_deviation():
    """A group is so many consecutive images."""
    cases = [
        (8, 4, 4),
        (6, 4, 6),
        (3, 4, 3),
        (4, 4, 4),
        (6, 2, 2),
        (1, 4, 1),
    ]  # images, the size asked for, the size it is
    batches = [normal(b, 2, 3, 5) for b, *_ in cases]
    same = np.ones((4, 2, 2, 3), np.float32)

    @quick
    def everything(batches):
        features = [minibatch_std(x, group) for x, (_, group, _) in zip(batches, cases, strict=True)]
        return features, jax.grad(lambda x: minibatch_std(x)[..., -1].sum())(same)

    found, gradient = everything(batches)
    for (b, _, members), x, y in zip(cases, batches, found, strict=True):
        assert y.shape == (b, 2, 3, 6)
        np.testing.assert_array_equal(y[..., :5], x)
        for i in range(b):
            peers = np.float64(x[i // members * members :][:members])
            assert len(peers) == members
            np.testing.assert_allclose(y[i, ..., 5], np.mean(np.sqrt(peers.var(0) + 1e-8)), rtol=1e-5)
    assert np.isfinite(gradient).all()  # images that do not differ at all


@pytest.mark.parametrize("group", [2, 4, 8])  # a device holds two groups, one, or half of one
def test_minibatch_standard_deviation_of_two_devices_is_that_of_one(group):
    x, weights = normal(8, 2, 2, 3), normal(8, 2, 2, 4)

    def feature(x, weights):
        y, pull = jax.vjp(lambda x: minibatch_std(x, group), x)
        return y, pull(weights)[0]

    both = jax.pmap(feature, axis_name=collectives.AXIS)(*(a.reshape(2, 4, *a.shape[1:]) for a in (x, weights)))
    for one, two in zip(quick(feature)(x, weights), jax.block_until_ready(both), strict=True):
        np.testing.assert_allclose(one, two.reshape(one.shape), rtol=1e-5, atol=1e-6)


def test_demodulation_adds_its_epsilon_to_the_power_of_unscaled_weights():
    """As the authors' code: 1e-8 beside the sum of squares of N(0, 1) weights times styles, here of 1e-5."""
    layer, x, w = ModulatedConv(4), normal(2, 3, 3, 5), normal(3, 3, 5, 4)
    styles = np.float32(1e-5 * np.arange(1, 6))
    params = {"kernel": w, "affine": {"kernel": np.zeros((2, 5), np.float32), "bias": styles}}
    found = quick(lambda params: layer.apply({"params": params}, x, np.ones((2, 2), np.float32)))(params)
    scaled = np.float64(w) * np.float64(styles)[:, None]
    expected = correlate(pad(np.float64(x), 1, 1), scaled) / np.sqrt((scaled**2).sum((0, 1, 2)) + 1e-8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_derivatives_of_both_orders():
    """In float64: the input gradient of a modulated convolution, and that of its squared norm in kernel and style."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, w, s, weights, *steps = (
            rng.normal(size=size)
            for size in ((2, 3, 3, 4), (3, 3, 4, 5), (2, 4), (2, 6, 6, 5), (2, 3, 3, 4), (3, 3, 4, 5), (2, 4))
        )

        def value(x, w, s):
            return jnp.sum(jnp.sin(modulated_conv(x, w, s, up=True)) * weights)

        def penalty(w, s):
            return jnp.sum(jnp.square(jax.grad(value)(x, w, s)))

        @quick
        def everything(h):
            first = jnp.vdot(jax.grad(value)(x, w, s), steps[0])
            slope = (value(x + h * steps[0], w, s) - value(x - h * steps[0], w, s)) / (2 * h)
            second = sum(map(jnp.vdot, jax.grad(penalty, (0, 1))(w, s), steps[1:]))
            low, high = (penalty(w + h * steps[1], s + h * steps[2]) for h in (-h, h))
            return first, slope, second, (high - low) / (2 * h)

        first, slope, second, slope_of_penalty = map(float, everything(1e-5))
        assert first == pytest.approx(slope, rel=1e-6) and second == pytest.approx(slope_of_penalty, rel=1e-6)


def test_in_bfloat16_what_is_summed_over_all_places_is_summed_in_float32():
    """Gradients of noise, bias and style, which sums in bfloat16 left at a tenth of their size."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, w = jax.random.normal(keys[0], (8, 32, 32, 32)), jax.random.normal(keys[1], (8, 16))
    noise, weights = jax.random.normal(keys[2], (8, 32, 32, 1)), jax.random.uniform(keys[3], (8, 32, 32, 32))

    def gradients(dtype):
        layer = Styled(32, False, None, dtype)
        params = layer.init(jax.random.key(1), x, w, noise)["params"] | {"strength": jnp.float32(0.5)}
        loss = lambda params: jnp.sum(weights * layer.apply({"params": params}, x, w, noise))  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    exact, found = gradients(jnp.float32), gradients(jnp.bfloat16)
    for path, true in jax.tree_util.tree_leaves_with_path(exact):
        error = jnp.linalg.norm(dict(jax.tree_util.tree_leaves_with_path(found))[path] - true)
        assert error < 0.05 * jnp.linalg.norm(true), path
