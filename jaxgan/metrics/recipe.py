"""A classifier of labelled images, by a recipe: its steps, its classical augmentation, the origins of its images.

`classify.py` trains the one that metrics look through, always in the same way; here ways and images are what is
compared. All recipes of one length see as many images, whatever their origins and however few these hold.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.ndimage import map_coordinates

from jaxgan import numerics
from jaxgan.errors import InputError
from jaxgan.metrics.detection import auroc

CALL = 2**26  # bytes of images that go into one compiled call
BATCH = 256  # images that are looked at in one


class Part(NamedTuple):
    """Labelled images of one origin, of which each batch holds as many as of the others."""

    images: np.ndarray  # uint8 (n, h, w, c)
    labels: np.ndarray  # (n,)
    weight: float = 1.0  # of their mean loss, beside the others'


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Adam with decoupled weight decay, its rate along half a cosine to 0. Each image is changed anew in each step:

    shift: moved by up to this part of its side, each way
    rotate: turned by up to so many degrees
    zoom: enlarged or reduced by up to this factor
    mirror: flipped left to right, half of them
    """

    steps: int = 600
    batch: int = 128
    rate: float = 2e-3
    decay: float = 0.05
    shift: float = 0.0
    rotate: float = 0.0
    zoom: float = 1.0
    mirror: bool = False

    @property
    def plain(self) -> "Recipe":
        """The same without augmentation."""
        return dataclasses.replace(self, shift=0.0, rotate=0.0, zoom=1.0, mirror=False)


@numerics.fixed()
def fit(classifier: nn.Module, recipe: Recipe, parts: Sequence[Part], seed: int = 0) -> Any:
    """Parameters of a classifier, images -> (logits, features), after `recipe.steps` batches of the parts.

    Each part is gone through in an order of its own, again and again. The same seed gives the same weights to begin
    with. Raises InputError for a part without images and for a batch that the parts cannot share.
    """
    share = recipe.batch // len(parts)
    if share < 1 or not all(len(part.images) for part in parts):
        sizes = " and ".join(f"{len(part.images)}" for part in parts)
        raise InputError(f"{len(parts)} parts of {sizes} images for batches of {recipe.batch}: expected some of each")
    rng = np.random.default_rng(seed)
    rows = [order(rng, len(part.images), recipe.steps * share).reshape(-1, share) for part in parts]
    total = sum(part.weight for part in parts)
    weights = np.repeat([part.weight / total / share for part in parts], share).astype(np.float32)  # (b,)
    shape, key = parts[0].images.shape[1:], numerics.key(seed)
    carry = _start(classifier, recipe, shape, key)
    calls = math.ceil(recipe.steps * recipe.batch * math.prod(shape) / CALL)
    for steps in np.array_split(np.arange(recipe.steps), min(calls, recipe.steps)):
        images, labels = (
            np.concatenate([getattr(part, name)[r[steps]] for part, r in zip(parts, rows, strict=True)], 1)
            for name in ("images", "labels")
        )
        carry = _play(classifier, recipe, carry, (images, labels.astype(np.int32), steps), weights, key)
    return jax.device_get(carry[0])


def order(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """`count` places in [0, n): one permutation after another."""
    return rng.permuted(np.tile(np.arange(n), (-(-count // n), 1)), axis=1).ravel()[:count]


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(recipe.rate, recipe.steps), weight_decay=recipe.decay)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(classifier, recipe, shape, key):
    params = classifier.init(key, jnp.zeros((1, *shape)))
    return params, _optimizer(recipe).init(params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _play(classifier, recipe, carry, batches, weights, key):
    """Steps over images uint8 (steps, b, h, w, c), labels (steps, b) and the numbers of the steps."""
    optimizer = _optimizer(recipe)

    def loss(params, x, y):
        logits, _ = classifier.apply(params, x)
        return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def step(carry, batch):
        (params, state), (images, labels, number) = carry, batch
        x = augmented(jax.random.fold_in(key, number), images.astype(jnp.float32) / 127.5 - 1, recipe)
        updates, state = optimizer.update(jax.grad(loss)(params, x, labels), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, carry, batches)[0]


def augmented(key: jax.Array, images: jax.Array, recipe: Recipe) -> jax.Array:
    """Images (b, h, w, c), each changed by draws of its own, uniform in what the recipe allows."""
    if recipe.mirror:
        key, coin_key = jax.random.split(key)
        coins = jax.random.bernoulli(coin_key, jnp.float32(0.5), (len(images), 1, 1, 1))
        images = jnp.where(coins, images[:, :, ::-1], images)
    if recipe.shift or recipe.rotate or recipe.zoom != 1:
        u = jax.random.uniform(key, (len(images), 4), jnp.float32, minval=-1.0)
        side = jnp.array(images.shape[1:3], jnp.float32)
        angle, zoom = np.radians(recipe.rotate) * u[:, 0], recipe.zoom ** u[:, 1]
        images = jax.vmap(moved)(images, angle, zoom, recipe.shift * side * u[:, 2:])
    return images


def moved(image: jax.Array, angle: jax.Array, zoom: jax.Array, shift: jax.Array) -> jax.Array:
    """Image (h, w, c) turned by `angle` radians and enlarged by `zoom` about its centre, then shifted (down, right).

    Bilinear; outside, its edge goes on.
    """
    centre = (jnp.array(image.shape[:2]) - 1) / 2
    y, x = (jnp.arange(n) - c - s for n, c, s in zip(image.shape[:2], centre, shift, strict=True))
    sin, cos = jnp.sin(angle) / zoom, jnp.cos(angle) / zoom
    places = [cos * y[:, None] + sin * x + centre[0], cos * x - sin * y[:, None] + centre[1]]
    return jax.vmap(lambda plane: map_coordinates(plane, places, 1, "nearest"), -1, -1)(image)


@functools.partial(jax.jit, static_argnums=0)
def _look(classifier, params, images):
    logits, _ = classifier.apply(params, images.astype(jnp.float32) / 127.5 - 1)
    return jax.nn.softmax(logits)


@numerics.fixed()
def probabilities(classifier: nn.Module, params: Any, images: np.ndarray) -> np.ndarray:
    """Of each class, (n, k), for images uint8 (n, h, w, c); in batches of one shape."""
    found = []
    for start in range(0, len(images), BATCH):
        rows = np.minimum(np.arange(start, start + BATCH), len(images) - 1)
        found.append(np.asarray(_look(classifier, params, images[rows]))[: len(images) - start])
    return np.concatenate(found)


def scores(found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of probabilities (n, k) for images of classes `labels` (n,), all k of which occur.

    accuracy: share of the images whose class is the likeliest
    balanced_accuracy: mean over the classes of that share
    auroc: probability that an image of class 1 gets more of it than one of class 0; of k > 2, the mean over the
      classes, each against the rest
    """
    right = found.argmax(1) == labels
    counts = np.bincount(labels, minlength=found.shape[1])
    ranked = [auroc(found[:, i], labels == i) for i in (range(found.shape[1]) if found.shape[1] > 2 else (1,))]
    balanced = np.mean(np.bincount(labels, right, minlength=found.shape[1]) / counts)
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(balanced), "auroc": float(np.mean(ranked))}
