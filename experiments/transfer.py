"""Trains on few images from the weights of a run of `experiments.image`, beside training from scratch.

python -m experiments.transfer --workdir=runs/transfer
python -m experiments.transfer --preset=mnist_tenth --workdir=runs/tenth
python -m experiments.transfer --source_run=runs/mnist --dataset=folder:photos --num_images=0 --workdir=runs/photos-all

The source is a run directory, or is trained first (--source_preset). Its networks stay; where the number of channels or
classes is another one, their weights are adapted, and images of another size are resized to its own. Each method is a
run of its own in WORKDIR/METHOD-IMAGES-SEED, sampled from like any other. What is measured is the Fréchet distance from
held-out images of the target, in the features of a classifier trained on all of its training images: over steps in
chart.png, the best over steps in report.json and on the terminal, images in samples.png.
"""

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments import image, image_check, transfer_images, transfer_methods, transfer_report
from experiments.image_evaluation import with_features
from experiments.transfer_images import chosen
from experiments.transfer_methods import METHODS, Method, Origin, Target
from experiments.transfer_methods import Config as Run
from jaxgan import data, files, flags, loop, numerics, parallel, report, sources, workdir
from jaxgan.config import Common, check_least
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import State
from jaxgan.trained import network


def like(name: str) -> Any:
    """The flag of this name that each run has of its own."""
    (field,) = (field for field in dataclasses.fields(transfer_methods.Config) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    workdir: str = option("", "directory of the runs and their report; started again, the same command goes on")
    source_run: str = like("source_run")
    source_step: int | None = like("source_step")
    source_preset: str = option(
        "", "preset of experiments.image that is trained where there is no run; empty: dcgan_digits, for digits alone"
    )
    source_classes: tuple[str, ...] | None = option(
        None, "classes that it is trained on; empty: all; none: 0 to 8 where digits go to the tenth, all otherwise"
    )
    source_crop: str = option("", "what part of an image it is trained on, as --crop; empty: as the preset")
    source_size: str = option("", "pixels of its images, 28 or 28x28; empty: as the preset")
    source_width: int = option(0, "base number of channels of its networks; 0: as the preset")
    source_steps: int = option(0, "its steps; its schedules last as long; 0: those of the preset")
    dataset: str = option("digits", "the target: digits, any TFDS name, folder:DIR or npz:FILE")
    split: str = option("train", "of its images to train on")
    test_split: str = like("test_split")
    classes: tuple[str, ...] | None = option(
        None, "classes of the target, by name or number, which become 0, 1, ...; empty: all; none: 9 of digits, or all"
    )
    from_classes: tuple[int, ...] = like("from_classes")
    data_dir: str = option("", "where prepared TFDS data sets lie; empty: TFDS's own default")
    manual_dir: str = option("", "original files from which TFDS prepares a data set")
    crop: str = option(
        "center", "center or none: where the aspect ratio is not the source's, cut or stretch; 20x20: cut that first"
    )
    channels: int = option(0, "of the target's images, 1: grey, 3: colour, 4: RGBA; 0: as the source's")
    skip_bad_images: bool = option(False, "leave out files of folder:DIR that cannot be read")
    num_images: tuple[int, ...] = option((20,), "how many of the target's images to train on; 0: all")
    method: tuple[str, ...] = option(tuple(METHODS), "what to compare", tuple(METHODS))
    seed: int = option(0, "the first of --seeds: of the choice of images, of weights and of latents")
    seeds: int = option(1, "how often each is repeated")
    steps: int = option(1000, "training steps from scratch; schedules last as long")
    tuned_steps: int = option(200, "training steps of the other methods; schedules last as long")
    evaluations: int = option(40, "times that a run is measured, and saved")
    eval_samples: int = option(1000, "samples of an evaluation")
    batch_size: int = option(0, "images a step; 0: as the source")
    disc_steps: int = option(0, "moves of the discriminator to one of the generator; 0: as the source")
    learning_rate: tuple[float, ...] = option((), "of both players: one value, or start,end; empty: as the source")
    tuned_learning_rate: tuple[float, ...] = option(
        (1e-3, 1e-4), "that of the methods that do not start from scratch: one value, or start,end over --tuned_steps"
    )
    augment: str = option("", "augmentation of whatever the discriminator sees; empty: as the source")
    ema: tuple[float, ...] = option((1000.0,), "half-life of the generator's average, in images; empty: none")
    ema_ramp: float = option(0.0, "the half-life is at most this share of the images seen; 0: any")
    frozen_layers: int = like("frozen_layers")
    mining_steps: int = like("mining_steps")
    miner_width: int = like("miner_width")
    cdc_weight: float = like("cdc_weight")
    cdc_batch: int = like("cdc_batch")
    anchors: int = like("anchors")
    devices: int = option(0, "devices to use; 0: all")
    tensorboard: bool = option(False, "write TensorBoard events")
    allow_code: bool = option(False, "run code from outside jaxgan, if the source run names a network or a loss there")
    dry_run: bool = option(False, "say what would be trained, and write nothing")


# A discriminator that moves three times for each move of the generator keeps up with one that moves fast.
MNIST: dict[str, Any] = {
    "source_preset": "rpgan_mnist",
    "test_split": "test",
    "num_images": (10, 100, 1000),
    "disc_steps": 3,
    "steps": 2000,
    "tuned_steps": 200,
    "evaluations": 20,
    "eval_samples": 4000,
    "ema": (10_000.0,),
    "ema_ramp": 0.15,
    "mining_steps": 20,
}
PRESETS: dict[str, dict[str, Any]] = {
    # The default: nine digits inside the installation to the tenth.
    "digits_tenth": {},
    # One layer more than at MNIST's own 28x28: better at half the width, and more of it is worth keeping.
    "mnist_tenth": MNIST
    | {"source_classes": tuple("012345678"), "source_size": "32", "source_width": 16, "source_steps": 10_000}
    | {"dataset": "mnist", "classes": ("9",), "tuned_learning_rate": (6e-3, 1e-3)},
    # At USPS' 16x16 pixels, which a digit fills: of MNIST's 28x28 it fills 20x20. Wide networks overfit 1,000 images.
    # USPS is not in TFDS; experiments/README.md says how to make the file.
    "mnist_usps": MNIST
    | {"source_classes": (), "source_crop": "20", "source_width": 64, "source_steps": 8000}
    | {"dataset": "npz:usps.npz", "classes": (), "tuned_learning_rate": (4e-3, 4e-4), "ema_ramp": 0.3},
}


NINE = tuple("012345678")  # the source of the demonstration


def completed(config: Config) -> Config:
    """With what is not given: nine digits to the tenth is what the demonstration does, and nobody's own data.

    Raises InputError for data of one's own without a source: digits at 8x8 pixels are none of theirs.
    """
    own = config.dataset != "digits"
    if own and not (config.source_run or config.source_preset):
        raise InputError(
            f"--dataset={config.dataset} without a source; expected --source_run=RUN, or --source_preset=NAME of "
            "experiments.image, which is trained first"
        )
    preset = config.source_preset or "dcgan_digits"
    nine = config.source_classes is None and not own and preset == "dcgan_digits"
    return dataclasses.replace(
        config,
        source_preset=preset,
        source_classes=NINE if nine else config.source_classes or (),
        classes=transfer_images.target_classes(config),
    )


def check(config: Config) -> None:
    """What can be wrong with the flags of this script, before anything is read."""
    if not config.workdir:
        raise InputError("--workdir is empty; expected a directory for the runs, for example --workdir=runs/transfer")
    least = dict.fromkeys(("seeds", "steps", "tuned_steps", "evaluations", "miner_width", "anchors"), 1)
    least |= dict.fromkeys(
        ("batch_size", "disc_steps", "source_steps", "source_width", "mining_steps", "cdc_weight"), 0
    )
    least |= dict.fromkeys(("learning_rate", "tuned_learning_rate", "ema", "ema_ramp"), 0)
    check_least(config, least | {"eval_samples": 2, "cdc_batch": 3})
    for name in ("learning_rate", "tuned_learning_rate", "ema"):
        if len(getattr(config, name)) > 2:
            raise InputError(f"--{name}={flags.written(getattr(config, name))}: expected one value, or start,end")
    for name in ("method", "num_images"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"--{name}={','.join(map(str, values))}: expected one or several, each once")
    if config.source_step is not None and not config.source_run:
        raise InputError(f"--source_step={config.source_step} is for --source_run; expected both")
    if min(config.num_images) < 0:
        raise InputError(f"--num_images={','.join(map(str, config.num_images))}: expected 0 (all) or more")


# --- runs


def classes_differ(config: Config, origin: Origin, target: Target) -> bool:
    """Whether classes have to be told which of the source's they start from. Raises InputError for --from_classes."""
    known, given = origin.generator.num_classes, config.from_classes
    differ = known > 0 and target.classes > 0 and known != target.classes
    words = ",".join(map(str, given))
    if given and not differ:
        raise InputError(
            f"--from_classes={words}: the source has {known} classes, the target {target.classes}; "
            f"expected none where they are as many, and a conditional source and labels otherwise"
        )
    if given and (len(given) != target.classes or not all(0 <= k < known for k in given)):
        raise InputError(f"--from_classes={words}: expected {target.classes} numbers from 0 to {known - 1}")
    return differ


def home(config: Config, method: str, n: int, seed: int) -> str:
    """The directory of a run."""
    return f"{config.workdir}/{method}-{n or 'all'}-{seed}"


def begun_runs(config: Config) -> list[dict[str, Any]]:
    """What those of the runs that are there already keep of their data."""
    seeds = range(config.seed, config.seed + config.seeds)
    homes = (home(config, *of) for of in itertools.product(config.method, config.num_images, seeds))
    return [found for path in homes if (found := workdir.data_of(files.reach(path)))]


def runs(config: Config, origin: Origin, target: Target) -> Iterator[Run]:
    """All that are asked for: the source's flags, with those of this script over them."""
    (h, w, c), flags_there = target.shape, dataclasses.asdict(origin.config)
    conditional = origin.generator.num_classes > 0 and target.classes > 0
    given: tuple[str, ...] = ("dataset", "split", "data_dir", "manual_dir", "crop", "skip_bad_images", "classes")
    given += ("test_split", "eval_samples", "devices", "tensorboard", "ema", "ema_ramp")
    given += ("source_run", "source_step", "from_classes")
    given += tuple(name for name in ("augment", "batch_size", "disc_steps") if getattr(config, name))
    changed = {
        "size": f"{h}x{w}",
        "channels": c,
        "conditional": conditional,
        "auxiliary": origin.config.auxiliary if conditional else 0.0,
        "metrics": ("distance",),
        "keep": 1,
        # Of one length, so that some of their programs are the same.
        "steps_per_call": max(min(config.steps, config.tuned_steps) // config.evaluations, 1),
        # They would look into networks that some methods wrap, or are for another evaluation.
        "unroll": 0,
        "path_length": 0.0,
        "diagnose": False,
        "dry_run": False,
    }
    for n, seed, method in itertools.product(
        config.num_images, range(config.seed, config.seed + config.seeds), config.method
    ):
        steps = config.steps if method == "scratch" else config.tuned_steps
        every = max(steps // config.evaluations, 1)
        rate = config.learning_rate if method == "scratch" else config.tuned_learning_rate or config.learning_rate
        rates: dict[str, Any] = {"learning_rate": rate, "gen_learning_rate": ()} if rate else {}
        values = flags_there | {name: getattr(config, name) for name in given} | rates
        if any(len(values[name]) > 1 for name in image_check.SCHEDULES):
            # What the source's did over its length, each run's do over its own.
            rates["anneal_images"] = float(steps * values["batch_size"])
        yield Run(
            **flags_there
            | {name: getattr(config, name) for name in (*given, *METHODS[method])}
            | changed
            | rates
            | {"method": method, "num_images": n, "seed": seed, "steps": steps, "sample_every": steps}
            | {"eval_every": every, "checkpoint_every": every}
            | {"workdir": home(config, method, n, seed)},
        )


def play(
    run: Run, method: Method, started_from: tuple[int, ...], source: data.Source, distance: Callable, devices: list
) -> None:
    """Trains, or goes on, or finds it done. started_from: the source's classes (`transfer_methods.method`, like)."""

    def sampled(state: State, key: int, n: int) -> np.ndarray:
        return image.trained(method.pair, state).sample(numerics.key(key), n)

    pair = method.pair
    names: tuple[str, ...] = ("batch_size", "seed", "placement", "resident_gb", "mirror", "dequantize")
    begun = workdir.data_of(files.reach(run.workdir))
    options = {name: getattr(run, name) for name in names} | {"filled": run.conditional and not begun}
    feed = data.place(source, draws=method.game.draws, devices=devices, **options)
    loop.run(
        method.game,
        feed,
        run,
        example=image.example_of(source),
        devices=devices,
        about={
            "networks": {"generator": network(pair.generator), "discriminator": network(method.discriminator)},
            "started_from": list(started_from),
        },
        sample=lambda state: report.grid(sampled(state, run.seed, 64)),
        evaluate=lambda state: {"distance": distance(sampled(state, run.seed + 1, run.eval_samples))},
        best="eval/distance",
        begin_from=method.begin_from,
    )


def source_config(config: Config) -> image.Config:
    """Of the run that is trained where none is given."""
    config = completed(config)
    given = {"preset": config.source_preset, "workdir": f"{config.workdir}/source", "eval_every": 0, "seed": 0}
    given |= {"data_dir": config.data_dir, "manual_dir": config.manual_dir, "devices": config.devices}
    given |= {"classes": ",".join(config.source_classes or ()), "notensorboard": None, "steps_per_call": 50}
    own = {"size": config.source_size, "width": config.source_width, "steps": config.source_steps}
    given |= {name: value for name, value in {**own, "crop": config.source_crop}.items() if value}
    argv = [f"--{name}" if value is None else f"--{name}={value}" for name, value in given.items()]
    found = with_features(flags.parse(image.Config, image.PRESETS, argv))
    if config.source_steps and any(len(getattr(found, name)) > 1 for name in image_check.SCHEDULES):
        found = dataclasses.replace(found, anneal_images=float(found.steps * found.batch_size))
    return found


@contextlib.contextmanager
def of_the_source() -> Iterator[None]:
    """What is wrong with the flags of the source, under the names that they have here."""
    try:
        yield
    except InputError as error:
        words = re.sub(r"--(preset|classes|crop|size|width|steps)\b", r"--source_\1", str(error))
        raise InputError(f"the source: {words}") from None


def main(config: Config) -> None:
    loop.setup(Common(num_hosts=1))
    check(config)
    config = completed(config)
    with of_the_source():
        training = None if config.source_run else source_config(config)
    if training is None:
        origin = transfer_methods.origin(config.source_run, config.source_step, config.allow_code)
        shape = origin.generator.shape
    else:
        with of_the_source():
            loop.check(training)
            image_check.check(training, len(parallel.devices_for(training.batch_size, training.devices)))
            known = image.load(training, training.split)
            pair = image.networks(training, known.shape, known.num_classes)
        origin, shape = Origin(training, pair.generator, pair.discriminator), known.shape
    there = begun_runs(config)
    images = transfer_images.load(
        config, shape, next((found["classes"] for found in there if found.get("classes")), [])
    )
    if config.source_run and not there:
        # Of the same classes as the source's, each starts from its own.
        images = images.in_order(workdir.data_of(files.reach(config.source_run)).get("classes", []))
    target = Target(images.train.shape, images.train.num_classes)
    differ = classes_differ(config, origin, target)
    planned = list(runs(config, origin, target))
    conditional = planned[0].conditional
    if conditional and not there:
        sources.check_filled(images.train)
    for n in config.num_images:
        if conditional and not there and 0 < n < target.classes:
            raise InputError(
                f"--num_images={n}: {config.dataset} has {target.classes} classes; expected at least one image of "
                "each, or 0: all"
            )
        if n > images.train.num_examples:
            raise InputError(
                f"--num_images={n}: {config.dataset} has {images.train.num_examples:,} to train on; 0: all"
            )
    for run in planned:
        loop.check(run)
        devices = parallel.devices_for(run.batch_size, run.devices)
        image_check.check(run, len(devices))
        transfer_methods.method(origin, run, target)
    if config.dry_run:
        return transfer_report.describe(config, planned, images, training)
    if training is not None:
        image.train(training, known, parallel.devices_for(training.batch_size, training.devices))
        origin = transfer_methods.origin(training.workdir, None, config.allow_code)
    began = config.source_run or f"{config.workdir}/source"

    @functools.cache
    def start_of(n: int, seed: int) -> tuple[int, ...]:
        if config.from_classes or not differ:
            return config.from_classes
        few = min(n or images.train.num_examples, transfer_methods.SAMPLES * target.classes)
        return transfer_methods.nearest(began, config.source_step, config.allow_code, chosen(images.train, few, seed))

    first = start_of(planned[0].num_images, planned[0].seed)
    tuned = transfer_methods.method(origin, dataclasses.replace(planned[0], method="finetune"), target, first)
    transfer_report.tell_weights(tuned.told, began)
    if first:
        print(f"classes  start from those of the source: {','.join(map(str, first))}")
    distance, about = transfer_images.measurer(config, images, planned[0].conditional)
    state = jax.jit(tuned.game.init)(numerics.key(config.seed), transfer_methods.example_of(target))
    start = image.trained(tuned.pair, tuned.begin_from(state))
    about["source"] = distance(start.sample(numerics.key(config.seed + 1), config.eval_samples))
    for run in planned:
        begun = start_of(run.num_images, run.seed)
        made = transfer_methods.method(origin, run, target, begun)
        devices = parallel.devices_for(run.batch_size, run.devices)
        play(run, made, begun, chosen(images.train, run.num_images, run.seed), distance, devices)
    transfer_report.write(config, planned, start, images, about)


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
