"""What transfer is made of: weights carried over, by hand-computed cases, layers in order, correspondence, a miner."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgan import correspondence, graft, layerwise, lookup, models, trained
from jaxgan.errors import InputError
from jaxgan.models import dcgan, mined, mlp

# Compiled for one call each, without optimising.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def init(module, *inputs):
    return quick(module.init)(jax.random.key(0), *inputs)


# --- weights


def grafted(old, new, change):
    (found,), told = (
        graft.graft({"x": np.array(old, np.float32)}, {"x": np.array(new, np.float32)}, change)[0].values(),
        {},
    )
    return found.tolist(), told


def test_classes_are_the_last_rows():
    """Two of a latent, then three of classes."""
    old, few, many = [[1], [2], [10], [20], [60]], np.zeros((4, 1)), np.zeros((7, 1))
    assert grafted(old, few, graft.Change(classes=(3, 2)))[0] == [[1], [2], [10], [20]]
    assert grafted(old, many, graft.Change(classes=(3, 5)))[0] == [[1], [2], [10], [20], [60], [30], [30]]
    assert grafted(old, np.zeros((2, 1)), graft.Change(classes=(3, 0)))[0] == [[1], [2]]
    liked = graft.Change(classes=(3, 2), like=(2, 0))
    assert grafted(old, few, liked)[0] == [[1], [2], [60], [10]]
    # An unconditional network knows nothing of classes: theirs are those that the new network was born with.
    assert grafted([[1], [2]], [[7], [7], [8], [9]], graft.Change(classes=(0, 2)))[0] == [[1], [2], [8], [9]]


def test_channels_of_made_and_of_seen_images():
    grey, colours = np.array([[6.0]]), np.array([[1.0, 2.0, 6.0]])
    assert grafted(grey, np.zeros((1, 3)), graft.Change((1, 3)))[0] == [[6, 6, 6]]
    assert grafted(grey, np.zeros((1, 3)), graft.Change((1, 3), sees=True))[0] == [[2, 2, 2]]
    assert grafted(colours, np.zeros((1, 1)), graft.Change((3, 1)))[0] == [[3]]
    assert grafted(colours, np.zeros((1, 1)), graft.Change((3, 1), sees=True))[0] == [[9]]
    # Pixels in rows, the channel the fastest, and two classes behind them.
    pixels = np.array([1.0, 2.0, 10.0, 20.0])
    change = graft.Change((1, 2), (2, 1), sees=True)
    assert grafted(pixels, np.zeros(5), change)[0] == [0.5, 0.5, 1, 1, 10]


@pytest.mark.parametrize("home", [dcgan, mlp])
def test_a_grey_image_is_judged_and_made_as_before_in_colour(home):
    grey, colour = (8, 8, 1), (8, 8, 3)
    small = {"width": 4} if home is dcgan else {"widths": (8,)}
    x = jax.random.normal(jax.random.key(1), (3, *grey))
    z = jax.random.normal(jax.random.key(2), (3, 5))

    def both(name, sees, *inputs):
        own = small if sees else {**small, "latent": 5}
        old, new = (getattr(home, name)(shape, **own) for shape in (grey, colour))

        def initialised(key):
            return tuple(module.init(key, x) for module, x in zip((old, new), inputs, strict=True))

        theirs, ours = quick(initialised)(jax.random.key(0))
        params, told = graft.graft(theirs["params"], ours["params"], graft.Change((1, 3), sees=sees))
        assert told and all(words.endswith("adapted") for words in told.values())
        applied = quick(
            lambda *variables: tuple(m.apply(*x) for m, *x in zip((old, new), variables, inputs, strict=True))
        )
        return applied(theirs, {**theirs, "params": params})

    before, after = both("Discriminator", True, x, jnp.tile(x, 3))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    before, after = both("Generator", False, z, z)
    np.testing.assert_allclose(after, jnp.tile(before, 3), rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_named():
    old = {"a": np.ones(3), "b": np.ones((2, 2)), "c": np.ones(1), "e": np.ones(2)}
    new = {"a": np.zeros(3), "b": np.full((2, 5), 7.0), "d": np.full(2, 8.0), "e": np.full((2, 1), 9.0)}
    found, told = graft.graft(old, new, graft.Change((1, 3), (4, 2)))
    assert {k: v.ravel().tolist() for k, v in found.items()} == {
        "a": [1] * 3,
        "b": [7] * 10,
        "d": [8] * 2,
        "e": [9] * 2,
    }
    assert told == {
        "b": "(2, 5), (2, 2) in the source: initialised anew",
        "c": "dropped",
        "d": "(2,), not in the source: initialised anew",
        "e": "(2, 1), (2,) in the source: initialised anew",
    }


# --- layers, correspondence, miner


def test_layers_from_the_image_on():
    disc, shapes = dcgan.Discriminator((16, 16, 1), width=2), jax.ShapeDtypeStruct((2, 16, 16, 1), np.float32)
    depths = layerwise.depths(disc, jax.eval_shape(disc.init, jax.random.key(0), shapes), shapes)
    expected = {"Conv_0": 1, "Conv_1": 2, "BatchNorm_0": 2, "Dense_0": 3}
    assert {name.partition("/")[0]: depth for name, depth in depths.items()} == expected

    @quick
    def pass_through(key):
        x = jax.random.normal(key, (2, 16, 16, 1))
        variables = disc.init(key, x)
        return variables, layerwise.outputs(lambda: disc.apply(variables, x), variables["params"])

    variables, (logits, made) = jax.device_get(pass_through(jax.random.key(0)))
    assert {name: x.shape for name, x in made.items()} == {
        "Conv_0": (2, 8, 8, 2),
        "Conv_1": (2, 4, 4, 4),
        "Dense_0": (2, 1),
    }
    np.testing.assert_array_equal(made["Dense_0"][:, 0], logits)
    normed = made["Conv_1"] / np.sqrt(1 + 1e-5) * variables["params"]["BatchNorm_0"]["scale"]
    dense = variables["params"]["Dense_0"]
    expected = np.where(normed > 0, normed, 0.2 * normed).reshape(2, -1) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(expected[:, 0], logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [name for name in lookup.names(models) if name != "inception"])
def test_every_discriminator_has_layers_to_freeze(model):
    home = lookup.module("model", model, models, ())
    if not hasattr(home, "Discriminator"):
        pytest.skip("it has no discriminator")
    disc = home.Discriminator((32, 32, 3), num_classes=3)
    x, label = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32), jax.ShapeDtypeStruct((2,), np.int32)
    variables = jax.eval_shape(disc.init, jax.random.key(0), x, label)
    depths = layerwise.depths(disc, variables, x, label)
    assert len(depths) == len(jax.tree.leaves(variables["params"]))
    assert set(depths.values()) == {*range(1, max(depths.values()) + 1)}, "every layer has a weight, none lies below"


def test_distance_consistency_against_float64():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 5, 2, 3)).astype(np.float32)

    def similarities(x):
        x = x.reshape(5, -1).astype(np.float64)
        rows = []
        for i in range(5):
            cosines = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in range(5) if j != i]
            rows.append(np.exp(cosines) / np.exp(cosines).sum())
        return np.array(rows)

    p, q = similarities(ours), similarities(theirs)
    expected = np.sum(p * np.log(p / q), axis=1).mean()
    assert expected > 0.01
    assert correspondence.distance_consistency(ours, theirs) == pytest.approx(expected, rel=1e-5)
    assert correspondence.distance_consistency(3 * ours, ours) == pytest.approx(0, abs=1e-7)
    layers = {"a": jnp.asarray(ours), "b": jnp.asarray(theirs)}
    both = correspondence.mean_consistency(layers, {"a": jnp.asarray(theirs), "b": jnp.asarray(theirs)})
    assert both == pytest.approx(expected / 2, rel=1e-5)


class Same(nn.Module):
    """Its image is its latent."""

    latent: int = 3

    @nn.compact
    def __call__(self, z, label=None, train=False):
        return z * self.param("one", nn.initializers.ones, ())


def test_anchored_latents_lie_about_few_points():
    z = jax.random.normal(jax.random.key(1), (4000, 3))
    module = correspondence.Anchored(Same(), anchors=4, radius=0.05, seed=7)
    variables = module.init(jax.random.key(0), z)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"one": ()}, "those of the generator itself"
    made = np.asarray(module.apply(variables, z, rngs={"noise": jax.random.key(2)}))
    moved = made - 0.05 * np.asarray(z)
    places, counts = np.unique(moved.round(3), axis=0, return_counts=True)
    assert len(places) == 4 and counts.min() > 900
    np.testing.assert_allclose(
        sorted(places.tolist()), sorted(jax.random.normal(jax.random.key(7), (4, 3)).tolist()), atol=1e-3
    )


def test_a_patched_discriminator_is_the_same_on_whole_images():
    disc, head = dcgan.Discriminator((28, 28, 1), width=2), {"kernel": jnp.arange(4.0)[:, None], "bias": jnp.ones(1)}
    patched = correspondence.Patched(disc, "Conv_1")

    @quick
    def everything(key):
        x = jax.random.normal(key, (2, 28, 28, 1))
        plain, own = disc.init(key, x), patched.init(key, x)
        variables = plain | {"params": {**plain["params"], "patch_head": head}}
        whole, parts = patched.apply(variables, x), patched.clone(patches=True).apply(variables, x)
        made = layerwise.outputs(lambda: disc.apply(plain, x), plain["params"])
        return (variables, own), made, whole, parts

    (variables, own), (logits, made), whole, parts = jax.device_get(everything(jax.random.key(0)))
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_array_equal(whole, logits)
    places = made["Conv_1"] / np.sqrt(np.mean(made["Conv_1"] ** 2, axis=-1, keepdims=True) + 1e-8)
    expected = (np.where(places > 0, places, 0.2 * places) @ head["kernel"] + 1).reshape(-1)
    assert expected.shape == (98,)
    np.testing.assert_allclose(parts, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "layer"), [(28, "Conv_1"), (8, "Conv_0")])  # 7x7; 4x4, the next is 2x2
def test_patches_are_of_a_layer_with_places(side, layer):
    x, disc = jax.ShapeDtypeStruct((2, side, side, 1), np.float32), dcgan.Discriminator((side, side, 1), width=2)
    variables = jax.eval_shape(disc.init, jax.random.key(0), x)
    assert correspondence.patch_layer(disc, variables, x) == layer
    dense = mlp.Discriminator((side, side, 1), widths=(2,))
    assert correspondence.patch_layer(dense, jax.eval_shape(dense.init, jax.random.key(0), x), x) is None


def test_a_new_miner_moves_nothing():
    plain, own = mlp.Generator((2, 2, 1), latent=5, widths=(4,)), (("widths", (4,)), ("batch_norm", True))
    behind = mined.Generator((2, 2, 1), latent=5, model="mlp", arguments=own, miner_width=6)

    @quick
    def everything(key):
        z = jax.random.normal(key, (3, 5))
        theirs, ours = plain.init(key, z), behind.init(key, z)
        params = {**theirs["params"], "miner": ours["params"]["miner"]}
        by_one = params | {"miner": {**params["miner"], "Dense_2": {"kernel": jnp.zeros((6, 5)), "bias": jnp.ones(5)}}}
        found = [behind.apply({**theirs, "params": x}, z) for x in (params, by_one)]
        return found, [plain.apply(theirs, x) for x in (z, z + 1)]

    found, expected = jax.device_get(everything(jax.random.key(0)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert trained.build(trained.network(behind)) == behind
    stored = trained.network(behind)
    stored["arguments"]["model"] = "os"
    with pytest.raises(InputError, match="model to mine 'os'"):
        init(trained.build(stored), jnp.ones((1, 5)))
