"""Anomaly detection in tables from Python: `fit` on normal rows, then `score` and `predict` others.

    detector = TableDetector(seed=0).fit("normal.csv")       # or an array (n, d), a Table, columns by name (pandas)
    scores = detector.score("new.csv")                       # float64 (n,), higher is more anomalous
    flagged = detector.predict("new.csv", 0.05)              # bool (n,), at most 5% of normal rows
    detector = TableDetector.load("runs/mytable")               # a run of `python -m experiments.anomaly_table`

experiments/anomaly_table.py is the same from the command line: with the same options it gives the same scores.
"""

import contextlib
import dataclasses
import io
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import config, data, encoding, files, flags, loop, parallel, sources, tables, workdir
from jaxgan.anomaly import calibration, parts, tabular
from jaxgan.anomaly.tabular import Detector
from jaxgan.config import Common
from jaxgan.encoding import Encoding
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.several import each, several
from jaxgan.tables import Table

LEAST = 10  # rows to train on, and to hold out
SEEN = 10_000  # training rows that say how large residuals are
LATENT = 32  # dimensions of the latent, at most, where none are asked for: half as many as columns


@dataclasses.dataclass(frozen=True)
class TableOptions(Common):
    """What training a detector takes, beside the rows."""

    categorical: tuple[str, ...] = option((), "columns of categories, by name or number; auto: those of words")
    missing: str = option("error", "for missing values: drop the row, or take the column's median", encoding.POLICIES)
    method: str = option("contrast", "a module of jaxgan/anomaly, or your own: contrast, alad, egbad, pkg.mine")
    steps: int = option(600, "training steps, over which the learning rates fall")
    steps_per_call: int = option(200, "steps in one compiled call; a row of metrics.jsonl each")
    batch_size: int = option(128, "rows a step, over all devices")
    width: int = option(64, "units of a layer")
    latent: int = option(0, f"dimension of the latent; 0: half as many as columns, at most {LATENT}")
    rate: float = option(1.0, "factor of the method's own learning rates")
    held_out: int = option(5, "one normal row in so many is held out, for the threshold")
    seeds: int = option(3, "networks trained at once, whose mean scores")
    eval_every: int = option(0, "nothing is evaluated on the way", resumable=True)
    sample_every: int = option(0, "nothing is drawn on the way", resumable=True)
    checkpoint_every: int = option(0, "steps between checkpoints; 0: only the last", resumable=True)


def check(options: TableOptions) -> None:
    """Raises InputError for options that no training can have."""
    calibration.check_options(options, ("width", "seeds"))
    if options.latent < 0:
        raise InputError(f"--latent={options.latent}: expected at least 1, or 0 for half of the columns")


class TableDetector:
    """An anomaly detector for the rows of a table.

    Args:
      workdir: directory of the run; started again, training resumes there. Empty: nothing is kept on disk.
      options: fields of `TableOptions`, the flags of experiments/anomaly_table.py: method, steps, seed, seeds, width,
        categorical, missing, held_out ...

    Rows are an array of numbers (n, d), a `Table`, the name of a file that `tables.read` takes, or a mapping of columns
    by name, such as a data frame of pandas.
    """

    def __init__(self, workdir: str = "", **options: Any):
        self.options = TableOptions(workdir=workdir, **{"tensorboard": bool(workdir)} | options)
        self._trained: Detector | None = None

    @classmethod
    def load(cls, run: epath.PathLike, *, allow: bool = False) -> "TableDetector":
        """The detector of a run directory; `allow` as of `tabular.load`."""
        made = cls()
        made._trained = tabular.load(run, allow=allow)
        return made

    def fit(self, rows: Any, anomalous: np.ndarray | None = None) -> "TableDetector":
        """Trains on normal rows, one in `held_out` of which is held out for the threshold.

        Args:
          rows: the rows, all taken to be normal unless they are labelled.
          anomalous: bool (n,), which of them are not, and are kept from training.
        Returns: this detector.
        """
        check(self.options)
        config.check_numbers(self.options)
        loop.setup(self.options)
        table = tables.of(rows)
        if anomalous is not None:
            labels = np.asarray(anomalous)
            if labels.shape != (table.rows,) or not np.isin(labels, (0, 1)).all():
                raise InputError(f"anomalous {labels.dtype} {labels.shape}: expected bool ({table.rows},)")
            table = dataclasses.replace(table, anomalous=labels.astype(bool))
        task = encoded(self.options, table, None, self.options.seed, halves=False)
        devices = parallel.devices_for(self.options.batch_size, self.options.devices)
        with contextlib.ExitStack() as stack:
            options = self.options
            if options.workdir:
                loop.check(options)
            else:
                home = stack.enter_context(tempfile.TemporaryDirectory())
                options = dataclasses.replace(options, workdir=f"{home}/run")
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # it names a directory that will be gone
            self._trained = train(options, task, devices)
            if self.options.workdir:
                with workdir.storing(options):
                    self._trained.save(workdir.of(options))
        return self

    @property
    def trained(self) -> Detector:
        """What was fitted or loaded: networks, encoding and calibration."""
        if self._trained is None:
            raise InputError("this detector is not fitted; call fit(rows), or TableDetector.load(run)")
        return self._trained

    def score(self, rows: Any) -> np.ndarray:
        """float64 (n,), higher is more anomalous; NaN for rows that `missing="drop"` leaves out."""
        return self.trained.score(rows)

    def predict(self, rows: Any, false_positive_rate: float = 0.05) -> np.ndarray:
        """bool (n,), whether each row is anomalous: at most so many of new normal rows are flagged."""
        return self.trained.predict(rows, false_positive_rate)


class Task(NamedTuple):
    """Encoded rows, float32 (n, d). `anomalous` is of the rows of `test`; None without labels."""

    encoding: Encoding
    train: np.ndarray
    held: np.ndarray
    test: np.ndarray | None
    anomalous: np.ndarray | None


def kept(options: TableOptions, table: Table) -> np.ndarray:
    """Places of the rows that are not dropped for a missing value."""
    return encoding.whole(table, "drop") if options.missing == "drop" else np.arange(table.rows)


def normal_rows(options: TableOptions, table: Table) -> np.ndarray:
    """Places of the normal rows among those kept of `table`. Raises InputError for labels of one class."""
    places = kept(options, table)
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


def encoded(options: TableOptions, table: Table, test: Table | None, seed: int, halves: bool) -> Task:
    """Normal rows in an order by `seed`: of every two, where `halves`, one is for the test, or else one of `held_out`.

    Those held out for the threshold are normal rows that training does not see. Without halves they are the test's too.
    """
    table = encoding.typed(table, options.categorical)
    if test is not None and (table.anomalous is None) != (test.anomalous is None):
        raise InputError(f"{(table if table.anomalous is None else test).name} has no labels; the other table has")
    rows = np.random.default_rng(seed).permutation(normal_rows(options, table))
    own = halves and test is None
    first, rest = (rows[::2], rows[1::2]) if own else (rows, rows[:0])
    held = np.arange(len(first)) % options.held_out == 0
    train = first if halves else first[~held]
    if min(len(train), held.sum()) < LEAST:
        raise InputError(
            f"{table.name} has {len(rows)} normal rows{without(table, kept(options, table))}, {len(train)} to train on "
            f"and {held.sum()} to hold out; expected at least {LEAST} of each"
        )
    known = encoding.fit(table, options.categorical, options.missing, train)
    if (begun := _columns(options)) not in (None, list(known.names)):
        before = encoding.fit(table, options.categorical, options.missing, train, before=True)
        known = before if list(before.names) == begun else known
    seen, outside = (known.encode(table.take(part))[0] for part in (train, first[held]))
    if table.anomalous is None:
        return Task(known, seen, outside, None, None)
    if test is None:
        test = table.take(np.concatenate([rest if own else first[held], np.flatnonzero(table.anomalous)]))
    else:
        normal_rows(options, test)  # has some of both
    tested, places = known.encode(test)
    assert test.anomalous is not None
    return Task(known, seen, outside, tested, test.anomalous[places])


def _columns(options: TableOptions) -> list[str] | None:
    """The encoded columns of the run in `options.workdir`, if it has begun: one of before has no columns of unseen."""
    with contextlib.suppress(InputError, OSError):
        return flags.read(files.reach(options.workdir)).get("columns") if options.workdir else None
    return None


def train(options: TableOptions, task: Task, devices: list[jax.Device]) -> Detector:
    """The detector of the run in `options.workdir`, trained as far as it is not."""
    method = calibration.find(options.method)
    width = task.train.shape[1]
    latent = options.latent or min(-(-width // 2), LATENT)
    networks = method.networks((width,), options.width, latent, jnp.dtype(options.dtype))
    game = several(method.game(networks, parts.Plan(options.steps * options.batch_size, options.rate)), options.seeds)
    source = sources.of_rows("the table", task.train)
    # The order of the rows is the same for each seed: it is a constant of the program, which is then compiled once.
    names: tuple[str, ...] = ("batch_size", "placement", "resident_gb")
    feed = data.place(source, draws=game.draws, devices=devices, **{name: getattr(options, name) for name in names})
    example = {"image": np.zeros((2, width), np.float32), "label": np.zeros(2, np.int32), "row": np.arange(2)}
    about = {"networks": calibration.named(networks), "columns": list(task.encoding.names)}
    state = loop.run(game, feed, options, example=example, devices=devices, about=about)
    weights = each(jax.device_get(parts.of(state)), options.seeds)
    return Detector.of(method, networks, weights, task.encoding, task.train[:SEEN], task.held)
