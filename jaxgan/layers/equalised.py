"""Equalised learning rate (arXiv:1710.10196, section 4.1): weights of unit variance, scaled where they are used.

A weight is stored as N(0, 1) / rate and used times rate / sqrt(fan_in). Adam moves every stored weight by about its
learning rate, so what is used changes at the same relative speed in all layers, and `rate` times as fast in this one.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers import resample
from jaxgan.layers.bias import biased
from jaxgan.layers.conv import conv


def leaky(x: jax.Array, clamp: float | None = None) -> jax.Array:
    """Leaky ReLU of slope 0.2, times sqrt(2): what He's initialisation would put into the weights. Within ±clamp."""
    x = math.sqrt(2) * nn.leaky_relu(x, 0.2)
    return x if clamp is None else jnp.clip(x, -clamp, clamp)


class EqualDense(nn.Module):
    """(b, c) -> (b, features), float32.

    rate: how fast the layer learns beside the others; its stored weights and biases are as much larger.
    bias: what the biases are at the start.
    """

    features: int
    rate: float = 1.0
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        w = self.param("kernel", nn.initializers.normal(1 / self.rate), (c, self.features))
        b = self.param("bias", nn.initializers.constant(self.bias / self.rate), (self.features,))
        return x @ (w * (self.rate / math.sqrt(c))) + b * self.rate


class EqualConv(nn.Module):
    """(b, h, w, c) -> (b, h, w, features), zeros around the image.

    down: behind a low-pass filter, and of every second pixel: (b, 2h, 2w, c) -> (b, h, w, features), as StyleGAN2's
      discriminator halves an image.
    """

    features: int
    kernel: int = 3
    use_bias: bool = True
    down: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, c = self.kernel, x.shape[-1]
        w = self.param("kernel", nn.initializers.normal(1.0), (k, k, c, self.features))
        w = (w / math.sqrt(k * k * c)).astype(self.dtype)
        x = x.astype(self.dtype)
        assert k % 2 and not (self.down and (x.shape[1] % 2 or x.shape[2] % 2))
        if self.down and k == 1:
            x = conv(resample.down(x), w, 1, ((0, 0), (0, 0)))
        elif self.down:
            # The convolution's own padding goes around the filter: its results outside of the image are no zeros.
            pads = (k // 2 + 1, k // 2 + 1)
            x = conv(resample.filter(x, resample.BINOMIAL, pads), w, 2, ((0, 0), (0, 0)))
        else:
            x = conv(x, w, 1, ((k // 2, k // 2), (k // 2, k // 2)))
        if self.use_bias:
            x = biased(self, x)
        return x
