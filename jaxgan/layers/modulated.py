"""Modulated convolution (arXiv:1912.04958, section 2.2): a style scales the weights, for each image its own.

The paper scales the weights by the style s of an image, w'[i, j] = s[i] w[i, j] (eq. 1), and divides them by the
expected size of the output, w''[i, j] = w'[i, j] / sqrt(sum over i and taps of w'² + ε) (eq. 3). Both factors depend on
one channel alone, so scaling the input's channels by s, convolving the whole batch with the same w, and scaling the
output's channels is the same map. It needs no weights of each image and hence no grouped convolution, whose
derivatives are slow in XLA on GPUs.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxgan.layers import resample
from jaxgan.layers.conv import conv, conv_transpose
from jaxgan.layers.equalised import EqualDense


def modulated_conv(
    x: jax.Array, w: jax.Array, s: jax.Array, *, demodulate: bool = True, up: bool = False, epsilon: float = 1e-8
) -> jax.Array:
    """x (b, h, w, c), kernel w (k, k, c, d), k odd, and styles s (b, c) -> (b, h, w, d), in the dtype of x.

    demodulate: divide by the size that the output would have if the input's channels were independent of unit variance.
    up: -> (b, 2h, 2w, d), the convolution of `resample.up(x)` (k <= 5). Computed as a transposed convolution of
      stride 2 and the filter behind it, a quarter of the products; where the kernel reaches over the edge, it sees the
      filtered image go on rather than zeros. (The authors' code has the kernel turned by half a circle here.)
    """
    k = w.shape[0]
    y = _scaled(x, s)
    if up:
        assert k % 2 and k <= 5
        height, width = (2 * n + k - 2 for n in x.shape[1:3])
        # Four times, because of the zeros that stand between the pixels.
        turned = (4 * w[::-1, ::-1].swapaxes(2, 3)).astype(x.dtype)
        y = conv_transpose(y, turned, 2, ((0, 0), (0, 0)), (height, width))
        y = resample.filter(y, resample.BINOMIAL, ((5 - k) // 2, (5 - k) // 2))
    else:
        y = conv(y, w.astype(x.dtype), 1, ((k // 2, k // 2), (k // 2, k // 2)))
    if demodulate:
        power = jnp.square(s) @ jnp.sum(jnp.square(w), (0, 1))  # (b, d)
        y = _scaled(y, lax.rsqrt(power + epsilon))
    return y


def _scaled(x: jax.Array, s: jax.Array) -> jax.Array:
    """x (b, h, w, c), s (b, c), in float32 and rounded once: so the sum over all places in the derivative by s is
    float32 too."""
    return (x.astype(jnp.promote_types(x.dtype, jnp.float32)) * s[:, None, None]).astype(x.dtype)


class ModulatedConv(nn.Module):
    """Images (b, h, w, c) and w (b, latent) -> (b, h, w, features), or (b, 2h, 2w, features) with `up`.

    The style is an affine map of w that starts around 1. Weights have an equalised learning rate.
    """

    features: int
    kernel: int = 3
    demodulate: bool = True
    up: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        k, c = self.kernel, x.shape[-1]
        style = EqualDense(c, bias=1.0, name="affine")(w)
        kernel = self.param("kernel", nn.initializers.normal(1.0), (k, k, c, self.features)) / math.sqrt(k * k * c)
        return modulated_conv(
            x.astype(self.dtype),
            kernel,
            style,
            demodulate=self.demodulate,
            up=self.up,
            epsilon=1e-8 / (k * k * c),  # the authors add 1e-8 to the power of the weights before this scaling
        )
