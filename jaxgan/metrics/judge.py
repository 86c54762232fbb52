"""The figure that a run prints: how far samples are from real images in the eyes of a classifier of the real set.

The classifier is trained on the real set's own labels; where there are none, on telling by how much an image was turned
(arXiv:1803.07728), which needs no labels and yields features too. Distances are Fréchet distances of its last hidden
layer; they compare runs on one data set and nothing else. The yardstick is the distance between two halves of the real
set, each no larger than the number of samples: a perfect generator comes near it, and no finite sample reaches 0.
"""

import contextlib
import dataclasses
import functools
import hashlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from jaxgan import files
from jaxgan.metrics import frechet
from jaxgan.models.classifier import Classifier
from jaxgan.sources import Source

REFERENCE = 10_000  # real images, at most, whose features are the reference
STEPS, BATCH, RATE = 600, 128, 2e-3
HELD_OUT = 7  # every so manieth image is kept from training, to measure the accuracy; prime, so that all turns are


@dataclasses.dataclass(frozen=True)
class Judge:
    classifier: nn.Module
    params: Any
    reference: frechet.Moments
    halves: float  # distance between two halves of the real set
    accuracy: float  # of the classifier, on real images kept from its training
    labels: np.ndarray | None  # of real images in random order; None for an unlabelled set

    def __call__(self, images: np.ndarray) -> dict[str, float]:
        """Samples (n, h, w, c) in [-1, 1] -> {"distance", "halves"} and, for labelled sets, the share of each class."""
        features, classes = _look(self.classifier, self.params, images)
        result = {"distance": frechet.distance(self.reference, frechet.moments(features)), "halves": self.halves}
        if self.labels is not None:
            shares = np.bincount(classes, minlength=self.classifier.num_classes) / len(classes)
            result |= {f"share_{i}": float(share) for i, share in enumerate(shares)}
        return result


def train(source: Source, samples: int, cache: epath.PathLike | None = None) -> Judge:
    """A judge of `samples` images at a time. Its classifier is kept in the folder `cache`, under the data's own digest.

    The first time costs the training of the classifier, `STEPS` batches.
    """
    rows = np.random.default_rng(0).permutation(source.num_examples)[:REFERENCE]
    data = source.read(rows)
    images, labels, labelled = data["image"], data["label"], source.num_classes > 1
    if labelled:
        classifier = Classifier(source.num_classes)
    else:
        turns = np.array([0, 2]) if source.shape[0] != source.shape[1] else np.arange(4)
        labels = turns[np.arange(len(images)) % len(turns)].astype(np.int32)
        classifier = Classifier(4)
    seen = images if labelled else np.stack([np.rot90(x, k) for x, k in zip(images, labels, strict=True)])
    held = np.arange(len(seen)) % HELD_OUT == 0
    digest = hashlib.sha256(seen.tobytes() + labels.tobytes() + repr((classifier, STEPS, BATCH, RATE)).encode())
    path = epath.Path(cache) / f"classifier-{digest.hexdigest()[:24]}.npz" if cache else None
    params = _read(path, classifier, source.shape) if path else None
    if params is None:
        params = _train(classifier, seen[~held], labels[~held])
        if path:
            _write(path, params)
    _, guessed = _look(classifier, params, _scaled(seen[held]))
    features, _ = _look(classifier, params, _scaled(images))
    half = min(len(images) // 2, samples)
    first, second = frechet.moments(features[:half]), frechet.moments(features[half : 2 * half])
    return Judge(
        classifier,
        params,
        reference=frechet.moments(features),
        halves=frechet.distance(first, second),
        accuracy=float(np.mean(guessed == labels[held])),
        labels=labels if labelled else None,
    )


def _scaled(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 127.5 - 1


@functools.partial(jax.jit, static_argnums=0)
def _forward(classifier, params, images):
    logits, features = classifier.apply(params, images)
    return features, jnp.argmax(logits, -1)


def _look(classifier, params, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and guessed classes (n,), in batches of one shape."""
    parts, size = [], min(256, len(images))
    for start in range(0, len(images), size):
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)
        part = jax.device_get(_forward(classifier, params, images[rows]))
        parts.append([x[: len(images) - start] for x in part])
    features, classes = (np.concatenate(x) for x in zip(*parts, strict=True))
    return features, classes


@functools.partial(jax.jit, static_argnums=0)
def _fit(classifier, images, labels):
    """Adam with weight decay over `STEPS` batches, each image shifted by up to an eighth of its side."""
    init_key, key = jax.random.split(jax.random.key(0))
    params = classifier.init(init_key, images[:1].astype(jnp.float32))
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, STEPS), weight_decay=0.05)
    reach = [max(n // 8, 1) for n in images.shape[1:3]]

    def loss(params, x, y):
        logits, _ = classifier.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, key):
        params, state = carry
        row_key, shift_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (BATCH,), 0, len(images))
        x = images[rows].astype(jnp.float32) / 127.5 - 1
        pads = [(0, 0), (reach[0], reach[0]), (reach[1], reach[1]), (0, 0)]
        x = jnp.pad(x, pads, mode="edge")
        top, left = (
            jax.random.randint(k, (), 0, 2 * r + 1) for k, r in zip(jax.random.split(shift_key), reach, strict=True)
        )
        x = jax.lax.dynamic_slice(x, (0, top, left, 0), (BATCH, *images.shape[1:]))
        updates, state = optimizer.update(jax.grad(loss)(params, x, labels[rows]), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, STEPS))[0][0]


def _train(classifier, images, labels):
    return jax.device_get(_fit(classifier, images, labels))


def _write(path: epath.Path, params: Any) -> None:
    import io

    buffer = io.BytesIO()
    leaves = {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(params)
    }
    np.savez(buffer, **leaves)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the training the next time
        files.write(path, buffer.getvalue())


def _read(path: epath.Path, classifier, shape) -> Any:
    """The cached parameters, or None: no file, or one that is not whole."""
    template = jax.eval_shape(classifier.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            leaves = [stored[jax.tree_util.keystr(p, simple=True, separator="/")] for p, _ in paths]
    except Exception:  # a damaged zip shows as many kinds of error, and each means: train it again
        return None
    if any(a.shape != b.shape for a, (_, b) in zip(leaves, paths, strict=True)):
        return None
    return jax.tree.unflatten(structure, leaves)
