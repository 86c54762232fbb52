"""Hyper-parameters that change over a run, as functions of the images seen."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def anneal(values: Sequence[float], period: float) -> float | Callable[[jax.Array], jax.Array]:
    """One value, which stays; or (v0, v1): v0 + ½ (1 - cos(π t / T)) (v1 - v0) for T = `period` images, then v1.

    The schedule of R3GAN (arXiv:2501.05441, appendix) for learning rate, β2, penalty weight and averaging.
    """
    if len(values) == 1:
        return values[0]
    start, end = values

    def at(images: jax.Array) -> jax.Array:
        t = jnp.minimum(images / period, 1.0)
        return start + 0.5 * (1 - jnp.cos(jnp.pi * t)) * (end - start)

    return at


def at(value: float | Callable[[jax.Array], jax.Array], images: jax.Array) -> float | jax.Array:
    """The value of a number or a schedule."""
    return value(images) if callable(value) else value
