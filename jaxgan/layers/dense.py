"""A fully connected layer, with spectral normalisation where it is wanted."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers.bias import biased
from jaxgan.layers.conv import by_hand, conv
from jaxgan.layers.spectral import SpectralNorm


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x (b, c), w (c, d) -> (b, d).

    In bfloat16 on a CPU as a convolution of images of one pixel, whose derivatives are fast products there: of a dense
    layer's own weight gradient XLA makes one in float32.
    """
    if x.ndim == 2 and x.dtype == jnp.bfloat16 and by_hand():
        return conv(x[:, None, None], w[None, None], 1, ((0, 0), (0, 0)))[:, 0, 0]
    return x @ w


class Dense(nn.Module):
    """(b, c) -> (b, features)."""

    features: int
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    spectral: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        w = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        w = SpectralNorm()(w, train) if self.spectral else w
        x = product(x.astype(self.dtype), w.astype(self.dtype))
        if self.use_bias:
            x = biased(self, x)
        return x
