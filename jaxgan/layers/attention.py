"""Self-attention of the places of an image (arXiv:1805.08318)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgan.layers.conv import Conv


class SelfAttention(nn.Module):
    """x (b, h, w, c) -> x + γ o, where o at a place mixes what all places offer; γ starts at 0.

    SAGAN's (arXiv:1805.08318, eq. 1 to 3) as its authors and BigGAN's run it: queries and keys of c / 8 channels,
    values of c / 2, keys and values the maxima of 2x2 places, logits without a scale, maps pointwise without biases.
    spectral: the four kernels are divided by their largest singular values.

    The weights of all places for all others are (h w)² / 4 numbers an image: 4 million at 64x64.
    """

    spectral: bool = False
    kernel_init: Any = nn.initializers.orthogonal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def pointwise(x, features, name):
            options = {"kernel_init": self.kernel_init, "dtype": self.dtype, "spectral": self.spectral}
            return Conv(features, 1, use_bias=False, name=name, **options)(x, train)

        b, h, w, c = x.shape
        narrow, wide = max(c // 8, 1), max(c // 2, 1)
        x = x.astype(self.dtype)
        query = pointwise(x, narrow, "query").reshape(b, h * w, narrow)
        key = _pooled(pointwise(x, narrow, "key")).reshape(b, -1, narrow)
        value = _pooled(pointwise(x, wide, "value")).reshape(b, -1, wide)
        accurate = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=accurate)
        weights = jax.nn.softmax(logits).astype(self.dtype)  # (b, h w, h w / 4)
        mixed = jnp.einsum("bqk,bkc->bqc", weights, value).reshape(b, h, w, wide)
        gain = self.param("gain", nn.initializers.zeros, ())
        # The product in float32, rounded once: γ's derivative is a sum over all numbers of a batch.
        return x + (gain * pointwise(mixed, c, "out").astype(accurate)).astype(self.dtype)


def _pooled(x: jax.Array) -> jax.Array:
    """(b, h, w, c) -> (b, ceil(h / 2), ceil(w / 2), c), maxima."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).max((2, 4))
