"""InfoGAN: Chen et al. 2016 (arXiv:1606.03657), the networks of its table 1, for images of any size.

A part of what the generator sees are codes, a category c ~ Cat(K) and numbers c ~ U(-1, 1), and the discriminator has a
second head Q that tells them from an image. Both codes are functions of a latent N(0, I): the category is the place of
the largest of K normals, a number is Φ of one, stretched to (-1, 1). So the generator is sampled, truncated and walked
about in like any other, and whoever wants a code of his own asks `from_codes`.

The image is halved down to a base of 4 to 7 pixels as in `dcgan`; at 28x28 with width 64 the layers are the paper's,
but for a tanh at the end. Class labels, where there are any beside the codes, enter as they do in `dcgan`.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.errors import InputError
from jaxgan.layers import BatchNorm, Conv, ConvTranspose, Dense
from jaxgan.models.dcgan import normal, sizes


class Generator(nn.Module):
    """z (b, latent) -> images (b, *shape) in [-1, 1].

    latent: of everything: the category's `categorical` dimensions, `continuous`, and the rest, noise that stays normal.
    """

    shape: tuple[int, int, int]
    num_classes: int = 0
    latent: int = 74
    width: int = 64
    categorical: int = 0
    continuous: int = 0
    kernel: int = 4
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.categorical + self.continuous > self.latent:
            raise InputError(
                f"a latent of {self.latent} dimensions, {self.categorical} categories and {self.continuous} numbers; "
                f"expected at least {self.categorical + self.continuous}"
            )
        super().__post_init__()

    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        return self.from_codes(self.codes(z), label, train)

    def codes(self, z: jax.Array) -> jax.Array:
        """z ~ N(0, I) (b, latent) -> the category one-hot, numbers ~ U(-1, 1), noise ~ N(0, I): (b, latent)."""
        k, c = self.categorical, self.continuous
        category = jax.nn.one_hot(jnp.argmax(z[:, :k], -1), k) if k else z[:, :0]
        return jnp.concatenate([category, jax.scipy.special.erf(z[:, k : k + c] / math.sqrt(2)), z[:, k + c :]], -1)

    @nn.compact
    def from_codes(self, codes: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        """What `codes` gives, or codes of one's own (b, latent) -> images. Numbers beyond 1 exaggerate."""

        def norm(x):
            return nn.relu(BatchNorm(dtype=self.dtype)(x, train))

        x = codes.astype(self.dtype)
        if label is not None:
            x = jnp.concatenate([x, jax.nn.one_hot(label, self.num_classes, dtype=self.dtype)], -1)
        *upper, (h, w) = sizes(self.shape)
        channels = self.width * 2 ** max(len(upper) - 1, 0)
        x = norm(Dense(16 * self.width, use_bias=False, kernel_init=normal, dtype=self.dtype)(x))
        x = norm(Dense(h * w * channels, use_bias=False, kernel_init=normal, dtype=self.dtype)(x))
        x = x.reshape(-1, h, w, channels)
        for size in reversed(upper[1:]):
            channels //= 2
            x = norm(ConvTranspose(channels, self.kernel, 2, size, False, normal, self.dtype)(x))
        if upper:
            x = ConvTranspose(self.shape[2], self.kernel, 2, upper[0], True, normal, self.dtype)(x)
        else:
            x = Conv(self.shape[2], 3, kernel_init=normal, dtype=self.dtype)(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """images (b, *shape) -> logits (b,), or with codes (b, 1 + categorical + 2 continuous): the logit, and what Q says.

    That is (`jaxgan.information.recognised`) logits of the category, then means and log standard deviations.
    """

    shape: tuple[int, int, int]
    num_classes: int = 0
    width: int = 64
    categorical: int = 0
    continuous: int = 0
    kernel: int = 4
    batch_norm: bool = True
    dtype: Any = jnp.float32

    @property
    def mixes_batch(self) -> bool:
        return self.batch_norm

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        def active(x):
            return nn.leaky_relu(BatchNorm(dtype=self.dtype)(x, train) if self.batch_norm else x, 0.1)

        x = x.astype(self.dtype)
        for i in range(max(len(sizes(self.shape)) - 1, 1)):
            x = Conv(self.width * 2**i, self.kernel, 2, kernel_init=normal, dtype=self.dtype)(x)
            x = active(x) if i else nn.leaky_relu(x, 0.1)
        x = x.reshape(x.shape[0], -1)
        x = active(Dense(16 * self.width, kernel_init=normal, dtype=self.dtype)(x)).astype(jnp.float32)
        outputs = self.categorical + 2 * self.continuous
        if outputs:
            q = active(Dense(2 * self.width, kernel_init=normal, dtype=self.dtype)(x))
            q = Dense(outputs, kernel_init=normal)(q.astype(jnp.float32))
        logits = Dense(1, kernel_init=normal)(x)  # after Q: what the last dense layer sees are the features
        if label is not None:
            embedding = nn.Embed(self.num_classes, x.shape[-1], embedding_init=normal)(label)
            logits = logits + jnp.sum(embedding * x, -1, keepdims=True)
        return jnp.concatenate([logits, q], -1) if outputs else logits[:, 0]
