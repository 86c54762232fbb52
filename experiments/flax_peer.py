"""DCGAN of Flax's own layers, as a first script has it: what jaxgan's are measured against."""

import flax.linen as nn
import jax.numpy as jnp

from jaxgan.models import dcgan


class Generator(nn.Module):
    shape: tuple[int, int, int]
    width: int
    latent: int = 100

    @nn.compact
    def __call__(self, z, label=None, train=False):
        *upper, (h, w) = dcgan.sizes(self.shape)
        channels = self.width * 2 ** (len(upper) - 1)
        x = nn.Dense(h * w * channels, use_bias=False)(z).reshape(-1, h, w, channels)
        x = nn.relu(nn.BatchNorm(not train)(x))
        for _ in upper[1:]:
            channels //= 2
            x = nn.ConvTranspose(channels, (4, 4), (2, 2), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train)(x))
        return jnp.tanh(nn.ConvTranspose(self.shape[2], (4, 4), (2, 2))(x))


class Discriminator(nn.Module):
    shape: tuple[int, int, int]
    width: int
    mixes_batch = True

    @nn.compact
    def __call__(self, x, label=None, train=False):
        for i in range(len(dcgan.sizes(self.shape)) - 1):
            x = nn.Conv(self.width * 2**i, (4, 4), (2, 2), use_bias=i == 0)(x)
            x = nn.leaky_relu(x if i == 0 else nn.BatchNorm(not train)(x), 0.2)
        return nn.Dense(1)(x.reshape(x.shape[0], -1))[:, 0]
