"""Learns what is normal from the normal rows of a table, then scores others: a CSV with a threshold.

    python -m experiments.anomaly_table --workdir=runs/table
    python -m experiments.anomaly_table --table=normal.csv --workdir=runs/mine
    python -m experiments.anomaly_table --mode=score --workdir=runs/mine --table=new.csv --out=scores.csv
    python -m experiments.anomaly_table --mode=benchmark --table=a.npz,b.mat --workdir=runs/benchmark

Tables are npz, npy, mat, csv, tsv or txt, also .gz, or breast_cancer, which is inside the installation. Where rows have
labels, anomalies are kept from training, and measured on. `benchmark` repeats the protocol of the literature beside
IsolationForest, OneClassSVM and LocalOutlierFactor of scikit-learn, on the same rows: train on half of the normal rows,
test on the other half and all anomalies, or on --test_table; F1 where as many are flagged as are anomalous.
"""

import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import anomaly_scores
from jaxgan import data, encoding, files, flags, loop, parallel, sources, tables, workdir
from jaxgan.anomaly import calibration, parts, tabular
from jaxgan.anomaly.tabular import Detector
from jaxgan.config import Common
from jaxgan.encoding import Encoding
from jaxgan.errors import InputError
from jaxgan.flags import Need, option
from jaxgan.metrics import detection
from jaxgan.several import each, several
from jaxgan.tables import Table

LEAST = 10  # rows to train on, and to hold out
SEEN = 10_000  # training rows that say how large residuals are
IMAGES = ("split", "data_dir", "manual_dir", "size", "crop", "channels", "skip_bad_images", "mirror")
NEEDS = anomaly_scores.NEEDS | anomaly_scores.never("here: it is for images", *IMAGES)
NEEDS |= anomaly_scores.never("here: nothing is drawn on the way", "sample_every")
LATENT = 32  # dimensions of the latent, at most, where none are asked for: half as many as columns


@dataclasses.dataclass(frozen=True)
class Config(Common):
    needs: ClassVar[Mapping[str, Need]] = NEEDS

    mode: str = option(
        "fit",
        "fit: train on normal rows; score: look at others; benchmark: measure beside scikit-learn",
        ("fit", "score", "benchmark"),
    )
    table: tuple[str, ...] = option(("breast_cancer",), "a file; for --mode=benchmark several")
    test_table: str = option("", "rows to measure on; empty: those of --table that training does not see")
    label: str = option("", "column that says what a row is, by name or number; none: no labels")
    normal: str = option("", "its value for normal rows; empty: 0 of labels 0 and 1")
    drop: tuple[str, ...] = option((), "columns to leave out, by name or number")
    categorical: tuple[str, ...] = option((), "columns of categories, by name or number; auto: those of words")
    missing: str = option("error", "for missing values: drop the row, or take the column's median", encoding.POLICIES)
    header: str = option("auto", "whether text begins with names", ("auto", "yes", "no"))
    method: str = option("contrast", "a module of jaxgan/anomaly, or your own: contrast, alad, egbad, pkg.mine")
    steps: int = option(600, "training steps, over which the learning rates fall")
    steps_per_call: int = option(200, "steps in one compiled call; a row of metrics.jsonl each")
    batch_size: int = option(128, "rows a step, over all devices")
    width: int = option(64, "units of a layer")
    latent: int = option(0, f"dimension of the latent; 0: half as many as columns, at most {LATENT}")
    rate: float = option(1.0, "factor of the method's own learning rates")
    held_out: int = option(5, "one normal row in so many is held out, for the threshold")
    seeds: int = option(3, "networks trained at once, whose mean scores")
    repeats: int = option(5, "of a benchmark: other halves of the normal rows, other seeds", resumable=True)
    out: str = option("", "for --mode=score: a file.csv", resumable=True)
    false_positive_rate: float = option(0.05, "of normal rows, at most so many are flagged", resumable=True)
    overwrite: bool = option(False, "replace --out if it exists", resumable=True)
    allow_code: bool = option(False, "run code from outside jaxgan, if the run names a method there", resumable=True)
    eval_every: int = option(0, "nothing is evaluated on the way", resumable=True)
    sample_every: int = option(0, "nothing is drawn on the way", resumable=True)
    checkpoint_every: int = option(0, "steps between checkpoints; 0: only the last", resumable=True)


PRESETS: dict[str, dict[str, Any]] = {
    # The default: tumours of scikit-learn's own table, benign ones normal.
    "breast_cancer": {},
    # NSL-KDD as it is distributed, KDDTrain+ and KDDTest+: --table and --test_table say where they lie.
    "nsl_kdd": {"label": "-2", "normal": "normal", "drop": ("-1",), "categorical": ("1", "2", "3"), "repeats": 3},
}


def check(config: Config) -> None:
    """What can be wrong with the flags of this script, in the words of the flags."""
    anomaly_scores.check(config, ("width", "seeds", "repeats"))
    if config.latent < 0:
        raise InputError(f"--latent={config.latent}: expected at least 1, or 0 for half of the columns")
    if config.dataset != Common.dataset:
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
    label = "" if config.label == "none" else config.label
    found = tables.read(path, label=label, normal=config.normal, drop=config.drop, header=config.header)
    return dataclasses.replace(found, anomalous=None) if config.label == "none" else found


class Task(NamedTuple):
    """Encoded rows, float32 (n, d). `anomalous` is of the rows of `test`; None without labels."""

    encoding: Encoding
    train: np.ndarray
    held: np.ndarray
    test: np.ndarray | None
    anomalous: np.ndarray | None


def kept(config: Config, table: Table) -> np.ndarray:
    """Places of the rows that are not dropped for a missing value."""
    return encoding.whole(table, "drop") if config.missing == "drop" else np.arange(table.rows)


def normal_rows(config: Config, table: Table) -> np.ndarray:
    """Places of the normal rows among those kept of `table`. Raises InputError for labels of one class."""
    places = kept(config, table)
    if table.anomalous is None:
        return places
    anomalous = table.anomalous[places]
    if anomalous.all() or not anomalous.any():
        kind = "anomalous" if anomalous.all() else "normal"
        rows = f"{len(places)} rows{without(table, places)} of {table.name}"
        raise InputError(f"all {rows} are {kind} by their labels; expected some of both")
    return places[~anomalous]


def without(table: Table, places: np.ndarray) -> str:
    """What is to be said of the rows that are kept, if some are not."""
    return "" if len(places) == table.rows else " without a missing value"


def encoded(config: Config, table: Table, test: Table | None, seed: int, halves: bool) -> Task:
    """Normal rows in an order by `seed`: of every two, where `halves`, one is for the test, or else one of `held_out`.

    Those held out for the threshold are normal rows that training does not see. Without halves they are the test's too.
    """
    if test is not None and (table.anomalous is None) != (test.anomalous is None):
        raise InputError(f"{(table if table.anomalous is None else test).name} has no labels; the other table has")
    rows = np.random.default_rng(seed).permutation(normal_rows(config, table))
    own = halves and test is None
    first, rest = (rows[::2], rows[1::2]) if own else (rows, rows[:0])
    held = np.arange(len(first)) % config.held_out == 0
    train = first if halves else first[~held]
    if min(len(train), held.sum()) < LEAST:
        raise InputError(
            f"{table.name} has {len(rows)} normal rows{without(table, kept(config, table))}, {len(train)} to train on "
            f"and {held.sum()} to hold out; expected at least {LEAST} of each"
        )
    known = encoding.fit(table, config.categorical, config.missing, train)
    seen, outside = (known.encode(table.take(part))[0] for part in (train, first[held]))
    if table.anomalous is None:
        return Task(known, seen, outside, None, None)
    if test is None:
        test = table.take(np.concatenate([rest if own else first[held], np.flatnonzero(table.anomalous)]))
    else:
        normal_rows(config, test)  # has some of both
    tested, places = known.encode(test)
    assert test.anomalous is not None
    return Task(known, seen, outside, tested, test.anomalous[places])


# --- training


def train(config: Config, task: Task, devices: list[jax.Device]) -> Detector:
    """The detector of the run in `config.workdir`, trained as far as it is not."""
    method = calibration.find(config.method)
    width = task.train.shape[1]
    latent = config.latent or min(-(-width // 2), LATENT)
    networks = method.networks((width,), config.width, latent, jnp.dtype(config.dtype))
    game = several(method.game(networks, parts.Plan(config.steps * config.batch_size, config.rate)), config.seeds)
    source = sources.of_rows("the table", task.train)
    # The order of the rows is the same for each seed: it is a constant of the program, which is then compiled once.
    options: tuple[str, ...] = ("batch_size", "placement", "resident_gb")
    feed = data.place(source, draws=game.draws, devices=devices, **{name: getattr(config, name) for name in options})
    example = {"image": np.zeros((2, width), np.float32), "label": np.zeros(2, np.int32), "row": np.arange(2)}
    about = {"networks": calibration.named(networks), "columns": list(task.encoding.names)}
    state = loop.run(game, feed, config, example=example, devices=devices, about=about)
    weights = each(jax.device_get(parts.of(state)), config.seeds)
    return Detector.of(method, networks, weights, task.encoding, task.train[:SEEN], task.held)


def fit(config: Config) -> None:
    devices = parallel.devices_for(config.batch_size, config.devices)
    table = read(config, config.table[0])
    test = read(config, config.test_table) if config.test_table else None
    if table.anomalous is None and test is None:
        places = kept(config, table)
        rows = f"all {len(places):,} rows{without(table, places)} are taken to be normal"
        print(f"{table.name} has no labels that are known of: {rows}")
    task = encoded(config, table, test, config.seed, halves=False)
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
    """Writes the CSV. What the flags do not say of the columns is as in fitting, if the table has them all."""
    trained = tabular.load(config.workdir, allow=config.allow_code)
    trained.calibration.threshold(config.false_positive_rate)  # there are enough for one
    table = bare = read(config, config.table[0])
    if len(bare.columns) > len(trained.encoding.columns) and not (config.label or config.drop):
        stored = flags.read(files.reach(config.workdir))["config"]
        kept = {name: stored.get(name) or getattr(config, name) for name in ("label", "normal", "drop")}
        table = read(dataclasses.replace(config, **kept), config.table[0])
    x, places = trained.encoding.encode(table)
    scores = trained.look(x).mean(0)
    known = None if table.anomalous is None else table.anomalous[places]
    labels = None if known is None else known.astype(int).tolist()
    said = anomaly_scores.write(config, trained.calibration, "row", places.tolist(), scores, labels)
    left = f"; {table.rows - len(places)} with missing values are left out" if len(places) < table.rows else ""
    print(f"{said}{left}; wrote {config.out}")
    if known is not None and known.any() and not known.all():
        seen = flags.read(files.reach(config.workdir))["config"].get("table") == list(config.table)
        print(figures(scores, known, "rows, some of which it was trained on" if seen else "rows"))


# --- beside others


def peers(task: Task, seed: int) -> dict[str, np.ndarray]:
    """{name: scores} of scikit-learn's own methods with its own settings, by the encoding and by standard scores."""
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
        encoded(config, table, test, config.seed, halves=True)  # all that can be wrong, before the first is trained
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
                task = encoded(config, table, test, seed, halves=True)
                own = dataclasses.replace(config, workdir=str(home), seed=seed)
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
    """Mean ± standard deviation over repeats; of scikit-learn's methods by the input that gives the higher AUROC.

    `method/row` is a residual of the method alone, one summand of its score.
    """
    means = {name: np.mean([c[name]["auroc"] for c in cases]) for name in cases[0] if name != "seconds"}
    best: dict[str, str] = {}
    for name in sorted(means, key=lambda name: means[name]):
        best[name.partition("/")[0]] = name
    best |= {name: name for name in means if name.partition("/")[0] == method}
    own = [name for name in means if name in best and name != method]
    lines = [f"  {'':22}{'AUROC':>14}{'average prec.':>16}{'F1':>14}"]
    for name in (method, *own, "IsolationForest", "OneClassSVM", "LocalOutlierFactor"):
        cells = []
        for figure, width in (("auroc", 14), ("average_precision", 16), ("f1", 14)):
            values = [100 * c[best[name]][figure] for c in cases]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{f'{np.mean(values):.1f}{spread}':>{width}}")
        lines.append(f"  {name:22}{''.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
