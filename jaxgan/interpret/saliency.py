"""Where a discriminator looks: the gradient of its logit, plain (arXiv:1312.6034) and averaged over noisy copies of the
image, SmoothGrad (arXiv:1706.03825)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgan import numerics
from jaxgan.canonical import canonical_convolutions
from jaxgan.critic import Critic
from jaxgan.regularisers import logit


@functools.partial(jax.jit, static_argnums=0)
def _gradients(module: Any, variables: Any, images: jax.Array, label: Any, noise: jax.Array) -> jax.Array:
    """The mean over `noise` (n, *images.shape) of the gradient of each image's own logit, as they sum."""

    def verdict(x: jax.Array) -> jax.Array:
        return logit(module.apply(variables, x, label, train=False)).sum()

    def add(total: jax.Array, deviation: jax.Array) -> tuple[jax.Array, None]:
        return total + jax.grad(verdict)(images + deviation), None

    def total(noise: jax.Array) -> jax.Array:
        return jax.lax.scan(add, jnp.zeros_like(images), noise)[0]

    return canonical_convolutions(total)(noise) / len(noise)


@numerics.fixed()
def saliency(
    critic: Critic,
    images: np.ndarray,
    label: np.ndarray | None = None,
    *,
    copies: int = 1,
    noise: float = 0.15,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Images (n, h, w, c) in [-1, 1] -> (n, h, w), the largest |gradient| of the channels.

    copies: 1: the plain gradient; more: SmoothGrad, the mean over so many with normal noise, whose standard deviation
      is `noise` times the range of each image (section 3.2 there).
    """
    images = np.asarray(images, np.float32)
    if copies == 1:
        deviations = jnp.zeros((1, *images.shape))
    else:
        scale = noise * (images.max((1, 2, 3)) - images.min((1, 2, 3)))[:, None, None, None]
        deviations = scale * jax.random.normal(
            numerics.key(0) if key is None else key, (copies, *images.shape), jnp.float32
        )
    variables = {"params": critic.params, **critic.variables}
    seen = None if label is None or not critic.sees_class else jnp.asarray(label, jnp.int32)
    found = _gradients(critic.discriminator, variables, images, seen, deviations)
    return np.abs(np.asarray(found)).max(-1)
