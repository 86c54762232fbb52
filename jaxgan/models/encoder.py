"""What stands beside a generator to find latents of images: an encoder, and a critic of images with their latents."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers import BatchNorm, Conv, Dense
from jaxgan.models.dcgan import sizes

kernel = nn.initializers.he_normal()


class Encoder(nn.Module):
    """images (b, *shape) -> latents (b, latent): DCGAN's discriminator with as many outputs as the latent has."""

    shape: tuple[int, int, int]
    latent: int = 100
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.astype(self.dtype)
        for i in range(max(len(sizes(self.shape)) - 1, 1)):
            x = Conv(self.width * 2**i, 4, 2, use_bias=i == 0, kernel_init=kernel, dtype=self.dtype)(x)
            x = nn.leaky_relu(BatchNorm(dtype=self.dtype)(x, train) if i else x, 0.2)
        return Dense(self.latent)(x.reshape(x.shape[0], -1).astype(jnp.float32))


class JointDiscriminator(nn.Module):
    """images (b, *shape), latents (b, latent) -> logits (b,): whether they belong together (arXiv:1605.09782).

    The image goes through DCGAN's convolutions, without batch norm, the latent through a dense layer, and both through
    another.
    """

    shape: tuple[int, int, int]
    latent: int = 100
    width: int = 64
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, z: jax.Array, train: bool = False) -> jax.Array:
        x = x.astype(self.dtype)
        for i in range(max(len(sizes(self.shape)) - 1, 1)):
            x = nn.leaky_relu(Conv(self.width * 2**i, 4, 2, kernel_init=kernel, dtype=self.dtype)(x), 0.2)
        wide = 16 * self.width
        x = nn.leaky_relu(Dense(wide, dtype=self.dtype)(x.reshape(x.shape[0], -1)), 0.2)
        z = nn.leaky_relu(Dense(wide, dtype=self.dtype)(z.astype(self.dtype)), 0.2)
        both = nn.leaky_relu(Dense(wide, dtype=self.dtype)(jnp.concatenate([x, z], -1)), 0.2)
        return Dense(1)(both.astype(jnp.float32))[:, 0]
