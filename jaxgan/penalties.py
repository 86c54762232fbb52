"""Penalties on the gradient of the critic with respect to its input images.

A penalty maps input gradients (b, h, w, c) to (b,), summed over pixels, in float32; the caller applies the mean and
the weight. The gradient is that of the whole critic, augmentation included, with respect to the image before it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgan import collectives


def squared_norm(gradient: jax.Array) -> jax.Array:
    """||g||² of each example: (b, ...) -> (b,)."""
    gradient = gradient.astype(jnp.float32)
    return jnp.sum(jnp.square(gradient), axis=tuple(range(1, gradient.ndim)))


def zero_centred(gradient: jax.Array) -> jax.Array:
    """||g||² / 2: with weight γ, the R1 and R2 of Mescheder et al. 2018 (arXiv:1801.04406), eq. 9 and 10."""
    return 0.5 * squared_norm(gradient)


def one_centred(gradient: jax.Array) -> jax.Array:
    """(||g|| - 1)²: with weight λ, WGAN-GP of Gulrajani et al. 2017 (arXiv:1704.00028), eq. 3."""
    square = squared_norm(gradient)
    # sqrt has an infinite derivative at 0, where a critic of zero gradient stands: the penalty is 1 there, and flat.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return jnp.square(norm - 1)


def at_real(key: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    return real


def at_fake(key: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    return fake


def between(keys: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    """ε x + (1 - ε) x̃, ε ~ U[0, 1] for each pair (arXiv:1704.00028, algorithm 1, line 6). keys: (b,), one an image."""
    epsilon = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(keys).reshape(-1, *(1,) * (real.ndim - 1))
    return epsilon * real + (1 - epsilon) * fake


def around(keys: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    """x + α σ/2 u, u ~ U[0, 1] for each pixel, α ~ U[0, 1] for each image, σ the standard deviation of the batch over
    all devices (arXiv:1705.07215).

    The noise is that of the authors' experiments; the paper's algorithm 1 leaves its distribution open.
    """

    def offset(key: jax.Array) -> jax.Array:
        near, far = jax.random.split(key)
        return jax.random.uniform(near, (), jnp.float32) * jax.random.uniform(far, real.shape[1:], jnp.float32)

    variance = collectives.mean(jnp.mean(jnp.square(real - collectives.mean(jnp.mean(real)))))
    return real + 0.5 * jnp.sqrt(variance) * jax.vmap(offset)(keys)


class Penalty(NamedTuple):
    """What is penalised, and at which images. `weight`: a number, or a function of the images seen."""

    function: Callable[[jax.Array], jax.Array]
    points: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    weight: Any = 1.0


def r1(gamma: Any) -> Penalty:
    """γ/2 E ||∇D(x)||² at real images."""
    return Penalty(zero_centred, at_real, gamma)


def r2(gamma: Any) -> Penalty:
    """γ/2 E ||∇D(G(z))||² at generated images."""
    return Penalty(zero_centred, at_fake, gamma)


def wgan_gp(weight: Any = 10.0) -> Penalty:
    """λ E (||∇D(x̂)|| - 1)² between real and generated images; λ = 10 in the paper."""
    return Penalty(one_centred, between, weight)


def dragan(weight: Any = 10.0) -> Penalty:
    """λ E (||∇D(x + δ)|| - 1)² near real images (arXiv:1705.07215, algorithm 1; λ = 10 there)."""
    return Penalty(one_centred, around, weight)


def weight_clipping(limit: float) -> optax.GradientTransformation:
    """Last in an Optax chain: keeps every parameter in [-limit, limit] (arXiv:1701.07875, algorithm 1; 0.01 there)."""

    def update(updates, state, params):
        return jax.tree.map(lambda u, p: jnp.clip(p + u, -limit, limit) - p, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
