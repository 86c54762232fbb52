"""A trained detector for the rows of a table: how it encodes them, their scores, and from which score one is flagged.

    detector = load("runs/mine"); scores = detector.look(detector.encoding.encode(table)[0])      # (seeds, n)

`detector` is its counterpart for images.
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

from jaxgan import encoding, files, numerics
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
