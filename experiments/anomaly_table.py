"""Learns what is normal from the normal rows of a table, then scores others: a CSV with a threshold.

    python -m experiments.anomaly_table --workdir=runs/table
    python -m experiments.anomaly_table --table=normal.csv --workdir=runs/mytable
    python -m experiments.anomaly_table --mode=score --workdir=runs/mytable --table=new.csv --out=scores.csv
    python -m experiments.anomaly_table --mode=benchmark --table=a.npz,b.mat --workdir=runs/benchmark

Tables are npz, npy, mat, csv, tsv or txt, also .gz, or breast_cancer, which is inside the installation. Where rows have
labels, anomalies are kept from training, and measured on. `score` writes of each row its score, and the two columns
without which it would be the least anomalous. `benchmark` repeats the protocol of the literature beside
IsolationForest, OneClassSVM and LocalOutlierFactor of scikit-learn, the fifth nearest neighbor, and ECOD, on the same
rows: train on half of the normal rows, test on the other half and all anomalies, or on --test_table; F1 where as many
are flagged as are anomalous. In Python: `jaxgan.table_detector`.
"""

import contextlib
import dataclasses
import json
import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar

import jax
import numpy as np

from experiments import anomaly_scores
from jaxgan import encoding, files, flags, lastwords, loop, parallel, table_detector, tables, workdir
from jaxgan.anomaly import calibration, classical, tabular
from jaxgan.anomaly.tabular import Detector
from jaxgan.encoding import Encoding
from jaxgan.errors import InputError, printable
from jaxgan.flags import Need, option
from jaxgan.metrics import detection
from jaxgan.table_detector import TableOptions, Task, encoded, kept, normal_rows, train, without
from jaxgan.tables import Table

IMAGES = ("split", "data_dir", "manual_dir", "size", "crop", "channels", "skip_bad_images", "mirror")
EXPLAINED = 2_000_000  # rows times columns: the most scores that are computed to say which columns weighed most
LISTED = 5  # values of a category that was not seen, at most, in a line
NEEDS = anomaly_scores.not_scoring(*anomaly_scores.TRAINING, "categorical")
NEEDS |= anomaly_scores.NEEDS | anomaly_scores.never("here: it is for images", *IMAGES)
NEEDS |= anomaly_scores.never("here: nothing is drawn on the way", "sample_every")
NEEDS |= anomaly_scores.only("benchmark", "but in --mode=benchmark", "repeats")
NEEDS |= anomaly_scores.only("score", "but in --mode=score", "overwrite", "allow_code")


@dataclasses.dataclass(frozen=True)
class Config(TableOptions):
    needs: ClassVar[Mapping[str, Need]] = NEEDS

    mode: str = option(
        "fit",
        "fit: train on normal rows; score: look at others; benchmark: measure beside other methods",
        ("fit", "score", "benchmark"),
    )
    table: tuple[str, ...] = option(("breast_cancer",), "a file; for --mode=benchmark several")
    test_table: str = option("", "rows to measure on; empty: those of --table that training does not see")
    label: str = option("", "column that says what a row is, by name or number; none: no labels")
    normal: str = option("", "its value for normal rows; empty: 0 of labels 0 and 1")
    drop: tuple[str, ...] = option((), "columns to leave out, by name or number")
    id: str = option("", "column that says which row it is, by name or number: left out, and kept in --out")
    header: str = option("auto", "whether text begins with names", ("auto", "yes", "no"))
    repeats: int = option(5, "of a benchmark: other halves of the normal rows, other seeds", resumable=True)
    out: str = option("", "for --mode=score: a file.csv", resumable=True)
    false_positive_rate: float = option(0.05, "of normal rows, at most so many are flagged", resumable=True)
    overwrite: bool = option(False, "replace --out if it exists", resumable=True)
    allow_code: bool = option(False, "run code from outside jaxgan, if the run names a method there", resumable=True)


PRESETS: dict[str, dict[str, Any]] = {
    # The default: tumours of scikit-learn's own table, benign ones normal.
    "breast_cancer": {},
    # NSL-KDD as it is distributed, KDDTrain+ and KDDTest+: --table and --test_table say where they lie.
    "nsl_kdd": {"label": "-2", "normal": "normal", "drop": ("-1",), "categorical": ("1", "2", "3"), "repeats": 3},
}


def check(config: Config) -> None:
    """What can be wrong with the flags of this script, in the words of the flags."""
    anomaly_scores.check(config, ("width", "seeds", "repeats"))
    table_detector.check(config)
    if config.dataset != TableOptions.dataset:
        raise InputError(f"--dataset={config.dataset} is for images; expected --table=FILE")
    if not config.table or (len(config.table) > 1 and config.mode != "benchmark"):
        raise InputError(f"--table={','.join(config.table)}: expected one; only --mode=benchmark takes several")
    if config.test_table and (config.mode == "score" or len(config.table) > 1):
        raise InputError(f"--test_table={config.test_table}: expected with one --table, in --mode=fit or benchmark")


def main(config: Config) -> None:
    loop.setup(config)
    check(config)
    if config.mode == "score":
        score(config)
        return
    loop.check(config)
    {"fit": fit, "benchmark": benchmark}[config.mode](config)


# --- tables


def read(config: Config, path: str) -> Table:
    """The table to fit to or to test on, its columns as numbers or categories, as --categorical says."""
    return encoding.typed(chosen(tables.load(path, config.header), config), config.categorical)


def chosen(file: tables.File, config: Config) -> Table:
    """The columns that the flags leave, and labels if there are to be some."""
    label = "" if config.label == "none" else config.label
    found = file.select(label=label, normal=config.normal, drop=config.drop, id=config.id)
    return dataclasses.replace(found, anomalous=None) if config.label == "none" else found


def tell(known: Encoding, table: Table, test: Table | None) -> None:
    """Says which columns are no numbers, and what categories of a table to test on fitting has not seen."""
    categories = [f"{c.name} ({len(c.categories):,})" for c in known.columns if isinstance(c, encoding.Words)]
    said = [f"columns of categories, and how many: {', '.join(categories)}"] if categories else []
    for column in table.columns:
        if column.left_out:
            count = len(set(column.texts.tolist()))
            keep = f"--categorical=auto,{column.name} keeps it, --id={column.name} copies it to the scores"
            said.append(f"column {column.name!r} is left out: {count:,} values in {table.rows:,} rows; {keep}")
        elif column.marks is not None and any("," in cell for cell in column.marks.tolist()):
            said.append(f"column {column.name!r}: commas are read as thousands separators")
    for line in said:
        print(f"{table.name}: {printable(line)}")
    for line in unseen(known, test) if test else []:
        lastwords.say(f"{test.name}: {line}", sys.stderr)  # type: ignore[union-attr]


# --- training


def fit(config: Config) -> None:
    devices = parallel.devices_for(config.batch_size, config.devices)
    table = read(config, config.table[0])
    test = read(config, config.test_table) if config.test_table else None
    if table.anomalous is None and test is None:
        places = kept(config, table)
        rows = f"all {len(places):,} rows{without(table, places)} are taken to be normal"
        print(f"{table.name} has no labels that are known of: {rows}")
    task = encoded(config, table, test, config.seed, halves=False)
    tell(task.encoding, table, test)
    calibration.find(config.method)
    detection.threshold(np.arange(len(task.held)), config.false_positive_rate)  # there are enough for one
    if config.dry_run:
        held = f"{len(task.held):,} held out for the threshold"
        print(
            f"would train {config.method} on {len(task.train):,} normal rows of {task.train.shape[1]} columns, {held}"
        )
        return
    trained = train(config, task, devices)
    with workdir.storing(config):
        trained.save(workdir.of(config))
    if task.test is not None and task.anomalous is not None:
        print(figures(trained.look(task.test).mean(0), task.anomalous))
    limit, rate = trained.calibration.threshold(config.false_positive_rate), config.false_positive_rate
    print(
        f"rows that score above {limit:.3f} are flagged, at most {100 * rate:.3g}% of normal ones, by "
        f"{trained.calibration.footing(rate)}; --mode=score --workdir={config.workdir} --table=FILE --out=scores.csv"
    )


def figures(scores: np.ndarray, anomalous: np.ndarray, rows: str = "test rows") -> str:
    area = detection.bootstrap(scores, anomalous)
    return (
        f"AUROC {area.auroc:.1%} ({area.low:.1%} to {area.high:.1%}), average precision "
        f"{detection.average_precision(scores, anomalous):.1%}, F1 {detection.f1_at_share(scores, anomalous).f1:.1%} "
        f"where as many are flagged, of {int(anomalous.sum()):,} anomalies among {len(anomalous):,} {rows}"
    )


# --- scoring


def score(config: Config) -> None:
    """Writes the CSV. What the flags do not say of the columns is as in fitting, if the table has them."""
    trained = tabular.load(config.workdir, allow=config.allow_code)
    trained.calibration.threshold(config.false_positive_rate)  # there are enough for one
    stored, given = flags.read(files.reach(config.workdir))["config"], flags.given(config)
    if "header" not in given:
        config = dataclasses.replace(config, header=stored.get("header") or config.header)
    if "missing" in given:
        trained = dataclasses.replace(trained, encoding=dataclasses.replace(trained.encoding, missing=config.missing))
    file = tables.load(config.table[0], config.header)
    config = dataclasses.replace(config, **columns_of(file, trained.encoding, stored, given))
    table = chosen(file, config)
    x, places = trained.encoding.encode(table)
    scores = trained.look(x).mean(0)
    labels = None if table.anomalous is None else table.anomalous[places]
    ids = file.texts(config.id, "--id")[places].tolist() if config.id else None
    top, limited = weightiest(trained, x, scores)
    said = anomaly_scores.write(
        config,
        trained.calibration,
        "row",
        places.tolist(),
        scores,
        None if labels is None else labels.astype(int).tolist(),
        ids=ids,
        more={"top_column": top[0], "second_column": top[1]},
    )
    left = f"; {table.rows - len(places)} with missing values are left out" if len(places) < table.rows else ""
    print(f"{said}{left}{limited}; wrote {config.out}")
    for line in unseen(trained.encoding, table):
        lastwords.say(f"{table.name}: {line}", sys.stderr)
    if labels is not None and labels.any() and not labels.all():
        again = stored.get("table") == list(config.table)
        print(figures(scores, labels, "rows, some of which it was trained on" if again else "rows"))


def columns_of(file: tables.File, known: Encoding, stored: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The flags label, drop, id and normal as in fitting, but for those given.

    Those that name columns are as in fitting only where the table has other columns than those that are encoded.
    """
    table = file.table
    named = known.header and table.header
    more = len(table.columns) > len(known.columns)
    if named:
        more = not {column.name for column in known.columns}.issuperset(column.name for column in table.columns)
    stored = {
        name: stored.get(name) for name in {"label", "drop", "id", "normal"}.difference(given) if stored.get(name)
    }
    found: dict[str, Any] = {}
    for name in ("label", "id") if more else ():
        if name in stored and (not named or has(table, stored[name])):
            found[name] = stored[name]
    if more and "drop" in stored:
        found["drop"] = tuple(column for column in stored["drop"] if not named or has(table, column))
    if "normal" in stored and ("label" in given or "label" in found or file.labels is not None):
        found["normal"] = stored["normal"]
    return found


def has(table: Table, column: str) -> bool:
    with contextlib.suppress(InputError):
        return table.place(column, "") >= 0
    return False


def unseen(known: Encoding, table: Table) -> list[str]:
    """A line for each column with categories that were not seen in fitting."""
    said = []
    for name, where in known.unseen(table).items():
        column = next(column for column in table.columns if column.name == name)
        values = sorted(set(column.texts[where].tolist()))
        some = ", ".join(repr(value[:40]) for value in values[:LISTED]) + (" ..." if len(values) > LISTED else "")
        counted = f"{where.sum():,} of {table.rows:,} rows have a category that fitting has not seen"
        said.append(f"column {name!r}: {counted}: {some}")
    return said


def weightiest(trained: Detector, x: np.ndarray, scores: np.ndarray) -> tuple[list[list[str]], str]:
    """The names of the columns that raise each score the most and second most, "" where none does.

    Of many rows, only those of the highest scores; then there is something to say of that.
    """
    names = np.array([column.name for column in trained.encoding.encoded], np.str_)
    found = np.full((2, len(x)), "", names.dtype)
    rows = np.argsort(-scores, kind="stable")[: max(EXPLAINED // len(names), 1)]
    weights = trained.contributions(x[rows])
    order = np.argsort(-weights, 1, kind="stable")
    for i in range(min(2, len(names))):
        above = np.take_along_axis(weights, order[:, i : i + 1], 1)[:, 0] > 0
        found[i, rows] = np.where(above, names[order[:, i]], "")
    limited = f"; columns are named for the {len(rows):,} highest" if len(rows) < len(x) else ""
    return found.tolist(), limited


# --- beside others


PEERS = ("IsolationForest", "OneClassSVM", "LocalOutlierFactor", "NearestNeighbor", "ECOD")


def peers(task: Task, seed: int) -> dict[str, np.ndarray]:
    """{name: scores} of other methods, scikit-learn's with its own settings, by the encoding and by standard scores."""
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import LocalOutlierFactor
    from sklearn.svm import OneClassSVM

    assert task.test is not None
    found = {}
    most = np.finfo(np.float32).max  # trees take float32
    standard = tuple(np.clip(task.encoding.standard(x), -most, most) for x in (task.train, task.test))
    inputs = {"encoded": (task.train, task.test), "standard": standard}
    for name, (seen, test) in inputs.items():
        for model in (IsolationForest(random_state=seed), OneClassSVM(), LocalOutlierFactor(novelty=True)):
            found[f"{type(model).__name__}/{name}"] = -model.fit(seen).score_samples(test)
        found[f"NearestNeighbor/{name}"] = classical.nearest(seen, test)
        found[f"ECOD/{name}"] = classical.ecod(seen, test)
    return found


def measured(scores: np.ndarray, anomalous: np.ndarray) -> dict[str, float]:
    return {
        "auroc": detection.auroc(scores, anomalous),
        "average_precision": detection.average_precision(scores, anomalous),
        "f1": detection.f1_at_share(scores, anomalous).f1,
    }


def benchmark(config: Config) -> None:
    """One case a table and repeat, each kept in a file, so that the same command goes on where it was stopped."""
    devices = parallel.devices_for(config.batch_size, config.devices)
    found = {path: read(config, path) for path in config.table}
    names = {path: re.sub(r"[^A-Za-z0-9_]+", "-", PurePath(path).name.split(".")[0]) for path in found}
    if len(set(names.values())) < len(names):
        raise InputError(f"--table={','.join(config.table)}: two tables of one name")
    test = read(config, config.test_table) if config.test_table else None
    for path, table in found.items():
        if table.anomalous is None:
            raise InputError(f"{path} has no labels to measure by; --label=COLUMN says where they are")
        # All that can be wrong, before the first is trained.
        tell(encoded(config, table, test, config.seed, halves=True).encoding, table, test)
    calibration.find(config.method)
    if config.dry_run:
        print(f"would measure {config.method} on {', '.join(names.values())}, {config.repeats} times each")
        return
    if not flags.check_same(config, workdir.of(config)):
        flags.write(config, workdir.claim(config))
    results: dict[str, Any] = {}
    for path, table in found.items():
        cases = []
        for seed in range(config.seed, config.seed + config.repeats):
            home = workdir.of(config) / names[path] / f"seed-{seed}"
            if not (home / "figures.json").exists():
                own = dataclasses.replace(config, workdir=str(home), seed=seed)
                task = encoded(own, table, test, seed, halves=True)
                measures = json.dumps(case(own, task, devices), indent=1) + "\n"
                with workdir.storing(config):
                    files.write(home / "figures.json", measures)
            cases.append(json.loads((home / "figures.json").read_text()))
        results[names[path]] = cases
        print(f"{names[path]}: {describe(config, table, test)}\n{shown(config.method, cases)}", flush=True)
    written = {"config": dataclasses.asdict(config), "tables": results}
    with workdir.storing(config):
        files.write(workdir.of(config) / "benchmark.json", json.dumps(written, indent=1) + "\n")
    print(f"wrote {config.workdir}/benchmark.json")


def case(config: Config, task: Task, devices: list[jax.Device]) -> dict[str, Any]:
    assert task.test is not None and task.anomalous is not None
    start = time.monotonic()
    trained = train(config, task, devices)
    summands = trained.parts(task.test)
    rows = {config.method: sum(summands.values()).mean(0)}  # type: ignore[union-attr]
    seconds = time.monotonic() - start
    if len(summands) > 1:
        rows |= {f"{config.method}/{name}": x.mean(0) for name, x in summands.items()}
    rows |= peers(task, config.seed)
    return {"seconds": seconds} | {name: measured(scores, task.anomalous) for name, scores in rows.items()}


def describe(config: Config, table: Table, test: Table | None) -> str:
    tested = table if test is None else test
    normal, known = len(normal_rows(config, table)), len(normal_rows(config, tested))
    seen = normal if test is not None else -(-normal // 2)
    rest = known - (0 if test is not None else seen)
    anomalous = len(kept(config, tested)) - known
    return f"{seen:,} normal rows to train on, {rest:,} normal and {anomalous:,} anomalous to test on"


def shown(method: str, cases: Sequence[dict[str, Any]]) -> str:
    """Mean ± standard deviation over repeats; of other methods by the input that gives the higher AUROC.

    `method/row` is a residual of the method alone, one summand of its score. A case of before lacks some methods.
    """
    names = [name for name in cases[0] if name != "seconds" and all(name in case for case in cases)]
    means = {name: np.mean([c[name]["auroc"] for c in cases]) for name in names}
    best: dict[str, str] = {}
    for name in sorted(means, key=lambda name: means[name]):
        best[name.partition("/")[0]] = name
    best |= {name: name for name in means if name.partition("/")[0] == method}
    own = [name for name in means if name in best and name != method]
    lines = [f"  {'':22}{'AUROC':>14}{'average prec.':>16}{'F1':>14}"]
    for name in (method, *own, *(peer for peer in PEERS if peer in best)):
        cells = []
        for figure, width in (("auroc", 14), ("average_precision", 16), ("f1", 14)):
            values = [100 * c[best[name]][figure] for c in cases]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{f'{np.mean(values):.1f}{spread}':>{width}}")
        lines.append(f"  {name:22}{''.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
