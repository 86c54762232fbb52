"""Perceptual path length (arXiv:1812.04948, section 4.1, eq. 2): how abruptly images change along a path of latents.

    E |f(G(slerp(z1, z2; t))) - f(G(slerp(z1, z2; t + ε)))|² / ε²,     t uniform in [0, 1], ε = 1e-4

The published figure has LPIPS of VGG-16 for f, crops faces, and drops the lowest and highest hundredth of the values.
Here f are the features of any network, so it compares generators of one data set in the same features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgan import numerics
from jaxgan.errors import InputError

EPSILON = 1e-4
OUTSIDE = 0.01  # share of values that is dropped at either end


class PathLength(NamedTuple):
    mean: float  # without the extremes
    error: float  # standard error of that mean
    lengths: np.ndarray  # (n,) all of them


def slerp(a: jax.Array, b: jax.Array, t: jax.Array) -> jax.Array:
    """Along the great circle between the directions of a and b (n, d), t (n, 1) from 0 to 1; unit vectors (n, d)."""
    a, b = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cosine = jnp.sum(a * b, axis=1, keepdims=True)
    angle = t * jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    across = b - cosine * a
    across = across / jnp.maximum(jnp.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    return a * jnp.cos(angle) + across * jnp.sin(angle)


@numerics.fixed()
def path_length(
    features: Callable[[Any], np.ndarray],
    latents: tuple[jax.Array, jax.Array],
    key: jax.Array,
    epsilon: float = EPSILON,
) -> PathLength:
    """features: latents (n, d) -> (n, ...), in one precision throughout. latents: two sets (n, d), the paths' ends.

    The precision is float32 at least: bfloat16 has steps of 2^-8, forty times ε, and a length would be their rounding.
    A generator of N(0, I) sees points of the length that such latents have, √d.
    """
    first, second = latents
    if len(first) < 2:
        raise InputError(f"a path length of {len(first)} paths: expected at least 2")
    t = jax.random.uniform(key, (len(first), 1), jnp.float32)
    radius = np.sqrt(first.shape[1])
    here, there = (np.asarray(features(radius * slerp(first, second, t + e)), np.float64) for e in (0.0, epsilon))
    lengths = np.square(here - there).reshape(len(first), -1).sum(1) / epsilon**2
    low, high = np.quantile(lengths, [OUTSIDE, 1 - OUTSIDE])
    kept = lengths[(lengths >= low) & (lengths <= high)]
    return PathLength(float(kept.mean()), float(kept.std(ddof=1) / np.sqrt(len(kept))), lengths)
