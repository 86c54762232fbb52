"""A trained detector: scores of images, where an image is not normal, and from which score on it is flagged.

detector = load("runs/anomaly"); scores = detector.score(images); flagged = detector.predict(images)      # (n,)

`look` also says where; `jaxgan.image_detector` also fits one.
"""

import dataclasses
import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import files, numerics
from jaxgan.anomaly import calibration, parts
from jaxgan.anomaly.calibration import TINY, Calibration
from jaxgan.data import to_float
from jaxgan.errors import InputError

FILE = "anomaly.json"
BATCH = 256  # images of one compiled call
QUANTILE = 0.999  # of the pixels of normal images have a heat within -1 and 1


class Found(NamedTuple):
    scores: np.ndarray  # (seeds, n) float64
    images: np.ndarray  # (n, h, w, c) float32, the normal image that each was taken for, by the first seed
    heat: np.ndarray  # (n, h, w) float32, how far too bright (above 0) or dark; normal images stay within -1 and 1


@dataclasses.dataclass(frozen=True)
class Detector:
    """weights: those of each seed, over which a score is the mean. hot: the heat that counts as 1."""

    method: ModuleType
    networks: parts.Networks
    weights: Sequence[parts.Weights]
    calibration: Calibration
    hot: float

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.networks["gen"].shape

    @classmethod
    def of(
        cls, method: ModuleType, networks: parts.Networks, weights: Sequence[Any], seen: np.ndarray, held: np.ndarray
    ) -> "Detector":
        """Calibrated: by normal images uint8 (n, h, w, c) that training has seen, and by others that it has not.

        A score is the sum over the standardised logarithms of the residuals.
        """
        raw, _, heat = _look(method, networks, weights, seen)
        hot = max(float(np.quantile(np.abs(heat), QUANTILE)), TINY)
        made = cls(method, networks, weights, Calibration.of(raw), hot)
        return dataclasses.replace(made, calibration=made.calibration.keeping(made.look(held).scores.mean(0)))

    def look(self, images: np.ndarray) -> Found:
        """Images uint8 (n, h, w, c)."""
        if images.dtype != np.uint8 or images.shape[1:] != tuple(self.shape) or not len(images):
            raise InputError(f"images {images.dtype} {images.shape}: this detector looks at uint8 (n, {self.shape})")
        raw, again, heat = _look(self.method, self.networks, self.weights, images)
        scores = np.sum(list(self.calibration.standardised(raw).values()), 0)
        return Found(scores, again, heat / self.hot)

    def score(self, images: np.ndarray) -> np.ndarray:
        """float64 (n,) of images uint8 (n, h, w) or (n, h, w, c), higher is more anomalous."""
        images = np.asarray(images)
        return self.look(images[..., None] if images.ndim == 3 else images).scores.mean(0)

    def predict(self, images: np.ndarray, false_positive_rate: float = 0.05) -> np.ndarray:
        """bool (n,), whether an image scores above the threshold, as at most such a share of new normal ones does."""
        return self.score(images) > self.calibration.threshold(false_positive_rate)

    def save(self, run: epath.PathLike) -> None:
        calibration.save(epath.Path(run) / FILE, self.method, self.calibration, hot=self.hot)


def load(run: epath.PathLike, *, allow: bool = False) -> Detector:
    """The detector of a run directory, which `save` was called for; arguments and errors as of `calibration.recall`."""
    run = files.reach(run)
    method, networks, weights, calibrated, rest = calibration.recall(run, FILE, "anomaly detector", allow)
    if not isinstance(rest.get("hot"), float) or not hasattr(networks.get("gen"), "shape"):
        raise InputError(f"cannot read {str(run / FILE)!r}: expected a number 'hot', and a network that makes images")
    made = Detector(method, networks, weights, calibrated, rest["hot"])
    image = jax.ShapeDtypeStruct((1, *made.shape), np.uint8)
    look = functools.partial(_residuals, method, tuple(networks.items()))
    calibration.check_fit(run, lambda: jax.eval_shape(look, weights[0], image)[0], calibrated)
    return made


@functools.partial(jax.jit, static_argnums=(0, 1))
def _residuals(method: ModuleType, networks: tuple, weights: Any, images: jax.Array) -> tuple:
    with jax.default_matmul_precision("highest"):
        x = to_float(images)
        found = method.residuals(dict(networks), weights, x)
        off = parts.blurred(x - found.images)
        heat = jnp.sqrt(jnp.mean(jnp.square(off), -1)) * jnp.sign(jnp.mean(off, -1))
    return {name: jnp.maximum(score, TINY) for name, score in found.scores.items()}, found.images, heat


@numerics.fixed()
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
