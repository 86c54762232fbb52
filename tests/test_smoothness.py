"""Perceptual path length of generators whose length is known; the classification accuracy score of real images."""

import jax
import numpy as np
import pytest

from jaxgan import data
from jaxgan.errors import InputError
from jaxgan.metrics import cas, classify
from jaxgan.metrics.smoothness import path_length, slerp
from tests.runs import optimised_classifier

__all__ = ["optimised_classifier"]  # a fixture


def test_slerp_is_the_great_circle():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 7))
    t = rng.uniform(size=(50, 1))
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    angle = np.arccos((u * v).sum(1, keepdims=True))
    expected = (np.sin((1 - t) * angle) * u + np.sin(t * angle) * v) / np.sin(angle)
    np.testing.assert_allclose(slerp(a, b, t), expected, atol=2e-6)
    np.testing.assert_allclose(slerp(a, b, 0 * t), u, atol=2e-6)


def test_the_length_of_a_linear_generator():
    """Of the latent itself a path's length is √d times the angle between its ends; three times as much, of 3 z."""
    keys = jax.random.split(jax.random.key(0), 3)
    first, second = (jax.random.normal(key, (400, 16)) for key in keys[:2])
    u, v = (np.asarray(x, np.float64) for x in (first, second))
    angle = np.arccos((u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1))
    lengths = np.sort(16 * angle**2)
    one = path_length(np.asarray, (first, second), keys[2])
    three = path_length(lambda z: 3 * np.asarray(z), (first, second), keys[2])
    np.testing.assert_allclose(np.sort(one.lengths), lengths, rtol=0.03)
    assert one.mean == pytest.approx(lengths[4:-4].mean(), rel=0.01)  # a hundredth dropped at either end
    assert three.mean == pytest.approx(9 * one.mean, rel=1e-3)
    with pytest.raises(InputError, match="1 paths"):
        path_length(np.asarray, (first[:1], second[:1]), keys[2])


def test_accuracy_score(monkeypatch):
    monkeypatch.setattr(classify, "STEPS", 200)
    digits = data.read_all(data.load("digits"))
    images, labels = digits["image"], digits["label"]
    right = cas.score(images[:1300], labels[:1300], images[1300:], labels[1300:], 10)
    assert right.accuracy > 0.9 and right.per_class.shape == (10,)
    weights = np.bincount(labels[1300:], minlength=10) / len(labels[1300:])
    assert right.accuracy == pytest.approx(weights @ right.per_class)
    wrong = cas.score(images[:1300], (labels[:1300] + 1) % 10, images[1300:], labels[1300:], 10)
    assert wrong.accuracy < 0.1
    with pytest.raises(InputError, match="no samples of class 3"):
        cas.score(images[labels != 3], labels[labels != 3], images, labels, 10)
    with pytest.raises(InputError, match="differ in shape"):
        cas.score(images, labels, images[:, :7], labels, 10)
