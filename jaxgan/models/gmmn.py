"""The dense networks of generative moment matching (arXiv:1502.02761, figure 1): a generator of pixels, or of the codes
of an autoencoder, whose decoder makes images of them.

Codes and pixels end in a sigmoid and lie in [0, 1], where the bandwidths of the paper are meant; images come and go in
[-1, 1] as everywhere in jaxgan.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers import Dense


def to_unit(images: jax.Array) -> jax.Array:
    """[-1, 1] -> [0, 1]."""
    return 0.5 * (images + 1)


class Encoder(nn.Module):
    """images (b, *shape) -> codes (b, widths[-1]) in [0, 1]: sigmoid layers, with dropout of what each of them sees."""

    widths: Sequence[int] = (1024, 32)
    dropout: Sequence[float] = (0.2, 0.5)  # one for each layer; of the pixels first
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = to_unit(images).reshape(images.shape[0], -1).astype(self.dtype)
        for width, rate in zip(self.widths, self.dropout, strict=True):
            x = nn.Dropout(rate, deterministic=not train, rng_collection="noise")(x)
            x = nn.sigmoid(Dense(width, dtype=self.dtype)(x))
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """codes (b, widths[0]) -> logits of pixels (b, *shape): sigmoid layers, those of the encoder from its end."""

    shape: tuple[int, int, int]
    widths: Sequence[int] = (32, 1024)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        x = codes.astype(self.dtype)
        for width in self.widths[1:]:
            x = nn.sigmoid(Dense(width, dtype=self.dtype)(x))
        x = Dense(math.prod(self.shape), dtype=self.dtype)(x)
        return x.astype(jnp.float32).reshape(-1, *self.shape)


class Autoencoder(nn.Module):
    """images (b, *shape) in [-1, 1] -> logits of their pixels (b, *shape), by way of a code (section 3.2).

    noise: standard deviation of Gaussian noise on the code in training, which the paper has none of. It drives codes
      apart, and the decoder learns to make much the same image of codes near by, such as a generator's.
    """

    shape: tuple[int, int, int]
    widths: Sequence[int] = (1024, 32)
    dropout: Sequence[float] = (0.2, 0.5)
    noise: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(self.widths, self.dropout, self.dtype)
        self.decoder = Decoder(self.shape, tuple(self.widths)[::-1], self.dtype)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        codes = self.encoder(images, train)
        if train and self.noise:
            codes = codes + self.noise * jax.random.normal(self.make_rng("noise"), codes.shape, jnp.float32)
        return self.decoder(codes)

    def encode(self, images: jax.Array) -> jax.Array:
        """Codes (b, widths[-1]), without dropout."""
        return self.encoder(images)


class Generator(nn.Module):
    """z (b, latent) -> images (b, *shape) in [-1, 1].

    z ~ N(0, I), as everywhere in jaxgan; the network sees erf(z / √2), which is uniform on [-1, 1] (section 3.1).
    ReLU layers of `widths` and a sigmoid make pixels or, where there is a decoder (`decoder_widths`, the code's first),
    a code. Parameters: "network", and "decoder" where there is one.
    """

    shape: tuple[int, int, int]
    num_classes: int = 0  # unconditional
    latent: int = 10
    widths: Sequence[int] = (64, 256, 256, 1024)
    decoder_widths: Sequence[int] = ()
    dtype: Any = jnp.float32

    def setup(self) -> None:
        outputs = self.decoder_widths[0] if self.decoder_widths else math.prod(self.shape)
        self.network = Network((*self.widths, outputs), self.dtype)
        if self.decoder_widths:
            self.decoder = Decoder(self.shape, self.decoder_widths, self.dtype)

    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        x = self.network(z)
        logits = self.decoder(nn.sigmoid(x)) if self.decoder_widths else x.reshape(-1, *self.shape)
        return jnp.tanh(0.5 * logits)  # 2 sigmoid - 1

    def matched(self, z: jax.Array) -> jax.Array:
        """What is compared with the data: codes or pixels (b, d) in [0, 1]."""
        return nn.sigmoid(self.network(z))


class Network(nn.Module):
    """z (b, latent) -> (b, widths[-1]), of no bounds: a linear layer after ReLU layers of uniform inputs."""

    widths: Sequence[int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = jax.scipy.special.erf(z / math.sqrt(2)).astype(self.dtype)
        for width in self.widths[:-1]:
            x = nn.relu(Dense(width, dtype=self.dtype)(x))
        return Dense(self.widths[-1], dtype=self.dtype)(x).astype(jnp.float32)
