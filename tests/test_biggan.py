"""BigGAN, BigGAN-deep and SAGAN: the papers' counts of parameters, all blocks against NumPy, what hangs on them."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import adversarial, orthogonal
from jaxgan.errors import InputError
from jaxgan.layers import Conv
from jaxgan.layers.conv import plain
from jaxgan.layers.norm import around_one
from jaxgan.models import biggan, resnet

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def counts(model, size, num_classes, networks=("Generator", "Discriminator"), **options):
    """Parameters of the networks."""
    shape, label, found = (size, size, 3), jnp.zeros(1, jnp.int32), []
    for name in networks:
        network = getattr(model, name)(shape, num_classes, **options)
        x = jnp.zeros((1, network.latent) if name == "Generator" else (1, *shape))
        with plain():  # the same shapes, traced sooner
            variables = jax.eval_shape(network.init, jax.random.key(0), x, label)
        found.append(sum(leaf.size for leaf in jax.tree.leaves(variables["params"])))
    return found


def normal(module, *inputs):
    """Variables whose parameters are drawn at random and all else is 1: to compile no initialisers."""
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    drawn = lambda leaf: np.float32(rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])))  # noqa: E731
    rest = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables)
    return rest | {"params": jax.tree.map(drawn, variables["params"])}


def test_biggan_has_the_parameters_of_the_paper():
    """arXiv:1809.11096: 70.4 and 88.0 million at 128 (appendix B), 158.3 together but for the embedding (table 1)."""
    gen, disc = counts(biggan, 128, 1000)
    assert (gen, disc) == (70_433_988, 87_982_370)
    assert round((gen + disc - 1000 * 128) / 1e6, 1) == 158.3


def test_biggan_256_and_512():
    """Published counts, of discriminators without a shortcut in blocks that only halve the image."""
    pointwise = lambda *widths: sum(w * w + w for w in widths)  # noqa: E731
    assert counts(biggan, 256, 1000) == [82_097_604, 98_635_298 + pointwise(768)]
    assert counts(biggan, 512, 1000) == [82_468_068, 98_801_378 + pointwise(96, 768)]


def test_biggan_deep_has_the_parameters_of_the_paper():
    """50.4 and 34.6 million at 128 (appendix B), if the last convolution has 128 outputs of which 3 are the image."""
    gen, disc = counts(biggan, 128, 1000, variant="deep")
    assert (gen, disc) == (50_244_484, 34_590_210)
    unused = 125 * (9 * 128 + 1)
    assert round((gen + unused) / 1e6, 1) == 50.4
    for size, millions in ((256, 55.9), (512, 56.2)):
        (gen,) = counts(biggan, size, 1000, ("Generator",), variant="deep")
        assert round((gen + unused) / 1e6, 1) == millions


def attention(c):
    """Parameters of four 1x1 convolutions without biases, of c / 8, c / 8, c / 2 and c channels, and a gain."""
    return c * c // 4 + c * c + 1


def test_sagan_has_the_parameters_of_the_paper():
    """81.5 million (arXiv:1809.11096, table 1), with self-attention at 64x64 there."""
    gen, disc = counts(resnet, 128, 1000, variant="sagan")
    gen += attention(2 * 64) - attention(4 * 64)
    disc += attention(64) - attention(2 * 64)
    assert (gen, disc) == (42_017_412, 39_448_258)
    assert round((gen + disc) / 1e6, 1) == 81.5


def block(c, d, shortcut=True, hidden=None):
    """Parameters of two 3x3 convolutions and a 1x1 shortcut."""
    hidden = hidden or d
    return 9 * (c * hidden + hidden * d) + hidden + d + shortcut * (c * d + d)


@pytest.mark.parametrize("size, expected", [(32, (4_386_308, 1_075_586)), (64, (32_200_452, 19_558_082))])
def test_sagan_at_smaller_sizes_has_the_blocks_of_its_authors_code(size, expected):
    """Blocks whose first convolution has the output's channels, in both players, and one self-attention in each."""
    ups = [4, 4, 4, 4] if size == 32 else [16, 16, 8, 4, 2]
    downs = [2, 2, 2, 2] if size == 32 else [1, 2, 4, 8, 16]
    ups, downs = ([64 * n for n in widths] for widths in (ups, downs))
    at_up, at_down = (256, 128) if size == 32 else (256, 64)
    gen = 129 * 16 * ups[0] + sum(block(c, d) + 2 * 10 * (c + d) for c, d in itertools.pairwise(ups))
    gen += 2 * ups[-1] + 9 * ups[-1] * 3 + 3 + attention(at_up)
    disc = block(3, downs[0]) + attention(at_down) + 11 * downs[-1] + 1
    for i, (c, d) in enumerate(itertools.pairwise(downs)):
        disc += block(c, d, c != d or i == 0)
    assert (gen, disc) == expected
    assert counts(resnet, size, 10, variant="sagan") == [gen, disc]


@pytest.mark.parametrize("size, expected", [(32, (9_358_595, 9_836_929)), (64, (70_222_212, 45_511_970))])
def test_biggan_at_smaller_sizes_has_the_parameters_of_its_authors_pytorch_code(size, expected):
    """Its `arch` of that resolution: all of G's norms but the last linear in 128 and a fifth or a quarter of z."""
    ups = [4, 4, 4, 4] if size == 32 else [16, 16, 8, 4, 2]
    downs = [4, 4, 4, 4] if size == 32 else [1, 2, 4, 8, 16]
    ups, downs = ([96 * n for n in widths] for widths in (ups, downs))
    gen = 1000 * 128 + 21 * 16 * ups[0]
    gen += sum(block(c, d) + 2 * 148 * (c + d) for c, d in itertools.pairwise(ups))
    gen += 2 * ups[-1] + 9 * ups[-1] * 3 + 3
    disc = block(3, downs[0]) + 1001 * downs[-1] + 1
    for i, (c, d) in enumerate(itertools.pairwise(downs)):
        disc += block(c, d, c != d or i == 0)
    if size == 64:
        gen, disc = gen + attention(384), disc + attention(96)
    assert (gen, disc) == expected
    assert counts(biggan, size, 1000) == [gen, disc]


def test_biggan_for_cifar_has_its_authors_parameters():
    """256 channels in both; gains and biases of ten classes; a latent of 128 in one piece."""
    gen = 128 * 4096 + 4096 + 3 * block(256, 256, True) + 10 * 12 * 256 + 2 * 256 + 9 * 256 * 3 + 3
    disc = block(3, 256, True) + block(256, 256, True) + 2 * block(256, 256, False) + 256 + 1 + 10 * 256
    assert counts(biggan, 32, 10, variant="cifar") == [gen, disc]


def conv(x, p):
    """(b, h, w, c) -> (b, h, w, d) in float64, kernel 1 or 3."""
    w = np.float64(p["kernel"])
    k, (_, height, width, _) = w.shape[0], x.shape
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    taps = (x[:, u : u + height, v : v + width] @ w[u, v] for u in range(k) for v in range(k))
    return sum(taps) + np.float64(p["bias"])


def relu(x):
    return np.maximum(x, 0)


def twice(x):
    return x.repeat(2, 1).repeat(2, 2)


def half(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def wide_up(x, p):
    y = conv(twice(relu(x)), p[1])
    return conv(relu(y), p[2]) + conv(twice(x), p[0])


def wide_down(x, p):
    y = half(conv(relu(conv(relu(x), p[0])), p[1]))
    return y + half(conv(x, p[2]))


def wide_first(x, p):
    return half(conv(relu(conv(x, p[0])), p[1])) + half(conv(x, p[2]))


def wide_last(x, p):
    return conv(relu(conv(relu(x), p[0])), p[1]) + x


def deep_up(x, p):
    y = x + conv(relu(conv(relu(conv(relu(conv(relu(x), p[0])), p[1])), p[2])), p[3])
    z = conv(relu(conv(relu(conv(twice(relu(conv(relu(y), p[4]))), p[5])), p[6])), p[7])
    return z + twice(y[..., : z.shape[-1]])


def deep_down(x, p):
    y = conv(half(relu(conv(relu(conv(relu(conv(relu(x), p[0])), p[1])), p[2]))), p[3])
    y = y + np.concatenate([half(x), conv(half(x), p[4])], -1)
    return y + conv(relu(conv(relu(conv(relu(conv(relu(y), p[5])), p[6])), p[7])), p[8])


# {name: (stage of the module, its further arguments, features of 8, formula)}
STAGES = {
    "up": (biggan.wide_up, (nn.relu,), 4, wide_up),
    "down": (biggan.wide_down, (True, False), 12, wide_down),
    "first": (biggan.wide_down, (True, True), 12, wide_first),
    "last": (biggan.wide_down, (False, False), 8, wide_last),
    "deep up": (biggan.deep_up, (nn.relu,), 4, deep_up),
    "deep down": (biggan.deep_down, (True, False), 12, deep_down),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_against_their_formulas(name):
    """The figures 15 and 16, with ReLU alone in the place of batch norm and ReLU."""
    stage, arguments, features, formula = STAGES[name]

    class Stage(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = lambda x, features, kernel=3, **way: Conv(features, kernel, **way)(x)  # noqa: E731
            return stage(x, features, layer, *arguments)

    x = np.random.default_rng(0).normal(size=(2, 4, 6, 8))

    with plain():
        params = normal(Stage(), x)["params"]
        y = quick(Stage().apply)({"params": params}, jnp.float32(x))
    wanted = formula(x, [params[f"Conv_{i}"] for i in range(len(params))])
    assert y.shape == wanted.shape
    np.testing.assert_allclose(y, wanted, atol=2e-5)


def test_parts():
    """BigGAN: a chunk of 20 for the first layer, the shared embedding and the next chunk for each block. Deep: all."""
    rng = np.random.default_rng(0)
    z, embedded = np.float32(rng.normal(size=(3, 120))), np.float32(rng.normal(size=(3, 128)))
    first, rest = biggan.parts(z, embedded, 5, True)
    np.testing.assert_array_equal(first, z[:, :20])
    assert len(rest) == 5
    for i, condition in enumerate(rest):
        np.testing.assert_array_equal(condition, np.concatenate([embedded, z[:, 20 * (i + 1) : 20 * (i + 2)]], 1))
    first, rest = biggan.parts(z, None, 5, True)
    np.testing.assert_array_equal(np.concatenate([first, *rest], 1), z)
    first, rest = biggan.parts(z, embedded, 5, False)
    assert all(c is first for c in rest) and len(rest) == 5
    np.testing.assert_array_equal(first, np.concatenate([embedded, z], 1))
    # A latent that cannot be divided evenly loses nothing.
    first, rest = biggan.parts(z[:, :11], None, 5, True)
    assert [c.shape[1] for c in (first, *rest)] == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("shape, base, doublings", [((8, 8, 1), (4, 4), 1), ((28, 28, 1), (7, 7), 2)])
def test_small_images(shape, base, doublings):
    found, stages = biggan.plan("biggan", shape)
    assert found == base and len(stages.up) == doublings
    assert biggan.Generator(shape).latent == 20 * (doublings + 1)


def test_sizes():
    assert biggan.plan("deep", (48, 64, 3)) == ((6, 8), biggan.PLANS["deep"][32])
    assert biggan.plan("biggan", (512, 512, 3)) == ((4, 4), biggan.PLANS["biggan"][512])
    assert [biggan.Generator((s, s, 3)).latent for s in (128, 256, 512)] == [120, 140, 160]  # appendix B
    with pytest.raises(InputError, match="36x36; nearest: --size=32 "):
        biggan.Generator((36, 36, 3))
    with pytest.raises(InputError, match="cifar has no plan for images of 64x64; nearest: --size=56 "):
        biggan.Discriminator((64, 64, 3), variant="cifar")
    with pytest.raises(InputError, match="'big'; did you mean 'biggan'"):
        biggan.Generator((32, 32, 3), variant="big")
    with pytest.raises(InputError, match="latent=3: expected 4 or more"):
        biggan.Generator((32, 32, 3), latent=3)


def test_networks_of_all_variants():
    """Shapes in training, of images with and without classes, and the variables that the networks keep."""
    shape, label = (8, 8, 1), jnp.array([0, 2])
    for model, variant, size, num_classes in (
        (biggan, "biggan", 28, 0),
        (biggan, "deep", 8, 3),
        (biggan, "deep", 8, 0),
        (biggan, "cifar", 8, 0),
        (resnet, "sagan", 64, 0),
        (resnet, "sagan", 32, 3),
    ):
        shape, options = (size, size, 1), {"width": 4, "variant": variant}
        gen, disc = model.Generator(shape, num_classes, **options), model.Discriminator(shape, num_classes, **options)

        def both(key, gen=gen, disc=disc, label=label if num_classes else None):
            images, g = gen.init_with_output(key, jnp.zeros((2, gen.latent)), label, train=True)
            logits, d = disc.init_with_output(key, images, label, train=True)
            return images, logits, g, d

        with plain():
            images, logits, g, d = jax.eval_shape(both, jax.random.key(0))
        assert images.shape == (2, *shape) and logits.shape == (2,)
        assert set(g) == {"params", "batch_stats", "spectral"} and set(d) == {"params", "spectral"}
        assert ("embed" in g["params"]) == (num_classes > 0 and model is biggan)
    # SAGAN's: every kernel is normalised, and all batch norms but the last know the classes.
    for variables in (g, d):
        kernels = {
            path[:-1]
            for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
            if "kernel" in str(path[-1])
        }
        normalised = {path[:-2] for path, _ in jax.tree_util.tree_leaves_with_path(variables["spectral"])}
        assert kernels == normalised and any("SelfAttention_0" in str(path) for path in kernels)
    assert [g["params"][f"BatchNorm_{i}"]["scale"].shape for i in range(7)] == [(3, 16)] * 6 + [(16,)]


@pytest.mark.parametrize("variant", biggan.KINDS)
def test_all_weights_start_from_one_distribution(variant, monkeypatch):
    """Orthogonal matrices; for CIFAR N(0, 0.02²), so also the tables of classes: biases, and gains around 1."""
    kind, drawn = biggan.KINDS[variant], []
    monkeypatch.setitem(
        biggan.KINDS, variant, kind._replace(init=lambda *args: drawn.append(args[1]) or kind.init(*args))
    )
    leaves = []
    for network, x in ((biggan.Generator, (1, 128)), (biggan.Discriminator, (1, 8, 8, 1))):
        module = network((8, 8, 1), 3, width=4, variant=variant, **({"latent": 128} if len(x) == 2 else {}))
        with plain():
            variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(x), jnp.zeros(1, jnp.int32))
        leaves += jax.tree_util.tree_leaves_with_path(variables["params"])
    weights = [leaf.shape for path, leaf in leaves if path[-1].key in ("kernel", "embedding")]
    tables = [leaf.shape for path, leaf in leaves if path[-1].key == "bias" and len(leaf.shape) == 2]
    assert (variant == "cifar") == bool(tables) and sorted(weights + tables) == sorted(drawn)
    w = np.float64(kind.init(jax.random.key(0), (3, 3, 4, 30), jnp.float32)).reshape(36, 30)
    if variant == "cifar":
        assert w.std() == pytest.approx(0.02, rel=0.1)
        gains = around_one(jax.random.key(0), (10, 256))
        assert gains.mean() == pytest.approx(1, abs=0.002) and gains.std() == pytest.approx(0.02, rel=0.1)
    else:
        np.testing.assert_allclose(w.T @ w, np.eye(30), atol=1e-5)


def test_standing_statistics():
    """Measured over one batch, they sample that batch as training sees it, where the singular vectors are exact."""
    generator, label = biggan.Generator((8, 8, 1), 3, width=4), jnp.arange(6) % 3
    variables = normal(generator, jnp.zeros((6, 40)), label)
    params = variables.pop("params")

    def largest(path, u):
        w = functools.reduce(lambda tree, entry: tree[entry.key], path[:-2], params)["kernel"]
        return np.linalg.svd(w.reshape(-1, len(u)), full_matrices=False)[2][0]

    variables["spectral"] = jax.tree_util.tree_map_with_path(largest, variables["spectral"])

    @quick
    def run(key):
        z_key, _, _ = jax.random.split(jax.random.split(key, 1)[0], 3)
        z = adversarial.latents(z_key, jnp.arange(6), 40)
        images, _ = generator.apply({"params": params, **variables}, z, label, True, mutable=list(variables))
        standing = adversarial.standing(generator, params, variables, key, lambda key, n: label, batches=1, size=6)
        return images, generator.apply({"params": params, **standing}, z, label)

    with plain():
        trained, sampled = run(jax.random.key(0))
    assert trained.std() > 0.01
    np.testing.assert_allclose(sampled, trained, atol=1e-4)


def test_orthogonal_regularisation():
    """By hand: W^T W of [[1, 2], [0, 1]] is [[1, 2], [2, 5]]; that of [1, 2, 3] has 2, 3 and 6 off its diagonal."""
    square = {"kernel": jnp.array([[1.0, 2.0], [0.0, 1.0]]), "bias": jnp.full(2, 7.0)}
    row = {"kernel": jnp.array([[1.0, 2.0, 3.0]])}
    excluded = {"embed": {"kernel": jnp.full((2, 2), 9.0)}, "Embed_0": {"embedding": jnp.full((2, 2), 9.0)}}
    scale = {"BatchNorm_0": {"scale": jnp.full((3, 2), 5.0)}, "vector": {"kernel": jnp.full(3, 5.0)}}
    params = {"Dense_0": square, "deeper": {"Dense_1": row}, **excluded, **scale}
    off_diagonal, from_identity = quick(orthogonal.off_diagonal), quick(orthogonal.from_identity)
    assert float(off_diagonal(params)) == 2 * 2**2 + 2 * (4 + 9 + 36)
    assert float(from_identity(params)) == (2 * 2**2 + 4**2) + (3**2 + 8**2 + 2 * (4 + 9 + 36))
    # A convolution's filters are what its places and channels hold together.
    filters = {"Conv_0": {"kernel": jnp.array([[1.0, 2.0], [0.0, 1.0]]).reshape(2, 1, 1, 2)}}
    assert float(off_diagonal(filters)) == 8


@pytest.mark.parametrize("shape", [(7, 4), (5, 6), (2, 9), (3, 3, 2, 4)])
def test_gradients_of_orthogonal_regularisation(shape):
    """4 W (W^T W ⊙ (1 - I)) and 4 W (W^T W - I), whichever Gram matrix was the smaller."""
    w = np.random.default_rng(0).normal(size=shape)
    matrix = w.reshape(-1, shape[-1])
    gram, identity = matrix.T @ matrix, np.eye(shape[-1])
    for function, rest in (
        (orthogonal.off_diagonal, gram * (1 - identity)),
        (orthogonal.from_identity, gram - identity),
    ):
        value, gradient = quick(jax.value_and_grad(function))({"kernel": jnp.float32(w)})
        assert float(value) == pytest.approx(np.sum(rest**2), rel=1e-5)
        np.testing.assert_allclose(gradient["kernel"], (4 * matrix @ rest).reshape(shape), rtol=1e-4, atol=1e-3)
