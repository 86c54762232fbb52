"""What detectors of images and of tables share: how normal residuals look, a threshold, and a run that has both."""

import json
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxgan import anomaly, checkpoint, files, flags, lookup, several, trained
from jaxgan.anomaly import parts
from jaxgan.errors import InputError
from jaxgan.metrics import detection

NEEDED = ("networks", "game", "residuals")  # of a method
TINY = 1e-12  # below any residual that a float32 example leaves
NAMES = {"gen": "generator", "disc": "discriminator", "enc": "encoder"}  # players, as config.json names their networks


class Calibration(NamedTuple):
    """What normal examples looked like: logarithms of their residuals, and the sorted scores of held-out ones."""

    mean: dict[str, list[float]]  # {residual: one a seed}
    deviation: dict[str, list[float]]
    held: Sequence[float] = ()

    @classmethod
    def of(cls, raw: Mapping[str, np.ndarray]) -> "Calibration":
        """Of residuals {name: (seeds, n)}, all above 0."""
        for name, values in raw.items():
            _check(values, f"residual {name!r} of the normal example", np.isfinite)
        logs = {name: np.log(values) for name, values in raw.items()}
        deviation = {name: np.maximum(x.std(1), 1e-6).tolist() for name, x in logs.items()}
        return cls({name: x.mean(1).tolist() for name, x in logs.items()}, deviation)

    def standardised(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """(log r - mean) / deviation of residuals {name: (seeds, n)}: those of any scale then count the same."""
        found = {}
        for name, values in raw.items():
            mean, deviation = (np.asarray(table[name])[:, None] for table in (self.mean, self.deviation))
            found[name] = (np.log(values) - mean) / deviation
        return found

    def keeping(self, scores: np.ndarray) -> "Calibration":
        """With the scores (n,) of held-out normal examples.

        These have no part in mean and deviation, so that their scores are exchangeable with those of new normal
        examples, which is what the threshold stands on.
        """
        _check(scores, "score of the held-out example", np.isfinite)
        return self._replace(held=np.sort(scores).tolist())

    def threshold(self, rate: float) -> float:
        """Scores above it are flagged: at most `rate` of new normal examples (`detection.threshold`)."""
        return detection.threshold(np.asarray(self.held), rate)

    def footing(self, rate: float) -> str:
        """What that threshold stands on, in words."""
        n, least, surer = len(self.held), detection.enough(rate), detection.enough(rate, above=1)
        if n < least:
            return f"{n:,} held out, which are too few: expected {least:,} or more"
        return f"{n:,} held out" if n >= surer else f"the highest of only {n:,} held out, {surer:,} would be surer"

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Scores (n,) -> how often a normal example scores as high, (1 + #) / (1 + n) of the held-out ones.

        Raises InputError for a score that is NaN, neither high nor low; an infinite one is high.
        """
        _check(scores, "score of example", lambda x: ~np.isnan(x))
        return (1 + len(self.held) - np.searchsorted(self.held, scores, side="left")) / (1 + len(self.held))


class Recalled(NamedTuple):
    method: ModuleType
    networks: dict[str, Any]
    weights: Sequence[Any]  # one a seed
    calibration: Calibration
    rest: dict[str, Any]  # whatever else `save` was given


def _check(values: np.ndarray, what: str, good: Callable[[np.ndarray], np.ndarray]) -> None:
    """Raises InputError unless all values (..., n) are `good`."""
    bad = np.argwhere(~good(values))
    if len(bad):
        value, place = values[tuple(bad[0])], bad[0][-1]
        raise InputError(
            f"the {what} {place} is {value}, the first of {len(bad):,} such; expected a number: the networks may have "
            "diverged, or --method divides by 0"
        )


def check_options(options: Any, positive: Sequence[str]) -> None:
    """Raises InputError for options of training that none can have: `positive` are to be at least 1."""
    for name in positive:
        if getattr(options, name) < 1:
            raise InputError(f"--{name}={getattr(options, name)}: expected at least 1")
    if options.held_out < 2:
        raise InputError(f"--held_out={options.held_out}: expected at least 2, one in two")
    if not options.rate > 0:
        raise InputError(f"--rate={options.rate}: expected above 0")


def find(name: str) -> ModuleType:
    """A method, `joint` or `pkg.module`."""
    return lookup.module("method", name, anomaly, NEEDED)


def named(networks: parts.Networks) -> dict[str, Any]:
    """The networks, for config.json."""
    return {NAMES.get(player, player): trained.network(module) for player, module in networks.items()}


def save(path: epath.Path, method: ModuleType, calibration: Calibration, **rest: Any) -> None:
    told = {"method": method.__name__, **rest, **calibration._asdict()}
    files.write(path, json.dumps(told, allow_nan=False) + "\n")


def recall(run: epath.Path, file: str, kind: str, allow: bool = False) -> Recalled:
    """What `save` wrote into `file` of a run directory, with the networks and weights of the run.

    allow: whether a method or network outside jaxgan may be imported, which runs its code.
    Raises InputError for a directory that is no such run.
    """
    stored = flags.read(run)
    path = run / file
    try:
        told = json.loads(path.read_text())
        name = str(told.pop("method"))
        calibration = Calibration(*(told.pop(field) for field in Calibration._fields))
        (count,) = {len(x) for table in (calibration.mean, calibration.deviation) for x in table.values()}
        np.asarray(calibration.held, np.float64)
    except FileNotFoundError:
        raise InputError(f"{str(run)!r} is no finished {kind}: it holds no {file}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {' '.join(str(error).split())[:120]}") from None
    inside = name in {f"{anomaly.__name__}.{module}" for module in lookup.names(anomaly)}
    if not (inside or allow):
        raise InputError(f"the method {name!r} lies outside {anomaly.__name__}; to run it: --allow_code, allow=True")
    players: dict[Any, str] = {text: player for player, text in NAMES.items()}
    described = stored.get("networks")
    if not isinstance(described, dict):
        raise InputError(f"the config.json of {str(run)!r} names no networks")
    method = find(name.rpartition(".")[2] if inside else name)
    networks = {players.get(text) or text: trained.build(of, allow) for text, of in described.items()}
    kept = checkpoint.read(run / "checkpoints").get("players", {})
    try:
        weights = {name: {"params": kept[name]["params"], **kept[name].get("variables", {})} for name in networks}
        each = several.each(jax.device_put(weights), count)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"the checkpoint of {str(run)!r} holds other players than its config: {error}") from None
    return Recalled(method, networks, each, calibration, told)


def check_fit(run: epath.Path, shapes: Any, calibration: Calibration) -> None:
    """Raises InputError unless `shapes()`, the residuals of one example, are those that were calibrated."""
    try:
        found = set(shapes())
        assert found == set(calibration.mean), f"its residuals are {sorted(found)}"
    except Exception as error:  # whatever networks say to weights that are not their own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the checkpoint of {str(run)!r} does not fit the networks of its config: {reason}") from error
