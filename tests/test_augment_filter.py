"""Which synthetic images are kept: by the classifier's confidence and by rejection sampling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import augment_filter
from jaxgan.metrics import rejection
from tests.runs import compile_quickly, narrow_dense

__all__ = ["compile_quickly", "narrow_dense"]  # fixtures


def test_exact_rejection_sampling_turns_samples_into_data():
    """Five outcomes whose densities are known: the logit of the best discriminator is their log ratio."""
    p, q = np.array([0.5, 0.2, 0.1, 0.15, 0.05]), np.array([0.1, 0.3, 0.3, 0.2, 0.1])
    for constant in (0.0, 3.0):  # a relativistic one knows it up to a constant
        logits = np.log(p / q) + constant
        chance = rejection.acceptance(logits, logits.max())
        np.testing.assert_allclose(chance, p / q / 5, rtol=1e-6)  # M = .5 / .1
        kept = q * chance
        np.testing.assert_allclose(kept / kept.sum(), p, rtol=1e-6)
        # With another sample known to be twice as good as the best of these, each passes half as often.
        np.testing.assert_allclose(rejection.acceptance(logits, logits.max() + np.log(2)), p / q / 10, rtol=1e-6)


def test_gamma_is_a_percentile_of_the_verdicts():
    logits = np.array([-3.0, 1.0, 0.0, 2.0, -1.0])
    chance = rejection.acceptance(logits, 2.0, percentile=50.0)
    assert chance[2] == pytest.approx(0.5), "of the median"
    assert list(np.argsort(chance)) == list(np.argsort(logits))
    assert (rejection.acceptance(logits, 2.0, percentile=80.0) < chance).all()
    below = np.exp(-1.0)  # by hand: F = d - log(1 - e^d) at d = -1 and -2
    f, median = -1 - np.log(1 - below), -2 - np.log(1 - below**2)
    assert chance[1] == pytest.approx(1 / (1 + np.exp(median - f)), rel=1e-6)


class Bright(nn.Module):
    """P(class 1) = σ(4 mean)."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x):
        mean = x.mean((1, 2, 3))
        return jnp.stack([0 * mean, 4 * mean], -1), mean


def test_confidence_keeps_what_is_sure_enough_of_the_asked_class():
    levels = np.array([0, 100, 120, 140, 255])
    images = np.broadcast_to(levels[:, None, None, None], (5, 4, 4, 1)).astype(np.uint8)
    sure = 1 / (1 + np.exp(-4 * (levels / 127.5 - 1)))
    for label, expected in ((1, sure), (0, 1 - sure)):
        mask, score = augment_filter.by_confidence(Bright(), {}, 0.55)(images, label)
        np.testing.assert_allclose(score, expected, rtol=1e-5)
        assert list(mask) == list(expected >= 0.55)
    assert list(augment_filter.by_confidence(Bright(), {}, 0.55)(images, 1)[0]) == [False, False, False, True, True]


class Critic:
    """Its verdict is the brightness; it sees classes, and calls the second one twice as good."""

    sees_class = True

    def logits(self, images, label):
        return images.mean((1, 2, 3)) + label * np.log(2)


def test_rejection_compares_within_a_class_and_remembers_its_best():
    images = np.resize(np.arange(256), 4096).astype(np.uint8)[:, None, None, None]
    logits = images[:, 0, 0, 0] / 127.5 - 1
    judge = augment_filter.by_rejection(Critic(), 50.0, seed=0)
    mask, chance = judge(images, 0)
    np.testing.assert_allclose(chance, rejection.acceptance(logits, 1.0, 50.0), rtol=1e-3)
    assert mask.mean() == pytest.approx(chance.mean(), abs=0.03), "kept with that probability"
    dark = logits < 0
    _, later = judge(images[dark], 0)
    np.testing.assert_allclose(later, rejection.acceptance(logits[dark], 1.0, 50.0), rtol=1e-3)
    assert np.abs(later - rejection.acceptance(logits[dark], logits[dark].max(), 50.0)).max() > 0.1
    _, other = judge(images, 1)
    np.testing.assert_allclose(other, chance, rtol=1e-3)  # though all of its logits lie higher


class Gan:
    """Images of one grey level: the number of the latent, which counts within a class and a round."""

    class generator:
        num_classes = 2
        latent = 1

    def latents(self, key, n):
        return jnp.arange(n)[:, None]

    def images(self, z, label):
        return np.broadcast_to(
            (np.asarray(z, np.float32)[:, :, None, None] + 10 * label) / 127.5 - 1, (len(z), 2, 2, 1)
        )


def test_synthetic_images_pass_or_the_best_of_the_rest_fill_up():
    def judge(images, label):
        level = images[:, 0, 0, 0].astype(int)
        return (level % 2 == 0) if label == 0 else level == 13, -np.abs(level - 15)

    found = augment_filter.synthesise(Gan(), 6, 4, jax.random.key(0), judge)
    assert list(found.labels) == [0] * 6 + [1] * 6
    levels = found.images[:, 0, 0, 0]
    assert list(levels[:6]) == [0, 2, 4, 0, 2, 4], "of two rounds, in their order"
    assert list(levels[6:]) == [13] * 4 + [15, 15], "of four rounds, and the best of those that did not pass"
    assert found.passed == [0.5, 1 / 6] and found.filled == [0, 2]
    everything = augment_filter.synthesise(Gan(), 6, 4, jax.random.key(0))
    assert list(everything.images[:, 0, 0, 0]) == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    assert everything.passed == [1.0, 1.0]
