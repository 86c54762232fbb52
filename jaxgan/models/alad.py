"""The dense networks of ALAD (arXiv:1812.02288, appendix C) and of EGBAD (arXiv:1802.06222), for the rows of a table.

Two hidden layers of one width, leaky ReLU, no batch normalisation: tables are small, and a row's score must not depend
on the rows that it comes with.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers.dense import Dense

SLOPE = 0.1  # of leaky ReLU


class Generator(nn.Module):
    """z (b, latent) -> rows (b, *shape), of no bounds."""

    shape: Sequence[int]
    num_classes: int = 0  # unconditional
    latent: int = 8
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        return layers(z, (self.width, self.width, math.prod(self.shape)), self.dtype).reshape(-1, *self.shape)


class Encoder(nn.Module):
    """rows (b, ...) -> latents (b, latent), of no bounds."""

    latent: int = 8
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, rows: jax.Array, train: bool = False) -> jax.Array:
        return layers(rows.reshape(len(rows), -1), (self.width, self.width, self.latent), self.dtype)


class Critic(nn.Module):
    """Arrays (b, ...), one or several -> logits (b,) and the features (b, width) that they are linear in."""

    width: int = 64
    spectral: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *inputs: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        x = jnp.concatenate([part.reshape(len(part), -1) for part in inputs], 1)
        for _ in range(2):
            x = Dense(self.width, spectral=self.spectral, kernel_init=HE, dtype=self.dtype)(x, train)
            x = nn.leaky_relu(x, SLOPE)
        logits = Dense(1, spectral=self.spectral, kernel_init=HE, dtype=self.dtype)(x, train)
        return logits[:, 0].astype(jnp.float32), x.astype(jnp.float32)


HE = nn.initializers.he_normal()


def layers(x: jax.Array, widths: Sequence[int], dtype: Any) -> jax.Array:
    """Inside of a compact method: leaky ReLU between dense layers, a linear one at the end."""
    for width in widths[:-1]:
        x = nn.leaky_relu(Dense(width, kernel_init=HE, dtype=dtype)(x), SLOPE)
    return Dense(widths[-1], kernel_init=HE, dtype=dtype)(x).astype(jnp.float32)
