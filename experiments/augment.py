"""What are synthetic images worth? A class-conditional GAN of a few labelled images, and classifiers with its images.

    python -m experiments.augment --workdir=runs/worth
    python -m experiments.augment --dataset=folder:photos --size=32 --per_class=20,100 --workdir=runs/photos-worth
    python -m experiments.augment --run=runs/cdcgan --dataset=mnist --test_split=test --workdir=runs/given

Draws so many labelled images of each class, trains a conditional GAN on just those (as experiments.image does, with
DiffAugment), writes --num images a class to take away, filtered as --filter says, and trains classifiers on real
images, synthetic ones and both, with and without classical augmentation. Their scores on real test images, and what is
gained, are printed with intervals over the seeds. A seed draws its own images and has a GAN and classifiers of its own;
where all images are taken there is one GAN, and the seeds differ in samples and classifiers. Started again, it goes on.

    DIR/report.json, gan-10-seed0/ (a run), synthetic-10-seed0.npz and .png, case-10-seed0.json
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from etils import epath

from experiments import generate, image, image_check, image_evaluation
from experiments.augment_filter import Synthetic, by_confidence, by_rejection, synthesise
from experiments.augment_report import METHODS, SCORES, name_of, summary, table
from experiments.image_presets import PAIRS
from jaxgan import classes as class_lists
from jaxgan import critic, data, files, flags, loop, memory, numerics, parallel, report, sources, trained, workdir
from jaxgan.config import check_least
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.metrics import recipe, rejection
from jaxgan.metrics.recipe import Part, Recipe
from jaxgan.models.classifier import Classifier

HELD_OUT = 5  # without a test split, every so manieth image is for the test
SHOWN = 10  # synthetic images of a class in a picture


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    needs: ClassVar[Mapping[str, flags.Need]] = {k: v for k, v in image_check.NEEDS.items() if k != "diagnose"}

    # Of the GAN: the flags of experiments.image, some with other defaults.
    conditional: bool = option(True, "the generator makes the class that it is asked for; without, there is no label")
    steps: int = option(1500, "training steps of each GAN")
    latent: int = option(32, "dimension of the latent; 0: the model's own. In one of 100 the class is easily overheard")
    width: int = option(32, "base number of channels; 0: the model's own")
    augment: str = option(
        "diffaugment", "augmentation of whatever the discriminator sees: a policy of jaxgan/augment.py"
    )
    eval_every: int = option(0, "steps between evaluations; 0: none", resumable=True)
    tensorboard: bool = option(False, "write TensorBoard events", resumable=True)
    # Real images.
    test_split: str = option("", f"split of the test images; empty: every {HELD_OUT}th image of --split")
    per_class: tuple[int, ...] = option((10, 50), "real images of each class, 0: all; several: each", resumable=True)
    seeds: int = option(3, "draws of real images, each with a GAN and classifiers of its own", resumable=True)
    # Synthetic images.
    run: str = option("", "a conditional run of experiments.image whose images are taken, in place of training GANs")
    step: int | None = option(None, "the checkpoint of --run to take; none: the newest")
    num: int = option(500, "synthetic images of each class")
    filter: str = option(
        "confidence",
        "which are kept: all, those a classifier of the real images is sure of, or by the discriminator (rejection)",
        ("none", "confidence", "rejection"),
    )
    confidence: float = option(0.5, "the least probability of the asked class by that classifier")
    percentile: float = option(80.0, "γ of rejection: the lower, the more are kept, and the less selected")
    tries: int = option(10, "images made for each that is kept, at most; then the best of the rest fill up")
    format: str = option(
        "npz", "what they are written to: synthetic-10-seed0.npz, or a folder of PNGs", ("npz", "folder")
    )
    # Classifiers.
    methods: tuple[str, ...] = option(tuple(METHODS), "what they are trained on", tuple(METHODS), resumable=True)
    scores: tuple[str, ...] = option(("accuracy",), "of which tables are printed", SCORES, resumable=True)
    classifier_steps: int = option(600, "training steps of a classifier, of 128 images each")
    classifier_width: int = option(32, "base number of its channels")
    weight: float = option(0.5, "of the loss at synthetic images, where there are real ones too, with 1 minus it")
    shift: float = option(0.1, "classical augmentation: shifts of up to this part of the side")
    rotate: float = option(15.0, "and turns of up to so many degrees")
    zoom: float = option(1.15, "and zooms of up to this factor, in or out; --mirror flips too")
    allow_code: bool = option(False, "run code from outside jaxgan, if --run names a network there")


# Up to 16 pixels the two layers of DCGAN's discriminator see digits, at 28 only strokes; at 32 it has a third.
FEW = {
    "size": "16",
    "test_split": "test",
    "per_class": (10, 50, 100, 500),
    "batch_size": 32,
    "width": 16,
    "steps": 4000,
    "learning_rate": (4e-4,),
    "classifier_steps": 400,
    "classifier_width": 16,
    "methods": ("real", "classical", "synthetic", "both", "both_classical"),
}
PRESETS: dict[str, dict[str, Any]] = {
    # The default: 8x8 digits inside the installation.
    "digits": {},
    "mnist": FEW | {"dataset": "mnist"},
    # Classification accuracy score of all 60,000 images (arXiv:1905.10887).
    "mnist_all": PAIRS
    | {
        "dataset": "mnist",
        "size": "32",
        "test_split": "test",
        "per_class": (0,),
        "augment": "",
        "learning_rate": (2e-4, 5e-5),
        "anneal_images": 900_000.0,
        "batch_size": 64,
        "steps": 16_000,
        "metrics": ("distance", "accuracy"),
        "eval_samples": 2000,
        "eval_every": 1000,
        "num": 6000,
        "classifier_steps": 2000,
        "methods": ("classical", "synthetic_classical"),
    },
    # MedMNIST's own file, --dataset=npz:pneumoniamnist.npz: two classes, of which one is three times as frequent.
    "pneumonia": FEW | {"dataset": "npz:pneumoniamnist.npz", "scores": ("balanced_accuracy", "auroc")},
}


class Images(NamedTuple):
    """`pool`: what real images are drawn from; `test`: none of them."""

    pool: data.Source
    image: np.ndarray  # uint8 (n, h, w, c), those of the pool
    label: np.ndarray  # (n,)
    test: dict[str, np.ndarray]


class Gan(NamedTuple):
    generator: trained.Trained
    judge: critic.Critic | None  # for rejection


# --- what can be wrong


def check(config: Config) -> None:
    ones = ("num", "tries", "classifier_steps", "classifier_width")
    check_least(config, {"seeds": 2, "shift": 0, "rotate": 0} | dict.fromkeys(ones, 1))
    for name, (least, most) in {"confidence": (0, 1), "percentile": (0, 100), "shift": (0, 1)}.items():
        if not least <= getattr(config, name) <= most:
            raise InputError(f"--{name}={getattr(config, name)}: expected a number from {least} to {most}")
    if not 0 < config.weight < 1:
        raise InputError(f"--weight={config.weight}: expected a number between 0 and 1, such as 0.5")
    if config.zoom < 1:
        raise InputError(f"--zoom={config.zoom}: expected a factor of at least 1")
    if not config.seed + config.seeds < 2**32:
        raise InputError(f"--seed={config.seed}: expected at most {2**32 - config.seeds - 1}")
    for name in ("per_class", "methods", "scores"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"--{name}={','.join(map(str, values))}: expected one or several, each once")
    if min(config.per_class) < 0:
        raise InputError(f"--per_class={min(config.per_class)}: expected images of each class, or 0 for all")
    if not config.conditional:
        raise InputError("--noconditional: images without classes teach no classifier; expected --conditional")
    if config.step is not None and not config.run:
        raise InputError(f"--step={config.step} is for --run; expected both")
    if config.diagnose:
        raise InputError("--diagnose is for one run; expected experiments.image with it")
    if config.filter == "rejection" and not config.run and config.loss not in rejection.LOSSES:
        raise InputError(
            f"--filter=rejection with --loss={config.loss}: its logits are no density ratios; expected a loss of "
            f"{', '.join(rejection.LOSSES)}"
        )


def load(config: Config) -> Images:
    """Raises InputError for images without classes, and for a class that has too few."""
    pool = in_run_order(config, image.load(config, config.split))
    if pool.num_classes < 2:
        raise InputError(f"{config.dataset} has {pool.num_classes or 'no'} classes; expected labels of two or more")
    if config.test_split:
        test = sources.held_out(functools.partial(image.whole, config), pool, config.split, config.test_split)
    else:
        held = np.arange(pool.num_examples) % HELD_OUT == 0
        pool, test = pool.subset(np.flatnonzero(~held)), pool.subset(np.flatnonzero(held))
    whole, tested = data.read_all(pool), data.read_all(test)
    for what, labels, least in (("test images", tested["label"], 1), ("images", whole["label"], max(config.per_class))):
        counts = np.bincount(labels, minlength=pool.num_classes)
        few = int(counts.argmin())
        if counts[few] < max(least, 1):
            of = sources.names_of(pool)[few]
            wanted = "at least 1"
            if least > 1 and counts[few]:
                fits = [k for k in config.per_class if k <= counts[few]] or [counts[few]]
                wanted = f"at most so many of each class, for example --per_class={','.join(map(str, fits))}"
            elif not counts[few]:
                filled = [name for name, count in zip(sources.names_of(pool), counts, strict=True) if count]
                wanted += f", or --classes={','.join(filled[: class_lists.LISTED])}"
            raise InputError(f"class {of} of {config.dataset} has {counts[few]} {what}; expected {wanted}")
    return Images(pool, whole["image"], whole["label"], tested)


def in_run_order(config: Config, pool: data.Source) -> data.Source:
    """`pool` with its classes numbered as in --run, or as in the GANs that a run of before has trained here."""
    if config.run:
        names = workdir.data_of(files.reach(config.run)).get("classes", ())
        if not names or len(names) != pool.num_classes:  # `given` says how many there are
            return pool
        return sources.as_trained(pool, names, f"--run={config.run}")
    begun = sorted(files.reach(config.workdir).glob("gan-*/config.json"))
    return (
        sources.as_begun(pool, workdir.data_of(begun[0].parent).get("classes", ()), config.workdir) if begun else pool
    )


def given(config: Config, pool: data.Source) -> Gan:
    """The networks of --run. Raises InputError for those of other images or classes, or of none."""
    run = config.run
    generator = trained.load(run, step=config.step, allow=config.allow_code)
    shape, classes = tuple(generator.generator.shape), generator.generator.num_classes
    if not classes:
        raise InputError(f"--run={run} makes images of no class; expected a run with --conditional")
    if shape != pool.shape or classes != pool.num_classes:
        raise InputError(
            f"--run={run} makes images {shape} of {classes} classes; {config.dataset} has {pool.shape} of "
            f"{pool.num_classes}"
        )
    judge = None
    if config.filter == "rejection":
        loss = flags.read(files.reach(run))["config"].get("loss")
        if loss not in rejection.LOSSES:
            raise InputError(
                f"--filter=rejection: --run={run} was trained with the loss {str(loss)[:60]!r}, whose logits are no "
                f"density ratios; expected {', '.join(rejection.LOSSES)}"
            )
        judge = critic.load(run, step=config.step, allow=config.allow_code)
    return Gan(generator, judge)


# --- real images, and a GAN of them


def draw(labels: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Places of k images of each class of `labels` (n,), in order of the classes; of all for k = 0.

    Seed by seed others; for one seed, fewer images are among those of more.
    """
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(np.flatnonzero(labels == c)) for c in range(labels.max() + 1)]
    return np.concatenate([rows[: k or None] for rows in shuffled])


def train(config: Config, source: data.Source, name: str, seed: int, devices: list[jax.Device]) -> Gan:
    """A GAN of these images alone, WORKDIR/gan-NAME: a run like any other, which goes on where it stopped."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(image.Config)}
    run = f"{config.workdir.rstrip('/')}/gan-{name}"
    image.train(image.Config(**fields | {"workdir": run, "seed": seed}), source, devices)
    allow = True  # the networks that this command itself has just named
    judge = critic.load(run, allow=allow) if config.filter == "rejection" else None
    return Gan(trained.load(run, allow=allow), judge)


# --- what they are worth


def write(config: Config, directory: epath.Path, name: str, found: Synthetic, pool: data.Source) -> None:
    """To take away; folders have the names of the classes."""
    shown = found.images.reshape(pool.num_classes, config.num, *pool.shape)[:, :SHOWN]
    picture = report.grid(shown.reshape(-1, *pool.shape), columns=shown.shape[1])
    report.save_png(directory / f"synthetic-{name}.png", picture)
    if config.format == "npz":
        files.write(directory / f"synthetic-{name}.npz", generate.archive(found.images, found.labels))
    else:
        folder = directory / f"synthetic-{name}"
        generate.write_folder(folder, iter([found.images]), found.labels, pool.num_classes, pool.class_names)


def case(config: Config, images: Images, k: int, seed: int, gan_of: Callable[..., Gan], directory: epath.Path) -> dict:
    """The scores of every method, for one number of images a class and one seed."""
    rows = draw(images.label, k, seed)
    real = Part(images.image[rows], images.label[rows])
    gan = gan_of(images.pool.subset(rows), k, seed)
    classifier = Classifier(images.pool.num_classes, config.classifier_width)
    how = Recipe(
        config.classifier_steps, shift=config.shift, rotate=config.rotate, zoom=config.zoom, mirror=config.mirror
    )
    sure = functools.cache(lambda: recipe.fit(classifier, how, [real], seed))  # of real images, classical
    judge = None
    if config.filter == "confidence":
        judge = by_confidence(classifier, sure(), config.confidence)
    elif gan.judge is not None:
        judge = by_rejection(gan.judge, config.percentile, seed)
    found = synthesise(gan.generator, config.num, config.tries, numerics.key(seed), judge)
    name = f"{name_of(k)}-seed{seed}"
    write(config, directory, name, found, images.pool)
    scores = {}
    for method in config.methods:
        _, with_real, with_synthetic, classical = METHODS[method]
        parts = [real._replace(weight=1 - config.weight)] if with_real else []
        parts += [Part(found.images, found.labels, config.weight)] if with_synthetic else []
        if method == "classical":
            params = sure()
        else:
            params = recipe.fit(classifier, how if classical else how.plain, parts, seed)
        probabilities = recipe.probabilities(classifier, params, images.test["image"])
        scores[method] = recipe.scores(probabilities, images.test["label"])
    return {"seed": seed, "real": len(rows), "scores": scores, "passed": found.passed, "filled": found.filled}


def known(file: epath.Path, config: Config) -> dict | None:
    """A case that was measured before, with all that is asked for."""
    try:
        found = json.loads(file.read_text())
        return found if all(method in found["scores"] for method in config.methods) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def tell(k: int, cases: list[dict], config: Config) -> None:
    """What the filter did."""
    if config.filter != "none":
        shares, filled = (np.array([row[what] for row in cases]) for what in ("passed", "filled"))
        short = f"; {filled.mean():,.1f} of {config.num} a class fill up" if filled.any() else ""
        print(f"{name_of(k)} a class: {shares.mean():.1%} pass ({shares.min():.1%} of the worst class){short}")


def describe(config: Config, images: Images) -> None:
    """What --dry_run prints."""
    pool = images.pool
    of = class_lists.line(pool.class_names, pool.num_classes)
    print(f"real     {pool.num_examples:,} images {pool.shape} of {of} to draw from")
    print(f"draws    {','.join(map(name_of, config.per_class))} of each class, each {config.seeds} times")
    print(f"GAN      {config.run or f'{config.steps:,} steps for each draw'}; {config.num:,} images of each class")
    print(f"test     {len(images.test['label']):,} images, {len(config.methods)} classifiers for each draw")


def main(config: Config) -> None:
    config = dataclasses.replace(config, num_hosts=1)
    loop.setup(config)
    loop.check(config)
    devices = parallel.devices_for(config.batch_size, config.devices)
    image_check.check(config, len(devices))
    check(config)
    images = load(config)
    pool = images.pool
    for k in config.per_class if not config.run else ():
        image_evaluation.check(config, pool.subset(draw(images.label, k, config.seed)))
    what = f"--num={config.num} synthetic images of each class"
    memory.check(config.num * pool.num_classes * math.prod(pool.shape), what, "expected fewer")
    existing = given(config, pool) if config.run else None
    image.make_game(config, image.playing(config, pool))  # for what is wrong with its flags
    if config.dry_run:
        describe(config, images)
        return

    def gan_of(source: data.Source, k: int, seed: int) -> Gan:
        if existing:
            return existing
        seed = seed if k else config.seed  # all images are the same for each seed
        return train(config, source, f"{name_of(k)}-seed{seed}", seed, devices)

    described = sources.about(pool)
    workdir.check_data(config, workdir.of(config), described)
    directory = workdir.claim(config)
    with workdir.held(directory):
        flags.write(config, directory, {"data": described})
        cases: dict[int, list[dict]] = {}
        for k in config.per_class:
            cases[k] = []
            for seed in range(config.seed, config.seed + config.seeds):
                file = directory / f"case-{name_of(k)}-seed{seed}.json"
                found = known(file, config) or case(config, images, k, seed, gan_of, directory)
                files.write(file, json.dumps(found) + "\n")
                cases[k].append(found)
            tell(k, cases[k], config)
        means = summary(cases)
        stored = {
            "config": dataclasses.asdict(config),
            "results": means,
            "cases": {str(k): v for k, v in cases.items()},
        }
        files.write(directory / "report.json", json.dumps(stored, indent=1) + "\n")
    print(table(means, config.scores, f"{len(images.test['label']):,} test images", config.seeds))
    if config.run and any(config.per_class):
        print(f"\n{config.run} was trained on images of its own, maybe on more than were drawn here")
    print(f"\nwrote {directory}/report.json; the synthetic images are {directory}/synthetic-*")


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
