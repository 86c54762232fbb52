"""Normalisation whose statistics are those of the whole batch, over all devices, and gains and biases that depend on
a condition: a class, or any vector."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxgan import collectives
from jaxgan.layers.dense import Dense


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv:1502.03167) over all axes but the last, synchronised over the devices.

    The running statistics are a plain average of the first 1 / (1 - momentum) batches and an exponential one after.
    Zeroed and fed a few batches, they are therefore those batches' average: the "standing statistics" that a generator
    with averaged weights needs, whose activations no step of the training has seen (`adversarial.standing`).

    num_classes: with labels, every class has a gain and a bias of its own (arXiv:1610.07629, eq. 5).
    bias_init: of the biases, as `scale_init` of the gains.
    """

    momentum: float = 0.99
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    bias_init: Any = nn.initializers.zeros
    dtype: Any = jnp.float32
    num_classes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, label: jax.Array | None = None) -> jax.Array:
        c = x.shape[-1]
        mean, var = _moments(self, x, self.momentum, train)
        shape = (c,) if label is None else (self.num_classes, c)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", self.bias_init, shape)
        if label is not None:  # (b, 1, ..., c)
            scale, bias = _over_places(scale[label], x), _over_places(bias[label], x)
        return _normalised(x, mean, var, self.epsilon, scale, bias, self.dtype)


def around_one(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """N(1, 0.02²), as gains start in the code of DCGAN's and of BigGAN's authors (there for CIFAR-10)."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class ConditionalBatchNorm(nn.Module):
    """`BatchNorm` with gain and bias linear in a vector: x (b, ..., c), condition (b, k) -> (b, ..., c).

    gain = 1 + A condition, bias = B condition, A and B without a bias of their own (arXiv:1809.11096, appendix B). With
    a label's embedding and a part of the latent as the condition, it tells every block the class and some of z.
    spectral: A and B are divided by their largest singular values.
    """

    momentum: float = 0.99
    epsilon: float = 1e-4
    kernel_init: Any = nn.initializers.orthogonal()
    spectral: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, train: bool) -> jax.Array:
        mean, var = _moments(self, x, self.momentum, train)
        gain = 1 + Dense(x.shape[-1], False, self.kernel_init, self.spectral, name="gain")(condition, train)
        bias = Dense(x.shape[-1], False, self.kernel_init, self.spectral, name="bias")(condition, train)
        return _normalised(x, mean, var, self.epsilon, _over_places(gain, x), _over_places(bias, x), self.dtype)


class FiLM(nn.Module):
    """γ x + β, affine in a vector and without normalisation: x (b, ..., c), condition (b, k) -> (b, ..., c).

    Feature-wise linear modulation (arXiv:1709.07871, eq. 2), γ predicted as its difference from 1.
    """

    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        gain = 1 + Dense(x.shape[-1], kernel_init=self.kernel_init, name="gain")(condition)
        bias = Dense(x.shape[-1], kernel_init=self.kernel_init, name="bias")(condition)
        return (x.astype(jnp.float32) * _over_places(gain, x) + _over_places(bias, x)).astype(self.dtype)


def _over_places(vector: jax.Array, x: jax.Array) -> jax.Array:
    """(b, c) -> (b, 1, ..., 1, c), of as many axes as x."""
    return jnp.expand_dims(vector, range(1, x.ndim - 1))


def _moments(module: nn.Module, x: jax.Array, momentum: float, train: bool) -> tuple[jax.Array, jax.Array]:
    """Mean and variance (c,) to normalise x (b, ..., c) with: in training the batch's, and `module` keeps count of them
    in its variables "batch_stats"; otherwise those it has kept."""
    c = x.shape[-1]
    count = module.variable("batch_stats", "count", jnp.zeros, ())
    mean = module.variable("batch_stats", "mean", jnp.zeros, (c,))
    var = module.variable("batch_stats", "var", jnp.ones, (c,))
    if not train:
        return mean.value, var.value
    y = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    # Both moments in one reduction; the shift by the running mean keeps E[x²] - E[x]² from cancelling.
    shift = lax.stop_gradient(mean.value)
    y = y - shift
    first, second = collectives.mean((y.mean(axes), jnp.square(y).mean(axes)))
    batch_mean, batch_var = first + shift, jnp.maximum(second - jnp.square(first), 0)
    if not module.is_initializing():
        keep = jnp.minimum(momentum, count.value / (count.value + 1))
        mean.value = keep * mean.value + (1 - keep) * lax.stop_gradient(batch_mean)
        var.value = keep * var.value + (1 - keep) * lax.stop_gradient(batch_var)
        count.value = count.value + 1
    return batch_mean, batch_var


def _normalised(x, mean, var, epsilon, gain, bias, dtype) -> jax.Array:
    """In float32, rounded once: so the sums over all places in its derivatives are float32 too, for no more memory."""
    gain = gain * lax.rsqrt(var + epsilon)
    return (x.astype(jnp.float32) * gain + (bias - mean * gain)).astype(dtype)
