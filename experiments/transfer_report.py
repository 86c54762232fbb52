"""What `experiments.transfer` says at its end: a table, report.json, chart.png and samples.png."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from experiments.transfer_images import Images, chosen
from jaxgan import chart, classes, data, files, numerics, report, trained
from jaxgan.metrics import classify
from jaxgan.report import METRICS

SHOWN = 10  # images of a row of samples.png


class Curve(NamedTuple):
    """Distances of one run at its steps; the first is before any training."""

    run: Any
    steps: list[int]
    distances: list[float]

    @property
    def best(self) -> tuple[float, int]:
        """The least, and the first step that has it."""
        return min(zip(self.distances, self.steps, strict=True))

    def reaches(self, distance: float) -> int | None:
        """The first step that is at least as good."""
        return next((step for step, d in zip(self.steps, self.distances, strict=True) if d <= distance), None)


def directory(run: Any) -> epath.Path:
    return epath.Path(run.workdir).expanduser()


def curve(run: Any, start: float | None) -> Curve:
    """From the rows of a run. start: the distance before its first step, where that is known."""
    with (directory(run) / METRICS).open() as file:
        rows = [row for row in map(json.loads, file) if row.get("eval/distance") is not None]
    rows = [row for row in rows if row["step"] <= run.steps]
    steps, distances = [row["step"] for row in rows], [row["eval/distance"] for row in rows]
    return Curve(run, [0, *steps], [start, *distances]) if start is not None else Curve(run, steps, distances)


def compared(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A row for each run: its best, and when it reached the best of training from scratch on the same images."""
    scratch = {(c.run.num_images, c.run.seed): c.best for c in curves if c.run.method == "scratch"}
    rows = []
    for c in curves:
        best, step = c.best
        row = {"method": c.run.method, "images": c.run.num_images, "seed": c.run.seed, "best": best, "best_step": step}
        if (found := scratch.get((c.run.num_images, c.run.seed))) is not None:
            reached = c.reaches(found[0])
            row |= {"scratch_best": found[0], "scratch_step": found[1], "reached_step": reached}
            row |= {"ratio": None if reached is None else reached / found[1]}
        rows.append(row | {"steps": c.steps, "distances": c.distances})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each method and number of images: means over seeds, and of every seed the share of scratch's steps."""
    cells = [["images", "method", "best distance", "at step", "reaches scratch's best at", "share of its steps"]]
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["images"], row["method"]].append(row)
    for (n, method), found in groups.items():
        line = [str(n or "all"), method, f"{np.mean([row['best'] for row in found]):.2f}"]
        line.append(f"{np.mean([row['best_step'] for row in found]):.0f}")
        reached = [row.get("reached_step") for row in found]
        shares = [row.get("ratio") for row in found]
        line += [", ".join("never" if x is None else f"{x}" for x in reached) if "ratio" in found[0] else "-"]
        line += [", ".join("-" if x is None else f"{x:.3f}" for x in shares)]
        cells.append(line)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    left = (1,)
    return "\n".join(
        "  ".join(x.ljust(w) if i in left else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    )


def write(config: Any, planned: Sequence[Any], source: Any, images: Images, about: dict) -> None:
    """Everything, from the directories of the runs.

    source: the `Trained` generator that they started from, adapted. about: what distances are measured by, and those of
    the source and of real images.
    """
    start = about["source"]
    curves = [curve(run, None if run.method == "scratch" else start) for run in planned]
    rows = compared(curves)
    folder = epath.Path(config.workdir).expanduser()
    found = {"config": dataclasses.asdict(config), "measured": about, "runs": rows}
    files.write(folder / "report.json", json.dumps(found, indent=1) + "\n")
    report.save_png(folder / "chart.png", draw(curves, about))
    report.save_png(folder / "samples.png", pictures(planned, source, images))
    print(table(rows))
    print(
        f"Fréchet distance from {about['held_out']:,} held-out images in features of a {about['features']}, right for "
        f"{about['accuracy']:.1%} of real ones; the source itself {start:.2f}, real training images {about['real']:.2f}"
    )
    print(f"wrote report.json, chart.png and samples.png to {folder}")


def draw(curves: Sequence[Curve], levels: dict[str, Any]) -> np.ndarray:
    """A panel for each number of images, a curve for each seed."""
    panels = []
    for n in dict.fromkeys(c.run.num_images for c in curves):
        lines: dict[str, list] = collections.defaultdict(list)
        for c in curves:
            points = [(s * c.run.batch_size, d) for s, d in zip(c.steps, c.distances, strict=True) if s]
            if c.run.num_images == n and points:
                lines[c.run.method].append(points)
        level = {"source, as it is": levels["source"], "real images": max(levels["real"], 1e-3)}
        panels.append(chart.Panel(f"{n or 'all'} images", lines, level))
    return chart.draw(panels, "images seen in training", "distance from held-out images")


def pictures(planned: Sequence[Any], source: Any, images: Images) -> np.ndarray:
    """Rows of images: samples of the source; for each number of images, with the first seed, some of them, and samples
    of each method at its best step. All samples are of the same latents."""
    names, rows = ["source"], [source.sample(numerics.key(0), SHOWN)]
    first = min(run.seed for run in planned)
    for n in dict.fromkeys(run.num_images for run in planned):
        real = chosen(images.train, n, first)
        label = data.labels(real)[:SHOWN]
        turn = np.arange(len(label)) // max(real.num_classes, 1)  # classes in order, as those of samples are
        some = real.read(np.lexsort((label, turn)))["image"]
        names.append(f"{n or 'all'} images")
        rows.append(np.resize(classify.scaled(some), (SHOWN, *real.shape)))
        for run in planned:
            if (run.num_images, run.seed) == (n, first):
                gan = trained.load(directory(run), step=best_step(run), allow=True)
                names.append(run.method)
                rows.append(gan.sample(numerics.key(0), SHOWN))
    return chart.beside(report.on_white(report.grid(np.concatenate(rows), columns=SHOWN)), names)


def best_step(run: Any) -> int | None:
    """The best of the checkpoints that are kept; None: the newest."""
    with (directory(run) / METRICS).open() as file:
        found = {row["step"]: row["eval/distance"] for row in map(json.loads, file) if row.get("eval/distance")}
    kept = [int(path.name) for path in (directory(run) / "checkpoints").iterdir() if path.name.isdecimal()]
    return min((step for step in kept if step in found), key=lambda step: found[step], default=None)


def tell_weights(told: dict[str, str], source: str) -> None:
    """Which weights are no copies of the source's."""
    for name, words in told.items():
        print(f"weights  {name} {words}")
    print(f"weights  all {'others ' if told else ''}are those of {source}")


def describe(config: Any, planned: Sequence[Any], images: Any, training: Any) -> None:
    """What --dry_run prints."""
    if training is not None:
        print(f"source   {training.steps:,} steps of {training.batch_size} images, to {training.workdir}")
    else:
        print(f"source   {config.source_run}")
    h, w, c = images.train.shape
    of = classes.line(images.train.class_names, images.train.num_classes)
    print(f"target   {images.train.name}: {images.train.num_examples:,} images of {h}x{w}x{c} to choose from, {of}")
    print(f"held out {images.test.num_examples:,} images")
    for run in planned:
        print(f"run      {run.method}, {run.num_images or 'all'} images, {run.steps:,} steps, to {run.workdir}")
