"""Synthetic images of each class: those of a conditional generator that a filter lets pass.

A filter is a classifier that is to be sure of the class that was asked for, or the generator's own discriminator
(`jaxgan/metrics/rejection.py`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxgan import critic, trained
from jaxgan.images import to_uint8
from jaxgan.metrics import classify, recipe, rejection

# Images uint8 (n, h, w, c) and the class that they were asked for -> which pass (n,), and how good each is (n,)
Judge = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class Synthetic(NamedTuple):
    images: np.ndarray  # uint8 (classes * num, h, w, c)
    labels: np.ndarray
    passed: list[float]  # share of what was made of each class that the filter let pass
    filled: list[int]  # how many of each class did not pass, and are there nevertheless


def by_confidence(classifier: nn.Module, params: Any, least: float) -> Judge:
    def judge(images: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
        sure = recipe.probabilities(classifier, params, images)[:, label]
        return sure >= least, sure

    return judge


def by_rejection(network: critic.Critic, percentile: float, seed: int) -> Judge:
    """Each class by itself: the largest logit seen of it so far is its maximum.

    A discriminator that tells the class instead of seeing it (AC-GAN) judges the image alone.
    """
    rng, largest = np.random.default_rng(seed), dict[int, float]()

    def judge(images: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
        logits = network.logits(classify.scaled(images), label if network.sees_class else None)
        largest[label] = max(largest.get(label, -np.inf), float(logits.max()))
        chance = rejection.acceptance(logits, largest[label], percentile)
        return rng.random(len(images)) < chance, chance

    return judge


def synthesise(gan: trained.Trained, num: int, tries: int, key: jax.Array, judge: Judge | None = None) -> Synthetic:
    """`num` images of each class: those that pass, in the order in which they are made, `num` at a time.

    Where of `tries` times as many fewer pass, the best of those that do not fill up.
    """
    chosen, labels, passed, filled = [], [], [], []
    for c in range(gan.generator.num_classes):
        made, fine, good = [], [], []
        for i in range(tries):
            z = gan.latents(jax.random.fold_in(jax.random.fold_in(key, c), i), num)
            made.append(to_uint8(gan.images(z, c)))
            mask, score = judge(made[-1], c) if judge else (np.ones(num, bool), np.zeros(num))
            fine.append(mask)
            good.append(score)
            if sum(mask.sum() for mask in fine) >= num:
                break
        mask = np.concatenate(fine)
        rest = np.flatnonzero(~mask)
        rest = rest[np.argsort(-np.concatenate(good)[rest], kind="stable")]
        chosen.append(np.concatenate(made)[np.concatenate([np.flatnonzero(mask), rest])[:num]])
        labels.append(np.full(num, c, np.int32))
        passed.append(float(mask.mean()))
        filled.append(max(num - int(mask.sum()), 0))
    return Synthetic(np.concatenate(chosen), np.concatenate(labels), passed, filled)
