"""Spectral normalisation (arXiv:1802.05957): weights divided by their largest singular value."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class SpectralNorm(nn.Module):
    """w (..., d) -> w / σ(w), w taken as a matrix (prod(...), d); float32.

    σ = v^T w u with one power iteration a training pass, as algorithm 1 there: u is the variable "spectral/u" (d,), and
    u and v count as constants in the gradient. With `train` = False, u stays as it is.
    """

    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, w: jax.Array, train: bool) -> jax.Array:
        def start() -> jax.Array:
            return self._unit(jax.random.normal(self.make_rng("params"), w.shape[-1:]))

        u = self.variable("spectral", "u", start)
        matrix = w.astype(jnp.float32).reshape(-1, w.shape[-1])
        fixed = lax.stop_gradient(matrix)
        v = self._unit(fixed @ u.value)
        now = self._unit(v @ fixed) if train else u.value
        if train and not self.is_initializing():
            u.value = now
        return w / (v @ (matrix @ now))

    def _unit(self, x: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.sum(jnp.square(x)) + self.epsilon)
