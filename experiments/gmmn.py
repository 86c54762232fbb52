"""Trains a generator without an adversary, by moment matching (arXiv:1502.02761): samples and data are to have the same
mean in the space of a kernel, be it one of pixels or of the codes of an autoencoder that is trained first.

python -m experiments.gmmn --workdir=runs/gmmn
python -m experiments.gmmn --preset=gmmn_ae_mnist --workdir=runs/gmmn_ae
python -m experiments.generate --run=runs/gmmn --out=grid.png

Its figure is the log-likelihood of test images under a Parzen window of samples (jaxgan/metrics/parzen.py). Neither
training sees the images that choose the window's width, nor those. The autoencoder's run is WORKDIR/autoencoder.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgan import adversarial, data, flags, loop, mmd, numerics, parallel, report, schedule, sources
from jaxgan.config import Common, check_least
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game, Move, Optimizer, Player, State
from jaxgan.metrics import parzen
from jaxgan.models.gmmn import Autoencoder, Generator, to_unit
from jaxgan.trained import Trained, network


@dataclasses.dataclass(frozen=True)
class Config(Common):
    steps: int = option(2000, "training steps of the generator", resumable=True)
    batch_size: int = option(500, "images a step, over all devices, and as many samples; pairs of all are compared")
    test_split: str = option("", "split of the test images; empty: every sixth image of --split")
    model: str = option("gmmn", "the networks", ("gmmn",))
    space: str = option("codes", "what is matched", ("codes", "pixels"))
    loss: str = option("root_mmd", "what is minimised: the root of MMD², or MMD²", ("root_mmd", "mmd"))
    bandwidths: tuple[float, ...] = option((1.0,), "variances σ of the Gaussian kernels, exp(-|x - y|² / 2σ), added up")
    latent: int = option(10, "dimension of the latent")
    widths: tuple[int, ...] = option((64, 256, 256, 1024), "hidden units of the generator")
    learning_rate: tuple[float, ...] = option((1e-3, 1e-5), "of the generator's Adam: one value, or start,end")
    anneal_images: float = option(1e6, "images over which start,end values move, along a half cosine")
    ema: tuple[float, ...] = option((), "half-life of the generator's average, in images; empty: none")
    ae_widths: tuple[int, ...] = option((1024, 32), "units of the autoencoder's encoder, the last its code")
    ae_dropout: tuple[float, ...] = option((0.2, 0.5), "dropout of what each layer of the encoder sees")
    ae_noise: float = option(0.2, "standard deviation of noise on the codes, in [0, 1], which the decoder is to bear")
    ae_steps: int = option(3000, "training steps of the autoencoder")
    ae_batch_size: int = option(100, "images of such a step")
    ae_learning_rate: tuple[float, ...] = option((1e-3, 1e-5), "of the autoencoder's Adam: one value, or start,end")
    eval_samples: int = option(10_000, "samples of an evaluation")


PRESETS: dict[str, dict[str, Any]] = {
    # The default: 8x8 digits inside the installation.
    "gmmn_digits": {},
    # Section 4.1: latents of dimension 10, four ReLU layers, batches of 1,000, six bandwidths for pixels.
    "gmmn_mnist": {
        "dataset": "mnist",
        "test_split": "test",
        "space": "pixels",
        "bandwidths": (2.0, 5.0, 10.0, 20.0, 40.0, 80.0),
        "batch_size": 1000,
    },
    # The same of codes: 784-1024-32-1024-784, sigmoid units, dropout in the encoder. The rates, the
    # bandwidths and the noise on the codes are ours.
    "gmmn_ae_mnist": {
        "dataset": "mnist",
        "test_split": "test",
        "bandwidths": (0.5, 1.0, 2.0, 4.0),
        "batch_size": 1000,
        "learning_rate": (3e-3, 3e-5),
        "anneal_images": 3e6,
        "steps": 3000,
        "ae_steps": 10_000,
    },
}


def check(config: Config, devices: int) -> None:
    """What can be wrong with the flags of this script, in the words of the flags."""
    ones = ("latent", "ae_steps", "ae_batch_size", *(("eval_samples",) if config.eval_every else ()))
    check_least(
        config, dict.fromkeys(ones, 1) | dict.fromkeys(("learning_rate", "ae_learning_rate", "ema", "ae_noise"), 0)
    )
    for name in ("bandwidths", "widths", "ae_widths"):
        values = getattr(config, name)
        if not values or min(values) <= 0:
            raise InputError(f"--{name}={','.join(map(str, values))}: expected one number above 0, or several")
    for name in ("learning_rate", "ae_learning_rate", "ema"):
        values = getattr(config, name)
        if len(values) > 2 or (name != "ema" and not values):
            raise InputError(f"--{name}={','.join(map(str, values))}: expected one value, or start,end")
    rates = ",".join(map(str, config.ae_dropout))
    if len(config.ae_dropout) != len(config.ae_widths):
        raise InputError(f"--ae_dropout={rates}: expected {len(config.ae_widths)} rates, one a layer of --ae_widths")
    if not all(0 <= rate < 1 for rate in config.ae_dropout):
        raise InputError(f"--ae_dropout={rates}: expected rates from 0 to less than 1")
    if config.anneal_images <= 0:
        raise InputError(f"--anneal_images={config.anneal_images}: expected more than 0")
    if config.ae_batch_size % devices:
        low = max(config.ae_batch_size // devices, 1) * devices
        raise InputError(
            f"--ae_batch_size={config.ae_batch_size} does not divide over {devices} devices; "
            f"nearest: {low} or {low + devices}"
        )


@dataclasses.dataclass(frozen=True)
class Images:
    """Three sets without an image in common."""

    train: data.Source
    validation: data.Source
    test: data.Source


def load(config: Config) -> Images:
    """Every sixth image is for validation, 10,000 of MNIST's; without a test split, the one after it is for testing."""
    options: tuple[str, ...] = ("data_dir", "manual_dir", "size", "crop", "channels")

    def read(split: str) -> data.Source:
        cache = loop.cache_dir() / "decoded"
        chosen = {name: getattr(config, name) for name in options}
        return data.load(
            config.dataset, split, cache=cache, skip_bad=config.skip_bad_images, prepare=not config.dry_run, **chosen
        )

    source = read(config.split)
    if source.num_examples < 12:
        raise InputError(f"{config.dataset} has {source.num_examples} images; expected at least 12, some to test with")
    place = np.arange(source.num_examples) % 6
    if not config.test_split:
        return Images(*(source.subset(np.flatnonzero(rows)) for rows in (place > 1, place == 0, place == 1)))
    test = sources.held_out(read, source, config.split, config.test_split, labelled=False)
    return Images(source.subset(np.flatnonzero(place)), source.subset(np.flatnonzero(place == 0)), test)


def unit(source: data.Source, limit: int) -> np.ndarray:
    """At most `limit` images from the start, as a Parzen window sees them: float32 in [0, 1]."""
    return source.read(np.arange(min(limit, source.num_examples)))["image"].astype(np.float32) / 255


def adam(rate: tuple[float, ...], anneal_images: float) -> Optimizer:
    at = schedule.anneal(rate, anneal_images)
    return lambda images: optax.adam(schedule.at(at, images))


def autoencoder_game(config: Config, model: Autoencoder) -> Game:
    """One player, who tells an image from one with holes in it (the dropout of the encoder)."""

    def init(key, batch):
        return model.init(key, batch["image"])["params"], {}

    def loss(params, state, batch, key):
        noise = {"noise": jax.random.fold_in(key, batch["row"][0])}
        logits = model.apply({"params": params["autoencoder"]}, batch["image"], train=True, rngs=noise)
        return cross_entropy(logits, batch["image"]), ({}, {})

    optimizer = adam(config.ae_learning_rate, config.ae_steps * config.ae_batch_size)
    return Game({"autoencoder": Player(init, optimizer)}, (Move("autoencoder", loss),))


def cross_entropy(logits: jax.Array, images: jax.Array) -> jax.Array:
    """Mean over pixels, nats."""
    return optax.sigmoid_binary_cross_entropy(logits, to_unit(images)).mean()


def generator_game(config: Config, generator: Generator, model: Autoencoder, trained: Any) -> Game:
    """One player moves: the generator, towards the data in the eyes of the kernel.

    trained: the autoencoder's parameters, or None. Its decoder is a part of the generator that no gradient reaches, and
    its encoder a player who never moves.
    """
    kernel = mmd.gaussian(config.bandwidths)
    objective = {"root_mmd": mmd.root, "mmd": lambda value: value}[config.loss]

    def init(key, batch):
        z = jnp.zeros((1, generator.latent))
        params = generator.init(key, z)["params"]
        return params if trained is None else params | {"decoder": trained["decoder"]}, {}

    def loss(params, state, batch, key):
        z = adversarial.latents(key, batch["row"], generator.latent)
        fake = generator.apply({"params": params["gen"]}, z, method="matched")
        if trained is None:
            real = to_unit(batch["image"]).reshape(fake.shape)
        else:
            encoder = {"params": {"encoder": state.players["encoder"].params}}
            real = model.apply(encoder, batch["image"], method="encode")
        squared = mmd.biased(kernel, fake, real)
        return objective(squared), ({"mmd": squared}, {})

    move = adam(config.learning_rate, config.anneal_images)
    ema = schedule.anneal(config.ema, config.anneal_images) if config.ema else None

    def optimizer(images):
        # The decoder would stand still under Adam as well, its gradient being 0, but for twice the memory.
        return optax.partition({"move": move(images), "stay": optax.set_to_zero()}, parts)

    parts = {"network": "move"} if trained is None else {"network": "move", "decoder": "stay"}
    players = {"gen": Player(init, optimizer, ema)}
    if trained is not None:
        players["encoder"] = Player(lambda key, batch: (trained["encoder"], {}), optax.set_to_zero())
    return Game(players, (Move("gen", loss),))


def main(config: Config) -> None:
    loop.setup(config)
    loop.check(config)
    devices = parallel.devices_for(config.batch_size, config.devices)
    check(config, len(devices))
    images = load(config)
    shape, dtype = images.train.shape, jnp.dtype(config.dtype)
    model = Autoencoder(shape, config.ae_widths, config.ae_dropout, config.ae_noise, dtype)
    decoder = config.ae_widths[::-1] if config.space == "codes" else ()
    generator = Generator(shape, latent=config.latent, widths=config.widths, decoder_widths=decoder, dtype=dtype)
    example = {"image": np.zeros((1, *shape), np.float32), "label": np.zeros(1, np.int32), "row": np.arange(1)}
    if config.dry_run:
        describe(config, images, model, generator)
        return

    run = functools.partial(play, images=images, devices=devices, example=example)
    trained = None
    if config.space == "codes":
        first = dataclasses.replace(
            config,
            workdir=f"{config.workdir}/autoencoder",
            steps=config.ae_steps,
            batch_size=config.ae_batch_size,
        )
        trained = train_autoencoder(first, model, images, run)
    train_generator(config, generator_game(config, generator, model, trained), generator, images, run)


def play(game: Game, config: Config, *, images: Images, devices: list, **options: Any) -> State:
    names: tuple[str, ...] = ("batch_size", "seed", "placement", "resident_gb", "mirror")
    feed = data.place(
        images.train, draws=game.draws, devices=devices, **{name: getattr(config, name) for name in names}
    )
    return loop.run(game, feed, config, devices=devices, **options)


def train_autoencoder(config: Config, model: Autoencoder, images: Images, run: Any) -> Any:
    """The first game, or what it left behind -> the autoencoder's parameters."""

    @jax.jit
    def reconstruct(params, batch):
        return model.apply({"params": params}, batch)

    @functools.cache
    def held_out():
        return jnp.asarray(unit(images.validation, 1000) * 2 - 1)

    def sample(state: State) -> np.ndarray:
        """Validation images and, to the right of each, what becomes of them."""
        real = held_out()[:32]
        again = jnp.tanh(0.5 * reconstruct(state.players["autoencoder"].params, real))
        return report.grid(jnp.stack([real, again], 1).reshape(-1, *real.shape[1:]), columns=8)

    def evaluate(state: State) -> dict[str, float]:
        logits = reconstruct(state.players["autoencoder"].params, held_out())
        return {"cross_entropy": float(cross_entropy(logits, held_out()))}

    about = {"networks": {"autoencoder": network(model)}}
    game = autoencoder_game(config, model)
    state = run(game, config, about=about, sample=sample, evaluate=evaluate)
    return jax.device_get(state.players["autoencoder"].params)


def train_generator(config: Config, game: Game, generator: Generator, images: Images, run: Any) -> None:
    """The second game; prints its figure."""

    def samples(state: State, key: int, n: int) -> np.ndarray:
        gen = state.players["gen"]
        return Trained.of(generator, gen.averaged, gen.variables).sample(numerics.key(key), n)

    def sample(state: State) -> np.ndarray:
        return report.grid(samples(state, config.seed, 64))

    @functools.cache
    def real() -> tuple[np.ndarray, np.ndarray]:
        return unit(images.validation, 10_000), unit(images.test, 10_000)

    figures: dict[int, parzen.Parzen] = {}  # by step, so that the last is not made twice

    def judge(state: State) -> parzen.Parzen:
        step = int(state.step)
        if step not in figures:
            fake = (samples(state, config.seed + 1, config.eval_samples) + 1) / 2
            figures[step] = parzen.evaluate(fake, *real())
        return figures[step]

    def evaluate(state: State) -> dict[str, float]:
        window = judge(state)
        return {
            "parzen": window.mean,
            "parzen_error": window.error,
            "parzen_validation": window.validation,
            "parzen_sigma": window.sigma,
        }

    state = run(game, config, about={"networks": {"generator": network(generator)}}, sample=sample, evaluate=evaluate)
    if config.eval_every:
        window = judge(state)
        print(
            f"mean Parzen log-likelihood {window.mean:.1f} ± {window.error:.1f} nats of {len(real()[1]):,} test images "
            f"in [0, 1], by {config.eval_samples:,} samples with σ {window.sigma:.3f}, which gives "
            f"{len(real()[0]):,} validation images {window.validation:.1f}"
        )


def describe(config: Config, images: Images, model: Autoencoder, generator: Generator) -> None:
    """What --dry_run prints."""
    h, w, c = images.train.shape
    print(f"data         {images.train.name}: images of {h}x{w}x{c}, {images.train.num_examples:,} to train with")
    print(f"held out     {images.validation.num_examples:,} for validation, {images.test.num_examples:,} for the test")
    counted: dict[str, Any] = {"generator": (generator, (1, config.latent))}
    if config.space == "codes":
        counted = {"autoencoder": (model, (1, h, w, c))} | counted
    for name, (module, shape) in counted.items():
        params = jax.eval_shape(module.init, numerics.key(0), jnp.zeros(shape))
        print(f"{name:12} {sum(x.size for x in jax.tree.leaves(params)):,} parameters")
    if config.space == "codes":
        print(
            f"first        {config.ae_steps:,} steps of {config.ae_batch_size} images, to {config.workdir}/autoencoder"
        )
    print(f"then         {config.steps:,} steps of {config.batch_size} images, to {config.workdir}")


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
