"""Measures finished runs, or any sets of images, against real images: one line each, in a table and as JSON.

    python -m experiments.evaluate --run=runs/digits,runs/biggan --metrics=all
    python -m experiments.evaluate --run=runs/cifar --features=inception --metrics=fid,kid,is --num=50000
    python -m experiments.evaluate --samples=folder:images --dataset=mnist --metrics=fid,precision_recall
    python -m experiments.evaluate --samples=folder:theirs,folder:ours --dataset=folder:real

Features are those of a classifier trained on the real set, unless --features says otherwise; figures in different
features, or of different numbers of samples, do not compare. --repeats=5 gives intervals, over samples of five seeds;
of runs that differ in their seed alone, a line more has intervals over these.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from etils import epath

from experiments import generate
from jaxgan import (
    classes,
    data,
    files,
    flags,
    folders,
    hosts,
    lastwords,
    loop,
    memory,
    numerics,
    report,
    sources,
    trained,
)
from jaxgan.config import Common, check_least
from jaxgan.errors import InputError, unknown
from jaxgan.flags import option
from jaxgan.images import CROPS, to_uint8
from jaxgan.layers.resize import RESIZINGS
from jaxgan.metrics import cas, coverage, embed, judge, measure, neighbours, parzen, repeats, smoothness
from jaxgan.metrics.reference import Reference, reference

# Beside the metrics of features: those that look at the images, or ask the generator.
OWN = ("cas", "modes", "parzen", "ppl")
CHOICES = (*measure.METRICS, *OWN)
OF_CLASSES = ("accuracy", "cas")  # which compare what was asked for with what the real classes are
EVERY = tuple(name for name in CHOICES if name != "frechet")  # which is another name of fid
# Flags of a run that its real images depend on.
DATA = ("dataset", "split", "data_dir", "manual_dir", "size", "crop", "channels", "skip_bad_images")
PATHS = 2048  # of perceptual path length
TESTED = 10_000  # test images, at most
SHOWN = 32  # samples beside their nearest real image


# Flags in which runs that differ in their seed alone may differ.
LOOSE = {field.name for field in dataclasses.fields(Common) if field.metadata["resumable"]} - {"steps"} | {"seed"}


def _asked(*names: str) -> Callable[[Any], bool]:
    return lambda c: bool({"all", *names} & set(c.metrics))


def _of_features(c: Any) -> bool:
    return "all" in c.metrics or any(measure.is_of_features(name) for name in c.metrics)


def _folders(c: Any) -> bool:
    return bool(c.run) or any(name.startswith("folder:") for name in (c.dataset, *c.samples))


INCEPTION = flags.Need(lambda c: c.features == "inception", "without --features=inception")
NEEDS = {
    "test_split": flags.Need(_asked("cas", "parzen"), "without --metrics=cas or parzen"),
    "features": flags.Need(
        lambda c: c.out or _of_features(c) or _asked("ppl")(c),
        "without a metric of features, for example --metrics=fid",
    ),
    "reference_images": flags.Need(
        lambda c: c.out or _of_features(c), "without a metric of features, for example --metrics=fid"
    ),
    "inception_weights": INCEPTION,
    "resize": INCEPTION,
    "skip_bad_images": flags.Need(_folders, "without images of folder:DIR"),
    "allow_code": flags.Need(lambda c: c.run, "without --run"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    needs: ClassVar[Mapping[str, flags.Need]] = NEEDS

    run: tuple[str, ...] = option((), "directories of runs to sample from")
    samples: tuple[str, ...] = option((), "sets of images in place of runs: folder:DIR, npz:FILE, idx:DIR or a name")
    dataset: str = option("", "the real images; empty: those that the run was trained on")
    split: str = option("", "of the real images; empty: that of the run, or train")
    test_split: str = option("test", "of the real images that neither training has seen, for cas and parzen")
    data_dir: str = option("", "where prepared TFDS data sets lie; empty: TFDS's own default")
    manual_dir: str = option("", "original files from which TFDS prepares a data set")
    size: str = option("", "resize all images to 64 or 48x64; empty: as they are, or as the run saw them")
    crop: str = option(
        "",
        "center or none: where the aspect ratio of --size differs, cut or stretch; 20x20: cut that; empty: as the run",
    )
    channels: int = option(0, "1: grey, 3: colour, 4: RGBA, 0: as they are, or as the run saw them")
    skip_bad_images: bool = option(False, "leave out files of folders that cannot be read; so does a run that did")
    metrics: tuple[str, ...] = option(
        ("fid", "precision_recall", "density_coverage"),
        "what to measure; all: all that can be",
        (*CHOICES, "all", flags.OWN),
    )
    features: str = option("classifier", "what metrics see: classifier, inception, pixels, or your own pkg.module:name")
    inception_weights: str = option("", "the weights of Inception; empty: those in the cache folder")
    resize: str = option(
        "tensorflow", "how Inception's images are resized: as in 2015, or antialiased (clean-fid)", tuple(RESIZINGS)
    )
    num: int = option(10_000, "samples of a run; of a set of images all, at most so many")
    reference_images: int = option(0, "real images; 0: all")
    repeats: int = option(1, "times to sample, with seeds of their own, for intervals")
    seed: int = option(0, "the first of them")
    truncation: float | None = option(None, "largest |z|, or ψ of a style generator")
    step: int | None = option(None, "the checkpoint of the run to take; none: the newest")
    devices: int = option(0, "devices to use; 0: all")
    allow_code: bool = option(False, "run code from outside jaxgan, if a run names a network there")
    out: str = option("", "a file.json for the figures; samples beside their nearest real images go next to it")


class Samples(NamedTuple):
    images: np.ndarray  # uint8 (n, h, w, c)
    labels: np.ndarray | None  # (n,) the classes that were asked for, in the order of the subject's own


class Subject(NamedTuple):
    """What is measured: draws of samples, and the generator where there is one."""

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...] | int  # names, or their number where they have none; 0: none
    draw: Callable[[int, data.Source], Samples]  # of a seed, to be measured against these real images
    gan: trained.Trained | None = None


@dataclasses.dataclass(frozen=True)
class Real:
    """The other side. `test`: images that neither training has seen, read when a metric asks for them."""

    source: data.Source
    network: embed.Network
    reference: Reference
    test: Callable[[], data.Source]

    @functools.cached_property
    def held_out(self) -> data.Source:
        return self.test()

    @functools.cached_property
    def tested(self) -> dict[str, np.ndarray]:
        source = self.held_out
        rows = np.random.default_rng(0).permutation(source.num_examples)[:TESTED]
        found = source.read(rows)
        return found if source.num_classes > 1 else {"image": found["image"]}

    @functools.cached_property
    def modes(self) -> coverage.Coverage:
        return coverage.train(self.source, loop.cache_dir())


def check(config: Config) -> None:
    if bool(config.run) == bool(config.samples):
        raise InputError("expected either --run=runs/digits or --samples=folder:images, several with commas")
    names = config.run or config.samples
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is given twice; expected each once")
    check_least(config, {"num": 2, "repeats": 1, "reference_images": 0})
    if not 0 <= config.seed < 2**32 - config.repeats:
        raise InputError(f"--seed={config.seed}: expected 0 to {2**32 - config.repeats - 1}")
    if not config.metrics:
        raise InputError("--metrics= is empty; expected at least one")
    of_features = [measure.metric(name).least for name in config.metrics if measure.is_of_features(name)]
    least = max(of_features, default=2)
    if 0 < config.reference_images < least:
        raise InputError(f"--reference_images={config.reference_images}: expected 0 (all), or at least {least}")
    if config.run:
        check_least(config, {"num": least})
    if config.samples and not config.dataset:
        raise InputError("--samples need --dataset, the real images; for example --dataset=mnist or folder:DIR")
    if config.samples and config.repeats > 1:
        raise InputError(f"--repeats={config.repeats} of --samples: a set of images is the same each time")
    for name in ("truncation", "step"):
        if config.samples and getattr(config, name) is not None:
            raise InputError(f"--{name}={getattr(config, name)} is for --run; --samples are as they are")
    if config.features not in embed.FEATURES and ":" not in config.features:
        raise unknown("features", config.features, embed.FEATURES, "or your own: pkg.module:name")
    if not 0 <= config.devices <= len(jax.devices()):
        raise InputError(f"--devices={config.devices}, but this machine has {len(jax.devices())}")
    if not config.out:
        return
    if not config.out.endswith(".json"):
        raise InputError(f"--out={config.out}: expected a name that ends in .json")
    files.destination("--out", config.out, overwrite=True)


# --- what is measured


def of_run(config: Config, run: str) -> tuple[Subject, dict[str, Any]]:
    """A run's generator, and the flags of its data."""
    stored = flags.read(files.reach(run))["config"] | {"class_names": generate.class_names(run), "directory": run}
    for flag in DATA:
        own = getattr(config, flag)
        if type(found := stored.get(flag, own)) is not type(own):
            raise InputError(f"the {flag} of {run} is {str(found)[:60]!r}; expected {type(own).__name__}")
    if type(chosen := stored.get("classes", [])) is not list or not all(type(k) in (int, str) for k in chosen):
        raise InputError(f"the classes of {run} are {str(chosen)[:60]!r}; expected a list of names and numbers")
    gan = trained.load(run, step=config.step, allow=config.allow_code).truncated(config.truncation)
    memory.check(config.num * math.prod(gan.generator.shape), f"--num={config.num} images of {run}", "expected fewer")

    names = generate.class_names(run, gan.generator.num_classes) or gan.generator.num_classes

    def draw(seed: int, real: data.Source) -> Samples:
        asked = None
        with contextlib.suppress(InputError):  # where they differ, they take turns
            places = class_table(run, names, real)
            if places is not None and len(places) == real.num_classes:
                asked = np.argsort(places)[judge.classes(real, config.num)]
        labels, start = gan.labels(asked, config.num), 0
        images = np.empty((config.num, *gan.generator.shape), np.uint8)
        for part in gan.batches(gan.latents(numerics.key(seed), config.num), labels):
            images[start : start + len(part)] = to_uint8(part)
            start += len(part)
        return Samples(images, labels)

    return Subject(run, gan.generator.shape, names, draw, gan), stored


def of_images(config: Config, name: str) -> Subject:
    # They are cut as they are to be: a window is for the real ones.
    source = load(dataclasses.replace(config, crop=config.crop if config.crop in CROPS else ""), {}, name, "train")

    def draw(seed: int, real: data.Source) -> Samples:
        rows = np.random.default_rng(seed).permutation(source.num_examples)[: config.num]
        found = source.read(rows)
        return Samples(found["image"], found["label"] if source.num_classes > 1 else None)

    return Subject(name, source.shape, source.class_names or source.num_classes, draw)


def load(config: Config, stored: dict[str, Any], name: str, split: str) -> data.Source:
    """Images by the flags given, or else as the run saw them."""

    def given(flag: str) -> Any:
        return getattr(config, flag) or stored.get(flag, getattr(config, flag))

    manual = given("manual_dir")
    if manual and not config.manual_dir and not epath.Path(manual).expanduser().is_dir():
        manual = ""  # where the run prepared its data from, once
    source = data.load(
        name,
        split,
        data_dir=given("data_dir") or None,
        manual_dir=manual or None,
        size=given("size"),
        crop=config.crop or ("" if config.dataset else stored.get("crop", "")) or "center",
        channels=given("channels"),
        cache=loop.cache_dir() / "decoded",
        skip_bad=given("skip_bad_images") and name.startswith("folder:"),
    )
    return numbered_as(source, config, stored, split)


def numbered_as(source: data.Source, config: Config, stored: dict[str, Any], split: str) -> data.Source:
    """`source` with the classes of the run, by their names and in its order.

    Raises OtherClasses where the run's own data have others now: labels would mean something else. Other data, those of
    --dataset, may have others, and keep theirs.
    """
    chosen, names = stored.get("classes"), stored.get("class_names", [])
    if config.dataset:
        same = sorted(names) == sorted(sources.names_of(source))
        return source.in_order(names) if same else source
    if not names:  # unnamed, or of a run that needs no labels
        return source.only(chosen) if chosen else source
    part = split != (stored.get("split") or "train")
    return sources.as_trained(source, names, stored["directory"], chosen=bool(chosen), part=part)


def real_images(config: Config, stored: dict[str, Any], devices: list) -> Real:
    name = config.dataset or stored.get("dataset", "")
    if not name:
        raise InputError("the run names no data set; expected --dataset with it")
    own = "" if config.dataset else stored.get("split", "")
    split = config.split or own or "train"
    source = load(config, stored, name, split)
    found = functools.partial(judged, source)
    network = embed.named(config.features, source, found, loop.cache_dir(), config.inception_weights, config.resize)
    made = reference(network, source, config.reference_images, loop.cache_dir(), devices)
    read = functools.partial(load, config, stored, name)
    # The split that the run was trained on; what made other images, nobody knows.
    test = functools.partial(sources.held_out, read, source, own, config.test_split, labelled=False)
    return Real(source, network, made, test)


def judged(source: data.Source) -> judge.Judge:
    found = judge.train(source, 1000, loop.cache_dir())
    kind = "labels" if found.labels is not None else "rotations"
    hosts.tell(f"a classifier tells the {kind} of held-out real images with {found.accuracy:.1%} accuracy", sys.stderr)
    return found


def check_pair(subject: Subject, real: Real) -> None:
    """Raises InputError unless the images have one shape."""
    if subject.shape != real.source.shape:
        raise InputError(
            f"{subject.name} has images {subject.shape}, {real.source.name} {real.source.shape}; "
            "--size and --channels make them equal"
        )


def class_table(name: str, ours: Sequence[str] | int, real: data.Source) -> np.ndarray | None:
    """int (k,): which of the real classes each class of the samples `name` is. None where either side has no classes.

    Names decide: samples may have some of the classes, in any order. Where one side has numbers alone, a folder's name
    that is a number is one of these, and else both sides have to have as many classes. Raises InputError for others.
    """
    if not ours or not real.num_classes:
        return None
    if isinstance(ours, int):
        if ours == real.num_classes:
            return np.arange(ours)
    else:
        names = classes.names_of(real.class_names, real.num_classes)
        number = {folders.class_folder(x): i for i, x in enumerate(names)} | {x: i for i, x in enumerate(names)}
        digits = not real.class_names and all(x.isdecimal() for x in ours)
        places = [number.get(str(int(x)) if digits else x, -1) for x in ours]
        if min(places) >= 0 and len({*places}) == len(places):
            return np.array(places)
        if not real.class_names and not digits and len(ours) == real.num_classes:
            return np.arange(len(ours))
    raise InputError(
        f"{name} has the classes {classes.shown(*((), ours) if isinstance(ours, int) else (ours,))}, {real.name} "
        f"{classes.shown(real.class_names, real.num_classes)}; expected the same"
    )


# --- the metrics that are not of features


def accuracy_score(real: Real, samples: Samples, subject: Subject, seed: int) -> dict[str, float]:
    if samples.labels is None or real.source.num_classes < 2:
        raise InputError("metric 'cas' needs labelled samples and real images: a conditional generator")
    test = real.tested
    if "label" not in test:
        raise InputError("metric 'cas' needs labels of the test images; those of --test_split have none")
    sources.check_classes(real.held_out, real.source)
    found = cas.score(samples.images, samples.labels, test["image"], test["label"], real.source.num_classes, seed)
    return {"cas": found.accuracy}


def mode_counts(real: Real, samples: Samples, subject: Subject, seed: int) -> dict[str, float]:
    found = real.modes(samples.images.astype(np.float32) / 127.5 - 1)
    return {"modes": found["modes"], "reverse_kl": found["reverse_kl"], "modes_accuracy": found["accuracy"]}


def likelihood(real: Real, samples: Samples, subject: Subject, seed: int) -> dict[str, float]:
    test = real.tested["image"]  # in an order drawn at random, so that either half is like the other
    if len(test) < 3:
        raise InputError(f"metric 'parzen' has {len(test)} images of --test_split: expected at least 3, one for σ")
    parts = (samples.images, *np.split(test, [len(test) // 2]))
    window = parzen.evaluate(*(x.astype(np.float32) / 255 for x in parts))
    return {"parzen": window.mean, "parzen_error": window.error}


def path_length(real: Real, samples: Samples, subject: Subject, seed: int) -> dict[str, float]:
    if subject.gan is None:
        raise InputError("metric 'ppl' needs a generator: --run")
    gan, keys = subject.gan.precise, jax.random.split(numerics.key(seed), 3)
    params = jax.device_put(real.network.params)

    def features(z: jax.Array) -> np.ndarray:
        return np.concatenate([embed.features(real.network.function, params, part) for part in gan.batches(z)])

    found = smoothness.path_length(features, (gan.latents(keys[0], PATHS), gan.latents(keys[1], PATHS)), keys[2])
    return {"ppl": found.mean, "ppl_error": found.error}


FUNCTIONS = {"cas": accuracy_score, "modes": mode_counts, "parzen": likelihood, "ppl": path_length}


# --- the table


def evaluate(config: Config, subject: Subject, real: Real, devices: list) -> list[dict[str, float]]:
    """The figures of each repeat."""
    check_pair(subject, real)
    everything, rows = "all" in config.metrics, []
    metrics: Sequence[str] = EVERY if everything else config.metrics
    places = None
    try:
        places = class_table(subject.name, subject.classes, real.source)
    except InputError as error:
        # The classes of a run and of its own data differ where the data have changed.
        others = [name for name in metrics if name not in OF_CLASSES]
        if not others or (subject.gan is not None and not config.dataset):
            raise
        if len(others) < len(metrics):
            left = " and ".join(name for name in metrics if name in OF_CLASSES)
            hosts.tell(f"{subject.name}: left out {left}: {error}", sys.stderr)
        metrics = others
    for seed in range(config.seed, config.seed + config.repeats):
        samples = subject.draw(seed, real.source)
        samples = samples._replace(labels=None if places is None or samples.labels is None else places[samples.labels])
        seen = embed.embed(real.network, [samples.images], devices)
        few = measure.few_samples(*seen.features.shape) if {"fid", "frechet", "all"} & set(config.metrics) else ""
        if few and seed == config.seed:
            hosts.tell(f"{subject.name}: {few}", sys.stderr)
        comparison = measure.Comparison(real.network, real.reference, seen, samples.labels, seed)
        row: dict[str, float] = {"samples": len(samples.images)}
        for name in metrics:
            try:
                if name in OWN:
                    row |= FUNCTIONS[name](real, samples, subject, seed)
                else:
                    row |= measure.score(name, comparison)
            except InputError as error:
                if not everything:
                    raise
                if seed == config.seed:
                    hosts.tell(f"{subject.name}: left out {name}: {error}", sys.stderr)
        rows.append(row)
        if config.out and seed == config.seed:
            picture(config, subject, real, samples.images[:SHOWN], seen.features[:SHOWN])
        del samples, seen, comparison
    return rows


def picture(config: Config, subject: Subject, real: Real, shown: np.ndarray, features: np.ndarray) -> None:
    """Samples, and to the right of each the real image whose features are nearest."""
    nearest = neighbours.nearest(features, real.reference.features).rows[:, 0]
    beside = real.source.read(real.reference.rows[nearest])["image"]
    pairs = np.stack([shown, beside], 1).reshape(-1, *beside.shape[1:])
    out = epath.Path(config.out).expanduser()
    name = re.sub(r"[^A-Za-z0-9]+", "-", subject.name).strip("-")
    with writing(config):
        report.save_png(out.with_name(f"{out.stem}-{name}.png"), report.grid(pairs, columns=8))


@contextlib.contextmanager
def writing(config: Config) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write --out={config.out}: {error.strerror or error}") from None


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """A line for each subject, a column for each figure; means ± half a 95% interval where there are repeats."""
    names = list(dict.fromkeys(name for found in rows.values() for row in found for name in row))
    cells = [["", *names]]
    for subject, found in rows.items():
        cells.append([subject, *(repeats.shown([row[name] for row in found if name in row]) for name in names)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    )


def over_seeds(runs: Mapping[str, Mapping[str, Any]], rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Of runs that differ in their seed alone: {group: {"runs", "figures": the mean of each run's repeats}}.

    runs: the stored config of each. rows: the figures of each of its repeats.
    """
    groups: dict[str, list[str]] = {}
    for name in rows.keys() & runs.keys():
        own = {flag: value for flag, value in sorted(runs[name].items()) if flag not in LOOSE}
        groups.setdefault(json.dumps(own, sort_keys=True, default=str), []).append(name)
    found = {}
    for names in groups.values():
        names = [name for name in rows if name in names]
        if len(names) > 1 and len({runs[name].get("seed") for name in names}) == len(names):
            means = [{key: float(np.mean([row[key] for row in rows[name]])) for key in rows[name][0]} for name in names]
            found[f"{len(names)} seeds, {names[0]} ..."] = {"runs": names, "figures": means}
    return found


def main(config: Config) -> None:
    loop.setup(Common(num_hosts=1))
    check(config)
    devices = jax.devices()[: config.devices or None]
    # All of them before the first is measured: a name that is wrong shows at once.
    subjects = [of_run(config, run) for run in config.run] or [(of_images(config, name), {}) for name in config.samples]
    rows: dict[str, list[dict[str, float]]] = {}
    about: dict[str, Any] = {}
    kept: dict[str, Real] = {}
    try:
        for subject, stored in subjects:
            seen_as = json.dumps([stored.get(flag) for flag in (*DATA, "classes", "class_names")])
            with lastwords.patience(f"measuring {subject.name}; of a data set the first time takes longest"):
                if seen_as not in kept:
                    kept = {seen_as: real_images(config, stored, devices)}
                real = kept[seen_as]
                rows[subject.name] = evaluate(config, subject, real, devices)
            about[subject.name] = {
                "real": real.source.name,
                "real_images": real.reference.total,
                "features": real.network.name,
                "network": real.network.digest,
                "repeats": rows[subject.name],
            }
    finally:
        if rows:  # also of those before one that could not be measured
            seeds = over_seeds({subject.name: stored for subject, stored in subjects if stored}, rows)
            try:
                if config.out:
                    results = {"config": dataclasses.asdict(config), "results": about, "seeds": seeds}
                    with writing(config):
                        files.write(epath.Path(config.out).expanduser(), json.dumps(results, indent=1) + "\n")
            finally:  # hours of figures are not lost where one of the two ways to keep them fails
                print(table(rows | {name: found["figures"] for name, found in seeds.items()}))
            if config.out:
                print(f"wrote {config.out}, and samples beside their nearest real images as PNG")


if __name__ == "__main__":
    flags.main(Config, {}, main, doc=__doc__ or "")
