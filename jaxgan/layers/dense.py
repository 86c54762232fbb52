"""A fully connected layer, with spectral normalisation where it is wanted."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers.spectral import SpectralNorm


def biased(module: nn.Module, x: jax.Array) -> jax.Array:
    """x (..., c) + the parameter "bias" (c,) of `module`. Added in float32 and rounded once, so that the sum over all
    places in its derivative is float32: of bfloat16, XLA has no fast one on a CPU (3 ms of 2 million numbers)."""
    bias = module.param("bias", nn.initializers.zeros, (x.shape[-1],))
    return (x.astype(jnp.promote_types(x.dtype, jnp.float32)) + bias).astype(x.dtype)


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
            x = biased(self, x)
        return x
