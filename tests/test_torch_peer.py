"""The PyTorch peer of the benchmark is the same game: same weights and inputs, same losses and gradients."""

import collections
import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxgan import adversarial, losses, penalties
from jaxgan.game import PlayerState, State
from jaxgan.models import dcgan, mlp, r3gan, resnet

torch = pytest.importorskip("torch")
torch_peer = pytest.importorskip("experiments.torch_peer")

# Programs that run once: without LLVM's optimiser they compile in half the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MLP = torch_peer.Case(
    name="mlp", model="mlp", variant="", shape=(8, 8, 1), latent=5, width=4, loss="non_saturating",
    wgan_gp=0.0, r1_r2=0.0, disc_batch_norm=False, disc_steps=1, batch_size=4, learning_rate=2e-4, beta1=0.5,
    beta2=0.999, ema=1000.0,
)  # fmt: skip
DCGAN = dataclasses.replace(MLP, name="dcgan", model="dcgan", shape=(16, 16, 3), disc_batch_norm=True)
RESNET = dataclasses.replace(MLP, name="sngan", model="resnet", variant="sngan", shape=(32, 32, 3), loss="hinge")
WGAN_GP = {"loss": "wasserstein", "wgan_gp": 10.0, "disc_batch_norm": False}
CASES = [
    MLP,
    dataclasses.replace(MLP, name="mlp_gp", **WGAN_GP),
    DCGAN,
    dataclasses.replace(DCGAN, name="dcgan_gp", shape=(16, 12, 3), **WGAN_GP),
    RESNET,
    dataclasses.replace(RESNET, name="wgan_gp", variant="wgan_gp", **WGAN_GP),
    dataclasses.replace(
        MLP, name="r3gan", model="r3gan", variant="ffhq64", shape=(64, 64, 3), width=16, loss="relativistic", r1_r2=0.5
    ),  # of two groups, and of half the channels at 64x64
]
TYPES = {"Linear": "Dense", "Conv2d": "Conv", "ConvTranspose2d": "ConvTranspose", "BatchNorm1d": "BatchNorm"}
TYPES["BatchNorm2d"] = "BatchNorm"


def pair_of(case):
    if case.model == "mlp":
        widths = (case.width, 2 * case.width, 4 * case.width)
        gen = mlp.Generator(case.shape, latent=case.latent, widths=widths)
        return adversarial.Pair(gen, mlp.Discriminator(case.shape, widths=widths[::-1]))
    options = {"variant": case.variant} if case.variant else {}
    module = {"dcgan": dcgan, "resnet": resnet, "r3gan": r3gan}[case.model]
    gen = module.Generator(case.shape, latent=case.latent, width=case.width, **options)
    if case.model == "dcgan":
        options = {"batch_norm": case.disc_batch_norm}
    return adversarial.Pair(gen, module.Discriminator(case.shape, width=case.width, **options))


def layers(network, shortcut_first):
    """Our names of the layers -> PyTorch's: ours are numbered in the order in which the forward pass makes them."""
    modules = dict(network.named_modules())

    def order(item):  # a generator's block makes its shortcut before its other convolutions, a discriminator's after
        block, _, leaf = item[1].rpartition(".")
        at = next(i for i, name in enumerate(modules) if name == block) if leaf == "shortcut" else item[0]
        return (at, 0) if leaf == "shortcut" and shortcut_first else (item[0], 1)

    counts, result = collections.Counter(), {}
    for _, name in sorted(enumerate(modules), key=order):
        kind = TYPES.get(type(modules[name]).__name__.removeprefix("Parametrized"))
        if kind:
            result[f"{kind}_{counts[kind]}"] = modules[name]
            counts[kind] += 1
    return result


def weight_of(module):
    return module.parametrizations.weight.original if hasattr(module, "parametrizations") else module.weight


def to_torch(leaf):
    """(c, f) -> (f, c); (h, w, c) -> (c, h, w); (k, k, c, f) -> (f, c, k, k), and (k, k, f, c) of a transposed
    convolution -> (c, f, k, k)."""
    return torch.tensor(np.transpose(leaf, {1: (0,), 2: (1, 0), 3: (2, 0, 1), 4: (3, 2, 0, 1)}[np.ndim(leaf)]).copy())


def staged(network):
    """Our names of R3GAN's layers -> PyTorch's."""
    blocks = {f"Block_{i}/": block for i, block in enumerate(network.blocks)}
    names = {"Conv_0": "first", "GroupedConv_0": "second", "Conv_1": "third"}
    result = {block + ours: getattr(blocks[block], theirs) for block in blocks for ours, theirs in names.items()}
    return result | {f"Conv_{i}": point for i, point in enumerate(network.points)} | {"Dense_0": network.dense}


def parameters(ours, network, is_generator):
    """Pairs (our leaf, PyTorch's tensor) of all parameters, by name."""
    theirs = staged(network) if hasattr(network, "blocks") else layers(network, is_generator)
    result = {}
    for name, value in flatten_dict(ours, sep="/").items():
        layer, _, leaf = name.rpartition("/")
        module = theirs.get(layer)
        tensor = network.basis if leaf == "basis" else module.bias if leaf == "bias" else weight_of(module)
        assert tensor.shape == to_torch(value).shape, name
        result[name] = value, tensor
    assert len({id(tensor) for _, tensor in result.values()}) == len(list(network.parameters()))
    return result


def draw(rng, path, leaf):
    """Values for a parameter or a variable. Biases of 0 and scales of 1 would hide where they are applied."""
    name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
    if name == "kernel":
        return (noise / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)
    if name == "u":
        return noise / np.linalg.norm(noise)
    if name == "basis":
        return noise
    start = {"scale": 1, "bias": 0, "mean": 0, "var": 1, "count": 0}[name]
    return np.float32(start) + np.float32(0.1 if name in ("scale", "bias") else 0) * noise


def images(x):
    return torch.tensor(np.transpose(x, (0, 3, 1, 2)).copy())


def assert_close(name, ours, theirs, floor=0.0):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    scale = max(np.abs(ours).max(), floor)
    difference = np.abs(ours - theirs).max() / scale
    print(f"{name}: {difference:.1e} of {scale:.2e}")
    assert difference < 1e-4, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_step_agrees(case, monkeypatch):
    pair, b = pair_of(case), case.batch_size
    rng = np.random.default_rng(0)
    real = rng.uniform(-1, 1, (b, *case.shape)).astype(np.float32)
    z = rng.normal(size=(b, case.latent)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), b)
    mix = torch.tensor(np.asarray(jax.vmap(jax.random.uniform)(keys)))
    # The same latents and interpolation factors for both, wherever our losses draw theirs.
    monkeypatch.setattr(adversarial, "latents", lambda key, rows, dimension: z)
    monkeypatch.setattr(adversarial, "image_keys", lambda key, rows: keys)
    batch = {"image": real, "row": np.arange(b)}
    loss = getattr(losses, case.loss)
    penalty = [penalties.wgan_gp(case.wgan_gp)] * bool(case.wgan_gp)
    penalty += [penalties.r1(case.r1_r2), penalties.r2(case.r1_r2)] * bool(case.r1_r2)

    inits = {"disc": pair.init_discriminator, "gen": pair.init_generator}
    trees = {name: jax.eval_shape(init, jax.random.key(0), batch) for name, init in inits.items()}
    trees = jax.tree_util.tree_map_with_path(functools.partial(draw, rng), trees)
    players = {name: PlayerState(*tree, (), None) for name, tree in trees.items()}

    def ours(state, key):
        params = {name: player.params for name, player in state.players.items()}
        disc = functools.partial(adversarial.disc_loss, pair, loss, penalty)
        gen = functools.partial(adversarial.gen_loss, pair, loss)
        disc, gen = (jax.value_and_grad(f, has_aux=True)(params, state, batch, key) for f in (disc, gen))
        return pair.generate(params["gen"], state.players["gen"].variables, batch, key)[0], disc, gen

    state = State(jnp.int32(0), jnp.uint32(0), jax.random.key(0), players, {})
    fake, disc, gen = jax.device_get(quick(ours)(state, jax.random.key(0)))
    (our_disc_loss, (_, new)), disc_gradients = disc
    (our_gen_loss, _), gen_gradients = gen

    their_gen, their_disc = torch_peer.networks(case)
    gen_pairs = parameters(players["gen"].params, their_gen, True)
    disc_pairs = parameters(players["disc"].params, their_disc, False)
    with torch.no_grad():
        for value, tensor in [*gen_pairs.values(), *disc_pairs.values()]:
            tensor.copy_(to_torch(value))
    vectors = {}
    for name, leaves in players["disc"].variables.get("spectral", {}).items():
        vectors[name] = layers(their_disc, False)[name].parametrizations.weight[0].u
        vectors[name].copy_(torch.tensor(leaves["SpectralNorm_0"]["u"]))

    their_fake = their_gen(torch.tensor(z))
    assert_close("images", np.transpose(fake, (0, 3, 1, 2)), their_fake.detach())
    their_disc_loss = torch_peer.disc_loss(their_disc, images(real), their_fake.detach(), case, mix)
    their_disc_gradients = torch.autograd.grad(their_disc_loss, [tensor for _, tensor in disc_pairs.values()])
    assert_close("disc/loss", our_disc_loss, their_disc_loss.detach())
    for name, vector in vectors.items():
        assert_close(f"{name}/u", new["disc"]["spectral"][name]["SpectralNorm_0"]["u"], vector)
        # Our generator's loss sees the vectors as they were.
        vector.copy_(torch.tensor(players["disc"].variables["spectral"][name]["SpectralNorm_0"]["u"]))
    their_gen_loss = torch_peer.gen_loss(their_disc, their_fake, case, images(real) if loss.paired else None)
    their_gen_gradients = torch.autograd.grad(their_gen_loss, [tensor for _, tensor in gen_pairs.values()])
    assert_close("gen/loss", our_gen_loss, their_gen_loss.detach())

    for player, gradients, pairs, theirs in (
        ("disc", disc_gradients["disc"], disc_pairs, their_disc_gradients),
        ("gen", gen_gradients["gen"], gen_pairs, their_gen_gradients),
    ):
        largest = max(np.abs(x).max() for x in jax.tree.leaves(gradients))
        gradients = flatten_dict(gradients, sep="/")
        for name, gradient in zip(pairs, theirs, strict=True):
            # A bias that batch norm or a difference takes away again has a gradient of rounding errors alone.
            floor = 1e-2 * largest if name.endswith("bias") else 0.0
            assert_close(f"{player} {name}", to_torch(gradients[name]), gradient, floor)


def test_a_worker_answers():
    command = [sys.executable, "-m", "experiments.torch_peer", json.dumps(dataclasses.asdict(MLP)), "--steps=2"]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, input="run\nrun\n", capture_output=True, text=True, timeout=120, cwd=root)
    assert result.returncode == 0, result.stderr
    ready, *turns = map(json.loads, result.stdout.splitlines())
    assert sorted(ready) == ["device", "ready", "torch"]
    assert len(turns) == 2
    assert all(turn["seconds"] > 0 for turn in turns)
