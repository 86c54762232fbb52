"""R3GAN against its paper's sizes and against itself written out in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan.errors import InputError
from jaxgan.models.r3gan import Discriminator, Generator, stages

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CLASSES = 3
SHAPE = (9, 20, 2)  # a base of 5 x 10; the upper stage is larger than 16 pixels and has half the channels


def count(module, *inputs):
    variables = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


# Millions of parameters as published (G, D); channels of the stages, channels a group.
PUBLISHED = [
    ("cifar10", 32, 10, "20.8", "21.3", (768,) * 4, 16),
    ("ffhq64", 64, 0, "22.4", "22.4", (768,) * 4 + (384,), 16),
    ("imagenet32", 32, 1000, "82.9", "86.5", (1536,) * 4, 32),
    ("imagenet64", 64, 1000, "103.6", "107.2", (1536,) * 5, 32),
    ("ffhq256", 256, 0, None, None, (768,) * 4 + (384, 192, 96), 16),
]


@pytest.mark.parametrize("variant, size, classes, g, d, widths, group", PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_parameters_are_as_many_as_published(variant, size, classes, g, d, widths, group):
    shape = (size, size, 3)
    plan = stages(shape, variant)
    assert tuple(s.channels for s in plan) == widths and plan[0].size == (4, 4) and plan[-1].size == (size, size)
    assert [s.groups for s in plan] == [2 * w // group for w in widths]
    if g is None:
        return
    body = sum(2 * (2 * 2 * w * w + 9 * 2 * w * group + 2 * 2 * w) for w in widths)
    body += sum(a * b for a, b in itertools.pairwise(widths) if a != b) + 16 * widths[0] + 3 * widths[-1]
    w, embedding = widths[0], 64 if classes else 0
    generator = body + (64 + embedding) * w + classes * 64
    discriminator = body + (w * w + classes * w if classes else w)
    label = jnp.zeros(1, jnp.int32) if classes else None
    gen, disc = Generator(shape, classes, variant=variant), Discriminator(shape, classes, variant=variant)
    assert count(gen, jnp.zeros((1, 64)), label) == generator
    assert count(disc, jnp.zeros((1, *shape)), label) == discriminator
    assert f"{generator / 1e6:.1f}" == g and f"{discriminator / 1e6:.1f}" == d


def test_stages_of_any_image():
    def sizes(h, w):
        return [s.size for s in stages((h, w, 1), "small")]

    assert sizes(28, 28) == [(7, 7), (14, 14), (28, 28)] and sizes(8, 8) == [(4, 4), (8, 8)]
    assert sizes(9, 14) == [(5, 7), (9, 14)] and sizes(5, 40) == [(5, 40)]
    assert all(4 <= min(sizes(h, w)[0]) <= 7 for h in range(4, 200, 7) for w in range(4, 200, 11))
    assert [(s.channels, s.groups) for s in stages((64, 64, 3), "cifar10", 96)] == [(96, 12)] * 4 + [(48, 6)]
    # 2 * 25 channels are no multiple of 16: groups of 10.
    assert [(s.channels, s.groups) for s in stages((32, 32, 3), "cifar10", 25)] == [(25, 5)] * 4
    # bfloat16 at the three highest resolutions, four from 64x64 on; never at the base.
    for size, wide in ((8, 1), (28, 1), (32, 1), (64, 1), (256, 3)):
        half = [s.dtype == jnp.bfloat16 for s in stages((size, size, 3), "small", dtype=jnp.bfloat16)]
        assert half == [False] * wide + [True] * (len(half) - wide)
    with pytest.raises(InputError, match="'cifar'; did you mean 'cifar10'"):
        stages(SHAPE, "cifar")
    with pytest.raises(InputError, match="--width=-4"):
        stages(SHAPE, "small", -4)


# --- the networks in NumPy, from their parameters


def phi(x):
    return np.where(x > 0, x, 0.2 * x)


def block(p, x, groups):
    y = phi(x @ p["Conv_0"]["kernel"][0, 0] + p["Conv_0"]["bias"])
    w, (_, height, width, c) = p["GroupedConv_0"]["kernel"], y.shape
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    z = np.zeros(y.shape)
    for part in np.split(np.arange(c), groups):
        for u in range(3):
            for v in range(3):
                z[..., part] += padded[:, u : u + height, v : v + width, part] @ w[u, v][:, part]
    return x + phi(z + p["GroupedConv_0"]["bias"]) @ p["Conv_1"]["kernel"][0, 0]


def filter_matrix(n):
    """(n, ceil(n / 2)): one axis of the upsampling to n pixels; half its transpose halves them."""
    m = np.zeros((n, -(-n // 2)))
    for i in range(m.shape[1]):
        for j, tap in enumerate((1, 3, 3, 1)):
            if 0 <= 2 * i + j - 1 < n:
                m[2 * i + j - 1, i] = tap / 4
    return m


def generator(p, z, label):
    base, upper = stages(SHAPE, "small", 16)
    z = np.concatenate([z, p["Dense_0"]["kernel"][label]], -1)
    x = p["basis"] * (z @ p["Dense_1"]["kernel"])[:, None, None]
    x = block(p["Block_1"], block(p["Block_0"], x, base.groups), base.groups)
    x = x @ p["Conv_0"]["kernel"][0, 0]
    x = np.einsum("ih,jw,bhwc->bijc", filter_matrix(SHAPE[0]), filter_matrix(SHAPE[1]), x)
    x = block(p["Block_3"], block(p["Block_2"], x, upper.groups), upper.groups)
    return x @ p["Conv_1"]["kernel"][0, 0]


def discriminator(p, x, label):
    base, upper = stages(SHAPE, "small", 16)
    x = x @ p["Conv_0"]["kernel"][0, 0]
    x = block(p["Block_1"], block(p["Block_0"], x, upper.groups), upper.groups)
    x = np.einsum("ih,jw,bijc->bhwc", filter_matrix(SHAPE[0]), filter_matrix(SHAPE[1]), x) / 4
    x = x @ p["Conv_1"]["kernel"][0, 0]
    x = block(p["Block_3"], block(p["Block_2"], x, base.groups), base.groups)
    x = (x * p["basis"]).sum((1, 2)) @ p["Dense_0"]["kernel"]
    return (x * p["Dense_1"]["kernel"][label]).sum(-1)


def networks(dtype=jnp.float32, classes=CLASSES):
    options = {"width": 16, "dtype": dtype}
    return Generator(SHAPE, classes, 5, **options), Discriminator(SHAPE, classes, **options)


def test_the_networks_are_their_formulas():
    gen, disc = networks()
    random = np.random.default_rng(0)
    z, x = random.normal(size=(2, 5)).astype(np.float32), random.normal(size=(2, *SHAPE)).astype(np.float32)
    label = np.array([2, 0])

    @quick
    def both(z, x, label):
        key = jax.random.key(0)
        params = gen.init(key, z, label)["params"], disc.init(key, x, label)["params"]
        # Away from the start, where W3 and the biases are zero.
        params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
        return params, [
            gen.apply({"params": params[0]}, z, label, train=True),
            disc.apply({"params": params[1]}, x, label, train=True),
            gen.apply({"params": params[0]}, z, label),
        ]

    params, (images, logits, samples) = both(z, x, label)
    g, d = jax.tree.map(np.float64, params)
    assert np.abs(images).max() > 1 and (samples == np.clip(images, -1, 1)).all()
    for result, expected in ((images, generator(g, z, label)), (logits, discriminator(d, x, label))):
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())


def test_second_derivatives_are_the_differences_of_first_ones():
    """R1's gradient along one direction, in float64: steps so small that no unit changes its sign."""
    with jax.enable_x64(True):
        disc = Discriminator((4, 5, 1), width=16, dtype=jnp.float64)
        x = np.random.default_rng(0).normal(size=(2, 4, 5, 1))
        params, direction = (
            jax.tree_util.tree_map_with_path(
                lambda path, p, i=i: 0.3 * np.random.default_rng([i, *map(ord, str(path))]).normal(size=p.shape),
                jax.eval_shape(disc.init, jax.random.key(0), x)["params"],
            )
            for i in range(2)
        )

        @quick
        @jax.value_and_grad
        def r1(step):
            moved = jax.tree.map(lambda p, v: p + step * v, params, direction)
            return jnp.sum(jnp.square(jax.grad(lambda x: jnp.sum(disc.apply({"params": moved}, x)))(x)))

        (value, slope), (ahead, _), (behind, _) = r1(0.0), r1(1e-6), r1(-1e-6)
        assert slope.dtype == np.float64 and value > 0.1
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6)


def test_initial_weights():
    """Standard deviations of the authors' code; biases and the last convolution of each block start at zero."""
    shape, classes, width, latent = (8, 8, 3), 20, 48, 40
    options = {"width": width, "variant": "cifar10"}
    gen, disc = Generator(shape, classes, latent, **options), Discriminator(shape, classes, **options)
    label = jnp.zeros(1, jnp.int32)

    @quick
    def both(key):
        a, b = jax.random.split(key)
        return gen.init(a, jnp.zeros((1, latent)), label), disc.init(b, jnp.zeros((1, *shape)), label)

    gain = np.sqrt(2 / 1.04) * 4**-0.25  # four blocks
    plain = {
        ("gen", "Dense_0"): classes**-0.5,
        ("gen", "Dense_1"): (2 * latent) ** -0.5,
        ("gen", "Conv_0"): width**-0.5,
        ("gen", "basis"): 1,
        ("disc", "Conv_0"): 3**-0.5,
        ("disc", "basis"): 1 / 4,
        ("disc", "Dense_0"): width**-0.5,
        ("disc", "Dense_1"): (width * classes) ** -0.5,
    }
    inner = {"Conv_0": gain * width**-0.5, "GroupedConv_0": gain * (9 * 16) ** -0.5, "Conv_1": 0}
    seen = set()
    for network, variables in zip(("gen", "disc"), both(jax.random.key(0)), strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
            names = [entry.key for entry in path]
            if names[-1] == "bias":
                expected = 0
            else:
                expected = inner[names[1]] if names[0].startswith("Block") else plain[network, names[0]]
                seen.add((network, *[n.split("_")[0] if n.startswith("Block") else n for n in names]))
            values = np.float64(leaf).ravel()
            assert (
                np.abs(values).max() == 0 if expected == 0 else abs(values.std() / expected - 1) < 4 / values.size**0.5
            )
    assert len(seen) == len(plain) + 2 * len(inner)
