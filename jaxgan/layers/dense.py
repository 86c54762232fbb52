"""A fully connected layer, with spectral normalisation where it is wanted."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers.spectral import SpectralNorm


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
        x = x.astype(self.dtype) @ w.astype(self.dtype)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x
