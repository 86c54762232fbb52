"""InfoGAN (arXiv:1606.03657): a generator with codes that a second head of the discriminator can tell from its images,
so that they come to mean something, without a label: on digits a category the digit, numbers its slant and its width.

python -m experiments.infogan --workdir=runs/infogan
python -m experiments.infogan --preset=infogan_mnist --workdir=runs/infogan_mnist
python -m experiments.interpret --run=runs/infogan/seed-0 --out=runs/infogan/page

Trains --seeds runs, WORKDIR/seed-0 and on, one after the other, each a run like any other. The table, also in
WORKDIR/table.json, has the mutual information of codes and images of each, by which the best is named; and, where the
data have labels, which training never sees, the share of samples whose category is the digit that a classifier of real
images sees, categories being assigned to classes one to one. The best one's codes are drawn in WORKDIR/codes.png.
"""

import dataclasses
import functools
import json
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from experiments import image
from jaxgan import (
    adversarial,
    classes,
    data,
    files,
    flags,
    hosts,
    information,
    lookup,
    loop,
    losses,
    numerics,
    parallel,
    penalties,
    report,
    schedule,
    sources,
)
from jaxgan import workdir as directories
from jaxgan.config import Common, check_least
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game, State
from jaxgan.metrics import classify, judge
from jaxgan.metrics.clusters import matching
from jaxgan.metrics.strokes import correlations, strokes
from jaxgan.models import infogan
from jaxgan.trained import Trained, network

SHOWN = np.linspace(-2.0, 2.0, 9)  # of a number, whose range in training is -1 to 1
DIGITS = 10  # categories where nothing says how many
MEASURED = 10_000  # samples of the figures in the table


@dataclasses.dataclass(frozen=True)
class Config(Common):
    steps: int = option(1500, "training steps of a seed", resumable=True)
    batch_size: int = option(64, "images a step, over all devices")
    seeds: int = option(5, "runs, of the seeds --seed and on; the best by mutual information is named", resumable=True)
    model: str = option("infogan", "the networks", ("infogan",))
    categorical: int | None = option(
        None, "categories of the categorical code; 0: none; none: as many as the data have classes, 10 without labels"
    )
    continuous: int = option(2, "continuous codes, uniform in [-1, 1] in training")
    noise: int = option(62, "dimensions of the latent that are no code")
    width: int = option(16, "channels at half the image's resolution")
    learning_rate: float = option(5e-4, "of the discriminator's Adam, and of Q's, which shares its trunk")
    gen_learning_rate: float = option(1e-3, "of the generator's Adam")
    information: float = option(1.0, "λ of the category's mutual information")
    information_numbers: tuple[float, ...] = option(
        (0.6,), "λ of that of the continuous codes: one value, or start,end over --anneal_images"
    )
    anneal_images: float = option(160_000.0, "images over which start,end values move, along a half cosine")
    invariance: float = option(
        3.0,
        "λ of the information that the category of a real image has of that of a warped copy; 0: none, as published",
    )
    r1: float = option(0.0, "γ of R1; 0: none")
    disc_batch_norm: bool = option(True, "batch norm in the discriminator")
    ema: float = option(10_000.0, "half-life of the generator's average, in images; 0: none")
    test_split: str = option("", "split for the accuracy of the classifier; empty: a seventh of --split, held out")
    eval_samples: int = option(2000, "samples of an evaluation during training")


PRESETS: dict[str, dict[str, Any]] = {
    # The default: 8x8 digits inside the installation.
    "infogan_digits": {},
    # Appendix C.1: one category of ten, two numbers, 62 of noise; a quarter of the width. The paper has no
    # --invariance, 2e-4 for the discriminator and λ .1 for the numbers.
    "infogan_mnist": {"dataset": "mnist", "test_split": "test", "steps": 2000},
}


def completed(config: Config, source: data.Source) -> Config:
    """With as many categories as the data have classes, where no flag says how many, or as a run there already has."""
    if config.categorical is not None:
        return config
    begun = sorted(files.reach(config.workdir).glob("seed-*/config.json")) if config.workdir else []
    stored = flags.read(begun[0].parent)["config"].get("categorical") if begun else None
    own = source.num_classes if source.num_classes > 1 else DIGITS
    return dataclasses.replace(config, categorical=stored if isinstance(stored, int) else own)


def categories(config: Config) -> int:
    return DIGITS if config.categorical is None else config.categorical


def check(config: Config) -> None:
    """What can be wrong with the flags of this script, in their words."""
    k = categories(config)
    least = {"seeds": 1, "width": 1, "eval_samples": 2}
    zeros: tuple[str, ...] = ("continuous", "noise", "information", "invariance", "r1", "ema")
    zeros += ("categorical",) if config.categorical is not None else ()
    check_least(config, least | dict.fromkeys(zeros, 0))
    if k > 2**14:
        raise InputError(f"--categorical={k}: expected at most {2**14:,}")
    for name in ("continuous", "noise", "width"):
        if getattr(config, name) > 2**14:
            raise InputError(f"--{name}={getattr(config, name)}: expected at most {2**14:,}")
    if k == 1:
        raise InputError("--categorical=1: one category has nothing to tell; expected 0 for none, or at least 2")
    if not k and not config.continuous:
        raise InputError("--categorical=0 --continuous=0 leaves no code; experiments.image trains without")
    numbers = config.information_numbers
    if not 1 <= len(numbers) <= 2 or min(numbers) < 0:
        given = ",".join(map(str, numbers))
        raise InputError(f"--information_numbers={given}: expected one value of 0 or more, or start,end")
    for name in ("learning_rate", "gen_learning_rate", "anneal_images"):
        if getattr(config, name) <= 0:
            raise InputError(f"--{name}={getattr(config, name)}: expected more than 0")
    if config.seed + config.seeds > 2**32:
        raise InputError(f"--seed={config.seed}: expected at most {2**32 - config.seeds}")


def load(config: Config, split: str) -> data.Source:
    chosen: tuple[str, ...] = ("data_dir", "manual_dir", "size", "crop", "channels")
    given = {name: getattr(config, name) for name in chosen}
    cache = loop.cache_dir() / "decoded"
    return data.load(
        config.dataset, split, cache=cache, skip_bad=config.skip_bad_images, prepare=not config.dry_run, **given
    )


def make_pair(config: Config, shape: tuple[int, int, int]) -> adversarial.Pair:
    same: dict[str, Any] = {
        "width": config.width,
        "categorical": categories(config),
        "continuous": config.continuous,
        "dtype": jnp.dtype(config.dtype),
    }
    latent = categories(config) + config.continuous + config.noise
    return adversarial.Pair(
        infogan.Generator(shape, latent=latent, **same),
        infogan.Discriminator(shape, batch_norm=config.disc_batch_norm, **same),
    )


def make_game(config: Config, pair: adversarial.Pair) -> Game:
    """min over G and Q, max over D of V(D, G) - λ L_I(G, Q) (eq. 6): both players step down -λ L_I, D by its head Q."""
    kinds = categories(config), config.continuous
    weights = (config.information, schedule.anneal(config.information_numbers, config.anneal_images))
    adam = functools.partial(optax.adam, b1=0.5)
    terms = [
        term
        for player in ("disc", "gen")
        for term in information.regulariser(player, pair.generator.codes, *kinds, weights)
    ]
    terms += [information.invariance(*kinds, config.invariance)] if config.invariance and kinds[0] else []
    return adversarial.game(
        pair,
        lookup.member("loss", config.loss, losses, losses.Loss),
        gen_optimizer=adam(config.gen_learning_rate),
        disc_optimizer=adam(config.learning_rate),
        penalties=[penalties.r1(config.r1)] if config.r1 else [],
        regularisers=terms,
        ema=config.ema or None,
    )


# --- figures


class Samples(NamedTuple):
    images: np.ndarray  # (n, h, w, c)
    codes: np.ndarray  # (n, latent)


def sampled(pair: adversarial.Pair, state: State, seed: int, n: int) -> Samples:
    gen = state.players["gen"]
    gan = Trained.of(pair.generator, gen.averaged, gen.variables)
    z = gan.latents(numerics.key(seed), n)
    return Samples(gan.images(z), np.asarray(pair.generator.codes(z)))


@functools.partial(jax.jit, static_argnums=0)
def _recognise(discriminator: Any, params: Any, variables: Any, images: jax.Array) -> jax.Array:
    state = {"params": params, **variables}
    return discriminator.apply(state, images, train=True, mutable=list(variables))[0]


@functools.partial(jax.jit, static_argnums=0)
def _render(generator: Any, variables: Any, codes: jax.Array) -> jax.Array:
    return generator.apply(variables, codes, method="from_codes")


def told(pair: adversarial.Pair, state: State, samples: Samples, batch: int) -> dict[str, Any]:
    """L_I by Q in nats, of batches like those it has learnt on: it normalises them by their own statistics."""
    disc, (k, c) = state.players["disc"], (pair.generator.categorical, pair.generator.continuous)

    def bounds(images: np.ndarray, codes: np.ndarray) -> tuple[jax.Array, jax.Array]:
        output = _recognise(pair.discriminator, disc.params, disc.variables, images)
        return information.bound(information.recognised(output, k, c), jnp.asarray(codes))

    n = len(samples.images)
    batch = min(batch, n)
    found = [bounds(*(x[i : i + batch] for x in samples)) for i in range(0, n - batch + 1, batch)]
    category, numbers = (np.mean(jax.device_get(x), 0) for x in zip(*found, strict=True))
    return {"category": float(category), "numbers": numbers.tolist(), "total": float(category + numbers.sum())}


class Reader(NamedTuple):
    """A classifier of real images, and how often it is right on those it has not seen."""

    module: Any
    params: Any
    accuracy: float


def reader(config: Config, source: data.Source) -> Reader | None:
    """None where there are no classes to tell. It is trained on the data's labels, which the game never sees."""
    if source.num_classes < 2 or not categories(config):
        return None
    test = None
    if config.test_split:
        test = sources.held_out(functools.partial(load, config), source, config.split, config.test_split)
    found = judge.train(source, MEASURED, loop.cache_dir())
    accuracy = found.accuracy
    if test is not None:
        real = data.read_all(test)
        _, guessed = classify.look(found.classifier, found.params, classify.scaled(real["image"]))
        accuracy = float(np.mean(guessed == real["label"]))
    hosts.tell(f"a classifier tells the labels of real images it has not seen with {accuracy:.1%} accuracy", sys.stderr)
    return Reader(found.classifier, found.params, accuracy)


def figures(config: Config, samples: Samples, bounds: dict[str, Any], read: Reader | None) -> dict[str, Any]:
    """Of one seed: the information, the match with classes, and what the numbers change within a category."""
    k, c = categories(config), config.continuous
    category = samples.codes[:, :k].argmax(-1) if k else np.zeros(len(samples.codes), int)
    found: dict[str, Any] = {"information": bounds}
    if read is not None:
        _, classes = classify.look(read.module, read.params, samples.images)
        match = matching(category, classes, k, read.module.num_classes)
        found |= {"match": match.accuracy, "classes": match.classes.tolist(), "table": match.table.tolist()}
    shape, numbers = strokes(samples.images), samples.codes[:, k : k + c]
    found["correlations"] = {name: correlations(numbers, x, category).tolist() for name, x in shape._asdict().items()}
    return found


def drawn(pair: adversarial.Pair, state: State, seed: int, order: list[int] | None = None) -> np.ndarray:
    """A picture of the codes: for each number, categories down, that number from -2 to 2 across, one noise for all."""
    gen, k, c = state.players["gen"], pair.generator.categorical, pair.generator.continuous
    gan = Trained.of(pair.generator, gen.averaged, gen.variables)
    noise = np.asarray(pair.generator.codes(gan.latents(numerics.key(seed), 1)))[0, k + c :]
    rows = order if order is not None else list(range(max(k, 1)))
    panels = []
    for number in range(max(c, 1)):
        codes = np.zeros((len(rows), len(SHOWN), pair.generator.latent), np.float32)
        if k:
            codes[np.arange(len(rows)), :, rows] = 1
        if c:
            codes[:, :, k + number] = SHOWN
        codes[:, :, k + c :] = noise
        variables = {"params": gan.params, **gan.variables}
        images = _render(pair.generator, variables, codes.reshape(-1, pair.generator.latent))
        panels.append(report.grid(np.asarray(images), columns=len(SHOWN)))
    return np.concatenate(panels, 1)


# --- the runs


def train(config: Config, source: data.Source, devices: list[jax.Device], read: Reader | None) -> dict[str, Any]:
    """One seed, or what it left behind: its figures."""
    pair = make_pair(config, source.shape)
    game = make_game(config, pair)

    def sample(state: State) -> np.ndarray:
        return drawn(pair, state, config.seed)

    def evaluate(state: State) -> dict[str, float]:
        samples = sampled(pair, state, config.seed + 1, config.eval_samples)
        found = figures(config, samples, told(pair, state, samples, config.batch_size), read)
        bounds = found["information"]
        scores = {"information": bounds["total"], "category": bounds["category"]}
        return scores | ({"match": found["match"]} if "match" in found else {})

    options: tuple[str, ...] = ("batch_size", "seed", "placement", "resident_gb", "mirror")
    feed = data.place(source, draws=game.draws, devices=devices, **{name: getattr(config, name) for name in options})
    about = {"networks": {"generator": network(pair.generator), "discriminator": network(pair.discriminator)}}
    state = loop.run(
        game,
        feed,
        config,
        example=image.example_of(source),
        devices=devices,
        about=about,
        sample=sample,
        evaluate=evaluate,
    )
    samples = sampled(pair, state, config.seed + 1, MEASURED)
    found = figures(config, samples, told(pair, state, samples, config.batch_size), read)
    taken = found.get("classes")
    order = sorted(range(len(taken)), key=lambda i: (taken[i] < 0, taken[i])) if taken else None
    report.save_png(epath.Path(config.workdir).expanduser() / "codes.png", drawn(pair, state, config.seed, order))
    return found


def line(name: str, row: dict[str, Any]) -> str:
    told, shape = row["information"], row["correlations"]
    match = f"  match {row['match']:6.1%}" if "match" in row else ""
    numbers = " ".join(f"{x:.2f}" for x in told["numbers"])
    words = "  ".join(f"{key} {' '.join(f'{r:+.2f}' for r in values)}" for key, values in shape.items() if values)
    bound = f"L_I {told['total']:.3f} nats: category {told['category']:.3f}, numbers {numbers}"
    return f"  {name:8s} {bound}{match}  r: {words}"


def main(config: Config) -> None:
    loop.setup(config)
    directories.check(config)
    check(config)
    home = files.reach(config.workdir)
    source = load(config, config.split)
    config = completed(config, source)
    check(config)
    runs = {
        f"seed-{seed}": dataclasses.replace(config, workdir=f"{config.workdir}/seed-{seed}", seed=seed)
        for seed in range(config.seed, config.seed + config.seeds)
    }
    for run in runs.values():
        loop.check(run)
    devices = parallel.devices_for(config.batch_size, config.devices)
    pair = make_pair(config, source.shape)
    if source.num_classes > 1 and categories(config):
        judge.check(source)
    if config.dry_run:
        game, example = make_game(config, pair), image.example_of(source)
        loop.check_step(game, config, example, devices)
        made = jax.eval_shape(game.init, numerics.key(0), example)
        counts = {n: sum(x.size for x in jax.tree.leaves(p.params)) for n, p in made.players.items()}
        of = classes.line(source.class_names, source.num_classes)
        print(
            f"would train {config.seeds} seeds on {source.num_examples:,} images {source.shape} of {source.name}, {of}"
        )
        print(f"codes: {categories(config)} categories, {config.continuous} numbers")
        print(f"parameters: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
        return
    read = reader(config, source)
    rows = {}
    for name, run in runs.items():
        rows[name] = train(run, source, devices, read)
        hosts.tell(line(name, rows[name]))
    best = max(rows, key=lambda name: rows[name]["information"]["total"])
    about = {"best": best, "samples": MEASURED, "classifier": read.accuracy if read else None, "seeds": rows}
    files.write(home / "table.json", json.dumps(about, indent=1) + "\n")
    files.write(home / "codes.png", (home / best / "codes.png").read_bytes())
    match = f", match {rows[best]['match']:.1%}" if "match" in rows[best] else ""
    print(f"best by mutual information: {home / best}{match}; the table is in {home / 'table.json'}")


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
