"""Hyper-parameters that change over a run, as functions of the images seen."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

FORMS = {"cosine": lambda t: 0.5 * (1 - jnp.cos(jnp.pi * t)), "linear": lambda t: t}  # from 0 to 1


def anneal(values: Sequence[float], period: float, form: str = "cosine") -> float | Callable[[jax.Array], jax.Array]:
    """One value, which stays; or (v0, v1): v0 + f(t / T) (v1 - v0) for T = `period` images, then v1.

    f(t) = ½ (1 - cos(π t)) is R3GAN's schedule (arXiv:2501.05441, appendix) for learning rate, β2, penalty weight and
    averaging; f(t) = t ("linear") that of the learning rates of SNGAN's authors.
    """
    if len(values) == 1:
        return values[0]
    start, end = values
    rise = FORMS[form]

    def at(images: jax.Array) -> jax.Array:
        return start + rise(jnp.minimum(images / period, 1.0)) * (end - start)

    return at


def at(value: float | Callable[[jax.Array], jax.Array], images: jax.Array) -> float | jax.Array:
    """The value of a number or a schedule."""
    return value(images) if callable(value) else value
