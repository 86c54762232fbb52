"""Normalisation whose statistics are those of the whole batch, over all devices."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxgan import collectives


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv:1502.03167) over all axes but the last, synchronised over the devices.

    The running statistics are a plain average of the first 1 / (1 - momentum) batches and an exponential one after.
    Zeroed and fed a few batches, they are therefore those batches' average: the "standing statistics" that a generator
    with averaged weights needs, whose activations no step of the training has seen (`adversarial.standing`).

    num_classes: with labels, every class has a gain and a bias of its own (arXiv:1610.07629, eq. 5).
    """

    momentum: float = 0.99
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    dtype: Any = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, label: jax.Array | None = None) -> jax.Array:
        c = x.shape[-1]
        count = self.variable("batch_stats", "count", jnp.zeros, ())
        mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        var = self.variable("batch_stats", "var", jnp.ones, (c,))
        shape = (c,) if label is None else (self.num_classes, c)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if label is not None:  # (b, 1, ..., c)
            scale, bias = (jnp.expand_dims(p[label], range(1, x.ndim - 1)) for p in (scale, bias))
        if train:
            y = x.astype(jnp.float32)
            axes = tuple(range(x.ndim - 1))
            # Both moments in one reduction; the shift by the running mean keeps E[x²] - E[x]² from cancelling.
            shift = lax.stop_gradient(mean.value)
            y = y - shift
            first, second = collectives.mean((y.mean(axes), jnp.square(y).mean(axes)))
            batch_mean, batch_var = first + shift, jnp.maximum(second - jnp.square(first), 0)
            if not self.is_initializing():
                keep = jnp.minimum(self.momentum, count.value / (count.value + 1))
                mean.value = keep * mean.value + (1 - keep) * lax.stop_gradient(batch_mean)
                var.value = keep * var.value + (1 - keep) * lax.stop_gradient(batch_var)
                count.value = count.value + 1
        else:
            batch_mean, batch_var = mean.value, var.value
        gain = scale * lax.rsqrt(batch_var + self.epsilon)
        return (x * gain.astype(self.dtype) + (bias - batch_mean * gain).astype(self.dtype)).astype(self.dtype)
