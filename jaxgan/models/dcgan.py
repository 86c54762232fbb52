"""DCGAN: Radford, Metz and Chintala 2015 (arXiv:1511.06434), for images of any height, width and number of channels.

Strided convolutions in the discriminator, transposed ones in the generator, batch norm in both except at the image,
ReLU in one and leaky ReLU 0.2 in the other, all weights N(0, 0.02²). The image is halved (rounding up) down to a base
of 4 to 7 pixels on its shorter side, but twice at least, and each halving doubles the channels. The kernel is 4, as in
PyTorch's reference implementation; the paper's figure 1 draws 5.

Class labels enter one-hot beside the latent (arXiv:1411.1784); the discriminator adds a projection, the inner product
of a class embedding with its pooled features (arXiv:1802.05637, eq. 5).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgan.layers import BatchNorm, Conv, ConvTranspose, Dense
from jaxgan.layers.norm import around_one

normal = nn.initializers.normal(0.02)


def sizes(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Heights and widths from the image's down to the base's: (28, 28), (14, 14), (7, 7).

    Images of 4 to 14 pixels are halved twice all the same: a discriminator of one layer would see patches alone.
    """
    result = [(shape[0], shape[1])]
    while min(result[-1]) > 7 or (len(result) < 3 and min(result[0]) >= 4):
        h, w = result[-1]
        result.append((-(-h // 2), -(-w // 2)))
    return result


class Generator(nn.Module):
    """z (b, latent) -> images (b, *shape) in [-1, 1]. `width`: channels at half the image's resolution."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    latent: int = 100
    width: int = 64
    kernel: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        def norm(x):
            return checkpoint_name(nn.relu(BatchNorm(scale_init=around_one, dtype=self.dtype)(x, train)), "block")

        x = z.astype(self.dtype)
        if label is not None:
            x = jnp.concatenate([x, jax.nn.one_hot(label, self.num_classes, dtype=self.dtype)], axis=-1)
        *upper, (h, w) = sizes(self.shape)
        channels = self.width * 2 ** max(len(upper) - 1, 0)
        x = Dense(h * w * channels, use_bias=False, kernel_init=normal, dtype=self.dtype)(x)
        x = norm(x.reshape(-1, h, w, channels))
        for size in reversed(upper[1:]):
            channels //= 2
            x = norm(ConvTranspose(channels, self.kernel, 2, size, False, normal, self.dtype)(x))
        if upper:
            x = ConvTranspose(self.shape[2], self.kernel, 2, upper[0], True, normal, self.dtype)(x)
        else:  # an image of the base's own size
            x = Conv(self.shape[2], 3, kernel_init=normal, dtype=self.dtype)(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """images (b, *shape) -> logits (b,). Without batch norm it suits penalties on each image's own gradient.

    auxiliary: it does not see the label but tells it, (b, 1 + num_classes) (AC-GAN, arXiv:1610.09585).
    """

    shape: tuple[int, int, int]
    num_classes: int = 0
    width: int = 64
    kernel: int = 4
    batch_norm: bool = True
    auxiliary: bool = False
    dtype: Any = jnp.float32

    @property
    def mixes_batch(self) -> bool:
        return self.batch_norm

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        x = x.astype(self.dtype)
        for i in range(max(len(sizes(self.shape)) - 1, 1)):
            bare = i == 0 or not self.batch_norm
            x = Conv(self.width * 2**i, self.kernel, 2, use_bias=bare, kernel_init=normal, dtype=self.dtype)(x)
            if not bare:
                x = BatchNorm(scale_init=around_one, dtype=self.dtype)(x, train)
            x = checkpoint_name(nn.leaky_relu(x, 0.2), "block")
        x = x.astype(jnp.float32)
        if self.auxiliary:
            return Dense(1 + self.num_classes, kernel_init=normal)(x.reshape(x.shape[0], -1))
        logits = Dense(1, kernel_init=normal)(x.reshape(x.shape[0], -1))[:, 0]
        if label is not None:
            embedding = nn.Embed(self.num_classes, x.shape[-1], embedding_init=normal)(label)
            logits = logits + jnp.sum(embedding * x.sum(axis=(1, 2)), axis=-1)
        return logits
