"""Dense networks, as the first GANs had them (arXiv:1406.2661), with batch norm in the generator (arXiv:1502.03167).

Class labels enter one-hot, beside the latent and beside the pixels (arXiv:1411.1784).
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers import BatchNorm, Dense


def _with_label(x: jax.Array, label: jax.Array | None, num_classes: int) -> jax.Array:
    return x if label is None else jnp.concatenate([x, jax.nn.one_hot(label, num_classes, dtype=x.dtype)], axis=-1)


def units(widths: Sequence[int], width: int) -> tuple[int, ...]:
    """The units of each layer: `widths`, or where `width` is given that of the narrowest, the others in proportion."""
    return tuple(max(1, width * n // min(widths)) for n in widths) if width else tuple(widths)


class Generator(nn.Module):
    """z (b, latent) -> images (b, *shape): dense layers of `widths`, batch norm and leaky ReLU 0.2, then tanh.

    width: units of the narrowest layer, where the others keep their proportion to it; 0: `widths` as they are.
    """

    shape: tuple[int, int, int]
    num_classes: int = 0
    latent: int = 100
    widths: Sequence[int] = (256, 512, 1024)
    batch_norm: bool = True
    dtype: Any = jnp.float32
    width: int = 0

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        x = _with_label(z.astype(self.dtype), label, self.num_classes)
        for width in units(self.widths, self.width):
            x = Dense(width, use_bias=not self.batch_norm, dtype=self.dtype)(x)
            if self.batch_norm:
                x = BatchNorm(dtype=self.dtype)(x, train)
            x = nn.leaky_relu(x, 0.2)
        x = Dense(math.prod(self.shape), dtype=self.dtype)(x)
        return jnp.tanh(x.astype(jnp.float32)).reshape(-1, *self.shape)


class Discriminator(nn.Module):
    """images (b, *shape) -> logits (b,): dense layers of `widths` with leaky ReLU 0.2; `width` as the generator's."""

    shape: tuple[int, int, int]
    num_classes: int = 0
    widths: Sequence[int] = (1024, 512, 256)
    dtype: Any = jnp.float32
    width: int = 0
    mixes_batch: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        x = _with_label(x.reshape(x.shape[0], -1).astype(self.dtype), label, self.num_classes)
        for width in units(self.widths, self.width):
            x = nn.leaky_relu(Dense(width, dtype=self.dtype)(x), 0.2)
        return Dense(1, dtype=self.dtype)(x).astype(jnp.float32)[:, 0]
