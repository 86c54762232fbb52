"""The figure that a run prints: how far samples are from real images in the eyes of a classifier of the real set.

The classifier is trained on the real set's own labels; where there are none, on telling by how much an image was turned
(arXiv:1803.07728), which needs no labels and yields features too. Distances are Fréchet distances of its last hidden
layer; they compare runs on one data set and nothing else. The yardstick is the distance between two halves of the real
set, each no larger than the number of samples: a perfect generator comes near it, and no finite sample reaches 0.
"""

import dataclasses
import hashlib
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath

from jaxgan import layout
from jaxgan.errors import InputError
from jaxgan.metrics import classify, frechet
from jaxgan.models.classifier import Classifier
from jaxgan.sources import Source

LEAST = 4  # images: each half of the real set has a covariance
REFERENCE = 10_000  # real images, at most, whose features are the reference
HELD_OUT = 7  # every so manieth image is kept from training, to measure the accuracy; prime, so that all turns are


def check(source: Source) -> None:
    """Raises InputError for too few images to train a judge of."""
    if source.num_examples < LEAST:
        raise InputError(
            f"{source.name} has {source.num_examples} images; expected at least {LEAST} to train a classifier on and "
            "compare their halves"
        )


def classes(source: Source, n: int) -> np.ndarray:
    """What to ask a conditional generator for: int32 (n,), as frequent as in the data."""
    rows = np.random.default_rng(0).permutation(source.num_examples)[:REFERENCE]
    return np.resize(source.read(rows)["label"], n)


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
        layout.check(images.shape, "images to judge")
        features, classes = classify.look(self.classifier, self.params, images)
        result = {"distance": frechet.distance(self.reference, frechet.moments(features)), "halves": self.halves}
        if self.labels is not None:
            shares = np.bincount(classes, minlength=self.classifier.num_classes) / len(classes)
            result |= {f"share_{i}": float(share) for i, share in enumerate(shares)}
        return result


def train(source: Source, samples: int, cache: epath.PathLike | None = None) -> Judge:
    """A judge of `samples` images at a time. Its classifier is kept in the folder `cache`, under the data's own digest.

    The first time costs the training of the classifier, `classify.STEPS` batches. Raises InputError as `check` does.
    """
    check(source)
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
    digest = hashlib.sha256(
        seen.tobytes() + labels.tobytes() + repr((classifier, classify.STEPS, classify.BATCH, classify.RATE)).encode()
    )
    path = epath.Path(cache) / f"classifier-{digest.hexdigest()[:24]}.npz" if cache else None
    params = classify.read(path, classifier, source.shape) if path else None
    if params is None:
        params = classify.train(classifier, seen[~held], labels[~held])
        if path:
            classify.write(path, params)
    _, guessed = classify.look(classifier, params, classify.scaled(seen[held]))
    features, _ = classify.look(classifier, params, classify.scaled(images))
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
