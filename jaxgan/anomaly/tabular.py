"""A trained detector for the rows of a table: how it encodes them, their scores, and from which score one is flagged.

detector = load("runs/mine"); scores = detector.look(detector.encoding.encode(table)[0])      # (seeds, n)

`detector` is its counterpart for images, and says what scores and thresholds are.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from scipy.special import log_ndtr

from jaxgan import anomaly, checkpoint, encoding, files, flags, several, trained
from jaxgan.anomaly import detector, parts
from jaxgan.encoding import Encoding
from jaxgan.errors import InputError
from jaxgan.metrics import detection

FILE = "anomaly_table.json"
BATCH = 1024  # rows of one compiled call


class Calibration(NamedTuple):
    """What normal rows looked like: logarithms of their residuals, and the scores of held-out ones."""

    mean: dict[str, list[float]]  # {residual: one a seed}
    deviation: dict[str, list[float]]
    held: list[float]  # sorted


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
        logs = {name: np.log(values) for name, values in _look(method, networks, weights, seen).items()}
        mean = {name: x.mean(1).tolist() for name, x in logs.items()}
        deviation = {name: np.maximum(x.std(1), 1e-6).tolist() for name, x in logs.items()}
        made = cls(method, networks, weights, encoding, Calibration(mean, deviation, []))
        scores = np.sort(made.look(held).mean(0)).tolist()
        return dataclasses.replace(made, calibration=made.calibration._replace(held=scores))

    def parts(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """{residual: (seeds, n) float64} of encoded rows (n, d), the summands of a score."""
        raw = _look(self.method, self.networks, self.weights, x)
        mean, deviation = (
            {name: np.asarray(values)[:, None] for name, values in table.items()}
            for table in (self.calibration.mean, self.calibration.deviation)
        )
        return {name: -log_ndtr((mean[name] - np.log(raw[name])) / deviation[name]) for name in raw}

    def look(self, x: np.ndarray) -> np.ndarray:
        """(seeds, n) float64 of encoded rows, float32 (n, d)."""
        return np.sum(list(self.parts(x).values()), 0)

    def threshold(self, rate: float) -> float:
        """Scores above it are flagged: at most `rate` of new normal rows (`detection.threshold`)."""
        return detection.threshold(np.asarray(self.calibration.held), rate)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Scores (n,) -> how often a normal row scores as high, (1 + #) / (1 + n) of the held-out ones."""
        held = np.asarray(self.calibration.held)
        return (1 + len(held) - np.searchsorted(held, scores, side="left")) / (1 + len(held))

    def save(self, run: epath.PathLike) -> None:
        told = {"method": self.method.__name__, "encoding": self.encoding.to_json(), **self.calibration._asdict()}
        files.write(epath.Path(run) / FILE, json.dumps(told, allow_nan=False) + "\n")


def load(run: epath.PathLike, *, allow: bool = False) -> Detector:
    """The detector of a run directory, which `save` was called for.

    allow: whether a method or network outside jaxgan may be imported, which runs its code.
    Raises InputError for a directory that is no such run.
    """
    run = files.reach(run)
    stored = flags.read(run)
    path = run / FILE
    try:
        told = json.loads(path.read_text())
        name, columns = str(told.pop("method")), encoding.from_json(told.pop("encoding"))
        calibration = Calibration(**told)
        (count,) = {len(x) for table in (calibration.mean, calibration.deviation) for x in table.values()}
        np.asarray(calibration.held, np.float64)
    except FileNotFoundError:
        raise InputError(f"{str(run)!r} is no finished anomaly detector for tables: it holds no {FILE}") from None
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {' '.join(str(error).split())[:120]}") from None
    inside = name.startswith(f"{anomaly.__name__}.")
    if not (inside or allow):
        raise InputError(f"the method {name!r} lies outside {anomaly.__name__}; to run it: --allow_code, allow=True")
    method = detector.find(name.rpartition(".")[2] if inside else name)
    players: dict[Any, str] = {text: player for player, text in detector.NAMES.items()}
    described = stored.get("networks")
    if not isinstance(described, dict):
        raise InputError(f"the config.json of {str(run)!r} names no networks")
    networks = {players.get(text) or text: trained.build(of, allow) for text, of in described.items()}
    kept = checkpoint.read(run / "checkpoints").get("players", {})
    try:
        weights = {name: {"params": kept[name]["params"], **kept[name].get("variables", {})} for name in networks}
        found = Detector(method, networks, several.each(jax.device_put(weights), count), columns, calibration)
        row = jax.ShapeDtypeStruct((1, columns.width), np.float32)
        shapes = jax.eval_shape(functools.partial(_residuals, method, tuple(networks.items())), found.weights[0], row)
        assert set(shapes) == set(calibration.mean), f"its residuals are {sorted(shapes)}"
    except Exception as error:  # whatever networks say to weights that are not their own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the checkpoint of {str(run)!r} does not fit the networks of its config: {reason}") from error
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _residuals(method: ModuleType, networks: tuple, weights: Any, x: jax.Array) -> dict[str, jax.Array]:
    with jax.default_matmul_precision("highest"):
        found = method.residuals(dict(networks), weights, x)
    return {name: jnp.maximum(score, detector.TINY) for name, score in found.scores.items()}


def _look(method: ModuleType, networks: parts.Networks, weights: Sequence[Any], x: np.ndarray) -> dict[str, np.ndarray]:
    """{residual: (seeds, n) float64}."""
    n, size, found = len(x), min(BATCH, len(x)), []
    for start in range(0, n, size):
        part = x[np.minimum(np.arange(start, start + size), n - 1)]  # filled up: one compiled shape
        each = [jax.device_get(_residuals(method, tuple(networks.items()), w, part)) for w in weights]
        found.append({name: np.stack([one[name] for one in each])[:, : n - start] for name in each[0]})
    return {name: np.concatenate([one[name] for one in found], 1).astype(np.float64) for name in found[0]}
