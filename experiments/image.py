"""Trains a generator and a discriminator on images: dense, convolutional, conditional, Wasserstein, least squares.

python -m experiments.image --workdir=runs/digits
python -m experiments.image --preset=dcgan_mnist --workdir=runs/mnist
python -m experiments.image --preset=dcgan_celeba64 --dataset=folder:photos --workdir=runs/photos
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.image_check import NEEDS, check
from experiments.image_evaluation import BEST, best, evaluation, with_features
from experiments.image_presets import EARLIER, PRESETS
from jaxgan import (
    adversarial,
    augment,
    classes,
    data,
    files,
    flags,
    hosts,
    lastwords,
    lookup,
    loop,
    losses,
    models,
    numerics,
    parallel,
    pathlength,
    penalties,
    regularisers,
    report,
    schedule,
    sources,
)
from jaxgan import workdir as directories
from jaxgan.config import Common, kimg
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game, Move, Optimizer, State
from jaxgan.metrics.diagnose import Diagnosis, batches_of, held_out
from jaxgan.trained import Trained, as_stored, network


@dataclasses.dataclass(frozen=True)
class Config(Common):
    needs: ClassVar[Mapping[str, flags.Need]] = NEEDS
    earlier: ClassVar[Mapping[str, Mapping[str, Any]]] = EARLIER
    # {flag: weight -> what it adds to a loss}. A fork's own Config adds its flag, and here what that makes.
    penalty_flags: ClassVar[Mapping[str, Callable[[Any], penalties.Penalty]]] = {
        "r1": penalties.r1,
        "r2": penalties.r2,
        "wgan_gp": penalties.wgan_gp,
        "dragan": penalties.dragan,
    }
    regulariser_flags: ClassVar[Mapping[str, Callable[[Any], regularisers.Regulariser]]] = {}

    steps: int = option(4000, "training steps", resumable=True)
    classes: tuple[str, ...] = option(
        (), "classes of the data set to train on, by name or number, which become 0, 1, ...; empty: all"
    )
    conditional: bool = option(False, "generator and discriminator see the class label")
    auxiliary: float = option(
        0.0, "λ of AC-GAN: a conditional discriminator tells the class instead of seeing it; 0: no"
    )
    latent: int = option(0, "dimension of the latent; 0: the model's own")
    width: int = option(0, "base number of channels; 0: the model's own")
    variant: str = option("", "which of the published shapes of the model, where it has several")
    disc_batch_norm: bool = option(True, "batch norm in the discriminator, where the model has it")
    optimizer: str = option("adam", "the optimizer of both players", ("adam", "rmsprop", "sgd"))
    learning_rate: tuple[float, ...] = option((2e-4,), "one value, or start,end over --anneal_images")
    gen_learning_rate: tuple[float, ...] = option((), "the generator's, if it differs")
    beta1: float = option(0.5, "Adam's β1")
    beta2: tuple[float, ...] = option((0.999,), "Adam's β2: one value, or start,end")
    gen_beta2: tuple[float, ...] = option((), "the generator's, if it differs")
    clip_gradients: float = option(0.0, "largest global norm of a gradient; 0: not clipped")
    clip_weights: float = option(0.0, "bound on the critic's weights (WGAN); 0: none")
    disc_steps: int = option(1, "moves of the discriminator to one of the generator")
    r1: tuple[float, ...] = option((), "γ of R1, γ/2 E||∇D(real)||²: none, one value, or start,end")
    r2: tuple[float, ...] = option((), "γ of R2, at generated images")
    wgan_gp: tuple[float, ...] = option((), "λ of WGAN-GP")
    dragan: tuple[float, ...] = option((), "λ of DRAGAN")
    penalty_every: int = option(1, "steps between penalties; their weight grows as much")
    consistency: tuple[float, ...] = option((), "λ of consistency under flips and shifts: at reals, or reals,fakes")
    lecam: float = option(0.0, "λ of LeCam's regularisation; 0: none")
    orthogonal: float = option(0.0, "β of orthogonal regularisation of the generator; 0: none")
    path_length: float = option(0.0, "weight of StyleGAN2's path length regularisation; 0: none")
    path_every: int = option(4, "steps between them; their weight grows as much")
    augment: str = option("", "augmentation of whatever the discriminator sees: a policy of jaxgan/augment.py")
    augment_probability: tuple[float, ...] = option((1.0,), "of an image: one value, or start,end")
    ada_target: float = option(0.0, "adapt that probability until E sign D(real) is this (ADA: 0.6); 0: do not")
    ada_images: float = option(500_000.0, "images in which an adaptive probability may rise from 0 to 1")
    dequantize: bool = option(False, "real images are (v + u) / 128 - 1, v their bytes and u uniform noise in [0, 1)")
    instance_noise: tuple[float, ...] = option((), "its standard deviation: none, one value, or start,end")
    pack: int = option(1, "images that the discriminator judges at once (PacGAN)")
    unroll: int = option(0, "moves of the discriminator that the generator looks ahead (unrolled GAN)")
    ema: tuple[float, ...] = option((10_000.0,), "half-life of the generator's average, in images; empty: none")
    ema_ramp: float = option(0.0, "the half-life is at most this share of the images seen (StyleGAN2-ADA: .05); 0: any")
    anneal_images: float = option(1e6, "images over which start,end values move")
    anneal: str = option("cosine", "along half a cosine, or a line", tuple(schedule.FORMS))
    metrics: tuple[str, ...] = option(
        ("distance",),
        "what evaluations measure, the best checkpoint by the first: modes is for stacked digits",
        (*BEST, flags.OWN),
    )
    features: str = option(
        "classifier",
        "what fid, kid ... see: classifier, inception, pixels, pkg.module:name; auto: inception where its weights are, "
        "else the classifier, with distance in place of fid",
    )
    inception_weights: str = option("", "Inception's weights; empty: those in the cache folder", resumable=True)
    diagnose: bool = option(False, "say how the training does; a set without a test split holds out a tenth for it")
    accumulate: int = option(1, "micro-batches of a batch that does not fit in memory")
    remat: bool = option(False, "keep less of a pass in memory and compute it again for the gradient")


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
    judge = {} if config.disc_batch_norm else {"batch_norm": False}
    judge |= {"auxiliary": True} if config.auxiliary else {}
    seen = {"shape": (*shape[:2], shape[2] * config.pack)}
    return adversarial.Pair(
        build(home, "Generator", common | own | latent),
        build(home, "Discriminator", common | own | judge | seen),
        conditional=config.conditional,
        auxiliary=config.auxiliary > 0,
        augment=augmentation(config, shape[2]),
        noise=annealed(config, config.instance_noise or (0.0,)),
        pack=config.pack,
        remat=config.remat,
    )


def augmentation(config: Config, channels: int) -> augment.Augment | None:
    """What --augment names, as often as the other flags say; the same for real and generated images."""
    if not config.augment:
        return None
    probability: Any = annealed(config, config.augment_probability)
    if config.ada_target:
        # Four batches, of which each is scored in so many passes.
        probability = augment.Adaptive(config.ada_target, config.ada_images, interval=4 * config.accumulate)
    return augment.Augment(augment.policy(config.augment, channels), probability)


def annealed(config: Any, values: tuple[float, ...]) -> float | Callable[[jax.Array], jax.Array]:
    """A number, or the schedule of what moves between two."""
    return schedule.anneal(values, config.anneal_images, config.anneal)


# What every network has.
FIELDS = {
    "shape": "shape: tuple[int, int, int]",
    "num_classes": "num_classes: int = 0",
    "dtype": "dtype: Any = jnp.float32",
}


def build(home: Any, name: str, arguments: dict[str, Any]) -> nn.Module:
    """`home.name(**arguments)`; an argument that the network does not have is an error of the flag that gave it."""
    network: Any = getattr(home, name)
    fields = getattr(network, "__dataclass_fields__", None)
    if fields is None:
        raise InputError(f"{home.__name__}.{name} is no flax.linen.Module; expected a class of one")
    for argument in arguments.keys() - fields.keys():
        if argument in FIELDS:
            raise InputError(
                f"the {name} of {home.__name__} has no field {argument!r}; write `{FIELDS[argument]}` in its class"
            )
        raise InputError(f"the {name} of {home.__name__} has no {argument!r}; leave that flag out for this model")
    return network(**arguments)


def optimizer(
    config: Config,
    learning_rate: tuple[float, ...],
    clip_weights: float = 0.0,
    every: int = 1,
    decay: tuple[float, ...] = (),
) -> Optimizer:
    """An Optax transformation whose learning rate and β2 follow the images seen.

    decay: β2, where it is not that of --beta2.
    every: its moves between two of a lazy regularisation, which are moves of this optimizer too: it then takes
      every + 1 in the time of `every`, so learning rate and decay rates shrink by that (arXiv:1912.04958, appendix B).
    """
    rate = annealed(config, learning_rate)
    beta2 = annealed(config, decay or config.beta2)
    share = every / (every + 1) if every > 1 else 1.0

    def at(images: jax.Array) -> optax.GradientTransformation:
        now = share * schedule.at(rate, images)
        rules: dict[str, Callable[[], optax.GradientTransformation]] = {
            # Looking ahead differentiates Adam, whose square root has no slope at 0.
            "adam": lambda: optax.adam(
                now, config.beta1**share, schedule.at(beta2, images) ** share, eps_root=1e-16 if config.unroll else 0.0
            ),
            # ε beside the root: under it, the small gradients that a clipped critic gives would hardly move anything.
            "rmsprop": lambda: optax.rmsprop(now, decay=0.99, eps=1e-8, eps_in_sqrt=False),
            "sgd": lambda: optax.sgd(now),
        }
        chain = [optax.clip_by_global_norm(config.clip_gradients)] if config.clip_gradients else []
        chain += [rules[config.optimizer]()]
        chain += [penalties.weight_clipping(clip_weights)] if clip_weights else []
        return optax.chain(*chain)

    return at


def half_life(config: Config) -> float | Callable[[jax.Array], jax.Array] | None:
    """Of the generator's average, in images."""
    if not config.ema:
        return None
    ema = annealed(config, config.ema)
    if not config.ema_ramp:
        return ema
    return lambda images: jnp.minimum(schedule.at(ema, images), config.ema_ramp * images)


def make_game(config: Config, pair: adversarial.Pair) -> Game:
    penalised = [
        make(annealed(config, weight))
        for name, make in config.penalty_flags.items()
        if (weight := getattr(config, name))
    ]
    terms = [regularisers.lecam(config.lecam)] if config.lecam else []
    terms += [regularisers.orthogonal("gen", config.orthogonal)] if config.orthogonal else []
    if config.auxiliary:
        terms += [regularisers.auxiliary(player, config.auxiliary) for player in ("disc", "gen")]
    changed = (regularisers.consistency, regularisers.consistency_fake)
    terms += [
        make(regularisers.flip_and_shift, weight) for make, weight in zip(changed, config.consistency, strict=False)
    ]
    terms += [make(weight) for name, make in config.regulariser_flags.items() if (weight := getattr(config, name))]
    game = adversarial.game(
        pair,
        lookup.member("loss", config.loss, losses, losses.Loss),
        gen_optimizer=optimizer(
            config,
            config.gen_learning_rate or config.learning_rate,
            every=config.path_every if config.path_length else 1,
            decay=config.gen_beta2,
        ),
        disc_optimizer=optimizer(
            config,
            config.learning_rate,
            config.clip_weights,
            config.penalty_every * config.disc_steps if penalised and config.penalty_every > 1 else 1,
        ),
        penalties=penalised,
        penalty_every=config.penalty_every,
        regularisers=terms,
        disc_steps=config.disc_steps,
        unroll=config.unroll,
        accumulate=config.accumulate,
        ema=half_life(config),
    )
    if not config.path_length:
        return game
    path = functools.partial(pathlength.path_length, pair, config.path_length, config.path_every)
    move = Move("gen", path, every=config.path_every, draw=False, accumulate=config.accumulate, name="gen_path")
    return Game(game.players, (*game.moves, move))


def trained(pair: adversarial.Pair, state: State) -> Trained:
    player = state.players["gen"]
    return Trained.of(pair.generator, player.averaged, player.variables)


def main(config: Config) -> None:
    loop.setup(config)
    config = with_features(config)
    loop.check(config)
    devices = parallel.devices_for(config.batch_size, config.devices)
    check(config, len(devices))
    if config.conditional and len(config.classes) == 1:
        raise InputError(f"--conditional with --classes={config.classes[0]}: expected two classes or more, or all")
    source = load(config, config.split)
    held = None
    if config.diagnose:
        source, held = held_out(source, config.split, functools.partial(whole, config))
        batches_of(config.pack, source, held)
    if not config.dry_run:
        train(config, source, devices, held)
        return
    with hosts.together():
        hosts.agree(lambda: directories.check_data(config, directories.of(config), sources.about(source)))
    pair = playing(config, source)
    evaluation(config, functools.partial(trained, pair), None, source, devices)  # for what it could not measure
    if hosts.first():
        game = make_game(config, pair)
        loop.check_step(game, config, example_of(source), devices)
        describe(config, source, game, example_of(source), devices)


def playing(config: Config, source: data.Source) -> adversarial.Pair:
    """The networks for these images. Raises InputError for those that cannot play the game of `config`."""
    pair = networks(config, source.shape, source.num_classes)
    if config.workdir:
        pair = as_begun(pair, config.workdir)
    if config.path_length:
        pathlength.check(pair.generator)
    return pair


def as_begun(pair: adversarial.Pair, workdir: str) -> adversarial.Pair:
    """The pair as the run in `workdir`, if there is one, stored it: a network of an older version stays what it was."""

    def stored() -> Any:
        with contextlib.suppress(OSError):  # a name that no file can have
            folder = files.reach(workdir)
            return flags.read(folder).get("networks") if (folder / "config.json").exists() else None

    with hosts.together():
        networks = hosts.agree(stored)
    if not isinstance(networks, dict):
        return pair
    return dataclasses.replace(
        pair,
        generator=as_stored(pair.generator, networks.get("generator")),
        discriminator=as_stored(pair.discriminator, networks.get("discriminator")),
    )


def whole(config: Config, split: str) -> data.Source:
    """All images of a split of the data set that the flags name."""
    return data.load(
        config.dataset,
        split,
        data_dir=config.data_dir or None,
        manual_dir=config.manual_dir or None,
        size=config.size,
        crop=config.crop,
        channels=config.channels,
        cache=loop.cache_dir() / "decoded",
        skip_bad=config.skip_bad_images,
        prepare=not config.dry_run,
    )


def load(config: Config, split: str) -> data.Source:
    """The images of --classes, numbered as the run in --workdir has them if one is there.

    Raises InputError for classes without images, and for other classes than those of that run.
    """
    source = whole(config, split)
    source = source.only(config.classes) if config.classes else source
    begun = run_data(config.workdir)
    if config.conditional and not begun:  # a run of before may have them, and goes on
        sources.check_filled(source)
    return sources.as_begun(source, begun.get("classes", ()), config.workdir)


def run_data(workdir: str) -> dict[str, Any]:
    """What the run in a directory keeps of its data (`workdir.data_of`), the same on every host."""
    if not workdir:
        return {}
    with hosts.together():
        return hosts.agree(lambda: directories.data_of(files.reach(workdir)))


def example_of(source: data.Source) -> dict[str, Any]:
    """A batch of one, for its shapes."""
    return {
        "image": np.zeros((1, *source.shape), np.float32),
        "label": np.zeros(1, np.int32),
        "row": np.zeros(1, np.int32),
    }


def place(config: Config, source: data.Source, game: Game, devices: list[jax.Device], read: bool = True) -> data.Feed:
    """The source on the devices, as the flags say."""
    return data.place(
        source,
        batch_size=config.batch_size,
        draws=game.draws,
        seed=config.seed,
        devices=devices,
        placement=config.placement,
        resident_gb=config.resident_gb,
        mirror=config.mirror,
        dequantize=config.dequantize,
        read=read,
        filled=config.conditional and read and not run_data(config.workdir),
    )


def train(
    config: Config,
    source: data.Source,
    devices: list[jax.Device],
    held: data.Source | None = None,
    change: Callable[[Game], Game] = lambda game: game,
) -> State:
    """Plays the game of `config`, or what `change` makes of it, on the images of `source`, to its last state.

    held: images that training does not see, for --diagnose.
    """
    config = with_features(config)
    pair = playing(config, source)
    game = change(make_game(config, pair))

    def sample(state: State) -> np.ndarray:
        return report.grid(trained(pair, state).sample(numerics.key(config.seed), 64))

    def diagnosis() -> Diagnosis:
        return Diagnosis.of(pair, source, held, game=game, seed=config.seed)

    sampler = functools.partial(trained, pair)
    evaluate = evaluation(config, sampler, diagnosis if config.diagnose else None, source, devices)
    feed = place(config, source, game, devices)
    return loop.run(
        game,
        feed,
        config,
        example=example_of(source),
        devices=devices,
        about={"networks": {"generator": network(pair.generator), "discriminator": network(pair.discriminator)}},
        sample=sample,
        evaluate=evaluate,
        best=best(config),
    )


def describe(config: Config, source: data.Source, game: Game, example: dict, devices: list) -> None:
    """What --dry_run prints."""
    state = jax.eval_shape(game.init, numerics.key(0), example)
    h, w, c = source.shape
    of = classes.line(source.class_names, source.num_classes)
    lines = [f"data     {source.name}: {source.num_examples:,} images of {h}x{w}x{c}, {of}"]
    for name, player in state.players.items():
        count = sum(x.size for x in jax.tree.leaves(player.params))
        lines.append(f"player   {name}: {count:,} parameters{', averaged' if player.ema is not None else ''}")
    for move in game.moves:
        again = "" if move.draw else ", no new examples"
        lines.append(f"move     {move.title}: {move.times} times every {move.every} steps{again}")
    lines.append(f"devices  {len(devices)} x {devices[0].device_kind}, {config.batch_size // len(devices)} images each")
    lines.append(f"run      {config.steps:,} steps, {kimg(config.steps * config.batch_size)}, to {config.workdir}")
    lastwords.show("\n".join(lines))


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
