"""A trained detector for the rows of a table: how it encodes them, their scores, and from which score one is flagged.

    detector = load("runs/mine"); scores = detector.score("new.csv"); flagged = detector.predict("new.csv")      # (n,)

`detector` is its counterpart for images; `jaxgan.table_detector` also fits one.
"""

import dataclasses
import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from scipy.special import log_ndtr

from jaxgan import encoding, files, numerics, tables
from jaxgan.anomaly import calibration, parts
from jaxgan.anomaly.calibration import TINY, Calibration
from jaxgan.encoding import Encoding
from jaxgan.errors import InputError

FILE = "anomaly_table.json"
BATCH = 1024  # rows of one compiled call


@dataclasses.dataclass(frozen=True)
class Detector:
    """weights: those of each seed. A score is the mean over seeds."""

    method: ModuleType
    networks: parts.Networks
    weights: Sequence[parts.Weights]
    encoding: Encoding
    calibration: Calibration

    @classmethod
    def of(
        cls,
        method: ModuleType,
        networks: parts.Networks,
        weights: Sequence[Any],
        encoding: Encoding,
        seen: np.ndarray,
        held: np.ndarray,
    ) -> "Detector":
        """Calibrated by normal rows float32 (n, d) that training has seen, and by others that it has not.

        A score is a sum over residuals r of -log P(z > (log r - mean) / deviation), z standard normal, mean and
        deviation of those seen: Fisher's combination of surprises. One that is small says nothing, rather than that
        the row is more normal than others, so that what one residual finds the others do not hide.
        """
        known = Calibration.of(_look(method, networks, weights, seen))
        made = cls(method, networks, weights, encoding, known)
        return dataclasses.replace(made, calibration=known.keeping(made.look(held).mean(0)))

    def parts(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """{residual: (seeds, n) float64} of encoded rows (n, d), the summands of a score."""
        raw = _look(self.method, self.networks, self.weights, x)
        return {name: -log_ndtr(-z) for name, z in self.calibration.standardised(raw).items()}

    def look(self, x: np.ndarray) -> np.ndarray:
        """(seeds, n) float64 of encoded rows, float32 (n, d)."""
        return np.sum(list(self.parts(x).values()), 0)

    def score(self, rows: Any) -> np.ndarray:
        """float64 (n,) of rows as `tables.of` takes them, higher is more anomalous; NaN for one that is dropped."""
        table = tables.of(rows)
        x, places = self.encoding.encode(table)
        scores = np.full(table.rows, np.nan)
        scores[places] = self.look(x).mean(0)
        return scores

    def predict(self, rows: Any, false_positive_rate: float = 0.05) -> np.ndarray:
        """bool (n,), whether a row scores above the threshold, as at most such a share of new normal rows does."""
        return self.score(rows) > self.calibration.threshold(false_positive_rate)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """float64 (n, columns): by how much the score of each encoded row (n, d) falls with a column as usual.

        Usual are the median of numbers and the most common category; the other columns of the row stay as they are. The
        columns are `encoding.encoded`. It costs as much as scoring so many times as there are columns.
        """
        usual, scores = self.encoding.usual, self.look(x).mean(0)
        found = np.zeros((len(x), len(self.encoding.spans)))
        for i, span in enumerate(self.encoding.spans):
            other = x.copy()
            other[:, span] = usual[span]
            found[:, i] = scores - self.look(other).mean(0)
        return found

    def save(self, run: epath.PathLike) -> None:
        calibration.save(epath.Path(run) / FILE, self.method, self.calibration, encoding=self.encoding.to_json())


def load(run: epath.PathLike, *, allow: bool = False) -> Detector:
    """The detector of a run directory, which `save` was called for; arguments and errors as of `calibration.recall`."""
    run = files.reach(run)
    kind = "anomaly detector for tables"
    method, networks, weights, calibrated, rest = calibration.recall(run, FILE, kind, allow)
    try:
        columns = encoding.from_json(rest.get("encoding"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"cannot read {str(run / FILE)!r}: {' '.join(str(error).split())[:120]}") from None
    row = jax.ShapeDtypeStruct((1, columns.width), np.float32)
    look = functools.partial(_residuals, method, tuple(networks.items()))
    calibration.check_fit(run, lambda: jax.eval_shape(look, weights[0], row), calibrated)
    return Detector(method, networks, weights, columns, calibrated)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _residuals(method: ModuleType, networks: tuple, weights: Any, x: jax.Array) -> dict[str, jax.Array]:
    with jax.default_matmul_precision("highest"):
        found = method.residuals(dict(networks), weights, x)
    return {name: jnp.maximum(score, TINY) for name, score in found.scores.items()}


@numerics.fixed()
def _look(method: ModuleType, networks: parts.Networks, weights: Sequence[Any], x: np.ndarray) -> dict[str, np.ndarray]:
    """{residual: (seeds, n) float64}."""
    n, size, found = len(x), min(BATCH, len(x)), []
    for start in range(0, n, size):
        part = x[np.minimum(np.arange(start, start + size), n - 1)]  # filled up: one compiled shape
        each = [jax.device_get(_residuals(method, tuple(networks.items()), w, part)) for w in weights]
        found.append({name: np.stack([one[name] for one in each])[:, : n - start] for name in each[0]})
    return {name: np.concatenate([one[name] for one in found], 1).astype(np.float64) for name in found[0]}
