"""StyleGAN2: both networks against NumPy's float64, the authors' sizes, styles and their mixing, path lengths."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgan import adversarial, augment, checkpoint, collectives, losses
from jaxgan.errors import InputError
from jaxgan.game import Game, Move, PlayerState, State
from jaxgan.layers.conv import plain
from jaxgan.models.stylegan2 import Discriminator, Generator, constant_noise, precision, sizes
from jaxgan.pathlength import path_length
from tests.test_modulated import correlate, lowpass, modulated, pad, quick, up
from tests.weights import begun

SHAPE, CLASSES, B = (8, 12, 3), 3, 8
LABEL = np.arange(B) % CLASSES
RNG = np.random.default_rng(0)
Z, REAL = RNG.normal(size=(B, 5)).astype(np.float32), RNG.normal(size=(B, *SHAPE)).astype(np.float32)


def drawn(network, *inputs, seed=0):
    """Variables from NumPy: weights as large as at the start, biases too. (JAX's own draws take long to compile.)"""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), *inputs)

    def draw(path, leaf):
        names = jax.tree_util.keystr(path)
        slow = "apping" in names and "EqualDense" in names  # layers of a hundredth of the learning rate
        return jnp.asarray(rng.normal(size=leaf.shape) * (100 if slow else 1), jnp.float32)

    return jax.tree.map(jnp.zeros_like, {k: v for k, v in shapes.items() if k != "params"}) | {
        "params": jax.tree_util.tree_map_with_path(draw, shapes["params"])
    }


def with_noise(variables, strength):
    names = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key, variables["params"])
    params = jax.tree.map(lambda p, name: p * 0 + strength if name == "strength" else p, variables["params"], names)
    return variables | {"params": params}


def leaky(x):
    return np.sqrt(2) * np.maximum(x, 0.2 * x)


def dense(params, x, rate=1.0):
    return rate * (x @ np.float64(params["kernel"]) / np.sqrt(x.shape[1]) + params["bias"])


def kernel(params):
    w = np.float64(params["kernel"])
    return w / np.sqrt(np.prod(w.shape[:3]))


def mapping(params, layers, z=None):
    parts = [] if z is None else [np.float64(z)]
    parts.append(dense(params["embed"], np.eye(CLASSES)[LABEL]))
    x = np.concatenate([p / np.sqrt(np.mean(p**2, 1, keepdims=True)) for p in parts], 1)
    for i in range(layers):
        x = leaky(dense(params[f"EqualDense_{i}"], x, 0.01))
    return x


def synthesis(layers, ws):
    """arXiv:1912.04958, figures 2c and 7b, of two resolutions, without noise."""

    def conv(name, x, w, demodulate=True, enlarge=False):
        layer, inner = layers[name], layers[name]["ModulatedConv_0"]
        return modulated(x, kernel(inner), dense(inner["affine"], w), demodulate, enlarge) + layer["bias"]

    first, second, third, fourth = np.float64(ws).swapaxes(0, 1)
    x = leaky(conv("Styled_0", np.tile(layers["constant"], (B, 1, 1, 1)), first))
    image = conv("Colours_0", x, second, demodulate=False)
    x = leaky(conv("Styled_2", leaky(conv("Styled_1", x, second, enlarge=True)), third))
    return up(image) + conv("Colours_1", x, fourth, demodulate=False)


def discriminator(params, residual, group):
    """Figure 7c there, of two resolutions."""
    convs = iter([params[f"EqualConv_{i}"] for i in range(5 if residual else 4)])
    x = np.float64(REAL)

    def conv(x, stride=1):
        layer = next(convs)
        return correlate(x, kernel(layer), stride) + layer.get("bias", 0)

    x = leaky(conv(x))
    y = leaky(conv(pad(x, 1, 1)))
    y = leaky(conv(lowpass(pad(y, 2, 2)), 2))
    x = (y + conv(lowpass(pad(x, 1, 1))[:, ::2, ::2])) / np.sqrt(2) if residual else y
    members = x.reshape(B // group, group, *x.shape[1:])
    feature = np.repeat(np.sqrt(members.var(1) + 1e-8).mean((1, 2, 3)), group)
    x = np.concatenate([x, np.broadcast_to(feature[:, None, None, None], (*x.shape[:3], 1))], -1)
    x = leaky(conv(pad(x, 1, 1)))
    x = dense(params["EqualDense_1"], leaky(dense(params["EqualDense_0"], x.reshape(B, -1))))
    return np.sum(x * mapping(params["Mapping_0"], 8), 1) / np.sqrt(x.shape[1])


def test_both_networks_are_those_of_the_paper():
    gen = Generator(SHAPE, CLASSES, 5, 6)
    discs = [Discriminator(SHAPE, CLASSES, 6, variant) for variant in ("auto", "cifar")]

    variables = with_noise(drawn(gen, Z, LABEL), 0.0)  # which is not in the formula
    params = [drawn(disc, REAL, LABEL)["params"] for disc in discs]
    ws = RNG.normal(size=(B, 4, 6)).astype(np.float32)

    @quick
    def everything():
        styles = gen.apply(variables, 3 * Z, LABEL, method="map")  # the size of a latent is of no account
        images = gen.apply(variables, ws, method="synthesise")
        return styles, images, [disc.apply({"params": p}, REAL, LABEL) for disc, p in zip(discs, params, strict=True)]

    styles, images, logits = jax.device_get(everything())
    w = mapping(variables["params"]["mapping"], 2, Z)
    np.testing.assert_allclose(styles, np.repeat(w[:, None], 4, axis=1), atol=1e-5)
    np.testing.assert_allclose(images, synthesis(variables["params"]["synthesis"], ws), atol=2e-5)
    for found, tree, residual, group in zip(logits, params, (True, False), (4, 8), strict=True):
        np.testing.assert_allclose(found, discriminator(tree, residual, group), atol=2e-5)


def count(network, *inputs, **fields):
    module = network(**fields)
    variables = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), variables


@pytest.mark.parametrize(
    "variant, size, gen, disc",
    [
        ("paper256", 256, 24_767_458, 24_001_089),
        ("cifar", 32, 19_947_539, 20_720_641),
        ("stylegan2", 1024, 30_370_060, 29_012_513),
    ],
)
def test_the_authors_networks_have_as_many_parameters(variant, size, gen, disc):
    """To the last: those that their networks learn, without filters, constants of noise and the average of w."""
    fields = {"shape": (size, size, 3), "variant": variant}
    found, variables = count(Generator, jnp.zeros((1, 512)), **fields)
    assert found == gen and count(Discriminator, jnp.zeros((1, size, size, 3)), **fields)[0] == disc
    assert variables["moving"]["w"].shape == (512,) and variables["path"]["mean"].shape == ()


def test_sizes():
    assert sizes((28, 28, 1)) == [(7, 7), (14, 14), (28, 28)] and sizes((8, 12, 3)) == [(4, 6), (8, 12)]
    assert sizes((64, 64, 3)) == [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]
    for size, near in {(36, 36): "32x32", (9, 14): "8x14", (7, 7): "8x8", (250, 250): "256x256"}.items():
        with pytest.raises(InputError, match=f"{size[0]}x{size[1]}; nearest: --size={near} "):
            sizes((*size, 3))
    with pytest.raises(InputError, match="'paper25'; did you mean 'paper256'"):
        count(Generator, jnp.zeros((1, 512)), shape=(8, 8, 1), variant="paper25")


def test_half_precision_is_for_the_four_highest_resolutions():
    half, full = (jnp.bfloat16, 256.0), (jnp.float32, 256.0)
    assert [precision("bfloat16", i, 7) for i in range(7)] == [full] * 3 + [("bfloat16", 256.0)] * 4
    assert [precision(jnp.bfloat16, i, 3) for i in range(3)] == [full, half, half]
    assert precision(jnp.float32, 2, 3) == (jnp.float32, None)


def test_styles():
    """Mixing, the average of w, truncation towards it."""
    images, n = 2000, 6  # styles of 16x16 pixels
    z = jnp.float32(np.random.default_rng(1).normal(size=(images, 5)))
    gens = [Generator((16, 16, 1), 0, 5, 4, variant) for variant in ("auto", "cifar")]

    @quick
    def everything(key):
        results = []
        for gen in gens:
            variables = drawn(gen, z) | {"moving": {"w": jnp.arange(4.0)}}
            pure, half, none = (gen.apply(variables, z, psi=psi, method="map") for psi in (None, 0.5, 0.0))
            mixed, new = gen.apply(
                variables, z, train=True, method="map", mutable=["moving", "path"], rngs={"noise": key}
            )
            results.append((pure, half, none, mixed, new))
        return results

    for gen, results in zip(gens, jax.device_get(everything(jax.random.key(2))), strict=True):
        pure, half, none, mixed, new = results
        w, mean = pure[:, 0], np.arange(4.0)
        assert pure.shape == (images, n, 4) and (pure == w[:, None]).all()
        np.testing.assert_allclose(none, np.broadcast_to(mean, none.shape), atol=1e-6)
        np.testing.assert_allclose(half, (pure + mean) / 2, atol=1e-6)
        np.testing.assert_allclose(new["moving"]["w"], 0.995 * mean + 0.005 * w.mean(0), rtol=1e-5)
        own = (mixed == pure).all(2)  # (images, n)
        assert own[:, 0].all() and (np.diff(own.astype(int), axis=1) <= 0).all()  # up to some layer, and none after
        first = own.sum(1)  # n: not mixed
        assert {*first} == ({1, 2, 3, 4, 5, 6} if gen.variant == "auto" else {n})
        if gen.variant == "auto":
            share = np.bincount(first, minlength=n + 1)[1:] / images
            np.testing.assert_allclose(share, [0.18] * 5 + [0.1], atol=5 * np.sqrt(0.18 * 0.82 / images))
            other = mixed[first == 1][:, 1]  # from other latents, as many of them as images
            assert len(np.unique(other, axis=0)) == (first == 1).sum()
            np.testing.assert_allclose(other.std(0), w.std(0), rtol=0.3)


def test_noise():
    """A constant without training, the same for all images; else every image's and every pass's own."""
    gen, z = Generator((8, 8, 1), 0, 5, 4, "cifar"), jnp.ones((2, 5))
    start = drawn(gen, z)
    start["noise"] = {"constant": jnp.float32(np.random.default_rng(2).normal(size=(16 + 64 + 64,)))}

    @quick
    def everything(keys):
        def images(train, strength, key):
            changing = ["moving", "path"] if train else []
            return gen.apply(with_noise(start, strength), z, train=train, mutable=changing, rngs={"noise": key})[0]

        training, sampling = (jax.vmap(functools.partial(images, train)) for train in (True, False))
        return training(jnp.float32([0, 3, 3]), keys), sampling(jnp.float32([0, 3]), keys[:2])

    keys = jax.random.split(jax.random.key(1), 3)
    (silent, first, second), (clipped, constant) = jax.device_get(everything(keys))
    np.testing.assert_allclose(clipped, np.clip(silent, -1, 1), atol=1e-6)
    assert np.abs(silent).max() > 1 and np.abs(first).max() > 1
    np.testing.assert_array_equal(constant[0], constant[1])
    for one, other in ((constant, clipped), (first[0], first[1]), (first[0], second[0]), (first[0], constant[0])):
        assert np.abs(np.clip(one, -1, 1) - np.clip(other, -1, 1)).max() > 0.1


def test_the_noise_of_samples_is_a_variable():
    """Drawn from the key of the weights; weights without it, of older runs, are sampled with the constant of before."""
    gen, z = Generator((8, 8, 1), 0, 5, 4, "cifar"), jnp.ones((1, 5))
    count = 16 + 64 + 64

    @quick
    def everything(keys):
        drawn_noise = jax.vmap(lambda key: gen.init(key, z)["noise"]["constant"])(keys)
        start = with_noise(drawn(gen, z), 3.0)
        old = {name: tree for name, tree in start.items() if name != "noise"}
        before = jax.random.normal(jax.random.key(0), (1, count))[0]
        constants = jnp.stack([before, *drawn_noise])
        images = jax.vmap(lambda x: gen.apply(old | {"noise": {"constant": x}}, z))(constants)
        return drawn_noise, before, images, gen.apply(old, z)

    noise, before, images, old = jax.device_get(everything(jax.random.split(jax.random.key(1))))
    assert noise.shape == (2, count) and np.abs(noise[0] - noise[1]).max() > 1
    assert noise.mean() == pytest.approx(0, abs=0.3) and noise.std() == pytest.approx(1, abs=0.2)
    np.testing.assert_allclose(constant_noise((count,)), before, rtol=1e-5)
    np.testing.assert_allclose(old, images[0], atol=1e-4)
    assert min(np.abs(images[i] - images[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_a_checkpoint_of_before_is_resumed_with_its_constant_noise(tmp_path):
    """And without signs for ADA; every other leaf is what was written."""
    pair = adversarial.Pair(
        Generator((8, 8, 1), 0, 5, 4, "cifar"),
        Discriminator((8, 8, 1), 0, 4),
        augment=augment.Augment(augment.policy("blit"), augment.Adaptive()),
    )
    adam = optax.sgd(1e-3)
    game = adversarial.game(pair, losses.non_saturating, gen_optimizer=adam, disc_optimizer=adam)
    example = {
        "row": np.zeros(1, np.int32),
        "image": np.zeros((1, 8, 8, 1), np.float32),
        "label": np.zeros(1, np.int32),
    }
    state = begun(game, example)
    old = {}
    for name, player in state.players.items():
        variables = {k: v for k, v in player.variables.items() if k not in ("noise", "signs")}
        assert len(variables) < len(player.variables)
        old[name] = player.replace(variables=variables)
    with checkpoint.Checkpoints(tmp_path) as saved:
        saved.save(3, state.replace(players=old))
        with pytest.raises(InputError, match="is no such leaf there"):
            saved.restore(state)
        step, found = saved.restore(state, added=game.added())
    assert step == 3
    noise = found.players["gen"].variables["noise"]["constant"]
    np.testing.assert_allclose(noise, jax.random.normal(jax.random.key(0), (1, 144))[0], rtol=1e-5)
    assert [float(x) for x in jax.tree.leaves(found.players["disc"].variables["signs"])] == [0, 0, 0]
    for name, player in found.players.items():
        kept = {k: v for k, v in player.variables.items() if k not in ("noise", "signs")}
        jax.tree.map(np.testing.assert_array_equal, player.replace(variables=kept), old[name])
    assert float(found.players["disc"].variables["augment"]["probability"]) == 1


@pytest.mark.parametrize("variant", ["auto", "paper256"])  # groups of 4, one a device; of 8, over both
def test_the_discriminator_of_two_devices_is_that_of_one(variant):
    """Logits, and the gradient of a loss with R1."""
    disc = Discriminator((8, 8, 1), 0, 4, variant)
    real = RNG.normal(size=(B, 8, 8, 1)).astype(np.float32)
    params = drawn(disc, real)["params"]

    def gradient(params, x):
        def loss(params):
            def total(x):
                logits = disc.apply({"params": params}, x, train=True)
                return logits.sum(), logits

            slope, logits = jax.grad(total, has_aux=True)(x)
            return jnp.mean(nn.softplus(logits) + jnp.square(slope).sum((1, 2, 3))), logits

        gradient, logits = jax.grad(loss, has_aux=True)(params)
        return collectives.mean(gradient), logits

    with plain():
        one, logits = jax.device_get(quick(gradient)(params, real))
        mapped = jax.pmap(gradient, axis_name=collectives.AXIS, in_axes=(None, 0), out_axes=(None, 0))
        two, parts = jax.device_get(jax.block_until_ready(mapped(params, real.reshape(2, B // 2, 8, 8, 1))))
    np.testing.assert_allclose(logits, parts.reshape(B), rtol=1e-5, atol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max(), err_msg=jax.tree_util.keystr(path))


class Linear(nn.Module):
    """image = sum over layers l of s[l] ws[:, l], whose Jacobian with respect to ws[:, l] is s[l]."""

    shape: ClassVar[tuple[int, int, int]] = (32, 32, 2)
    latent: int = 2
    num_classes: int = 0

    def setup(self):
        self.scale = self.param("scale", lambda _: jnp.float32([0.5, 2.0, 1.0]))
        self.mean = self.variable("path", "mean", lambda: jnp.float32(0.25))

    def __call__(self, z, label=None, train=False):
        return self.synthesise(self.map(z, label, train), train)

    def map(self, z, label=None, train=False):
        return jnp.ones((len(z), 3, 32 * 32 * 2)) * z[:, :1, None]

    def synthesise(self, ws, train=False):
        return jnp.einsum("bnw,n->bw", ws, self.scale).reshape(-1, *self.shape)


class Judge(nn.Module):
    mixes_batch: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x, label=None, train=False):
        return self.param("w", nn.initializers.ones, ()) * x.mean((1, 2, 3))


def state_of(variables):
    params, variables = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    return State(
        jnp.int32(0), jnp.uint32(0), jax.random.key(0), {"gen": PlayerState(params, variables, None, None)}, {}
    )


def test_path_length_of_a_linear_map():
    """|Jᵀ y| = |y| sqrt(mean s²), and E|y|² = channels: eq. 4 of arXiv:1912.04958 by hand."""
    pair = adversarial.Pair(Linear(), Judge())
    batch = {"row": jnp.arange(4), "image": jnp.zeros((4, 32, 32, 2)), "label": jnp.zeros(4, jnp.int32)}
    state = state_of(Linear().init(jax.random.key(0), jnp.zeros((1, 2))))

    @quick
    def measure(scale):
        loss = functools.partial(path_length, pair, 2.0, 4, decay=0.1)
        (value, (metrics, new)), slope = jax.value_and_grad(
            lambda scale: loss({"gen": {"scale": scale}}, state, batch, jax.random.key(3)), has_aux=True
        )(scale)
        return value, metrics, new["gen"]["path"]["mean"], slope["scale"] if isinstance(slope, dict) else slope

    def moments(scale):
        """Of |Jᵀ y| over the images: E and E(·²), from the length and the penalty that the function reports."""
        value, metrics, mean, slope = jax.device_get(measure(jnp.float32(scale)))
        length = metrics["length"]
        np.testing.assert_allclose(mean, 0.9 * 0.25 + 0.1 * length, rtol=1e-6)
        assert value == pytest.approx(2 * 4 * metrics["penalty"])
        return length, metrics["penalty"] + 2 * mean * length - mean**2, mean, slope

    first, second, *_ = moments([1.0, 1.0, 1.0])  # of |y| itself
    assert second == pytest.approx(2, rel=0.1)  # χ² of 2048 degrees, two images: ± 3%
    assert 0 <= second - first**2 < 0.05  # two different images
    s = np.array([0.5, 2.0, 1.0])
    k = np.sqrt(np.mean(s**2))
    length, square, mean, slope = moments(s)
    np.testing.assert_allclose([length, square], [k * first, k**2 * second], rtol=1e-5)
    # d/ds of 8 E (k |y| - a)², where dk/ds = s / 3k and da/dk = E |y| / 10
    slope_k = 16 * ((k * second - mean * first) - 0.1 * first * (k * first - mean))
    np.testing.assert_allclose(slope, slope_k * s / (3 * k), rtol=1e-4)


def test_path_length_is_a_move():
    pair = adversarial.Pair(Linear(), Judge())
    adam = optax.sgd(1e-3)
    game = adversarial.game(pair, losses.wasserstein, gen_optimizer=adam, disc_optimizer=adam)
    path = Move("gen", functools.partial(path_length, pair, 2.0, 2), every=2, draw=False, name="gen_path")
    game = Game(game.players, (*game.moves, path))
    batch = {"row": jnp.arange(2), "image": jnp.zeros((2, 32, 32, 2)), "label": jnp.zeros(2, jnp.int32)}
    batches = jax.tree.map(lambda x: jnp.stack([jnp.stack([x] * game.draws)] * 3), batch)

    @quick
    def run(key):
        def step(state, batch):
            state, metrics = game.step(state, batch)
            return state, (state.players["gen"].variables["path"]["mean"], metrics["gen_path/length"])

        return jax.lax.scan(step, game.init(key, batch), batches)[1]

    means, lengths = run(jax.random.key(0))
    assert means[0] == means[1] != means[2] and lengths[1] == 0  # played in every second step
    assert means[0] == pytest.approx(0.99 * 0.25 + 0.01 * lengths[0])
    assert lengths[0] == pytest.approx(np.sqrt(1.75 * 2), rel=0.05)

    state = state_of({"params": {}})
    with pytest.raises(InputError, match="'path/mean'"):
        path_length(pair, 2.0, 4, {"gen": {}}, state, batch, jax.random.key(0))


def test_derivatives_of_both_orders():
    """In float64, against central differences: R1 of the discriminator, the path length of the generator.

    With XLA's own convolutions, which compile in half the time; the derivatives of ours are tested for themselves.
    """
    with jax.enable_x64(True), plain():
        shape = (8, 8, 1)
        gen = Generator(shape, 0, 3, 4, "cifar", jnp.float64)
        disc = Discriminator(shape, 0, 4, dtype=jnp.float64)
        pair, batch, real = adversarial.Pair(gen, disc), {"row": jnp.arange(4)}, RNG.normal(size=(4, *shape))

        judge, start = jax.tree.map(jnp.float64, (drawn(disc, real), drawn(gen, jnp.zeros((4, 3)))))

        def r1(params):
            return jnp.sum(jnp.square(jax.grad(lambda x: disc.apply({"params": params}, x).sum())(real)))

        def length(params):
            move = path_length(pair, 1.0, 1, {"gen": params}, state_of(start), batch, jax.random.key(2), decay=0.0)
            return move[0]

        @quick
        def everything(h):
            results = []
            for function, params in ((r1, judge["params"]), (length, start["params"])):
                # In proportion to the parameters, so that each of them counts.
                steps = jax.tree.map(lambda p: abs(p) * RNG.normal(size=p.shape), params)
                three = jax.tree.map(lambda p, d: jnp.stack([p - h * d, p, p + h * d]), params, steps)
                values, gradients = jax.lax.map(jax.value_and_grad(function), three)
                exact = jax.tree.map(lambda g, d: jnp.vdot(g[1], d), gradients, steps)
                results.append((sum(jax.tree.leaves(exact)), (values[2] - values[0]) / (2 * h)))
            return results

        for exact, slope in jax.device_get(everything(1e-7)):
            assert float(exact) == pytest.approx(float(slope), rel=1e-5) and abs(slope) > 1e-3
