"""Classification accuracy score (arXiv:1905.10887): what a classifier that has seen only samples knows of real images.

The published figure trains a ResNet-50 on as many samples as there are training images. Here it is the small classifier
of `classify.py`, so figures compare with each other, and with what real images in place of the samples give.
"""

from typing import NamedTuple

import numpy as np

from jaxgan import layout
from jaxgan.errors import InputError
from jaxgan.metrics import classify
from jaxgan.models.classifier import Classifier


class Score(NamedTuple):
    accuracy: float  # on the test images, trained on samples
    per_class: np.ndarray  # (k,) of the test images of each class; NaN where there are none


def score(
    images: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, classes: int, seed: int = 0
) -> Score:
    """Train on uint8 images (n, h, w, c) of classes `labels` (n,), test on `test` (m, h, w, c) and `test_labels`.

    seed: another one trains on the images in another order, from which the batches are drawn.
    """
    for given in (images, test):
        layout.check(given.shape, "images to classify")
    missing = np.setdiff1d(np.arange(classes), labels)
    if len(missing):
        raise InputError(f"no samples of class {missing[0]}: a classifier cannot learn it; expected all {classes}")
    if max(labels.max(), test_labels.max()) >= classes:
        raise InputError(f"class {max(labels.max(), test_labels.max())}: expected the classes 0 to {classes - 1}")
    if images.shape[1:] != test.shape[1:]:
        raise InputError(f"samples {images.shape[1:]} and test images {test.shape[1:]} differ in shape; --size helps")
    order = np.random.default_rng(seed).permutation(len(images))
    classifier = Classifier(classes)
    params = classify.train(classifier, images[order], labels[order].astype(np.int32))
    _, guessed = classify.look(classifier, params, classify.scaled(test))
    right = guessed == test_labels
    with np.errstate(invalid="ignore"):
        counts = np.bincount(test_labels, minlength=classes)
        per_class = np.bincount(test_labels, right, minlength=classes) / counts
    return Score(float(right.mean()), per_class)
