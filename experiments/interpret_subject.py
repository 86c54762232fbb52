"""What the page of `experiments.interpret` is about: a run, its samples, and how pictures of them are made."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgan import loop, numerics, report
from jaxgan.critic import Critic
from jaxgan.images import to_uint8
from jaxgan.interpret import directions
from jaxgan.interpret.spaces import Space
from jaxgan.metrics import embed
from jaxgan.metrics.reference import Reference, reference
from jaxgan.sources import Source

REAL = 10_000  # training images, at most, among which neighbours are looked for
MEASURED = 32  # samples by which the effect of a direction is measured
STEPS = np.linspace(-3.0, 3.0, 9)  # of a walk, in standard deviations


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run. Where there is no critic, no source or no network, `missing` says why under "critic" and "data"."""

    space: Space
    critic: Critic | None
    source: Source | None
    network: embed.Network | None  # a classifier of the source
    accuracy: float | None  # of the network, on images that it has not seen
    targets: np.ndarray | None  # uint8 (n, h, w, c) to project; None: some of the source
    missing: dict[str, str]

    @property
    def classes(self) -> int:
        return self.space.gan.generator.num_classes

    def labels(self, n: int) -> np.ndarray | None:
        """In turn, as `Trained.sample` has them; None for an unconditional generator."""
        return self.space.gan.labels(None, n)


@dataclasses.dataclass(frozen=True)
class Views:
    """What the sections share: samples, their features, and the sample that is to be explained."""

    config: Any
    subject: Subject
    layer: str

    @property
    def space(self) -> Space:
        return self.subject.space

    @functools.cached_property
    def key(self) -> jax.Array:
        return numerics.key(self.config.seed)

    @functools.cached_property
    def points(self) -> np.ndarray:
        """(num, d): the first samples of the seed."""
        return np.asarray(self.space.points(self.key, self.config.num, self.labels))

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        return self.subject.labels(self.config.num)

    @functools.cached_property
    def images(self) -> np.ndarray:
        return self.space.images(self.points, self.labels)

    @functools.cached_property
    def own_label(self) -> int | None:
        """The class of the sample that is explained, and of the walks."""
        if not self.subject.classes:
            return None
        own = self.config.label
        return self.config.sample % self.subject.classes if own is None else own

    @functools.cached_property
    def own(self) -> np.ndarray:
        """(d,): the point of that sample."""
        n = self.config.sample + 1
        labels = None if self.own_label is None else np.full(n, self.own_label, np.int32)
        return np.asarray(self.space.points(self.key, n, labels))[-1]

    @functools.cached_property
    def own_image(self) -> np.ndarray:
        return self.at_class(self.own[None])[0]

    def at_class(self, points: np.ndarray) -> np.ndarray:
        """Images of points (..., d), all of the walks' class: (prod, h, w, c)."""
        flat = points.reshape(-1, points.shape[-1]).astype(np.float32)
        label = None if self.own_label is None else np.full(len(flat), self.own_label, np.int32)
        return self.space.images(flat, label)

    def classes_of(self, images: np.ndarray) -> np.ndarray | None:
        """(n,) as the classifier sees them; None where the data have no labels, or are not there."""
        if self.subject.network is None:
            return None
        logits = embed.embed(self.subject.network, [images]).logits
        return None if logits is None else logits.argmax(-1)

    @functools.cached_property
    def real(self) -> Reference | None:
        """Features of training images."""
        if self.subject.network is None or self.subject.source is None:
            return None
        count = min(REAL, self.subject.source.num_examples)
        return reference(self.subject.network, self.subject.source, count, loop.cache_dir())

    @functools.cached_property
    def spectrum(self) -> directions.Spectrum:
        """Of the derivative of the image at that sample."""
        derivative = directions.jacobian(self.space.at(self.own_label), jnp.asarray(self.own))
        return directions.spectrum(derivative, self.config.directions)

    def effect(self, vectors: np.ndarray) -> list["Effect"]:
        """Of unit directions (k, d), at samples of all classes."""
        points, n = self.points[:MEASURED], min(MEASURED, len(self.points))
        labels = None if self.labels is None else self.labels[:n]
        before = self.classes_of(self.space.images(points, labels))
        found = []
        for vector in vectors:
            sigma = directions.spread(self.points, vector)
            ends = directions.walks(points, vector, sigma * np.array([-2.0, -0.5, 0.5, 2.0]))
            flat = ends.reshape(-1, points.shape[1])
            images = self.space.images(flat, None if labels is None else np.repeat(labels, 4))
            by_step = images.reshape(n, 4, *images.shape[1:])
            change = float(np.sqrt(np.square(by_step[:, 2] - by_step[:, 1]).mean()))
            after = self.classes_of(by_step[:, [0, 3]].reshape(-1, *images.shape[1:]))
            kept = None if before is None or after is None else float(np.mean(after == np.repeat(before, 2)))
            found.append(Effect(sigma, change, kept))
        return found

    def strip(self, vectors: np.ndarray, point: np.ndarray) -> np.ndarray:
        """A picture: one row for each direction (k, d), through `point` in the middle, from -3σ to 3σ."""
        rows = [point + directions.spread(self.points, v) * STEPS[:, None] * v for v in vectors]
        return report.grid(self.at_class(np.stack(rows)), columns=len(STEPS))


class Effect(NamedTuple):
    sigma: float  # standard deviation of the samples' points along the direction
    change: float  # root mean square of the pixels' change, in [-1, 1], from -σ/2 to σ/2
    kept: float | None  # share of images that are of the same class to a classifier at -2σ and 2σ


def rgb(images: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] or uint8 (n, h, w, c) -> uint8 (n, h, w, 3); RGBA on white."""
    images = report.on_white(to_uint8(np.asarray(images)))
    if images.shape[-1] == 2:
        images = np.concatenate([images, np.zeros_like(images[..., :1])], -1)
    return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images[..., :3]


def heat(values: np.ndarray, together: bool = False) -> np.ndarray:
    """(n, h, w), each scaled to its largest, or all `together` -> uint8 (n, h, w, 3): black, red, yellow, white."""
    largest = np.abs(values).max(None if together else (1, 2), keepdims=True)
    scaled = 3 * np.abs(values) / np.maximum(largest, 1e-12)
    return np.round(255 * np.clip(scaled[..., None] - np.arange(3), 0, 1)).astype(np.uint8)


def signed(values: np.ndarray) -> np.ndarray:
    """(n, h, w), each scaled to its own largest -> uint8 (n, h, w, 3): blue below 0, white, red above."""
    scaled = values / np.maximum(np.abs(values).max((1, 2), keepdims=True), 1e-12)
    fade = 1 - np.abs(scaled)
    channels = [np.where(scaled > 0, 1, fade), fade, np.where(scaled < 0, 1, fade)]
    return np.round(255 * np.stack(channels, -1)).astype(np.uint8)


def enlarged(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, h, w) -> (n, *size), each value over as many pixels as go to it."""
    rows, columns = (np.arange(wide) * small // wide for wide, small in zip(size, maps.shape[1:], strict=True))
    return maps[:, rows][:, :, columns]


def bars(values: np.ndarray, height: int = 120) -> np.ndarray:
    """A picture of values >= 0, one bar each: uint8 (height, w, 3)."""
    width = max(3, min(12, 640 // max(len(values), 1)))
    picture = np.full((height, width * len(values) + 8, 3), 255, np.uint8)
    tall = np.round((height - 8) * values / max(values.max(initial=0), 1e-300)).astype(int)
    for i, h in enumerate(tall):
        left = 4 + i * width
        picture[height - 4 - max(h, 1) : height - 4, left : left + width - 1] = (40, 96, 180)
    return picture
