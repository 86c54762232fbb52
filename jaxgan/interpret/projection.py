"""The point of a latent space whose image is nearest to a given one, by gradient descent on the point.

Adam from several starts (arXiv:1609.03552, arXiv:1802.05701), the best samples of many, on the distance of pixels and,
where there is a discriminator, of its features, as AnoGAN has it (arXiv:1703.05921, eq. 3 and 5).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgan import numerics
from jaxgan.canonical import canonical_convolutions
from jaxgan.interpret.spaces import Space

Features = Callable[[jax.Array, jax.Array | None], jax.Array]  # images (b, h, w, c), labels -> (b, ...)


class Projection(NamedTuple):
    points: np.ndarray  # (n, d)
    labels: np.ndarray | None  # (n,) of the best start
    images: np.ndarray  # (n, h, w, c)
    error: np.ndarray  # (n,) mean squared difference of pixels in [-1, 1]
    losses: np.ndarray  # (steps, n) of the best start of each


def psnr(error: np.ndarray) -> np.ndarray:
    """Decibels of a mean squared error of pixels in [-1, 1]."""
    return 10 * np.log10(4 / np.maximum(error, 1e-20))


@numerics.fixed()
def project(
    space: Space,
    targets: np.ndarray,
    key: jax.Array,
    *,
    labels: np.ndarray | None = None,
    features: Features | None = None,
    weight: float = 0.1,
    restarts: int = 8,
    steps: int = 300,
    rate: float = 0.1,
    candidates: int = 512,
) -> Projection:
    """Targets (n, h, w, c) in [-1, 1] -> the best of `restarts` descents for each.

    labels: (n,) classes of the targets for a conditional generator; None: the starts bring theirs.
    weight: of the features' squared distance, over the mean square of the target's, beside the mean square of pixels.
    rate: of Adam, falling to zero along half a cosine. candidates: samples among which the starts are the nearest;
      where labels are given, so many in all, and `restarts` of each wanted class at least.
    """
    n = len(targets)
    pool, drawn = _candidates(space, jax.random.fold_in(key, 0), labels, restarts, max(candidates, restarts))
    starts = _nearest(space, targets, pool, drawn, labels)[:, :restarts].reshape(-1)
    label = None if drawn is None else jnp.asarray(drawn[starts])
    wanted = jnp.repeat(jnp.asarray(targets, jnp.float32), restarts, 0)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(points: jax.Array, variables: dict, wanted: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = space.render(variables, points, label)
        total = jnp.square(images - wanted).mean((1, 2, 3))
        if features is not None:
            difference = jnp.square(features(images, label) - known).reshape(len(points), -1).mean(-1)
            total += weight * difference / (jnp.square(known).reshape(len(points), -1).mean(-1) + 1e-12)
        return total.sum(), total  # each point has a gradient of its own

    @jax.jit
    def descend(points: jax.Array, variables: dict, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
        known = wanted if features is None else features(wanted, label)

        def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
            points, state = carry
            gradient, totals = jax.grad(loss, has_aux=True)(points, variables, wanted, known)
            updates, state = optimizer.update(gradient, state, points)
            return (optax.apply_updates(points, updates), state), totals

        def steps_from(start: tuple) -> tuple[tuple, jax.Array]:
            return jax.lax.scan(step, start, None, steps)

        (points, _), totals = canonical_convolutions(steps_from)((points, optimizer.init(points)))
        return points, totals

    points, totals = jax.device_get(descend(jnp.asarray(pool[starts]), space.variables, wanted))
    best = np.arange(n) * restarts + totals[-1].reshape(n, restarts).argmin(1)
    chosen = None if label is None else np.asarray(label)[best]
    images = space.images(points[best], chosen)
    error = np.square(images - targets).mean((1, 2, 3))
    return Projection(points[best], chosen, images, error, totals[:, best])


def _candidates(
    space: Space, key: jax.Array, labels: np.ndarray | None, restarts: int, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (m, d) and, of a conditional generator, their classes (m,): those of the labels, as many of each."""
    classes = space.gan.generator.num_classes
    if not classes:
        return np.asarray(space.points(key, count)), None
    drawn = np.arange(count) % classes
    if labels is not None:
        wanted = np.unique(labels)
        drawn = np.repeat(wanted, max(restarts, count // len(wanted)))
    drawn = drawn.astype(np.int32)
    return np.asarray(space.points(key, len(drawn), drawn)), drawn


def _nearest(
    space: Space, targets: np.ndarray, pool: np.ndarray, drawn: np.ndarray | None, labels: np.ndarray | None
) -> np.ndarray:
    """Rows of the pool (n, m), those first whose images are nearest to each target; those of another class last.

    Of one batch and one target at a time: all differences at once are gigabytes of large images.
    """
    distance, start = np.full((len(targets), len(pool)), np.inf), 0
    for images in space.batches(pool, drawn):
        part = slice(start, start + len(images))
        for i, target in enumerate(targets):
            own = slice(None) if labels is None or drawn is None else drawn[part] == labels[i]
            distance[i, part][own] = np.square(images[own] - target).mean((1, 2, 3))
        start = part.stop
    return np.argsort(distance, axis=1, kind="stable")
