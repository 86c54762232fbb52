"""What scoring images (experiments/anomaly.py) and rows of tables (experiments/anomaly_table.py) have in common."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxgan import files
from jaxgan.anomaly import calibration
from jaxgan.anomaly.calibration import Calibration
from jaxgan.config import NEEDS as COMMON
from jaxgan.errors import InputError
from jaxgan.flags import Need


def scoring(config: Any) -> bool:
    return config.mode == "score"


def never(why: str, *names: str) -> dict[str, Need]:
    """Of flags of every experiment that change nothing here, so that none is of use but 0."""

    def zero(name: str) -> Callable[[Any], bool]:
        return lambda config: not getattr(config, name)

    return {name: Need(zero(name), why, scoring) for name in names}


def only(mode: str, why: str, *names: str) -> dict[str, Need]:
    """Of flags that have an effect in one mode alone."""
    return {name: Need(lambda config: config.mode == mode, why) for name in names}


# Of both scripts, what training takes, and has no effect on scoring.
TRAINING = (
    *("method", "seed", "seeds", "steps", "steps_per_call", "batch_size", "width", "latent", "rate", "held_out"),
    *("dtype", "devices", "placement", "resident_gb", "checkpoint_every", "keep", "tensorboard", "profile"),
    *("call_timeout", "on_nonfinite", "rollbacks", "sample_every"),
)


def not_scoring(*names: str) -> dict[str, Need]:
    """Of flags that only training reads."""
    why = "in --mode=score, which takes what was fitted as it is"
    return {name: Need(lambda config: not scoring(config), why, scoring) for name in names}


NEEDS = COMMON | never("here: networks and losses are those of --method", "model", "loss")
NEEDS |= never("here: nothing is evaluated on the way", "eval_every", "eval_samples")


def check(config: Any, positive: Sequence[str], folders: Sequence[str] = ()) -> None:
    """What can be wrong with the flags of both scripts: `positive` are to be at least 1; `folders` are for scoring."""
    calibration.check_options(config, positive)
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
    config: Any,
    known: Calibration,
    what: str,
    names: Sequence[Any],
    scores: np.ndarray,
    labels: Sequence[Any] | None,
    *,
    ids: Sequence[Any] | None = None,
    more: Mapping[str, Sequence[Any]] | None = None,
) -> str:
    """Writes --out, of each `what` a row in the order given -> what there is to say of them.

    ids: what else each is called, a column after its name. more: further columns.
    """
    limit = known.threshold(config.false_positive_rate)
    flagged = scores > limit
    columns: dict[str, Sequence[Any]] = {what: names}
    columns |= {} if ids is None else {"id": ids}
    columns |= {
        "score": [f"{value:.6g}" for value in scores],
        "p_value": [f"{p:.4g}" for p in known.p_values(scores)],
        "anomalous": flagged.astype(int).tolist(),
    }
    columns |= {} if labels is None else {"label": labels}
    columns |= more or {}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    try:
        files.write(files.reach(config.out), buffer.getvalue())
    except OSError as error:
        raise InputError(f"cannot write --out={config.out}: {error.strerror or error}") from None
    rate = config.false_positive_rate
    found = f"{flagged.sum():,} of {len(scores):,} {what}s score above {limit:.3f}"
    return f"{found}, where at most {100 * rate:.3g}% of normal ones do, by {known.footing(rate)}"
