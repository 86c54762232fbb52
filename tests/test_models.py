"""Every architecture of jaxgan/models: one with `Generator` and `Discriminator` is tested without an edit here."""

import contextlib
import dataclasses
import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgan import lookup, models
from jaxgan.errors import InputError
from jaxgan.layers.conv import plain

MODULES = {name: importlib.import_module(f"jaxgan.models.{name}") for name in lookup.names(models)}
MODELS = {n: m for n, m in MODULES.items() if hasattr(m, "Generator") and hasattr(m, "Discriminator")}
SHAPES = ((28, 28, 1), (64, 64, 3), (9, 14, 2), (8, 8, 1))
CLASSES, B = 3, 4
TINY = {"width": 2, "widths": (8, 8), "latent": 5}  # whichever of these fields a network has


# Compiled for one call each: the optimiser would cost more than it saves.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def build(network, shape, num_classes=0, **options):
    fields = {f.name for f in dataclasses.fields(network)}
    tiny = {k: v for k, v in (TINY | options).items() if k in fields}
    return network(shape, num_classes, **tiny)


def split(variables):
    variables = dict(variables)
    return variables.pop("params"), variables


@functools.cache
def program(model, shape, num_classes):
    """One compiled function of a pair: images and logits, their gradients, and what depends on what."""
    generator = build(MODELS[model].Generator, shape, num_classes)
    discriminator = build(MODELS[model].Discriminator, shape, num_classes)

    def everything(key):
        keys = jax.random.split(key, 6)
        z = jax.random.normal(keys[0], (B, generator.latent))
        label = jnp.arange(B) % CLASSES if num_classes else None
        real = jax.random.uniform(keys[1], (B, *shape), minval=-1, maxval=1)
        gen, gen_state = split(generator.init(keys[2], z, label, train=False))
        disc, disc_state = split(discriminator.init(keys[3], real, label, train=False))
        # Away from the start, where the gains of all classes are one.
        gen, disc = jax.tree.map(lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), (gen, disc))

        def generate(params, z, label):
            variables, rngs = {"params": params, **gen_state}, {"noise": keys[4]}
            return generator.apply(variables, z, label, train=True, mutable=list(gen_state), rngs=rngs)

        def score(params, x, label):
            variables, rngs = {"params": params, **disc_state}, {"noise": keys[5]}
            return discriminator.apply(variables, x, label, train=True, mutable=list(disc_state), rngs=rngs)[0]

        # Variants are mapped over, so that each network is compiled once: it takes most of this file's time.
        changed = real.at[0].set(-(real[0] ** 3))
        labels = None if label is None else jnp.stack([label, (label + 1) % CLASSES])
        ways = None if label is None else 0

        def loss(gen, disc):
            fakes, states = jax.vmap(lambda label: generate(gen, z, label), in_axes=ways, axis_size=2)(labels)
            images = jnp.stack([real, changed, fakes[0], real])
            classes = None if label is None else labels[jnp.array([0, 0, 0, 1])]
            logits = jax.vmap(lambda x, label: score(disc, x, label), in_axes=(0, ways))(images, classes)
            return jnp.sum(jnp.sin(logits[0]) + logits[2]), (fakes, logits, jax.tree.map(lambda x: x[0], states))

        grads, (fakes, logits, state) = jax.grad(loss, argnums=(0, 1), has_aux=True)(gen, disc)
        return {
            "fake": fakes[0],
            "sampled": generator.apply({"params": gen, **state}, z, label, train=False),
            "logits": logits[0],
            "judged": discriminator.apply({"params": disc, **disc_state}, real, label, train=False),
            "gradients": grads,
            "perturbed": logits[1],
            "relabelled": (fakes[1], logits[3]),
        }

    # Large models with XLA's own convolutions, to which tests/test_conv.py holds ours, and which compile sooner.
    with plain() if model in PLANNED else contextlib.nullcontext():
        return generator, discriminator, jax.device_get(quick(everything)(jax.random.key(0)))


# Labels at the smallest shape alone: where they enter does not depend on it, and each case costs seconds to compile.
CASES = [*((shape, 0) for shape in SHAPES[:-1]), (SHAPES[-1], CLASSES)]
# Models of several published shapes (`PLANS`, `VARIANTS`) compile for long, and have tests of odd sizes of their own.
PLANNED = [name for name, module in MODELS.items() if hasattr(module, "PLANS") or hasattr(module, "VARIANTS")]
every_model = pytest.mark.parametrize("model", sorted(MODELS))


@functools.cache
def smallest(model):
    """The smallest square that a model takes."""
    for side in (8, 16, 32):
        generator = build(MODELS[model].Generator, (side, side, 3))
        try:
            jax.eval_shape(generator.init, jax.random.key(0), jnp.zeros((1, generator.latent)))
            return side, side, 3
        except InputError:
            pass
    raise AssertionError(f"{model} takes no square of 8, 16 or 32 pixels")


def cases():
    for model in sorted(MODELS):
        yield from ((model, shape, n) for shape, n in ([(smallest(model), CLASSES)] if model in PLANNED else CASES))


every_case = pytest.mark.parametrize(("model", "shape", "num_classes"), list(cases()), ids=str)


@every_case
def test_shapes_ranges_and_gradients(model, shape, num_classes):
    generator, discriminator, out = program(model, shape, num_classes)
    for images in (out["fake"], out["sampled"]):
        assert images.shape == (B, *shape) and images.dtype == np.float32
        assert np.isfinite(images).all()
        assert images.std() > 0 and np.abs(images[0] - images[1]).max() > 0  # not one picture for every latent
    assert np.abs(out["sampled"]).max() <= 1  # in training, some networks are not bounded
    for logits in (out["logits"], out["judged"]):
        assert logits.shape == (B,) and logits.dtype == np.float32
        assert np.isfinite(logits).all() and len(np.unique(logits)) == B
    for path, gradient in jax.tree_util.tree_leaves_with_path(out["gradients"]):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all() and gradient.dtype == np.float32, name
        assert (gradient != 0).any(), f"{name} has no influence"
    assert isinstance(generator.latent, int) and isinstance(discriminator.mixes_batch, bool)


@every_model
def test_labels_matter(model):
    _, _, out = program(model, smallest(model) if model in PLANNED else SHAPES[-1], CLASSES)
    images, logits = out["relabelled"]
    assert np.abs(images - out["fake"]).max((1, 2, 3)).min() > 1e-4
    assert np.abs(logits - out["logits"]).min() > 1e-6


def moves_others(logits, perturbed):
    """Whether a change of the first image changes the logits of others, on the scale of its own change."""
    own, others = np.abs(perturbed[0] - logits[0]), np.abs(perturbed[1:] - logits[1:]).max()
    assert own > 0
    return bool(others > 1e-4 * own)


@every_case
def test_mixes_batch_is_the_truth(model, shape, num_classes):
    """Where it is False, real and generated images may share a pass, and penalties see each image's own gradient."""
    _, discriminator, out = program(model, shape, num_classes)
    assert discriminator.mixes_batch == moves_others(out["logits"], out["perturbed"])


@pytest.mark.parametrize(
    "model", [n for n, m in MODELS.items() if "batch_norm" in m.Discriminator.__dataclass_fields__]
)
def test_without_batch_norm_nothing_mixes(model):
    discriminator = build(MODELS[model].Discriminator, (16, 16, 1), batch_norm=False)

    @quick
    def both(key):
        x = jax.random.normal(key, (B, 16, 16, 1))
        variables = discriminator.init(key, x, None, train=True)
        score = functools.partial(discriminator.apply, variables, train=True)
        return score(x), score(x.at[0].set(-x[0])), variables

    logits, perturbed, variables = both(jax.random.key(0))
    assert not discriminator.mixes_batch and set(variables) == {"params"}
    assert not moves_others(logits, perturbed)


def count(network, shape, num_classes, *inputs):
    module = network(shape, num_classes)
    with plain():  # the same shapes, traced sooner
        variables = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_dcgan_64_has_the_parameters_of_the_paper():
    """Those of PyTorch's reference (3,576,704 and 2,765,568) and the biases of the layers without batch norm."""
    dcgan, shape = MODELS["dcgan"], (64, 64, 3)
    dense, norms = 100 * 4 * 4 * 512, 2 * (512 + 256 + 128 + 64)
    kernels = 4 * 4 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    generator = dense + norms + kernels + 3
    kernels, norms = 4 * 4 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512), 2 * (128 + 256 + 512)
    discriminator = kernels + norms + 64 + (4 * 4 * 512 + 1)
    assert (generator, discriminator) == (3_576_704 + 3, 2_765_568 + 64 + 1)
    z, x, label = jnp.zeros((1, 100)), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    assert count(dcgan.Generator, shape, 0, z) == generator
    assert count(dcgan.Discriminator, shape, 0, x) == discriminator
    # Ten classes: as many more inputs of the dense layer, and an embedding of 512 features each.
    assert count(dcgan.Generator, shape, 10, z, label) == generator + 10 * 4 * 4 * 512
    assert count(dcgan.Discriminator, shape, 10, x, label) == discriminator + 10 * 512


def test_mlp_has_the_parameters_of_its_layers():
    mlp, shape = MODELS["mlp"], (28, 28, 1)
    generator = 100 * 256 + 256 * 512 + 512 * 1024 + 2 * (256 + 512 + 1024) + 1024 * 784 + 784
    discriminator = 784 * 1024 + 1024 + 1024 * 512 + 512 + 512 * 256 + 256 + 256 + 1
    assert count(mlp.Generator, shape, 0, jnp.zeros((1, 100))) == generator
    assert count(mlp.Discriminator, shape, 0, jnp.zeros((1, *shape))) == discriminator


@pytest.mark.parametrize("width, variant", [(64, "sngan"), (64, "wgan_gp")])
def test_resnet_32_has_the_parameters_of_the_papers(width, variant):
    """SNGAN: 256 and 128 channels (arXiv:1802.05957, table 4); WGAN-GP: 128 and 128 (arXiv:1704.00028, app. C)."""
    resnet, shape = MODELS["resnet"], (32, 32, 3)
    g, d = (256, 128) if variant == "sngan" else (128, 128)

    def block(c, features, shortcut=True):
        return 9 * c * features + 9 * features * features + 2 * features + shortcut * (c * features + features)

    norms = 3 * 2 * 2 * g + 2 * g
    generator = 128 * 16 * g + 16 * g + 3 * block(g, g) + norms + 9 * g * 3 + 3
    discriminator = block(3, d) + block(d, d) + 2 * block(d, d, False) + d + (variant == "wgan_gp")  # SNGAN: no bias
    options = {"width": width, "variant": variant}
    z, x, label = jnp.zeros((1, 128)), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    gen, disc = (functools.partial(network, **options) for network in (resnet.Generator, resnet.Discriminator))
    assert count(gen, shape, 0, z) == generator
    assert count(disc, shape, 0, x) == discriminator
    assert count(gen, shape, 10, z, label) == generator + 9 * (norms - 2 * g)  # the last norm is of no class
    assert count(disc, shape, 10, x, label) == discriminator + 10 * d


# Generator and discriminator of 64 channels, and what ten classes add to each: by hand from the authors' modules,
# and at 48 pixels, where they published none, from the paper's table 4 with blocks of theirs.
SNGAN_COUNTS = {
    48: (4_878_083, 10_141_441, 9 * 2 * (512 + 256 + 256 + 128 + 128 + 64), 10 * 1024),
    64: (12_220_675, 10_141_441, 9 * 2 * (1024 + 512 + 512 + 256 + 256 + 128 + 128 + 64), 10 * 1024),
    128: (32_150_787, 29_017_857, 9 * 2 * (3 * 1024 + 512 + 512 + 256 + 256 + 128 + 128 + 64), 10 * 1024),
}


@pytest.mark.parametrize("size", SNGAN_COUNTS)
def test_sngan_has_the_parameters_of_its_authors_code_at_48_64_and_128_pixels(size):
    """A block of the discriminator goes c -> c -> d but for the first, of the generator c -> d -> d."""
    resnet, shape = MODELS["resnet"], (size, size, 3)
    ups = {48: (512, 256, 128, 64), 64: (1024, 512, 256, 128, 64), 128: (1024, 1024, 512, 256, 128, 64)}[size]
    downs = (64, 128, 256, 512, 1024) + (1024,) * (size == 128)
    up = sum(9 * c * d + 9 * d * d + 2 * d + c * d + d + 2 * (c + d) for c, d in itertools.pairwise(ups))
    base = 36 if size == 48 else 16
    generator = 129 * base * ups[0] + up + 2 * 64 + 9 * 64 * 3 + 3
    down = sum(9 * c * c + c + 9 * c * d + d + (c * d + d) * (c != d) for c, d in itertools.pairwise(downs))
    discriminator = 9 * 3 * 64 + 64 + 9 * 64 * 64 + 64 + 3 * 64 + 64 + down + 1024 + 1
    assert SNGAN_COUNTS[size][:2] == (generator, discriminator)
    z, x, label = jnp.zeros((1, 128)), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    for name, inputs, alone, more in zip(
        ("Generator", "Discriminator"), (z, x), (generator, discriminator), SNGAN_COUNTS[size][2:], strict=True
    ):
        assert count(getattr(resnet, name), shape, 0, inputs) == alone
        assert count(getattr(resnet, name), shape, 10, inputs, label) == alone + more
    critic = functools.partial(resnet.Discriminator, variant="wgan_gp")
    assert count(critic, shape, 0, x) == discriminator  # WGAN-GP's authors' blocks are as narrow


def kernel_weights(network, x):
    with plain():
        params = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    found = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in found if path[-1].key == "kernel")


def test_sngan_discriminator_at_64_pixels_is_narrow_and_that_of_an_old_run_wide():
    x = jnp.zeros((1, 64, 64, 3))
    discriminator = functools.partial(MODELS["resnet"].Discriminator, x.shape[1:], width=8)
    assert kernel_weights(discriminator(), x) == 158_704
    assert kernel_weights(discriminator(revision=1), x) == 305_584


@pytest.mark.parametrize("variant, revision, epsilon", [("sngan", 2, 2e-5), ("sngan", 1, 1e-5), ("wgan_gp", 2, 1e-5)])
def test_epsilon_of_batch_norm_is_the_authors(variant, revision, epsilon):
    """Chainer's 2e-5 and TensorFlow's 1e-5: a constant image of 1e-3 over a variance of 0 is 1e-3 / sqrt(epsilon)."""
    generator = MODELS["resnet"].Generator((32, 32, 1), latent=2, width=1, variant=variant, revision=revision)
    z = jnp.zeros((1, 2))
    variables = jax.eval_shape(generator.init, jax.random.key(0), z)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    params = variables["params"]
    for layer in params.values():
        if "scale" in layer:
            layer["scale"] += 1
        elif layer["kernel"].shape[:2] == (1, 1):
            layer["bias"] += 1e-3
    last = sum(name.startswith("Conv_") for name in params) - 1
    params[f"Conv_{last}"]["kernel"][1, 1, 0] = 1
    images = quick(generator.apply)(variables, z)
    assert float(images[0, 16, 16, 0]) == pytest.approx(np.tanh(1e-3 / np.sqrt(epsilon)), rel=1e-4)


@pytest.mark.parametrize("size", [32, 48, 64, 128])
def test_resnet_of_every_size(size):
    resnet, shape = MODELS["resnet"], (size, size, 3)
    gen, disc = resnet.Generator(shape, width=2), resnet.Discriminator(shape, width=2)
    z, x = jnp.zeros((2, 128)), jnp.zeros((2, *shape))

    def both(key):
        return gen.init_with_output(key, z, train=True)[0], disc.init_with_output(key, x, train=True)[0]

    images, logits = jax.eval_shape(both, jax.random.key(0))
    assert images.shape == (2, *shape) and logits.shape == (2,)


def test_resnet_of_another_size_is_refused():
    with pytest.raises(InputError, match="40x40; nearest: --size=32"):
        MODELS["resnet"].Generator((40, 40, 3)).init(jax.random.key(0), jnp.zeros((1, 128)))
    with pytest.raises(InputError, match="wgan_gp"):
        MODELS["resnet"].Discriminator((32, 32, 3), variant="sgan").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_dcgan_starts_from_the_normal_distribution_of_the_paper():
    """All weights N(0, 0.02²), scales of batch norm N(1, 0.02²), biases 0 (arXiv:1511.06434, section 4)."""
    dcgan, shape, label = MODELS["dcgan"], (16, 16, 3), jnp.zeros(1, jnp.int32)
    key = jax.random.key(0)
    gen, disc = dcgan.Generator(shape, 50, width=32), dcgan.Discriminator(shape, 50, width=32)
    inits = quick(
        lambda key: [gen.init(key, jnp.zeros((1, 100)), label), disc.init(key, jnp.zeros((1, *shape)), label)]
    )(key)
    weights, scales, biases = [], [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path([network["params"] for network in inits]):
        kind = {"kernel": weights, "embedding": weights, "scale": scales, "bias": biases}[path[-1].key]
        kind.append(np.float64(leaf).ravel())
    assert len(weights) == 7 and len(scales) == 3  # dense, two transposed; two convolutions, dense, embedding
    assert all(abs(w.std() / 0.02 - 1) < 5 / np.sqrt(2 * w.size) for w in weights)
    for values, mean in ((np.concatenate(weights), 0), (np.concatenate(scales), 1)):
        assert abs(values.mean() - mean) < 5 * 0.02 / np.sqrt(values.size)
        # A normal distribution, not one truncated at two deviations, as variance-scaling initialisers draw.
        assert scipy.stats.kstest((values[:20_000] - mean) / 0.02, "norm").pvalue > 1e-3
        assert np.abs(values - mean).max() > 2.1 * 0.02
    assert all((b == 0).all() for b in biases)


@every_model
def test_half_precision_inside_float32_outside(model):
    shape = (*smallest(model)[:2], 1) if model in PLANNED else (8, 8, 1)

    def both(key):
        gen = build(MODELS[model].Generator, shape, CLASSES, dtype=jnp.bfloat16)
        disc = build(MODELS[model].Discriminator, shape, CLASSES, dtype=jnp.bfloat16)
        label = jnp.zeros(2, jnp.int32)
        images, g = gen.init_with_output(key, jnp.zeros((2, gen.latent)), label, train=False)
        logits, d = disc.init_with_output(key, images, label, train=False)
        return images, logits, g, d

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(both, jax.random.key(0)))} == {jnp.dtype("float32")}


def test_sizes():
    sizes = MODELS["dcgan"].sizes
    assert sizes((28, 28, 1)) == [(28, 28), (14, 14), (7, 7)]
    assert sizes((64, 64, 3)) == [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]
    assert sizes((8, 8, 1)) == [(8, 8), (4, 4), (2, 2)] and sizes((9, 14, 2)) == [(9, 14), (5, 7), (3, 4)]
    assert all(4 <= min(sizes((h, w, 1))[-1]) <= 7 for h in range(15, 300, 7) for w in range(15, 300, 11))
