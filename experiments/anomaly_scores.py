"""What scoring images (experiments/anomaly.py) and rows of tables (experiments/anomaly_table.py) have in common."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxgan import files
from jaxgan.anomaly.calibration import Calibration
from jaxgan.config import NEEDS as COMMON
from jaxgan.errors import InputError
from jaxgan.flags import Need


def never(why: str, *names: str) -> dict[str, Need]:
    """Of flags of every experiment that change nothing here, so that none is of use but 0."""

    def zero(name: str) -> Callable[[Any], bool]:
        return lambda config: not getattr(config, name)

    return {name: Need(zero(name), why) for name in names}


NEEDS = COMMON | never("here: networks and losses are those of --method", "model", "loss")
NEEDS |= never("here: nothing is evaluated on the way", "eval_every", "eval_samples")


def check(config: Any, positive: Sequence[str], folders: Sequence[str] = ()) -> None:
    """What can be wrong with the flags of both scripts: `positive` are to be at least 1; `folders` are for scoring."""
    for name in positive:
        if getattr(config, name) < 1:
            raise InputError(f"--{name}={getattr(config, name)}: expected at least 1")
    if config.held_out < 2:
        raise InputError(f"--held_out={config.held_out}: expected at least 2, one in two")
    if not config.rate > 0:
        raise InputError(f"--rate={config.rate}: expected above 0")
    if not 0 < config.false_positive_rate < 1:
        raise InputError(f"--false_positive_rate={config.false_positive_rate}: expected above 0 and below 1")
    given = [name for name in ("out", *folders) if getattr(config, name)]
    if config.mode != "score":
        for name in given:
            raise InputError(f"--{name}={getattr(config, name)} is for --mode=score")
        return
    if not config.workdir:
        raise InputError("--workdir is empty; expected that of a --mode=fit, for example --workdir=runs/mine")
    if config.dry_run:
        raise InputError("--dry_run is for --mode=fit")
    if not config.out.endswith(".csv"):
        raise InputError(f"--out={config.out}: expected a name that ends in .csv, as in --mode=score --out=scores.csv")
    for name in given:
        files.destination(f"--{name}", getattr(config, name), config.overwrite, folder=name in folders)


def write(
    config: Any, known: Calibration, what: str, names: Sequence[Any], scores: np.ndarray, labels: Sequence[Any] | None
) -> str:
    """Writes --out, of each `what` a row in the order given -> what there is to say of them."""
    limit = known.threshold(config.false_positive_rate)
    flagged = scores > limit
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([what, "score", "p_value", "anomalous", *([] if labels is None else ["label"])])
    for i, (name, value, p) in enumerate(zip(names, scores, known.p_values(scores), strict=True)):
        own = [] if labels is None else [labels[i]]
        writer.writerow([name, f"{value:.6g}", f"{p:.4g}", int(flagged[i]), *own])
    try:
        files.write(files.reach(config.out), buffer.getvalue())
    except OSError as error:
        raise InputError(f"cannot write --out={config.out}: {error.strerror or error}") from None
    rate = config.false_positive_rate
    found = f"{flagged.sum():,} of {len(scores):,} {what}s score above {limit:.3f}"
    return f"{found}, where at most {100 * rate:.3g}% of normal ones do, by {known.footing(rate)}"
