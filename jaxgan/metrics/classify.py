"""A small classifier of a set of images, trained in seconds: the features of metrics, and the accuracy of labels.

It is kept under the digest of what it was trained on, so that the same data never train it twice.
"""

import contextlib
import functools
import io
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from jaxgan import files, numerics

STEPS, BATCH, RATE = 600, 128, 2e-3


def scaled(images: np.ndarray) -> np.ndarray:
    """uint8 -> [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1


@functools.partial(jax.jit, static_argnums=0)
def _forward(classifier, params, images):
    logits, features = classifier.apply(params, images)
    return features, jnp.argmax(logits, -1)


@numerics.fixed()
def look(classifier: nn.Module, params: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and guessed classes (n,), in batches of one shape."""
    parts, size = [], min(256, len(images))
    for start in range(0, len(images), size):
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)
        part = jax.device_get(_forward(classifier, params, images[rows]))
        parts.append([x[: len(images) - start] for x in part])
    features, classes = (np.concatenate(x) for x in zip(*parts, strict=True))
    return features, classes


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit(classifier, steps, images, labels):
    """Adam with weight decay over `steps` batches, each image shifted by up to an eighth of its side."""
    init_key, key = jax.random.split(numerics.key(0))
    params = classifier.init(init_key, images[:1].astype(jnp.float32))
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, steps), weight_decay=0.05)
    reach = [max(n // 8, 1) for n in images.shape[1:3]]

    def loss(params, x, y):
        logits, _ = classifier.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, key):
        params, state = carry
        row_key, shift_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (BATCH,), 0, len(images), jnp.int32)
        x = images[rows].astype(jnp.float32) / 127.5 - 1
        pads = [(0, 0), (reach[0], reach[0]), (reach[1], reach[1]), (0, 0)]
        x = jnp.pad(x, pads, mode="edge")
        top, left = (
            jax.random.randint(k, (), 0, 2 * r + 1, jnp.int32)
            for k, r in zip(jax.random.split(shift_key), reach, strict=True)
        )
        x = jax.lax.dynamic_slice(x, (0, top, left, 0), (BATCH, *images.shape[1:]))
        updates, state = optimizer.update(jax.grad(loss)(params, x, labels[rows]), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0][0]


@numerics.fixed()
def train(classifier: nn.Module, images: np.ndarray, labels: np.ndarray) -> Any:
    """Parameters, of images uint8 (n, h, w, c) and their classes (n,)."""
    return jax.device_get(_fit(classifier, STEPS, images, labels))


def write(path: epath.Path, params: Any) -> None:
    """Keeps parameters for `read`."""
    buffer = io.BytesIO()
    leaves = {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(params)
    }
    np.savez(buffer, **leaves)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the training the next time
        files.write(path, buffer.getvalue())


def read(path: epath.Path, classifier: nn.Module, shape: tuple[int, int, int]) -> Any:
    """The cached parameters, or None: no file, or one that is not whole."""
    template = jax.eval_shape(classifier.init, numerics.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            leaves = [stored[jax.tree_util.keystr(p, simple=True, separator="/")] for p, _ in paths]
    except Exception:  # a damaged zip shows as many kinds of error, and each means: train it again
        return None
    if any(a.shape != b.shape for a, (_, b) in zip(leaves, paths, strict=True)):
        return None
    return jax.tree.unflatten(structure, leaves)
