"""Trains a generator and a discriminator on images: dense, convolutional, conditional, Wasserstein, least squares.

python -m experiments.image --workdir=runs/digits
python -m experiments.image --preset=dcgan_mnist --workdir=runs/mnist
python -m experiments.image --preset=dcgan_celeba64 --dataset=folder:photos --workdir=runs/photos
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgan import adversarial, data, flags, lookup, loop, losses, models, parallel, penalties, report, schedule
from jaxgan.config import Common
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game, Optimizer, State
from jaxgan.metrics import judge as quality
from jaxgan.trained import Trained, network


@dataclasses.dataclass(frozen=True)
class Config(Common):
    steps: int = option(4000, "training steps", resumable=True)
    conditional: bool = option(False, "generator and discriminator see the class label")
    latent: int = option(0, "dimension of the latent; 0: the model's own")
    width: int = option(0, "base number of channels; 0: the model's own")
    variant: str = option("", "which of the published shapes of the model, where it has several")
    disc_batch_norm: bool = option(True, "batch norm in the discriminator, where the model has it")
    optimizer: str = option("adam", "the optimizer of both players", ("adam", "rmsprop", "sgd"))
    learning_rate: tuple[float, ...] = option((2e-4,), "one value, or start,end over --anneal_images")
    gen_learning_rate: tuple[float, ...] = option((), "the generator's, if it differs")
    beta1: float = option(0.5, "Adam's β1")
    beta2: tuple[float, ...] = option((0.999,), "Adam's β2: one value, or start,end")
    clip_gradients: float = option(0.0, "largest global norm of a gradient; 0: not clipped")
    clip_weights: float = option(0.0, "bound on the critic's weights (WGAN); 0: none")
    disc_steps: int = option(1, "moves of the discriminator to one of the generator")
    r1: tuple[float, ...] = option((), "γ of R1, γ/2 E||∇D(real)||²: none, one value, or start,end")
    r2: tuple[float, ...] = option((), "γ of R2, at generated images")
    wgan_gp: tuple[float, ...] = option((), "λ of WGAN-GP")
    penalty_every: int = option(1, "steps between penalties; their weight grows as much")
    ema: tuple[float, ...] = option((10_000.0,), "half-life of the generator's average, in images; empty: none")
    anneal_images: float = option(1e6, "images over which start,end values move, along a half cosine")
    accumulate: int = option(1, "micro-batches of a batch that does not fit in memory")
    remat: bool = option(False, "keep less of a pass in memory and compute it again for the gradient")


# What a row reproduces, on what hardware and with what result, stands beside it in the README's table.
PRESETS: dict[str, dict[str, Any]] = {
    # The default, what no flag at all trains: 8x8 digits inside the installation, the settings of dcgan_mnist.
    "dcgan_digits": {"steps": 4000},
    # Dense, binary cross-entropy (arXiv:1406.2661), Adam 2e-4, β1 0.5. Without R1 the discriminator learns the
    # 1,797 digits by heart: the distance rose from 13 at 1,000 steps to 53 at 3,000.
    "mlp_digits": {"model": "mlp", "r1": (0.3,), "steps": 3000},
    "mlp_mnist": {"model": "mlp", "dataset": "mnist", "steps": 6000},
    # Dense, least squares (arXiv:1611.04076).
    "lsgan_mnist": {"model": "mlp", "loss": "least_squares", "dataset": "mnist", "steps": 6000},
    # arXiv:1511.06434, section 4: Adam 2e-4, β1 0.5, batch norm in both, N(0, 0.02²).
    "dcgan_mnist": {"dataset": "mnist", "steps": 3000, "batch_size": 128, "width": 32},
    "dcgan_fashion": {"dataset": "fashion_mnist", "steps": 3000, "batch_size": 128, "width": 32},
    # Conditional (arXiv:1411.1784, projection arXiv:1802.05637).
    "cdcgan_mnist": {"dataset": "mnist", "conditional": True, "steps": 3000, "batch_size": 128, "width": 32},
    # arXiv:1701.07875, algorithm 1: RMSProp 5e-5, weights in [-0.01, 0.01], 5 critic moves.
    "wgan_mnist": {
        "dataset": "mnist",
        "loss": "wasserstein",
        "optimizer": "rmsprop",
        "learning_rate": (5e-5,),
        "clip_weights": 0.01,
        "disc_steps": 5,
        "steps": 3000,
        "width": 32,
    },
    # arXiv:1704.00028, algorithm 1: λ 10, 5 critic moves, Adam 1e-4, β1 0, β2 0.9, no batch norm in the critic.
    "wgan_gp_mnist": {
        "dataset": "mnist",
        "loss": "wasserstein",
        "wgan_gp": (10.0,),
        "disc_batch_norm": False,
        "learning_rate": (1e-4,),
        "beta1": 0.0,
        "beta2": (0.9,),
        "disc_steps": 5,
        "steps": 3000,
        "width": 32,
    },
    # The published DCGAN shape, 64x64 faces, batch 128 there. Point --dataset at a folder of aligned faces.
    "dcgan_celeba64": {"dataset": "celeb_a", "size": "64", "mirror": True, "steps": 20_000, "batch_size": 128},
}


def check(config: Config, devices: int) -> None:
    """What can be wrong with the flags of this script, in the words of the flags."""
    for name, least in {"disc_steps": 1, "penalty_every": 1, "accumulate": 1, "width": 0, "latent": 0}.items():
        if getattr(config, name) < least:
            raise InputError(f"--{name}={getattr(config, name)}: expected at least {least}")
    needed, optional = ("learning_rate", "beta2"), ("gen_learning_rate", "r1", "r2", "wgan_gp", "ema")
    for name in (*needed, *optional):
        values = getattr(config, name)
        if len(values) > 2 or (name in needed and not values):
            raise InputError(f"--{name}={','.join(map(str, values))}: expected one value, or start,end")
    if config.anneal_images <= 0:
        raise InputError(f"--anneal_images={config.anneal_images}: expected more than 0")
    share = config.batch_size // devices
    if share % config.accumulate:
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        near = sorted(divisors, key=lambda n: abs(n - config.accumulate))[:2]
        raise InputError(
            f"--accumulate={config.accumulate} does not divide the {share} images of a device; "
            f"nearest: {' or '.join(map(str, sorted(near)))}"
        )


def networks(config: Config, shape: tuple[int, int, int], num_classes: int) -> adversarial.Pair:
    """The generator and discriminator that the config names, for images of `shape`."""
    if config.conditional and num_classes < 2:
        raise InputError(
            f"--conditional needs labels of two classes or more; {config.dataset} has {num_classes or 'none'}"
        )
    home = lookup.module("model", config.model, models, ("Generator", "Discriminator"))
    common = {
        "shape": shape,
        "num_classes": num_classes if config.conditional else 0,
        "dtype": jnp.dtype(config.dtype),
    }
    own = {name: value for name in ("width", "variant") if (value := getattr(config, name))}
    latent = {"latent": config.latent} if config.latent else {}
    norm = {} if config.disc_batch_norm else {"batch_norm": False}
    return adversarial.Pair(
        build(home, "Generator", common | own | latent),
        build(home, "Discriminator", common | own | norm),
        conditional=config.conditional,
        remat=config.remat,
    )


def build(home: Any, name: str, arguments: dict[str, Any]) -> nn.Module:
    """`home.name(**arguments)`; an argument that the network does not have is an error of the flag that gave it."""
    network = getattr(home, name)
    for argument in arguments.keys() - {field.name for field in dataclasses.fields(network)}:
        raise InputError(f"the {name} of {home.__name__} has no {argument!r}; leave that flag out for this model")
    return network(**arguments)


def optimizer(config: Config, learning_rate: tuple[float, ...], clip_weights: float = 0.0) -> Optimizer:
    """An Optax transformation whose learning rate and β2 follow the images seen."""
    rate = schedule.anneal(learning_rate, config.anneal_images)
    beta2 = schedule.anneal(config.beta2, config.anneal_images)

    def at(images: jax.Array) -> optax.GradientTransformation:
        now = schedule.at(rate, images)
        rules: dict[str, Callable[[], optax.GradientTransformation]] = {
            "adam": lambda: optax.adam(now, config.beta1, schedule.at(beta2, images)),
            "rmsprop": lambda: optax.rmsprop(now, decay=0.99),
            "sgd": lambda: optax.sgd(now),
        }
        chain = [optax.clip_by_global_norm(config.clip_gradients)] if config.clip_gradients else []
        chain += [rules[config.optimizer]()]
        chain += [penalties.weight_clipping(clip_weights)] if clip_weights else []
        return optax.chain(*chain)

    return at


def make_game(config: Config, pair: adversarial.Pair) -> Game:
    makers: list[tuple[Callable[[Any], penalties.Penalty], tuple[float, ...]]] = [
        (penalties.r1, config.r1),
        (penalties.r2, config.r2),
        (penalties.wgan_gp, config.wgan_gp),
    ]
    return adversarial.game(
        pair,
        lookup.member("loss", config.loss, losses, losses.Loss),
        gen_optimizer=optimizer(config, config.gen_learning_rate or config.learning_rate),
        disc_optimizer=optimizer(config, config.learning_rate, config.clip_weights),
        penalties=[make(schedule.anneal(weight, config.anneal_images)) for make, weight in makers if weight],
        penalty_every=config.penalty_every,
        disc_steps=config.disc_steps,
        accumulate=config.accumulate,
        ema=schedule.anneal(config.ema, config.anneal_images) if config.ema else None,
    )


def main(config: Config) -> None:
    loop.setup(config)
    loop.check(config)
    devices = parallel.devices_for(config.batch_size, config.devices)
    check(config, len(devices))
    source = data.load(
        config.dataset,
        config.split,
        data_dir=config.data_dir or None,
        manual_dir=config.manual_dir or None,
        size=config.size,
        crop=config.crop,
        channels=config.channels,
    )
    pair = networks(config, source.shape, source.num_classes)
    game = make_game(config, pair)
    example = {"image": np.zeros((1, *source.shape), np.float32), "label": np.zeros(1, np.int32), "row": np.arange(1)}
    if config.dry_run:
        describe(config, source, game, example, devices)
        return

    def trained(state: State) -> Trained:
        player = state.players["gen"]
        return Trained.of(pair.generator, player.averaged, player.variables)

    def sample(state: State) -> np.ndarray:
        return report.grid(trained(state).sample(jax.random.key(config.seed), 64))

    @functools.cache
    def judge() -> quality.Judge:
        judge = quality.train(source, config.eval_samples, loop.cache_dir())
        what = "labels" if judge.labels is not None else "rotations"
        print(
            f"a classifier tells the {what} of held-out real images with {judge.accuracy:.1%} accuracy", file=sys.stderr
        )
        return judge

    def evaluate(state: State) -> dict[str, float]:
        real = judge().labels
        labels = np.resize(real, config.eval_samples) if config.conditional and real is not None else None
        return judge()(trained(state).sample(jax.random.key(config.seed + 1), config.eval_samples, labels))

    feed = data.place(
        source,
        batch_size=config.batch_size,
        draws=game.draws,
        seed=config.seed,
        devices=devices,
        placement=config.placement,
        resident_gb=config.resident_gb,
        mirror=config.mirror,
    )
    loop.run(
        game,
        feed,
        config,
        example=example,
        devices=devices,
        about={
            "networks": {"generator": network(pair.generator), "discriminator": network(pair.discriminator)},
            "data": {"classes": list(source.class_names), "num_classes": source.num_classes, "shape": source.shape},
        },
        sample=sample,
        evaluate=evaluate,
        best="eval/distance" if config.eval_every else None,
    )


def describe(config: Config, source: data.Source, game: Game, example: dict, devices: list) -> None:
    """What --dry_run prints."""
    state = jax.eval_shape(game.init, jax.random.key(0), example)
    h, w, c = source.shape
    classes = f"{source.num_classes} classes" if source.num_classes else "no labels"
    print(f"data     {source.name}: {source.num_examples:,} images of {h}x{w}x{c}, {classes}")
    for name, player in state.players.items():
        count = sum(x.size for x in jax.tree.leaves(player.params))
        print(f"player   {name}: {count:,} parameters{', averaged' if player.ema is not None else ''}")
    for move in game.moves:
        print(
            f"move     {move.title}: {move.times} times every {move.every} steps"
            f"{'' if move.draw else ', no new examples'}"
        )
    print(f"devices  {len(devices)} x {devices[0].device_kind}, {config.batch_size // len(devices)} images each")
    print(f"run      {config.steps:,} steps, {config.steps * config.batch_size / 1000:,.0f} kimg, to {config.workdir}")


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
