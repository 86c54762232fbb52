"""What a trained generator has learnt, as one HTML page with pictures and figures: DIR/index.html.

    python -m experiments.interpret --run=runs/digits --out=runs/digits/page
    python -m experiments.interpret --run=runs/digits --sample=7 --image=mine.png,yours.png --out=page

Traversals of the latent, directions found without labels (SeFa, GANSpace), projection of images into the latent space,
ablation of units, saliency of the discriminator, the Jacobian at one sample, and that sample explained: its nearest
training images, how realistic it is, what changes it most. The folder holds the pictures as PNGs, and the figures in
report.json. What does not apply to a run, or needs data that are not there, is left out and the page says why.
"""

import dataclasses
import json
import math
import os
import re
import sys
from typing import Any

import numpy as np
from etils import epath

from experiments import evaluate, generate, interpret_views
from experiments.interpret_views import Subject, Views
from jaxgan import classes as class_lists
from jaxgan import critic, files, flags, hosts, images, loop, numerics, page, sources, trained
from jaxgan.config import Common
from jaxgan.errors import InputError, unknown
from jaxgan.flags import option
from jaxgan.interpret import dissection
from jaxgan.interpret.spaces import Space
from jaxgan.metrics import embed

OWN = re.compile(r"index\.html|report\.json|[a-z0-9_]+\.png")  # what this script writes into --out


@dataclasses.dataclass(frozen=True)
class Config:
    run: str = option("", "directory of the run")
    out: str = option("", "folder for the page, its pictures and report.json")
    sample: int = option(0, "number of the sample to explain, counted as experiments.generate does")
    label: int | None = option(None, "class of the walks, for a conditional generator; none: that of the sample")
    image: tuple[str, ...] = option((), "image files to project; empty: some of the data set")
    seed: int = option(0, "seed of the latents")
    step: int | None = option(None, "the checkpoint to take; none: the newest")
    directions: int = option(5, "directions that each method shows")
    layer: str = option("", "the layer whose units are ablated; empty: one from the middle")
    units: int = option(64, "units to ablate, at most: those with the largest activations")
    num: int = option(2000, "samples behind the figures")
    restarts: int = option(8, "starts of a projection")
    projection_steps: int = option(300, "its steps of Adam")
    dataset: str = option("", "the real images; empty: those that the run was trained on")
    split: str = option("", "of these; empty: that of the run, or train")
    data_dir: str = option("", "where prepared TFDS data sets lie; empty: as the run")
    overwrite: bool = option(False, "replace --out if it exists")
    allow_code: bool = option(False, "run code from outside jaxgan, if the run names a network there")


def check(config: Config) -> epath.Path:
    """Where to write. Raises InputError for what is wrong before anything is loaded."""
    for name, example in {"run": "runs/digits", "out": "runs/digits/page"}.items():
        if not getattr(config, name):
            raise InputError(f"--{name} is empty; expected for example --{name}={example}")
    least = {"sample": 0, "directions": 1, "units": 1, "num": 16, "restarts": 1, "projection_steps": 1}
    most = {"sample": 2**20, "directions": 64, "units": 4096, "num": 100_000, "restarts": 256}
    for name, low in least.items():
        high = most.get(name, 10**6)
        if not low <= getattr(config, name) <= high:
            raise InputError(f"--{name}={getattr(config, name)}: expected {low} to {high:,}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed={config.seed}: expected 0 to {2**32 - 1}")
    return files.destination("--out", config.out, config.overwrite, folder=True, own=OWN)


def read_images(config: Config, shape: tuple[int, int, int]) -> np.ndarray | None:
    """--image: uint8 (n, *shape), cut to the shape of the run's; None where none was given."""
    if not config.image:
        return None
    if shape[2] not in images.MODES:
        raise InputError(f"--image={config.image[0]}: this run's images have {shape[2]} channels, a file 1, 3 or 4")
    found = []
    for name in config.image:
        path = files.reach(name)
        try:
            if not files.is_plain(path):
                raise InputError(f"--image={name}: there is no such file")
            found.append(images.decode(path.read_bytes(), shape[:2], shape[2]))
        except InputError:
            raise
        except images.UNREADABLE as error:
            raise InputError(f"--image={name} is not a readable image ({error!s:.100})") from None
    return np.stack(found)


def load(config: Config) -> Subject:
    """The run and what there is beside its generator; for what there is not, why."""
    names = generate.class_names(config.run)
    stored = flags.read(files.reach(config.run))["config"] | {"class_names": names, "directory": config.run}
    for flag in evaluate.DATA:
        own = getattr(evaluate.Config, flag)
        if type(found := stored.get(flag, own)) is not type(own):
            raise InputError(f"the {flag} of {config.run} is {str(found)[:60]!r}; expected {type(own).__name__}")
    gan = trained.load(config.run, step=config.step, allow=config.allow_code)
    shape, classes = tuple(gan.generator.shape), gan.generator.num_classes
    if config.label is not None and not classes:
        raise InputError(f"--label={config.label}: this generator is unconditional")
    if config.label is not None and not 0 <= config.label < classes:
        raise InputError(f"--label={config.label}: this generator has the classes 0 to {classes - 1}")
    targets = read_images(config, shape)
    space, missing = Space.of(gan), {}
    judge = None
    try:
        judge = critic.load(config.run, step=config.step, allow=config.allow_code)
        if tuple(judge.discriminator.shape) != shape:
            judge, missing["critic"] = None, "the discriminator judges several images at once"
    except InputError as error:
        missing["critic"] = str(error)
    network = source = accuracy = None
    name = config.dataset or stored.get("dataset", "")
    asked = evaluate.Config(dataset=config.dataset, split=config.split, data_dir=config.data_dir)
    try:
        if not name:
            raise InputError("the run names no data set; --dataset does")
        own = "" if config.dataset else stored.get("split", "")
        source = evaluate.load(asked, stored, name, config.split or own or "train")
        if tuple(source.shape) != shape:
            raise InputError(f"its images are {source.shape}, those of the run {shape}")
        own_names = sources.names_of(source)
        if classes and own_names and (own_names != tuple(names) if names else len(own_names) != classes):
            ours = class_lists.shown(names, classes)
            raise sources.OtherClasses(f"{name} has the classes {class_lists.shown(own_names)}, {config.run} {ours}")
        if source.num_examples < 16:
            raise InputError(f"it has {source.num_examples} images; expected at least 16")
        judged = evaluate.judged(source)
        network, accuracy = embed.classifier(judged), judged.accuracy
    except InputError as error:
        if config.dataset or isinstance(error, sources.OtherClasses):
            raise
        source, missing["data"] = None, f"the data set {name or 'of this run'} cannot be had: {error}"
    return Subject(space, judge, source, network, accuracy, targets, missing)


def check_layer(config: Config, subject: Subject) -> str:
    """The layer to ablate: that of --layer, or one from the middle of those that can be; "" if there are none."""
    dimension = subject.space.points(numerics.key(config.seed), 1, subject.labels(1)).shape[1]
    found = dissection.layers(subject.space, dimension, 0 if subject.classes else None)
    if config.layer and config.layer not in found:
        raise unknown("layer", config.layer, found)
    return config.layer or (list(found)[len(found) // 2] if found else "")


def main(config: Config) -> None:
    out = check(config)
    loop.setup(Common(num_hosts=1))
    subject = load(config)
    layer = check_layer(config, subject)
    views = Views(config, subject, layer)
    sections, report = [], {"run": config.run, "space": subject.space.name, "sample": config.sample}
    for view in interpret_views.VIEWS:
        hosts.tell(f"{view.__name__.replace('_', ' ')} ...", sys.stderr)
        section, figures = view(views)
        sections.append(section)
        report[view.__name__] = figures | ({"note": section.note} if section.note else {})
    run = os.fspath(config.run).rstrip("/").rpartition("/")[2] or config.run
    document = page.page(f"What {run} has learnt", interpret_views.introduction(views), sections)
    write(out, document, json.dumps(plain(report), indent=1, allow_nan=False) + "\n", sections)
    print(f"wrote {config.out}/index.html, its pictures and report.json")


def plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(inner) for inner in value]
    if isinstance(value, bool | str | None):
        return value
    number = value.item() if isinstance(value, np.generic) else value
    return number if not isinstance(number, float) or math.isfinite(number) else None


def write(out: epath.Path, document: str, report: str, sections: list[page.Section]) -> None:
    """All or nothing: the files are moved into place together."""
    try:
        with files.replacing(out) as part:
            for section in sections:
                for picture in section.pictures:
                    files.write(part / f"{picture.name}.png", page.png(picture.array))
            files.write(part / "report.json", report)
            files.write(part / "index.html", document)
    except OSError as error:
        raise InputError(f"cannot write --out={os.fspath(out)}: {error.strerror or error}") from None


if __name__ == "__main__":
    flags.main(Config, {}, main, doc=__doc__ or "")
