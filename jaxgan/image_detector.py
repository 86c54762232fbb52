"""Anomaly detection in images from Python: `fit` on normal images, then `score` and `predict` others.

    detector = ImageDetector(seed=0).fit(normal)             # uint8 (n, h, w) or (n, h, w, c)
    scores = detector.score(images)                          # float64 (n,), higher is more anomalous
    flagged = detector.predict(images, 0.05)                 # bool (n,), at most 5% of normal images
    detector = ImageDetector.load("runs/mine")               # a run of `python -m experiments.anomaly`

experiments/anomaly.py is the same from the command line: with the same options it gives the same scores.
"""

import contextlib
import dataclasses
import functools
import io
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgan import config, data, loop, parallel, report, sources, workdir
from jaxgan.anomaly import calibration, detector, parts
from jaxgan.anomaly.detector import Detector
from jaxgan.config import Common
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game, State
from jaxgan.several import each, several

LEAST = 20  # normal images
SEEN = 1000  # training images that say how large residuals are
SHOWN = 32  # images in a picture of what they are taken for, or of heat maps


@dataclasses.dataclass(frozen=True)
class ImageOptions(Common):
    """What training a detector takes, beside the images."""

    method: str = option("joint", "a module of jaxgan/anomaly, or your own: joint, fanogan, bigan, ganomaly, pkg.mine")
    steps: int = option(600, "training steps, over which the learning rates fall")
    gan_steps: int = option(1500, "of the GAN that fanogan trains first")
    width: int = option(16, "channels of the widest layer of the networks")
    latent: int = option(16, "dimension of the latent")
    rate: float = option(1.0, "factor of the method's own learning rates")
    held_out: int = option(5, "one normal image in so many is held out, for the threshold")
    seeds: int = option(1, "detectors trained at once, whose mean scores; three cost a GPU little more than one")
    sample_every: int = option(0, "steps between pictures of images and what they are taken for", resumable=True)


def check(options: ImageOptions) -> None:
    """Raises InputError for options that no training can have."""
    calibration.check_options(options, ("width", "latent", "seeds", "gan_steps"))
    if options.gan_steps >= 2**31:
        raise InputError(f"--gan_steps={options.gan_steps}: expected at most {2**31 - 1:,}")


class ImageDetector:
    """An anomaly detector for images, uint8 (n, h, w) or (n, h, w, c).

    Args:
      workdir: directory of the run; started again, training resumes there. Empty: nothing is kept on disk.
      options: fields of `ImageOptions`, the flags of experiments/anomaly.py: method, steps, seed, seeds, width ...
    """

    def __init__(self, workdir: str = "", **options: Any):
        self.options = ImageOptions(workdir=workdir, **{"tensorboard": bool(workdir)} | options)
        self._trained: Detector | None = None

    @classmethod
    def load(cls, run: epath.PathLike, *, allow: bool = False) -> "ImageDetector":
        """The detector of a run directory; `allow` as of `jaxgan.anomaly.detector.load`."""
        made = cls()
        made._trained = detector.load(run, allow=allow)
        return made

    def fit(self, images: np.ndarray) -> "ImageDetector":
        """Trains on normal images, one in `held_out` of which is held out for the threshold; returns this detector."""
        check(self.options)
        config.check_numbers(self.options)
        loop.setup(self.options)
        source = sources.from_arrays("the images", np.asarray(images))
        task = split(self.options, "", source, np.arange(source.num_examples), None, None)
        method = calibration.find(self.options.method)
        devices = parallel.devices_for(self.options.batch_size, self.options.devices)
        with contextlib.ExitStack() as stack:
            options = self.options
            if options.workdir:
                loop.check(options)
            else:
                home = stack.enter_context(tempfile.TemporaryDirectory())
                options = dataclasses.replace(options, workdir=f"{home}/run")
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # it names a directory that will be gone
            self._trained = train(options, method, task, devices)
        return self

    @property
    def trained(self) -> Detector:
        """What was fitted or loaded: networks and calibration."""
        if self._trained is None:
            raise InputError("this detector is not fitted; call fit(images), or ImageDetector.load(run)")
        return self._trained

    def score(self, images: np.ndarray) -> np.ndarray:
        """float64 (n,), higher is more anomalous."""
        return self.trained.score(images)

    def predict(self, images: np.ndarray, false_positive_rate: float = 0.05) -> np.ndarray:
        """bool (n,), whether each image is anomalous: at most so many of new normal images are flagged."""
        return self.trained.predict(images, false_positive_rate)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is normal, and what to measure on: `anomalous` are bool (n,) labels of `test`, None without labels."""

    name: str
    train: data.Source
    held: data.Source
    test: data.Source | None
    anomalous: np.ndarray | None


def split(
    options: ImageOptions, name: str, source: data.Source, rows: np.ndarray, test: data.Source | None, anomalous: Any
) -> Task:
    """What to train on and what to hold out of the normal images, those at `rows`. Raises InputError for too few."""
    if len(rows) < max(LEAST, 2 * options.held_out):
        which = f" of class {name}" if name else ""
        raise InputError(f"{len(rows)} normal images{which}: expected {max(LEAST, 2 * options.held_out)} or more")
    rows = np.random.default_rng(0).permutation(rows)  # files may lie in an order that means something
    held = np.arange(len(rows)) % options.held_out == 0
    return Task(name, source.subset(rows[~held]), source.subset(rows[held]), test, anomalous)


def train(options: ImageOptions, method: Any, task: Task, devices: list[jax.Device]) -> Detector:
    """The detector of the run in `options.workdir`, trained as far as it is not."""
    source = task.train
    networks = method.networks(source.shape, options.width, options.latent, jnp.dtype(options.dtype))
    play = functools.partial(run, networks=networks, task=task, devices=devices)
    before: dict[str, Any] = {}
    if hasattr(method, "first"):
        plan = parts.Plan(options.gan_steps * options.batch_size, options.rate)
        gan = dataclasses.replace(options, workdir=f"{options.workdir}/gan", steps=options.gan_steps)
        before = play(gan, several(method.first(networks, plan), options.seeds))
    plan = parts.Plan(options.steps * options.batch_size, options.rate)
    game = several(method.game(networks, plan), options.seeds)
    weights = each(play(options, game, before, sample=pairs(method, networks, task, options.seeds)), options.seeds)
    rows = np.arange(min(SEEN, source.num_examples))
    held = data.read_all(task.held)["image"]
    trained = Detector.of(method, networks, weights, source.read(rows)["image"], held)
    with workdir.storing(options):
        trained.save(workdir.of(options))
    return trained


def run(
    options: ImageOptions,
    game: Game,
    before: parts.Weights | None = None,
    *,
    networks: parts.Networks,
    task: Task,
    devices: list[jax.Device],
    sample: Any = None,
) -> dict[str, Any]:
    """Plays a game, whose players begin with weights of a game `before` -> their weights, with an axis of seeds."""
    names: tuple[str, ...] = ("batch_size", "seed", "placement", "resident_gb", "mirror")
    placing = {name: getattr(options, name) for name in names}
    feed = data.place(task.train, draws=game.draws, devices=devices, **placing)
    about = {"networks": calibration.named(networks), "normal": task.name}
    integers = {name: np.zeros(1, np.int32) for name in ("label", "row")}
    example = {"image": np.zeros((1, *task.train.shape), np.float32), **integers}
    state = loop.run(
        game,
        feed,
        options,
        example=example,
        devices=devices,
        about=about,
        sample=sample,
        begin_from=lambda state: parts.beginning(state, before or {}),
    )
    return jax.device_get(parts.of(state))


def pairs(method: Any, networks: parts.Networks, task: Task, seeds: int) -> Callable[[State], np.ndarray]:
    """Held-out and, if there are any, anomalous images; to the right of each, what it is taken for."""

    @functools.cache
    def shown() -> np.ndarray:
        images = task.held.read(np.arange(min(SHOWN // 2, task.held.num_examples)))["image"]
        if task.test is None or task.anomalous is None:
            return images
        return np.concatenate([images, task.test.read(np.flatnonzero(task.anomalous)[: SHOWN // 2])["image"]])

    def sample(state: State) -> np.ndarray:
        weights = each(parts.of(state), seeds)[0]
        again = method.residuals(networks, weights, data.to_float(jnp.asarray(shown()))).images
        both = jnp.stack([data.to_float(jnp.asarray(shown())), again], 1)
        return report.grid(both.reshape(-1, *both.shape[2:]), columns=8)

    return sample
