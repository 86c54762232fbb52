"""Detectors of anomalies in tables: from Python, what their scores say, the columns of a CSV, and other methods."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from experiments import anomaly_table
from jaxgan import encoding, tables
from jaxgan.anomaly import classical, tabular
from jaxgan.errors import InputError
from jaxgan.table_detector import TableDetector, Task
from tests import runs
from tests.runs import compile_quickly

__all__ = ["compile_quickly"]  # a fixture

OPTIONS = {"steps": 60, "steps_per_call": 60, "width": 16, "batch_size": 32, "seeds": 1, "devices": 1}
FLAGS = tuple(f"--{name}={value}" for name, value in OPTIONS.items())


def run(capfd, *argv):
    return runs.here(capfd, *argv, script=anomaly_table)


def written(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Tables of two numbers that go together, a color and an id, and a fit of the first."""
    home, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    a = rng.normal(size=400)
    colors = rng.integers(3, size=400)
    rows = [
        [f"{i:04d}", f"{x:.4f}", f"{0.8 * x + 0.3 * rng.normal() + 1000:.4f}", ("red", "green", "blue")[c]]
        for i, (x, c) in enumerate(zip(a, colors, strict=True))
    ]
    new = rows[300:]
    variants = {
        "normal": rows[:300],
        "new": new,
        "odd": [[i, x, f"{float(y) + 8:.4f}", c] for i, x, y, c in new],
        "gaps": [[i, x, "" if k % 10 == 0 else y, c] for k, (i, x, y, c) in enumerate(new)],
        "upper": [[i, x, y, c.upper()] for i, x, y, c in new],
        "stray": [[i, x, "oops" if k == 4 else y, c] for k, (i, x, y, c) in enumerate(new)],
    }
    for name, lines in variants.items():
        with (home / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["id", "a", "b", "c"], *lines])
    argv = [f"--table={home}/normal.csv", f"--workdir={home}/run", "--id=id", "--categorical=auto", *FLAGS]
    anomaly_table.main(anomaly_table.flags.parse(anomaly_table.Config, {}, [*argv, "--notensorboard"]))
    return home


def scored(capfd, home, tmp_path, name, *argv):
    out = tmp_path / f"{name}.csv"
    argv = (f"--workdir={home}/run", f"--table={home}/{name}.csv", f"--out={out}", "--overwrite", *argv)
    code, said, err = run(capfd, "--mode=score", *argv)
    assert code == 0, err
    return written(out), said, err


def test_python_and_the_command_line_score_the_same(home, tmp_path, capfd):
    rows, _, _ = scored(capfd, home, tmp_path, "new")
    normal, new = (tables.load(f"{home}/{name}.csv").select(id="id") for name in ("normal", "new"))
    found = TableDetector(categorical=("auto",), **OPTIONS).fit(normal)
    scores = found.score(new)
    np.testing.assert_array_equal(scores, TableDetector.load(home / "run").score(new))
    assert [row["score"] for row in rows] == [f"{score:.6g}" for score in scores]
    flagged = found.predict(new, 0.05)
    assert [row["anomalous"] == "1" for row in rows] == flagged.tolist() and flagged.dtype == bool
    assert found.predict(new, 0.5).sum() > flagged.sum()
    columns = {c.name: c.texts if c.numbers is None else c.numbers for c in new.columns}
    np.testing.assert_array_equal(found.score(columns), scores)
    assert capfd.readouterr().out == ""  # of a directory that is gone


def test_rows_of_python_that_cannot_be_scored(home):
    found = TableDetector.load(home / "run")
    gaps = tables.load(f"{home}/gaps.csv").select(id="id")
    with pytest.raises(InputError, match="row 0, column 'b' is missing"):
        found.score(gaps)
    dropping = dataclasses.replace(found.trained.encoding, missing="drop")
    scores = dataclasses.replace(found.trained, encoding=dropping).score(gaps)
    assert np.flatnonzero(np.isnan(scores)).tolist() == list(range(0, 100, 10))
    x = np.zeros((300, 3))
    with pytest.raises(InputError, match=r"not fitted; call fit\(rows\)"):
        TableDetector().score(x)
    with pytest.raises(InputError, match=r"anomalous int64 \(2,\): expected bool \(300,\)"):
        TableDetector().fit(x, np.zeros(2, np.int64))
    with pytest.raises(InputError, match="--width=0: expected at least 1"):
        TableDetector(width=0).fit(x)


def test_scores_keep_ids_and_name_the_columns_that_weighed_most(home, tmp_path, capfd):
    rows, _, err = scored(capfd, home, tmp_path, "odd")
    names = ["row", "id", "score", "p_value", "anomalous", "top_column", "second_column"]
    assert list(rows[0]) == names and err == ""
    assert [row["id"] for row in rows] == [f"{i:04d}" for i in range(300, 400)]
    assert np.mean([row["top_column"] == "b" for row in rows]) > 0.8 and all(row["anomalous"] == "1" for row in rows)
    # The fall of the score, where the column is as usual: once more by hand, for the first row.
    trained = tabular.load(home / "run")
    table = tables.load(f"{home}/odd.csv").select(id="id")
    x, _ = trained.encoding.encode(table)
    falls = trained.contributions(x[:1])[0]
    usual = x[:1].copy()
    usual[:, 1] = trained.encoding.usual[1]
    assert falls[1] == pytest.approx(float(trained.look(x[:1]).mean() - trained.look(usual).mean()), rel=1e-5)
    assert trained.encoding.encoded[falls.argmax()].name == "b" and falls.shape == (3,)
    # Without the id the number of the row is there; another column may be the id.
    lines = [line.partition(",")[2] for line in (home / "new.csv").read_text().splitlines()]
    (home / "bare.csv").write_text("\n".join(lines) + "\n")
    rows, _, _ = scored(capfd, home, tmp_path, "bare")
    assert "id" not in rows[0] and [row["row"] for row in rows] == [str(i) for i in range(100)]


def test_many_rows_have_columns_named_for_the_highest_scores(home, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(anomaly_table, "EXPLAINED", 30)
    rows, said, _ = scored(capfd, home, tmp_path, "odd")
    assert "; columns are named for the 10 highest; wrote" in said
    scores = np.array([float(row["score"]) for row in rows])
    named = np.array([row["top_column"] != "" for row in rows])
    assert named.sum() == 10 and scores[named].min() >= scores[~named].max()


def test_missing_as_given_wins_over_the_fit(home, tmp_path, capfd):
    gaps = (f"--workdir={home}/run", f"--table={home}/gaps.csv", f"--out={tmp_path}/s.csv")
    before = runs.snapshot(tmp_path)
    code, _, err = run(capfd, "--mode=score", *gaps)
    assert code == 2 and "row 0, column 'b' is missing" in err and "--missing=median" in err
    assert runs.snapshot(tmp_path) == before
    full, _, _ = scored(capfd, home, tmp_path, "new")
    for policy, count in (("drop", 90), ("median", 100)):
        rows, said, _ = scored(capfd, home, tmp_path, "gaps", f"--missing={policy}")
        assert len(rows) == count and (policy == "median" or "; 10 with missing values are left out" in said)
        scores = ([float(row["score"]) for row in table if int(row["row"]) % 10] for table in (rows, full))
        np.testing.assert_allclose(*scores, rtol=1e-4)


def test_a_stray_cell_is_named_in_scoring(home, tmp_path, capfd):
    argv = (f"--workdir={home}/run", f"--table={home}/stray.csv", f"--out={tmp_path}/s.csv")
    code, _, err = run(capfd, "--mode=score", *argv)
    assert code == 2 and "stray.csv: row 4, column 'b' holds 'oops', no number" in err and "--categorical" not in err
    assert not (tmp_path / "s.csv").exists()


def test_flags_without_effect_on_scores_are_refused(home, tmp_path, capfd):
    argv = ("--mode=score", f"--workdir={home}/run", f"--table={home}/new.csv", f"--out={tmp_path}/s.csv")
    for flag in ("steps=7", "seed=3", "categorical=auto", "method=alad", "held_out=3", "dtype=bfloat16", "rate=2.0"):
        code, _, err = run(capfd, *argv, f"--{flag}")
        assert code == 2 and f"--{flag} does nothing in --mode=score, which takes what was fitted as it is" in err, err
    for flag in ("loss=hinge", "mirror", "eval_every=3"):
        code, _, err = run(capfd, *argv, f"--{flag}")
        assert code == 2 and f"--{flag} does nothing here" in err, err
    assert not (tmp_path / "s.csv").exists()
    # Those of the run's own flag file nobody typed.
    code, _, err = run(capfd, f"--flagfile={home}/run/flags.txt", *argv)
    assert code == 0, err


def test_columns_are_as_in_the_fit_but_for_flags_that_are_given(home, tmp_path, capfd):
    """The id of the fit is left out; a label that is given is measured by beside it."""
    lines = (home / "new.csv").read_text().splitlines()
    odd = (home / "odd.csv").read_text().splitlines()
    both = [lines[0] + ",what", *(line + ",ok" for line in lines[1:]), *(line + ",bad" for line in odd[1:])]
    (home / "both.csv").write_text("\n".join(both) + "\n")
    rows, said, _ = scored(capfd, home, tmp_path, "both", "--label=what", "--normal=ok")
    assert "AUROC 9" in said or "AUROC 100" in said
    assert [row["label"] for row in rows] == ["0"] * 100 + ["1"] * 100 and rows[0]["id"] == "0300"


def test_categories_that_were_never_seen_are_anomalous_and_said(home, tmp_path, capfd):
    plain, _, _ = scored(capfd, home, tmp_path, "new")
    rows, _, err = scored(capfd, home, tmp_path, "upper")
    line = "column 'c': 100 of 100 rows have a category that fitting has not seen: 'BLUE', 'GREEN', 'RED'"
    assert err.strip() == f"{home}/upper.csv: {line}"
    higher = [float(x["score"]) > float(y["score"]) for x, y in zip(rows, plain, strict=True)]
    assert np.mean(higher) > 0.95
    assert np.median([float(row["p_value"]) for row in rows]) < 0.1 < np.median([float(r["p_value"]) for r in plain])
    assert np.mean([row["top_column"] == "c" for row in rows]) > 0.9


def test_a_fit_lists_categories_and_leaves_identifiers_out(home, tmp_path, capfd):
    lines = (home / "normal.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join(line.replace("0", "u", 1) for line in lines) + "\n")
    argv = (f"--table={tmp_path}/t.csv", "--categorical=auto", f"--workdir={tmp_path}/run", *FLAGS, "--dry_run")
    code, out, err = run(capfd, *argv)
    assert code == 0, err
    assert "t.csv: columns of categories, and how many: c (3)\n" in out
    assert "column 'id' is left out: 300 values in 300 rows; --categorical=auto,id keeps it, --id=id copies it" in out
    assert "of 6 columns" in out  # a, b, three colors and one that was not seen
    argv = [*argv[:1], "--categorical=auto,id", *argv[2:]]
    code, out, err = run(capfd, *argv)
    assert code == 0 and "id (240), c (3)" in out, err


def test_a_run_of_before_is_fitted_and_scores_as_it_did(home, tmp_path, monkeypatch, capfd):
    """Its encoding has no columns of categories that were not seen."""
    fit = encoding.fit
    monkeypatch.setattr(encoding, "fit", lambda *args, **options: fit(*args, **options | {"before": True}))
    argv = (f"--table={home}/normal.csv", f"--workdir={tmp_path}/run", "--drop=id", "--categorical=auto", *FLAGS)
    code, _, err = run(capfd, *argv, "--notensorboard")
    assert code == 0, err
    kept = tmp_path / "run" / tabular.FILE
    told = json.loads(kept.read_text())
    for column in told["encoding"]["columns"]:  # as runs of before kept it
        column.pop("unseen", None), column.pop("common", None)
    kept.write_text(json.dumps(told) + "\n")
    monkeypatch.undo()
    before = tabular.load(tmp_path / "run")
    assert before.encoding.width == 5
    code, out, err = run(capfd, *argv, "--notensorboard")
    assert code == 0 and "already trained" in out, err
    again = tabular.load(tmp_path / "run")
    assert again.calibration == before.calibration and again.encoding.width == 5
    new = tables.load(f"{home}/upper.csv").select(id="id")
    np.testing.assert_array_equal(again.score(new), before.score(new))


def test_nearest_and_ecod_by_hand():
    normal = np.array([[0.0, 0], [1, 0], [2, 0], [3, 10]])
    rows = np.array([[1.0, 0], [9, 0], [-1, 20]])
    np.testing.assert_allclose(classical.nearest(normal, rows, 2), [1, 8, np.sqrt(1 + 400)])
    # The first column is not skewed, the second to the right; of four rows, each with the row itself.
    left = np.array([[3 / 5, 4 / 5], [5 / 5, 4 / 5], [1 / 5, 5 / 5]])
    right = np.array([[4 / 5, 5 / 5], [1 / 5, 5 / 5], [5 / 5, 1 / 5]])
    expected = [
        max(-np.log(3 / 5) - np.log(4 / 5), -np.log(4 / 5), -np.log(4 / 5)),
        max(-np.log(4 / 5), -np.log(1 / 5), -np.log(1 / 5)),
        max(-np.log(1 / 5), -np.log(1 / 5), -np.log(1 / 5)),
    ]
    np.testing.assert_allclose(classical.ecod(normal, rows), expected)
    sums = [-np.log(left).sum(1), -np.log(right).sum(1), -np.log(right).sum(1)]
    np.testing.assert_allclose(classical.ecod(normal, rows), np.max(sums, 0))
    # Mirrored, the second column is skewed to the left, where its left tail counts.
    sums = [-np.log(right).sum(1), -np.log(left).sum(1), -np.log(left[:, 0]) - np.log(right[:, 1])]
    np.testing.assert_allclose(classical.ecod(-normal, -rows), np.max(sums, 0))


def test_other_methods_are_measured_on_the_same_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)).astype(np.float32)
    task = Task(encoding.fit(tables.of(x)), x[:200], x[:0], x[200:] + 9 * (np.arange(100) >= 90)[:, None], None)
    found = anomaly_table.peers(task, 0)
    np.testing.assert_array_equal(found["ECOD/encoded"], classical.ecod(task.train, task.test))
    np.testing.assert_array_equal(found["NearestNeighbor/encoded"], classical.nearest(task.train, task.test))
    case = {name: anomaly_table.measured(scores, np.arange(100) >= 90) for name, scores in found.items()}
    assert all(case[f"{name}/standard"]["auroc"] > 0.99 for name in ("ECOD", "NearestNeighbor"))
    case |= {"contrast": case["ECOD/encoded"], "seconds": 1.0}
    assert "  ECOD " in anomaly_table.shown("contrast", [case])
    # A case of a benchmark of before lacks them, and is shown without.
    before = {name: x for name, x in case.items() if not name.startswith(("ECOD", "Nearest"))}
    assert "ECOD" not in anomaly_table.shown("contrast", [before, case])
