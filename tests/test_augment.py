"""Augmentations against NumPy in float64 with the same draws, and the distributions of the draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgan import augment, collectives
from jaxgan.augment import Adaptive, Draws, Strengths
from jaxgan.errors import InputError
from tests.test_warp import reference as warp_reference

ALL = augment.ADA["bgcfnc"]
# Compiled for one call each: the optimiser would cost more than it saves.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def random_images(count, shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape)).astype(np.float32)


def close_to(share, probability, count):
    return abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / count)


# --- DiffAugment


def simple_reference(image, draws):
    """arXiv:2006.10738 and its authors' ranges, one image, in loops."""
    x = np.float64(image)
    h, w, _ = x.shape
    x = x + draws.brightness
    x = np.stack([(x[..., i] - x.mean(-1)) * draws.saturation + x.mean(-1) for i in range(x.shape[-1])], -1)
    x = (x - x.mean()) * draws.contrast + x.mean()
    out = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            y, z = i - draws.shift[0], j - draws.shift[1]
            hole = [0 <= k - c < int(n / 2 + 0.5) for k, c, n in ((i, draws.corner[0], h), (j, draws.corner[1], w))]
            if 0 <= y < h and 0 <= z < w and not all(hole):
                out[i, j] = x[y, z]
    return out if draws.on else image


@pytest.mark.parametrize("shape", [(16, 10, 3), (8, 7, 1)])
def test_diffaugment_is_the_reference(shape):
    keys, images, p = keys_of(32), random_images(32, shape), 0.7

    @quick
    def both(keys, images, p):
        draws = jax.vmap(lambda key: augment.draw_simple(key, p, shape[:2], 1 / 8, 1 / 2))(keys)
        return draws, augment.policy("diffaugment")(keys, images, p)

    draws, seen = jax.device_get(both(keys, images, p))
    each = [jax.tree.map(lambda x, i=i: x[i], draws) for i in range(32)]
    expected = [simple_reference(image, d) for image, d in zip(images, each, strict=True)]
    assert 10 < np.sum(draws.on) < 32
    np.testing.assert_array_equal(seen[~draws.on], images[~draws.on])
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_draws_of_diffaugment():
    n, shape = 4000, (16, 10)
    draws = quick(jax.vmap(lambda key: augment.draw_simple(key, 0.3, shape, 1 / 8, 1 / 2)))(keys_of(n))
    assert close_to(np.mean(draws.on), 0.3, n)
    for name, low, width in (("brightness", -0.5, 1), ("saturation", 0, 2), ("contrast", 0.5, 1)):
        assert scipy.stats.kstest(getattr(draws, name), "uniform", (low, width)).pvalue > 1e-3
    # 16 / 8 = 2, 10 / 8 rounds to 1. Squares of 8 begin at -4 to 12, those of 5, which is odd, at -2 to 7.
    for values, first, last in (
        (draws.shift[:, 0], -2, 2),
        (draws.shift[:, 1], -1, 1),
        (draws.corner[:, 0], -4, 12),
        (draws.corner[:, 1], -2, 7),
    ):
        found, counts = np.unique(values, return_counts=True)
        np.testing.assert_array_equal(found, np.arange(first, last + 1))
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_parts_of_diffaugment():
    keys, images = keys_of(8), random_images(8, (8, 8, 3))
    seen = quick(lambda *inputs: {name: augment.policy(name)(*inputs, 1.0) for name in augment.DIFFAUGMENT})(
        keys, images
    )
    assert (seen["cutout"] == 0).any() and ((seen["cutout"] == 0) | (seen["cutout"] == images)).all()
    # Each pixel that is left was in the image; differences of colours survive brightness, and ratios the rest.
    assert np.isin(seen["translation"], np.append(images, 0)).all() and (seen["translation"] == 0).any()
    contrast = (seen["color"][..., :1] - seen["color"][..., 1:]) / (images[..., :1] - images[..., 1:])
    np.testing.assert_allclose(contrast, np.broadcast_to(contrast[:, :1, :1, :1], contrast.shape), rtol=1e-2)


# --- ADA


def matrices(d, h, w):
    """G^-1 of the pipeline (arXiv:2006.06676, algorithm 1): the inverses of its steps, multiplied in their order."""

    def move(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])

    def turn(a):
        return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])

    steps = [
        np.diag([1 - 2 * d.flip, 1, 1]),
        turn(-np.pi / 2 * d.quarters),
        move(np.round(d.shift[0] * w), np.round(d.shift[1] * h)),
        np.diag([d.scale, d.scale, 1]),
        turn(-d.before),
        np.diag([d.aniso, 1 / d.aniso, 1]),
        turn(-d.after),
        move(d.move[0] * w, d.move[1] * h),
    ]
    return functools.reduce(np.matmul, [np.linalg.inv(step) for step in steps])


def color_matrix(d):
    v = np.array([1, 1, 1, 0]) / np.sqrt(3)
    luma, color = np.outer(v, v), np.eye(4)
    color[:3, 3] = d.brightness
    color = np.diag([d.contrast, d.contrast, d.contrast, 1]) @ color
    color = (np.eye(4) - 2 * luma * d.lumaflip) @ color
    cross = np.array([[0, -1, 1, 0], [1, 0, -1, 0], [-1, 1, 0, 0], [0, 0, 0, 0]]) / np.sqrt(3)
    rotation = np.eye(4) + np.sin(d.hue) * cross + (1 - np.cos(d.hue)) * cross @ cross  # Rodrigues
    return (luma + (np.eye(4) - luma) * d.saturation) @ rotation @ color


def filtered(image, gains):
    """By FFT along the reflection of each axis; the octaves' responses are those of tests/test_warp.py."""
    total = np.ones(4)
    for i, gain in enumerate(gains):
        now = np.where(np.arange(4) == i, gain, 1.0)
        total *= now / np.sqrt(np.array([10, 1, 1, 1]) / 13 @ now**2)

    def low(w):
        return np.cos(w / 2) ** 4 * (1 + 2 * np.sin(w / 2) ** 2)

    for axis in (0, 1):
        n = image.shape[axis]
        w = 2 * np.pi * np.fft.fftfreq(2 * n - 2)
        octaves = [low(w) * low(2 * w) * x for x in (low(4 * w), 1 - low(4 * w))]
        response = total @ [*octaves, low(w) * (1 - low(2 * w)), 1 - low(w)]
        whole = np.take(image, np.r_[0:n, n - 2 : 0 : -1], axis)
        shape = [-1 if i == axis else 1 for i in range(3)]
        spectrum = np.fft.fft(whole, axis=axis) * response.reshape(shape)
        image = np.take(np.fft.ifft(spectrum, axis=axis).real, np.arange(n), axis)
    return image


def reference(image, d):
    h, w, c = image.shape
    inverse = matrices(d, h, w)
    x = warp_reference(image, inverse[:2, :2], inverse[:2, 2])
    x = x @ color_matrix(d)[:3, :3].T + color_matrix(d)[:3, 3]
    x = filtered(x, d.bands)
    x = x + d.noise * np.asarray(jax.random.normal(d.noise_key, (h, w, c)))
    y, z = np.mgrid[:h, :w] + 0.5
    inside = (np.abs(z / w - d.centre[0]) < d.cutout / 2) & (np.abs(y / h - d.centre[1]) < d.cutout / 2)
    return np.where(inside[..., None], 0, x)


ONE = {"scale": 1.0, "aniso": 1.0, "contrast": 1.0, "saturation": 1.0, "bands": np.ones(4)}
TWO = {"shift": np.zeros(2), "move": np.zeros(2), "centre": np.array([0.3, 0.8])}
CASES = [
    {"flip": 1.0},
    {"quarters": 1.0},
    {"quarters": 2.0},
    {"quarters": 3.0},
    {"shift": np.array([0.1, -0.12])},
    {"scale": 1.3},
    {"scale": 0.8},
    {"before": 0.7},
    {"aniso": 1.2},
    {"after": -2.0},
    {"move": np.array([0.05, -0.11])},
    {"brightness": -0.3},
    {"contrast": 1.5},
    {"lumaflip": 1.0},
    {"hue": 2.0},
    {"saturation": 2.5},
    {"bands": np.array([1.5, 0.6, 1.0, 3.0])},
    {"noise": 0.2},
    {"cutout": 0.5},
]
# All at once, and the geometric ones in an order that matters.
CASES += [dict(pair for case in CASES for pair in case.items())]


def draws_of(case, i):
    neutral = dict.fromkeys(Draws._fields, 0.0) | ONE | TWO | {"noise_key": jax.random.key(i)}
    return Draws(**neutral | case)


def test_every_transformation_of_ada():
    each = [draws_of(case, i) for i, case in enumerate(CASES)]
    images = random_images(len(each), (9, 12, 3))
    stacked = Draws(*(jnp.stack([jnp.asarray(x) for x in field]) for field in zip(*each, strict=True)))
    seen = quick(functools.partial(augment.transform, strengths=ALL))(images, stacked)
    for case, image, draws, got in zip(CASES, images, each, seen, strict=True):
        expected = reference(image, draws)
        assert np.abs(expected - image).max() > 0.1, case
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=str(case))


def test_grey_images_keep_what_the_colour_matrix_does_to_greys():
    """A grey image is one whose channels are equal: hue and saturation leave it."""
    image = random_images(1, (4, 5, 1))[0]
    draws = draws_of({"brightness": 0.2, "contrast": 0.7, "lumaflip": 1.0, "hue": 1.0, "saturation": 3.0}, 0)
    matrix = color_matrix(draws)
    expected = np.repeat(image, 3, -1) @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(augment.recolor(jnp.array(image), draws), expected[..., :1], atol=1e-6)
    only = draws_of({"hue": 1.0, "saturation": 3.0}, 0)
    np.testing.assert_allclose(augment.recolor(jnp.array(image), only), image, atol=1e-6)


def test_draws_of_ada():
    """Shares within four deviations, values by Kolmogorov and Smirnov, and no two coins that know of each other."""
    n, p = 4000, 0.6
    strengths = augment.ADA["r3gan"]._replace(imgfilter=0.5, noise=0.25)
    draws = quick(jax.vmap(lambda key: augment.draw(key, p, strengths)))(keys_of(n))
    draws = {name: np.float64(x) for name, x in draws._asdict().items() if name != "noise_key"}
    each = 1 - np.sqrt(1 - p)
    uniform, normal, half = scipy.stats.uniform(-1, 2).cdf, scipy.stats.norm.cdf, scipy.stats.halfnorm.cdf
    # field: probability that it is not neutral, and what of it has which distribution
    table = {
        "flip": (p / 2, None, None),
        "quarters": (p * 3 / 4, None, None),
        "shift": (p, lambda x: 8 * x[:, 0], uniform),
        "scale": (p, lambda x: np.log2(x) / 0.2, normal),
        "before": (each, lambda x: x / np.pi, uniform),
        "aniso": (p, lambda x: np.log2(x) / 0.2, normal),
        "after": (each, lambda x: x / np.pi, uniform),
        "move": (p, lambda x: 8 * x[:, 1], normal),
        "brightness": (p / 2, lambda x: x / 0.2, normal),
        "contrast": (p / 2, lambda x: np.log2(x) / 0.5, normal),
        "lumaflip": (p / 4, None, None),
        "hue": (p / 2, lambda x: x / np.pi, uniform),
        "saturation": (p / 2, np.log2, normal),
        "noise": (p / 4, lambda x: x / 0.1, half),
        "cutout": (p, None, None),
    }
    coins = {}
    for name, (probability, measure, cdf) in table.items():
        values = draws[name].reshape(n, -1)
        on = coins[name] = (values != np.broadcast_to(ONE.get(name, 0.0), values.shape)).all(1)
        assert close_to(on.mean(), probability, n), name
        if measure:
            assert scipy.stats.kstest(measure(draws[name][on]), cdf).pvalue > 1e-3, name
    for i in range(4):
        band = draws["bands"][:, i]
        coins[f"band {i}"] = band != 1
        assert close_to((band != 1).mean(), p / 2, n)
        assert scipy.stats.kstest(np.log2(band[band != 1]), normal).pvalue > 1e-3
    assert close_to(np.mean(coins["before"] | coins["after"]), p, n)
    np.testing.assert_allclose(np.bincount(draws["quarters"].astype(int))[1:] / n, p / 4, atol=0.03)
    assert scipy.stats.kstest(draws["centre"].ravel(), "uniform").pvalue > 1e-3
    correlation = np.corrcoef([*coins.values()]) - np.eye(len(coins))
    assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_ada_is_a_function_of_each_images_key_and_of_p():
    keys, images = keys_of(6), random_images(6, (8, 10, 3))
    apply = quick(augment.ada(ALL))
    np.testing.assert_array_equal(apply(keys, images, 0.0), images)
    seen = apply(keys, images, 1.0)
    assert np.abs(seen - images).max((1, 2, 3)).min() > 0.1
    order = np.array([3, 1, 5, 0, 4, 2])
    np.testing.assert_allclose(apply(keys[order], images[order], 1.0), seen[order], atol=1e-6)
    some = apply(keys, images, 0.05)
    untouched = (some == images).all((1, 2, 3))
    assert untouched.any()


# --- gradients


@pytest.mark.parametrize("name", ["diffaugment", "bgcfnc"])
def test_first_and_second_derivatives(name):
    """Of a critic behind the augmentation with respect to the image, and of R1 with respect to the critic."""
    keys, shape = keys_of(4), (6, 7, 3)
    images, direction, weights, other = random_images(16, shape).reshape(4, 4, *shape)
    apply = augment.policy(name)

    @quick
    def program(step):
        def critic(weights, images):
            return jnp.sum(jnp.tanh(jnp.sum(weights * apply(keys, images, 1.0), (1, 2, 3))))

        def r1(weights):
            return jnp.sum(jnp.square(jax.grad(critic, 1)(weights, images)))

        # The three points of a central difference share one compiled critic.
        def at(t):
            grads = jax.grad(critic, 1)(weights, images)
            value, slope = jax.value_and_grad(r1)(weights + t * other)
            return critic(weights, images + t * direction), jnp.vdot(grads, direction), value, jnp.vdot(slope, other)

        return jax.lax.map(at, jnp.array([-step, 0.0, step]))

    step = 0.003
    value, slope, penalty, bend = (np.float64(x) for x in program(step))
    assert (value[2] - value[0]) / (2 * step) == pytest.approx(slope[1], rel=2e-3, abs=2e-3)
    assert (penalty[2] - penalty[0]) / (2 * step) == pytest.approx(bend[1], rel=5e-3, abs=5e-3)
    assert abs(slope[1]) > 0.01 and abs(bend[1]) > 0.01 and np.isfinite(bend).all()


# --- how often


def adapted(adaptive, p, *passes, images=64):
    """p after passes with these real logits, and after each of them."""
    signs, history = augment.Signs.none(), []
    for real_logits in passes:
        p, signs = augment.adapt(adaptive, jnp.float32(p), signs, jnp.array(real_logits), images)
        history.append(float(p))
    return history


def test_adaptation_follows_the_mean_sign_of_four_batches():
    adaptive, half, one = Adaptive(target=0.6, images=1000), [3.0, 0.1, -2, 5], [1.0, 2, 3, 4]
    # Three means of 0.5, below the target, and one of 1: 0.625 together. Then 0.5 alone; a logit of 0 has no sign.
    history = adapted(adaptive, 0.3, half, half, half, one, half, half, [0.0, 1, 1, -1], half)
    np.testing.assert_allclose(history, [0.3] * 3 + [0.556] * 4 + [0.3], atol=1e-6)
    assert adapted(Adaptive(0.5), 0.3, *[[1.0, 1, 1, -1]] * 4)[-1] == pytest.approx(0.3)  # r_t is its target


def test_adaptation_is_clipped_at_0_and_not_at_1():
    adaptive = Adaptive(0.6, 1000)
    assert adapted(adaptive, 0.1, *[[-1.0]] * 4)[-1] == 0
    assert adapted(adaptive, 0.99, *[[1.0]] * 8)[-1] == pytest.approx(0.99 + 2 * 0.256)


def test_signs_of_a_lazy_penalty_count():
    """As in the authors' code, whose real batch is scored again for R1; it is no pass of its own."""
    signs = augment.Signs.none().with_logits(jnp.array([-1.0, -1, -1]))
    p, signs = augment.adapt(Adaptive(0.6, 1000, interval=2), jnp.float32(0.5), signs, jnp.ones(3), 64)
    assert (float(p), *map(float, signs)) == (0.5, 0, 6, 1)
    p, signs = augment.adapt(Adaptive(0.6, 1000, interval=2), p, signs, jnp.ones(3), 64)
    assert float(p) == pytest.approx(0.5 - 0.128) and float(sum(signs)) == 0  # 3 of 9


def test_adaptation_looks_at_all_devices():
    """Signs of mean 1 and 0 on two devices: each alone would move p its own way."""
    logits = jnp.array([[1.0, 2], [3.0, -4]])

    def step(logits):
        return augment.adapt(Adaptive(0.6, 1000, interval=1), jnp.float32(0.3), augment.Signs.none(), logits, 100)[0]

    moved = jax.block_until_ready(jax.pmap(step, axis_name=collectives.AXIS)(logits))
    np.testing.assert_allclose(moved, [0.2, 0.2], atol=1e-6)


# --- names


def test_names():
    on = {name for name, strength in augment.ADA["bgc"]._asdict().items() if strength == 1}
    assert on == set(Strengths._fields) - {"imgfilter", "noise", "cutout"} and augment.ADA["ada"] == augment.ADA["bgc"]
    assert set(ALL) == {1} and len(ALL) == 15
    # The training configuration of R3GAN.
    half = dict.fromkeys(("brightness", "contrast", "lumaflip", "hue", "saturation"), 0.5)
    assert augment.ADA["r3gan"] == ALL._replace(imgfilter=0, noise=0, **half)
    for name in augment.POLICIES:
        shape = jax.eval_shape(augment.policy(name), keys_of(2), jnp.zeros((2, 5, 9, 1)), 0.5)
        assert shape.shape == (2, 5, 9, 1) and shape.dtype == jnp.float32


def test_what_is_not_there_is_named():
    with pytest.raises(InputError, match="unknown augmentation 'cutuot'; did you mean 'cutout'"):
        augment.policy("color,cutuot")
    with pytest.raises(InputError, match="1, 3 or 4 channels, not 2; nearest without colours: 'bg'"):
        augment.policy("ada", channels=2)
    with pytest.raises(InputError, match="not 5"):
        jax.eval_shape(augment.ada(Strengths(hue=1)), keys_of(1), jnp.zeros((1, 4, 4, 5)), 1.0)
    for name in ("bg", "diffaugment"):
        jax.eval_shape(augment.policy(name, channels=5), keys_of(1), jnp.zeros((1, 4, 4, 5)), 1.0)


@pytest.mark.parametrize("name", ["color", "ada", "r3gan"])
def test_colors_of_rgba_change_as_those_of_rgb_and_alpha_does_not(name):
    images, keys = random_images(8, (6, 6, 4)), keys_of(8)
    only = augment.policy("color") if name == "color" else augment.ada(Strengths(**augment.COLOR))
    found = quick(only)(keys, images, 1.0)
    np.testing.assert_array_equal(found[..., 3], images[..., 3])
    np.testing.assert_allclose(found[..., :3], quick(only)(keys, images[..., :3], 1.0), atol=1e-6)
    assert np.abs(found[..., :3] - images[..., :3]).max() > 0.3
    shape = jax.eval_shape(augment.policy(name, channels=4), keys, images, 1.0).shape
    assert shape == images.shape
