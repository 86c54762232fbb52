"""What `experiments.augment` reports: means over the seeds with intervals, paired gains, and where there is none."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxgan.metrics.repeats import interval


class Method(NamedTuple):
    """What a classifier is trained on. classical: with shifts, small turns and zooms."""

    title: str
    real: bool
    synthetic: bool
    classical: bool


METHODS = {
    "real": Method("real", True, False, False),
    "classical": Method("real, classical", True, False, True),
    "synthetic": Method("synthetic", False, True, False),
    "synthetic_classical": Method("synthetic, classical", False, True, True),
    "both": Method("real + synthetic", True, True, False),
    "both_classical": Method("real + synthetic, classical", True, True, True),
}
# What is gained by the first over the second.
GAINS = (("both", "real"), ("both", "classical"), ("both_classical", "classical"))
SCORES = ("accuracy", "balanced_accuracy", "auroc")

# A case: {"seed": 0, "scores": {method: {score: value}}, ...}
Cases = Sequence[Mapping[str, Any]]


def summary(cases: Mapping[int, Cases]) -> dict[str, Any]:
    """{images a class: cases, one a seed} -> {"10": {"methods": {method: {score: {"mean", "half_width"}}}, "gains"}}.

    Intervals are Student's t at 95%, of gains those of the differences within the seeds; a gain is one whose interval
    lies above 0, a loss one below.
    """
    found: dict[str, Any] = {}
    for k, rows in cases.items():
        methods = [name for name in METHODS if all(name in row["scores"] for row in rows)]
        values = {(m, s): [row["scores"][m][s] for row in rows] for m in methods for s in SCORES}
        gains: dict[str, Any] = {}
        for ours, theirs in GAINS:
            if ours in methods and theirs in methods:
                name = f"{ours} over {theirs}"
                gains[name] = {}
                for s in SCORES:
                    paired = [a - b for a, b in zip(values[ours, s], values[theirs, s], strict=True)]
                    mean, half = interval(paired)
                    verdict = "gain" if mean > half else "loss" if mean < -half else "none shown"
                    gains[name][s] = {"mean": mean, "half_width": half, "verdict": verdict}
        means = {m: {s: interval(values[m, s])._asdict() for s in SCORES} for m in methods}
        found[str(k)] = {"methods": means, "gains": gains}
    return found


def name_of(k: int | str) -> str:
    """Of a number of images a class, 0: all."""
    return str(k) if int(k) else "all"


def table(found: Mapping[str, Any], scores: Sequence[str], test: str, seeds: int) -> str:
    """A table for each score, in percent, and what it says in words."""
    blocks = []
    for score in scores:
        lines = [[f"{score.replace('_', ' ')}, %", *(f"{name_of(k)} a class" for k in found)]]
        for method, (title, *_) in METHODS.items():
            cells = [row["methods"].get(method) for row in found.values()]
            if any(cells):
                lines.append([title, *(show(cell[score]) if cell else "-" for cell in cells)])
        for ours, theirs in GAINS:
            cells = [row["gains"].get(f"{ours} over {theirs}") for row in found.values()]
            if any(cells):
                title = f"{METHODS[ours].title} over {METHODS[theirs].title}"
                shown = [f"{show(cell[score], '+')} {cell[score]['verdict']}" if cell else "-" for cell in cells]
                lines.append([title, *shown])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        blocks.append(
            "\n".join(
                "  ".join(
                    x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True))
                )
                for line in lines
            )
        )
        blocks += ["\n".join(said)] if (said := words(found, score)) else []
    return "\n\n".join([f"mean ± half a 95% interval over {seeds} seeds, on {test}", *blocks])


def show(cell: Mapping[str, float], sign: str = "") -> str:
    return f"{100 * cell['mean']:{sign}.2f} ± {100 * cell['half_width']:.2f}"


def words(found: Mapping[str, Any], score: str) -> list[str]:
    """A sentence for each kind of gain."""
    says = {"gain": "a gain at {}", "none shown": "no gain that shows at {}", "loss": "a loss at {}"}
    lines = []
    for ours, theirs in GAINS:
        of = {k: row["gains"].get(f"{ours} over {theirs}") for k, row in found.items()}
        parts = []
        for verdict, text in says.items():
            where = [name_of(k) for k, cell in of.items() if cell and cell[score]["verdict"] == verdict]
            parts += [text.format(", ".join(where))] if where else []
        if parts:
            title = f"{METHODS[ours].title} over {METHODS[theirs].title}"
            lines.append(f"{title}, {score.replace('_', ' ')}: {'; '.join(parts)} images a class")
    return lines
