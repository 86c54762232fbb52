"""Anomalies in tables: the script from a table to a CSV."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from experiments import anomaly_table, generate
from jaxgan import tables
from jaxgan.anomaly import tabular
from jaxgan.metrics import detection
from tests import runs
from tests.runs import compile_quickly

__all__ = ["compile_quickly"]  # a fixture

QUICK = (
    "--steps=4",
    "--steps_per_call=4",
    "--width=4",
    "--batch_size=8",
    "--seeds=1",
    "--devices=1",
    "--notensorboard",
)
SHORT = (
    "--steps=100",
    "--steps_per_call=50",
    "--width=16",
    "--batch_size=32",
    "--seeds=2",
    "--devices=1",
    "--notensorboard",
)


def run(capfd, *argv):
    return runs.here(capfd, *argv, script=anomaly_table)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A short run of the preset, and what it said."""
    home = tmp_path_factory.mktemp("tables") / "run"
    config = anomaly_table.flags.parse(
        anomaly_table.Config,
        anomaly_table.PRESETS,
        ["--preset=breast_cancer", f"--workdir={home}", *SHORT],
    )
    anomaly_table.main(config)
    return home


def test_a_short_run_finds_most(fitted, tmp_path, capfd):
    """Of scikit-learn's tumours, by 285 benign ones; then the CSV of all, by the threshold of those held out."""
    out = tmp_path / "scores.csv"
    code, said, err = run(capfd, "--mode=score", f"--workdir={fitted}", f"--out={out}")
    assert code == 0, err
    table = tables.read("breast_cancer")
    with out.open() as file:
        written = list(csv.DictReader(file))
    assert [int(row["row"]) for row in written] == list(range(569))
    assert [row["label"] == "1" for row in written] == table.anomalous.tolist()
    trained = tabular.load(fitted)
    x, _ = trained.encoding.encode(table)
    scores = trained.look(x)
    assert scores.shape == (2, 569)
    np.testing.assert_allclose([float(row["score"]) for row in written], scores.mean(0), rtol=1e-4, atol=1e-4)
    limit = trained.calibration.threshold(0.05)
    held = np.array(trained.calibration.held)
    assert len(held) == 72 and (held > limit).mean() <= 0.05
    flagged = scores.mean(0) > limit
    assert [row["anomalous"] == "1" for row in written] == flagged.tolist()
    assert f"{flagged.sum()} of 569 rows" in said and "AUROC" in said
    assert detection.auroc(scores.mean(0), table.anomalous) > 0.8
    # Each seed is a network of its own.
    assert np.abs(scores[0] - scores[1]).max() > 0.1
    before = out.read_bytes()
    code, _, err = run(capfd, "--mode=score", f"--workdir={fitted}", f"--out={out}")
    assert code == 2 and "exists" in err and out.read_bytes() == before


def test_started_again_it_says_the_same(fitted, capfd):
    before = (fitted / tabular.FILE).read_bytes()
    code, _, err = run(capfd, f"--workdir={fitted}", *SHORT)
    assert code == 0, err
    assert (fitted / tabular.FILE).read_bytes() == before


def test_another_method_and_words(tmp_path, capfd):
    """A table of one's own without labels; rows with other categories and holes are scored all the same."""
    rng = np.random.default_rng(0)
    lines = ["id,size,kind"] + [f"{i},{x:.3f},{'ab'[i % 2]}" for i, x in enumerate(rng.normal(size=200))]
    (tmp_path / "normal.csv").write_text("\n".join(lines))
    (tmp_path / "new.csv").write_text("id,size,kind\n1,0.1,a\n2,?,b\n3,50,zzz\n")
    argv = (f"--workdir={tmp_path}/run", "--drop=id", "--missing=median")
    code, out, err = run(capfd, *argv, f"--table={tmp_path}/normal.csv", "--categorical=auto", "--method=egbad", *QUICK)
    assert code == 0, err
    assert "no labels that are known of: all 200 rows are taken to be normal" in out
    argv = ("--mode=score", f"--workdir={tmp_path}/run", f"--table={tmp_path}/new.csv", f"--out={tmp_path}/s.csv")
    code, _, err = run(capfd, *argv)
    assert code == 0, err
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["0", "1", "2"] and "label" not in rows[0]
    assert float(rows[2]["score"]) > float(rows[0]["score"])


def test_a_benchmark(tmp_path, capfd):
    """The figures of the table are those of scikit-learn on the same halves; the second time nothing is done again."""
    from sklearn.ensemble import IsolationForest

    argv = ("--mode=benchmark", f"--workdir={tmp_path}/bench", "--repeats=2", *QUICK)
    code, out, err = run(capfd, *argv)
    assert code == 0, err
    assert "179 normal rows to train on, 178 normal and 212 anomalous to test on" in out
    found = json.loads((tmp_path / "bench" / "benchmark.json").read_text())["tables"]["breast_cancer"]
    table = tables.read("breast_cancer")
    rows = np.random.default_rng(1).permutation(np.flatnonzero(~table.anomalous))
    x = np.stack([c.numbers for c in table.columns], 1)
    z = (x - x[rows[::2]].mean(0)) / x[rows[::2]].std(0)
    test = np.concatenate([rows[1::2], np.flatnonzero(table.anomalous)])
    scores = -IsolationForest(random_state=1).fit(z[rows[::2]]).score_samples(z[test])
    known = found[1]["IsolationForest/standard"]
    # Trees split between neighbours, which float32 moves a little.
    assert known["auroc"] == pytest.approx(detection.auroc(scores, table.anomalous[test]), abs=0.01)
    assert set(found[0]) >= {"contrast", "contrast/row", "contrast/latent", "OneClassSVM/encoded", "seconds"}
    code, again, err = run(capfd, *argv)
    assert code == 0 and again.startswith("breast_cancer: 179") and out.endswith(again), err


def test_what_no_float_can_hold_of_a_standard_score_is_anomalous(fitted, tmp_path, capfd):
    """A cell of 1e30, one of the largest float64 and one of its negative are flagged alike, beside a row as usual."""
    table = tables.read("breast_cancer")
    x = np.stack([c.numbers for c in table.columns], 1)[np.flatnonzero(~table.anomalous)[[0, 0, 0, 0]]]
    x[1:, 9] = 1e30, np.finfo(np.float64).max, -np.finfo(np.float64).max
    np.save(tmp_path / "new.npy", x)
    argv = (f"--workdir={fitted}", f"--table={tmp_path}/new.npy", f"--out={tmp_path}/s.csv")
    code, _, err = run(capfd, "--mode=score", *argv)
    assert code == 0, err
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["anomalous"] == "1" and np.isfinite(float(row["score"])) for row in rows[1:]), rows
    assert all(row["p_value"] == rows[1]["p_value"] for row in rows[1:])
    assert float(rows[2]["score"]) > float(rows[0]["score"])


def test_a_table_with_extreme_cells_is_fitted(tmp_path, capfd):
    table = table_of(tmp_path, [*["1e200,2,3"] * 9, *NUMBERS])  # most of the nine are trained on
    code, _, err = run(capfd, f"--workdir={tmp_path}/run", table, *QUICK)
    assert code == 0, err
    assert 1e197 < tabular.load(tmp_path / "run").encoding.columns[0].mean < 1e200


def table_of(tmp_path, lines, name="t.csv"):
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return f"--table={tmp_path / name}"


HOLES = [f"{i},,{i % 10 == 0:d}" for i in range(95)]
NUMBERS = [f"{i},{i % 7},{i % 10 == 0:d}" for i in range(300)]


def test_rows_with_holes_are_dropped_before_others_are_counted(tmp_path):
    """What is left is split as the same table without them; so is a test table, and both are described."""
    mixed = [line for both in zip(NUMBERS, HOLES * 4, strict=False) for line in both]
    holes, plain = (
        tables.read(table_of(tmp_path, lines).removeprefix("--table="), label="2") for lines in (mixed, NUMBERS)
    )
    config = anomaly_table.Config(missing="drop")
    for halves in (False, True):
        for test in (False, True):
            a, b = (anomaly_table.encoded(config, x, x if test else None, 1, halves) for x in (holes, plain))
            assert a.encoding == b.encoding
            for one, other in zip(a[1:], b[1:], strict=True):
                np.testing.assert_array_equal(one, other)
            a, b = (anomaly_table.describe(config, x, x if test else None) for x in (holes, plain))
            assert a == b and "30 anomalous" in a


@pytest.mark.parametrize(
    ("lines", "argv", "message"),
    [
        (["1,2,0", "3,?,1", *NUMBERS], (), "row 1, column '1' is missing"),
        (
            ["1,two,0", *NUMBERS],
            (),
            r"row 0, column '1' holds 'two', no number \(1 of 301 cells are none\); expected a",
        ),
        (["1,two,0", *NUMBERS], ("--categorical=auto",), "row 0, column '1' holds 'two', no number"),
        (NUMBERS, ("--overwrite",), "--overwrite does nothing but in --mode=score"),
        (NUMBERS, ("--label=-1", "--normal=5"), "unknown label of"),
        ([f"{i},0" for i in range(300)], ("--label=-1",), "all 300 rows of"),
        ([f"{i},1" for i in range(300)], ("--label=-1", "--normal=1"), "all 300 rows of"),
        ([""], (), "is empty"),
        (NUMBERS[:30], ("--label=2",), "has 27 normal rows"),
        ([*NUMBERS[:5], *HOLES], ("--missing=drop",), "5 normal rows without a missing value, 4 to train on and 1 to"),
        ([*NUMBERS[:2], *HOLES], ("--missing=drop",), "has 2 normal rows without a missing value"),
        (HOLES, ("--missing=drop",), "each of 95 rows lacks a value; expected --missing=median"),
        ([*NUMBERS[1:10], *HOLES], ("--missing=drop", "--label=-1"), "all 9 rows without a missing value of"),
        (NUMBERS[:70], (), "14 normal scores .* expected 19 or more"),
        (NUMBERS, ("--label=3",), "no such column; expected a number from 0 to 2"),
        (NUMBERS, ("--method=joints",), "did you mean 'joint'"),
        (NUMBERS, ("--mode=benchmark",), "no labels to measure by"),
        (NUMBERS, ("--dataset=mnist",), "--dataset=mnist is for images"),
        (
            NUMBERS,
            ("--loss=hinge",),
            "--loss=hinge does nothing here: networks and losses are those of --method",
        ),
        (NUMBERS, ("--model=mlp",), "--model=mlp does nothing here"),
        (NUMBERS, ("--eval_every=5",), "--eval_every=5 does nothing here: nothing is evaluated"),
        (NUMBERS, ("--sample_every=5",), "--sample_every=5 does nothing here"),
        (NUMBERS, ("--mirror",), "--mirror does nothing here: it is for images"),
        (NUMBERS, ("--size=8",), "--size=8 does nothing here: it is for images"),
        (NUMBERS, ("--crop=none",), "--crop=none does nothing here"),
        (NUMBERS, ("--channels=1",), "--channels=1 does nothing here"),
        (NUMBERS, ("--split=test",), "--split=test does nothing here"),
        (NUMBERS, ("--latent=-1",), "--latent=-1"),
        (NUMBERS, ("--false_positive_rate=1",), "--false_positive_rate=1"),
    ],
)
def test_wrong_tables_and_flags(lines, argv, message, tmp_path, capfd):
    table = table_of(tmp_path, lines)
    before = runs.snapshot(tmp_path)
    code, _, err = run(capfd, f"--workdir={tmp_path}/run", table, *argv, *QUICK)
    assert code == 2 and len(err.strip().splitlines()) == 1, err

    assert re.search(message, err), err
    assert runs.snapshot(tmp_path) == before


def test_wrong_scoring(fitted, tmp_path, capfd):
    own = tmp_path / "run"
    shutil.copytree(fitted, own)
    narrow = table_of(tmp_path, NUMBERS)
    image = tmp_path / "image"
    image.mkdir()
    (image / "config.json").write_text(json.dumps({"config": {}, "networks": {}}))
    (own / tabular.FILE).write_text("{}")
    before = runs.snapshot(tmp_path)
    out = f"--out={tmp_path}/s.csv"
    for argv, message in (
        ((f"--workdir={fitted}", narrow, out), "has 3 columns to be seen; expected 30"),
        ((f"--workdir={fitted}", narrow), "--out=: expected a name that ends in .csv"),
        ((f"--workdir={image}", narrow, out), "no finished anomaly detector for tables"),
        ((f"--workdir={own}", narrow, out), "cannot read"),
        ((f"--workdir={tmp_path}/none", narrow, out), "is not a run"),
        ((f"--workdir={fitted}", out, "--false_positive_rate=0.001"), "72 normal scores"),
    ):
        code, _, err = run(capfd, "--mode=score", *argv)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err
    code, _, err = runs.here(capfd, f"--run={fitted}", f"--out={tmp_path}/a.png", script=generate)
    assert code == 2 and err.endswith("does not fit images: its shape is (30,), not (h, w, c)\n"), err
    assert runs.snapshot(tmp_path) == before


def test_another_kind_of_run(tmp_path, capfd):
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "config.json").write_text(json.dumps({"config": {"heatmaps": "x"}}))
    before = runs.snapshot(tmp_path)
    code, _, err = run(capfd, f"--workdir={tmp_path}/image", *QUICK)
    assert code == 2 and "holds a run of another config" in err and runs.snapshot(tmp_path) == before
