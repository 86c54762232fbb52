"""Every preset's curve, as it was once measured, and the default's run again: quality cannot slip unseen.

A curve is the thinned metrics.jsonl of one run, `python -m tests.test_reference runs/x > tests/reference/x.jsonl`.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.image_presets import TRAINED

REFERENCE = Path(__file__).parent / "reference"
STEPS = 1000


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("preset", sorted(TRAINED))
def test_a_curve_of_each_preset(preset):
    curve = rows(REFERENCE / f"{preset}.jsonl")
    assert len(curve) >= 2
    figure = "eval/reverse_kl" if "modes" in TRAINED[preset].get("metrics", ()) else "eval/distance"
    evaluated = [row[figure] for row in curve if figure in row]
    assert evaluated[-1] < evaluated[0], "the run improved"
    for row in curve:
        assert all(value is not None and math.isfinite(value) for value in row.values())


def test_curves_are_of_presets():
    assert {path.stem for path in REFERENCE.glob("*.jsonl")} == set(TRAINED)


def test_the_default_run_is_as_good_as_it_was(tmp_path):
    """As a user runs it. Another CPU rounds otherwise and drifts away: only the first row is compared closely."""
    flags = ["--steps=1000", "--eval_every=1000", "--sample_every=0", "--notensorboard", f"--workdir={tmp_path}/run"]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-m", "experiments.image", *flags], check=True, env=environment)
    now = {row["step"]: row for row in rows(tmp_path / "run" / "metrics.jsonl")}
    then = {row["step"]: row for row in rows(REFERENCE / "dcgan_digits.jsonl")}
    for name in ("disc/loss", "gen/loss"):
        assert now[50][name] == pytest.approx(then[50][name], rel=0.03)
        assert now[STEPS][name] == pytest.approx(then[STEPS][name], rel=0.3)
    assert now[STEPS]["eval/distance"] < 1.6 * then[STEPS]["eval/distance"]
    assert now[STEPS]["eval/halves"] == pytest.approx(then[STEPS]["eval/halves"], rel=0.25)


def thin(run, most=24):
    """The rows of a run with an evaluation, the first, and some between; without times."""
    found = rows(Path(run) / "metrics.jsonl")
    every = max(1, len(found) // most)
    for i, row in enumerate(found):
        if i % every == 0 or any(name.startswith("eval/") for name in row):
            kept = {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
            yield {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in kept.items()}


if __name__ == "__main__":
    for row in thin(sys.argv[1]):
        print(json.dumps(row))
