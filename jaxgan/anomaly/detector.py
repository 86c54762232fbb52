"""A trained detector: scores of images, where an image is not normal, and from which score on it is flagged.

detector = load("runs/anomaly"); found = detector.look(images)      # Found: scores (n,), images, heat
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

from jaxgan import anomaly, checkpoint, files, flags, lookup, several, trained
from jaxgan.anomaly import parts
from jaxgan.data import to_float
from jaxgan.errors import InputError
from jaxgan.metrics import detection

NEEDED = ("networks", "game", "residuals")  # of a method
FILE = "anomaly.json"
BATCH = 256  # images of one compiled call
TINY = 1e-12  # below any residual that a float32 image leaves
QUANTILE = 0.999  # of the pixels of normal images stay below a heat of 1
NAMES = {"gen": "generator", "disc": "discriminator", "enc": "encoder"}  # players, as config.json names their networks


class Found(NamedTuple):
    scores: np.ndarray  # (seeds, n) float64
    images: np.ndarray  # (n, h, w, c) float32, the normal image that each was taken for, by the first seed
    heat: np.ndarray  # (n, h, w) float32, what differs; 1 is the most that normal images show


class Calibration(NamedTuple):
    """What normal images looked like: logarithms of their residuals, their heat, and the scores of held-out ones."""

    mean: dict[str, list[float]]  # {residual: one a seed}
    deviation: dict[str, list[float]]
    heat: float
    held: list[float]  # sorted


@dataclasses.dataclass(frozen=True)
class Detector:
    """weights: those of each seed. `score` is the mean over seeds."""

    method: ModuleType
    networks: parts.Networks
    weights: Sequence[parts.Weights]
    calibration: Calibration

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.networks["gen"].shape

    @classmethod
    def of(
        cls, method: ModuleType, networks: parts.Networks, weights: Sequence[Any], seen: np.ndarray, held: np.ndarray
    ) -> "Detector":
        """Calibrated: by normal images uint8 (n, h, w, c) that training has seen, and by others that it has not.

        A score is a sum over residuals r of (log r - mean) / deviation, mean and deviation of those seen: residuals of
        any scale count the same. Held-out images have no part in it, so that their scores are exchangeable with those
        of new normal images, which is what the threshold stands on.
        """
        raw, _, heat = _look(method, networks, weights, seen)
        logs = {name: np.log(values) for name, values in raw.items()}
        mean = {name: x.mean(1).tolist() for name, x in logs.items()}
        deviation = {name: np.maximum(x.std(1), 1e-6).tolist() for name, x in logs.items()}
        most = max(float(np.quantile(heat, QUANTILE)), TINY)
        detector = cls(method, networks, weights, Calibration(mean, deviation, most, []))
        scores = np.sort(detector.look(held).scores.mean(0)).tolist()
        return dataclasses.replace(detector, calibration=detector.calibration._replace(held=scores))

    def look(self, images: np.ndarray) -> Found:
        """Images uint8 (n, h, w, c)."""
        if images.dtype != np.uint8 or images.shape[1:] != tuple(self.shape) or not len(images):
            raise InputError(f"images {images.dtype} {images.shape}: this detector looks at uint8 (n, {self.shape})")
        raw, again, heat = _look(self.method, self.networks, self.weights, images)
        mean, deviation = (
            {name: np.asarray(values)[:, None] for name, values in table.items()}
            for table in (self.calibration.mean, self.calibration.deviation)
        )
        scores = sum((np.log(raw[name]) - mean[name]) / deviation[name] for name in raw)
        return Found(np.asarray(scores), again, heat / self.calibration.heat)

    def threshold(self, rate: float) -> float:
        """Scores above it are flagged: at most `rate` of new normal images (`detection.threshold`)."""
        return detection.threshold(np.asarray(self.calibration.held), rate)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Scores (n,) -> how often a normal image scores as high, (1 + #) / (1 + n) of the held-out ones."""
        held = np.asarray(self.calibration.held)
        return (1 + len(held) - np.searchsorted(held, scores, side="left")) / (1 + len(held))

    def save(self, run: epath.PathLike) -> None:
        text = json.dumps({"method": self.method.__name__, **self.calibration._asdict()}, allow_nan=False)
        files.write(epath.Path(run) / FILE, text + "\n")


def find(name: str) -> ModuleType:
    """A method, `joint` or `pkg.module`."""
    return lookup.module("method", name, anomaly, NEEDED)


def named(networks: parts.Networks) -> dict[str, Any]:
    """The networks, for config.json."""
    return {NAMES.get(player, player): trained.network(module) for player, module in networks.items()}


def load(run: epath.PathLike, *, step: int | None = None, allow: bool = False) -> Detector:
    """The detector of a run directory, which `save` was called for.

    allow: whether a method or network outside jaxgan may be imported, which runs its code.
    Raises InputError for a directory that is no such run.
    """
    run = files.reach(run)
    stored = flags.read(run)
    path = run / FILE
    try:
        told = json.loads(path.read_text())
        name = str(told.pop("method"))
        calibration = Calibration(**told)
        seeds = {len(x) for table in (calibration.mean, calibration.deviation) for x in table.values()}
        (count,) = seeds
        np.asarray([calibration.heat, *calibration.held], np.float64)
    except FileNotFoundError:
        raise InputError(f"{str(run)!r} is no finished anomaly detector: it holds no {FILE}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {' '.join(str(error).split())[:120]}") from None
    if not allow and not name.startswith(f"{anomaly.__name__}."):
        raise InputError(f"the method {name!r} lies outside {anomaly.__name__}; to run it: --allow_code, allow=True")
    method = find(name.rpartition(".")[2] if name.startswith(f"{anomaly.__name__}.") else name)
    players: dict[Any, str] = {text: player for player, text in NAMES.items()}
    described = stored.get("networks")
    if not isinstance(described, dict):
        raise InputError(f"the config.json of {str(run)!r} names no networks")
    networks = {players.get(text) or text: trained.build(of, allow) for text, of in described.items()}
    kept = checkpoint.read(run / "checkpoints", step).get("players", {})
    try:
        weights = {name: {"params": kept[name]["params"], **kept[name].get("variables", {})} for name in networks}
        detector = Detector(method, networks, several.each(jax.device_put(weights), count), calibration)
        shapes = functools.partial(_residuals, method, tuple(networks.items()))
        found, _, _ = jax.eval_shape(shapes, detector.weights[0], jax.ShapeDtypeStruct((1, *detector.shape), np.uint8))
        assert set(found) == set(calibration.mean), f"its residuals are {sorted(found)}"
    except Exception as error:  # whatever networks say to weights that are not their own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the checkpoint of {str(run)!r} does not fit the networks of its config: {reason}") from error
    return detector


@functools.partial(jax.jit, static_argnums=(0, 1))
def _residuals(method: ModuleType, networks: tuple, weights: Any, images: jax.Array) -> tuple:
    with jax.default_matmul_precision("highest"):
        x = to_float(images)
        found = method.residuals(dict(networks), weights, x)
        heat = jnp.mean(parts.blurred(jnp.square(x - found.images)), -1)
    return {name: jnp.maximum(score, TINY) for name, score in found.scores.items()}, found.images, heat


def _look(method: ModuleType, networks: parts.Networks, weights: Sequence[Any], images: np.ndarray) -> tuple:
    """{residual: (seeds, n) float64}, images (n, h, w, c) and heat (n, h, w) of the first seed."""
    look = functools.partial(_residuals, method, tuple(networks.items()))
    n, size = len(images), min(BATCH, len(images))
    scores, again, heat = [], [], []
    for start in range(0, n, size):
        part = images[np.minimum(np.arange(start, start + size), n - 1)]  # filled up: one compiled shape
        found = [jax.device_get(look(w, part)) for w in weights]
        scores.append({name: np.stack([f[0][name] for f in found])[:, : n - start] for name in found[0][0]})
        again.append(found[0][1][: n - start])
        heat.append(found[0][2][: n - start])
    joined = {name: np.concatenate([s[name] for s in scores], 1).astype(np.float64) for name in scores[0]}
    return joined, np.concatenate(again), np.concatenate(heat)
