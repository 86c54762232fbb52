"""Learns what is normal from normal images alone, then scores others: a CSV with a threshold, and heat maps of where.

    python -m experiments.anomaly --workdir=runs/digits_anomaly
    python -m experiments.anomaly --dataset=folder:normal --normal= --workdir=runs/mine
    python -m experiments.anomaly --mode=score --workdir=runs/mine --dataset=folder:new --out=scores.csv --heatmaps=maps

Of labelled images one class is normal (`--normal=3`), or each in turn (`--normal=all`), which is how the literature
measures a method: by the mean area under the ROC curve (AUROC) over the classes. Some normal images are held out for
the threshold. Tables are for experiments/anomaly_table.py. In Python: `jaxgan.image_detector`.
"""

import dataclasses
import functools
import json
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from experiments import anomaly_scores
from jaxgan import classes as class_lists
from jaxgan import data, files, flags, image_detector, lastwords, loop, parallel, report, sources, workdir
from jaxgan.anomaly import calibration, detector
from jaxgan.anomaly.detector import Detector
from jaxgan.errors import InputError, unknown
from jaxgan.flags import Need, option
from jaxgan.image_detector import SHOWN, ImageOptions, Task, split, train
from jaxgan.metrics import detection

TESTED = 5  # one image in so many is for testing, where a labelled set has no split for it
NAMED = 150  # bytes, at most, of an image's own name in that of its picture
OWN = re.compile(r"sheet\.png|\d{4,}-\d{6,}(-.+)?\.png")  # what this script writes into --heatmaps


@dataclasses.dataclass(frozen=True)
class Config(ImageOptions):
    needs: ClassVar[Mapping[str, Need]] = (
        anomaly_scores.not_scoring(*anomaly_scores.TRAINING, "gan_steps", "normal", "mirror")
        | anomaly_scores.NEEDS
        | anomaly_scores.only("score", "but in --mode=score", "overwrite", "allow_code")
        | {
            "test_split": Need(
                lambda c: c.normal != "" and c.mode == "fit",
                "without --normal, the class that is normal, or in --mode=score",
                anomaly_scores.scoring,
            ),
            "num_heatmaps": Need(lambda c: c.heatmaps, "without --heatmaps", anomaly_scores.scoring),
        }
    )

    mode: str = option("fit", "fit: train on normal images; score: look at others", ("fit", "score"), resumable=True)
    normal: str | None = option(
        None,
        "the class that is normal, by name or number; all: each in turn; empty: all images are; none: all, or, of a "
        "folder or file with classes, to be given",
    )
    test_split: str = option("", "split to measure on; empty: every fifth image of a labelled set", resumable=True)
    out: str = option("", "for --mode=score: a file.csv", resumable=True)
    heatmaps: str = option("", "for --mode=score: a folder for pictures of what is anomalous", resumable=True)
    num_heatmaps: int = option(100, "at most so many, the highest scores first", resumable=True)
    false_positive_rate: float = option(0.05, "of normal images, at most so many are flagged", resumable=True)
    overwrite: bool = option(False, "replace --out and --heatmaps if they exist", resumable=True)
    allow_code: bool = option(False, "run code from outside jaxgan, if the run names a method there", resumable=True)


PRESETS: dict[str, dict[str, Any]] = {
    # The default: 8x8 digits inside the installation, each digit normal in turn.
    "digits": {},
    # One digit normal, the other nine anomalous among the 10,000 test images: the protocol of Deep SVDD (ICML 2018).
    "mnist": {"dataset": "mnist", "test_split": "test", "held_out": 10, "steps": 2000, "steps_per_call": 100},
    # Chest X-rays, healthy ones normal: the file of MedMNIST (doi:10.1038/s41597-022-01721-8).
    "pneumonia": {
        "dataset": "npz:pneumoniamnist.npz",
        "test_split": "test",
        "normal": "0",
        "steps": 2000,
        "steps_per_call": 100,
    },
}
PRESETS["mnist_fanogan"] = PRESETS["mnist"] | {"method": "fanogan", "gan_steps": 2000}
PRESETS["mnist_bigan"] = PRESETS["mnist"] | {"method": "bigan"}
PRESETS["mnist_ganomaly"] = PRESETS["mnist"] | {"method": "ganomaly"}


def check(config: Config) -> None:
    """What can be wrong with the flags of this script, in the words of the flags."""
    anomaly_scores.check(config, ("width", "latent", "seeds", "gan_steps", "num_heatmaps"), folders=("heatmaps",))
    image_detector.check(config)


def main(config: Config) -> None:
    loop.setup(config)
    check(config)
    if config.mode == "score":
        score(config)
        return
    loop.check(dataclasses.replace(config, normal="all" if config.normal is None else config.normal))
    fit(config)


def load(config: Config, part: str) -> data.Source:
    options: tuple[str, ...] = ("data_dir", "manual_dir", "size", "crop", "channels")
    chosen = {name: getattr(config, name) for name in options}
    cache = loop.cache_dir() / "decoded"
    return data.load(
        config.dataset, part, cache=cache, skip_bad=config.skip_bad_images, prepare=not config.dry_run, **chosen
    )


def tasks(config: Config) -> list[Task]:
    """One for each class that is to be normal. Raises InputError for classes that are not there, or alone."""
    source, test = load(config, config.split), None
    if config.normal is None:
        check_asked(config, source)
    normal = "all" if config.normal is None else config.normal
    if config.test_split and normal:
        read = functools.partial(load, config)
        test = sources.held_out(read, source, config.split, config.test_split, labelled=False)
    rows = np.arange(source.num_examples)
    if source.num_classes == 0 and test is not None and test.num_classes > 1:  # as those of MVTec AD are
        (name,) = classes(normal, _names(test))
        return [split(config, name, source, rows, test, _others(test, name))]
    if not normal or source.num_classes == 0:
        if normal not in ("", "all"):
            raise InputError(f"--normal={normal}, but {config.dataset} has no classes; expected --normal=")
        if config.test_split:
            lastwords.say(f"nothing is measured on --test_split={config.test_split}: no class is normal", sys.stderr)
        return [split(config, "", source, rows, None, None)]
    if source.num_classes < 2:
        raise InputError(f"{config.dataset} has one class only; expected anomalies too, or --normal= for none")
    if test is None:
        test, rows = source.subset(rows[::TESTED]), rows[rows % TESTED > 0]
    label = data.labels(source)[rows]
    found = []
    for name in classes(normal, _names(source), several=True):
        chosen = rows[label == _names(source).index(name)]
        found.append(split(config, name, source, chosen, test, _others(test, name)))
    return found


def check_asked(config: Config, source: data.Source) -> None:
    """Raises InputError for classes of one's own of which none is said to be normal: each in turn is how benchmarks
    measure a method, and would take good and bad parts for normal alike."""
    begun = any(files.reach(config.workdir).glob("normal-*")) if config.workdir else False
    if source.num_classes > 1 and ":" in config.dataset and not begun:
        raise InputError(
            f"--dataset={config.dataset} has the classes {class_lists.shown(_names(source))}; expected --normal=NAME "
            "for the normal one, --normal=all for each in turn, or --normal= where all images are normal"
        )


def _names(source: data.Source) -> tuple[str, ...]:
    return sources.names_of(source)


def _others(test: data.Source, name: str) -> np.ndarray:
    """Which images are of another class, bool (n,); by its name, since another split may number them otherwise."""
    anomalous = np.array([other != name for other in _names(test)])[data.labels(test)]
    if anomalous.all() or not anomalous.any():
        what = "anomalous" if anomalous.all() else "normal"
        raise InputError(f"all {len(anomalous):,} test images are {what}, where the class {name} is normal")
    return anomalous


def classes(normal: str, names: tuple[str, ...], several: bool = False) -> list[str]:
    """The names of those that --normal asks for."""
    if normal == "all" and several:
        return list(names)
    if normal not in names and not normal.lstrip("#").isdecimal():
        raise unknown("class --normal", normal, (*names, *["all"] * several))
    return [names[k] for k in class_lists.resolve([normal], names, len(names), "the data", "--normal")]


def fit(config: Config) -> None:
    method = calibration.find(config.method)
    devices = parallel.devices_for(config.batch_size, config.devices)
    found = tasks(config)
    if config.dry_run:
        for task in found:
            what = f"class {task.name}" if task.name else "one class"
            print(f"would train {config.method} on {task.train.num_examples:,} images of {what}")
        return
    started, rows = time.monotonic(), []
    for task in found:
        inner = f"{config.workdir}/normal-{task.name}" if len(found) > 1 else config.workdir
        own = dataclasses.replace(
            config, workdir=inner, normal=task.name or config.normal or ("all" if config.normal is None else "")
        )
        trained = train(own, method, task, devices)
        rows.append(measure(task, trained, config.false_positive_rate))
        print(f"{task.name or 'normal'}: {rows[-1]['text']}")
    if len(rows) > 1:
        mean = float(np.mean([row["auroc"] for row in rows]))
        print(f"mean AUROC over {len(rows)} classes {mean:.2%}, in {time.monotonic() - started:.0f} s")
        table = {row["class"]: {k: v for k, v in row.items() if k not in ("class", "text")} for row in rows}
        written = {"method": config.method, "mean_auroc": mean, "classes": table}
        with workdir.storing(config):
            files.write(workdir.of(config) / "report.json", json.dumps(written, indent=2) + "\n")


def measure(task: Task, trained: Detector, rate: float) -> dict[str, Any]:
    """AUROC and average precision on the test images, where there are labels."""
    if task.test is None or task.anomalous is None:
        text = f"threshold for a false-positive rate of {rate:.1%} by {trained.calibration.footing(rate)}"
        return {"text": f"{text}; --mode=score says what is anomalous"}
    scores = scores_of(trained, task.test)
    auroc = detection.auroc(scores.mean(0), task.anomalous)
    found = {
        "class": task.name,
        "auroc": auroc,
        "auroc_of_seeds": [detection.auroc(one, task.anomalous) for one in scores],
        "average_precision": detection.average_precision(scores.mean(0), task.anomalous),
    }
    text = f"AUROC {auroc:.2%} of {int(task.anomalous.sum()):,} anomalies among {len(task.anomalous):,} test images"
    return found | {"text": text}


def scores_of(trained: Detector, source: data.Source, size: int = 2048) -> np.ndarray:
    """(seeds, n) of all images, read a part at a time."""
    rows = range(0, source.num_examples, size)
    found = [trained.look(source.read(np.arange(i, min(i + size, source.num_examples)))["image"]).scores for i in rows]
    return np.concatenate(found, 1)


def score(config: Config) -> None:
    """Writes the CSV, and pictures of the highest scores."""
    run = files.reach(config.workdir)
    if not (run / "config.json").exists() and (of_classes := sorted(run.glob("normal-*"))):
        raise InputError(
            f"{config.workdir!r} holds a detector for each class that is normal; expected one of them, as in "
            f"--workdir={config.workdir.rstrip('/')}/{of_classes[0].name}"
        )
    trained = detector.load(config.workdir, allow=config.allow_code)
    trained.calibration.threshold(config.false_positive_rate)  # there are enough for one
    stored, given = flags.read(run)["config"], flags.given(config)
    shaped = {name: stored[name] for name in ("size", "crop", "channels") if name in stored and name not in given}
    source = load(dataclasses.replace(config, **shaped), config.split)
    if source.shape != tuple(trained.shape):
        h, w, c = trained.shape
        raise InputError(
            f"images {source.shape}, but this detector looks at {h}x{w}x{c}; expected --size={h}x{w} --channels={c}"
        )
    scores = scores_of(trained, source).mean(0)
    if config.heatmaps:
        order = np.argsort(-scores, kind="stable")
        try:
            draw(config, trained, source, order[: config.num_heatmaps], scores)
        except OSError as error:
            raise InputError(f"cannot write --heatmaps={config.heatmaps}: {error.strerror or error}") from None
    names, known = source.files or range(len(scores)), None
    if source.num_classes:
        known = [_names(source)[x] for x in data.labels(source)]
    said = anomaly_scores.write(config, trained.calibration, "image", names, scores, known)
    print(f"{said}; wrote {config.out}{f' and pictures to {config.heatmaps}' if config.heatmaps else ''}")


def draw(config: Config, trained: Detector, source: data.Source, rows: np.ndarray, scores: np.ndarray) -> None:
    """One picture an image, in the order of the scores, and all of the first in `sheet.png`."""
    folder = files.reach(config.heatmaps)
    if folder.exists():
        for path in filter(lambda path: OWN.fullmatch(path.name), folder.iterdir()):
            path.unlink()  # of a scoring before, whose ranks are others
    images = source.read(rows)["image"]
    found = trained.look(images)
    tiles = np.stack([overlaid(*x) for x in zip(images, found.images, found.heat, strict=True)])
    three, h, w = tiles.shape[1:4]
    for rank, (row, one) in enumerate(zip(rows, tiles, strict=True)):
        name = f"-{picture_name(source.files[row])}" if source.files else ""
        report.save_png(folder / f"{rank:04d}-{row:06d}{name}.png", report.grid(one, columns=three))
    report.save_png(folder / "sheet.png", report.grid(tiles[:SHOWN].reshape(-1, h, w, 3), columns=4 * three))


def picture_name(file: str) -> str:
    """The path of an image as a part of the name of a file: `broken_012` for `broken/012.png`."""
    name = re.sub(r"[^\w.-]+", "_", file.rpartition(".")[0] or file).strip("_.")
    return name.encode()[-NAMED:].decode(errors="ignore")


def overlaid(image: np.ndarray, again: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 (3, h, w, 3): the image, what it was taken for, and where they differ more than normal images do.

    Red is too bright, blue too dark, in full where the image differs most.
    """
    image, again = report.on_white(image), report.on_white(again)
    own = np.broadcast_to(image[..., :3] if image.shape[-1] > 2 else image[..., :1], (*image.shape[:2], 3))
    taken = np.clip((again + 1) * 127.5, 0, 255).round().astype(np.uint8)
    taken = np.broadcast_to(taken[..., :3] if again.shape[-1] > 2 else taken[..., :1], own.shape)
    beyond = np.maximum(np.abs(heat) - 1, 0)[..., None]
    share = beyond / max(beyond.max(), 1.0)
    colour = np.where(heat[..., None] > 0, np.array([255.0, 40, 0]), np.array([0.0, 110, 255]))
    marked = (1 - share) * (own.mean(-1, keepdims=True) * 0.6 + 102) + share * colour
    return np.stack([own, taken, marked.round().astype(np.uint8)])


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
