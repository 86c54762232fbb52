"""Maximum mean discrepancy: how far two samples are apart in the eyes of a kernel (Gretton et al. 2012, JMLR 13).

    kernel = gaussian((2, 5, 10, 20, 40, 80))
    loss = root(biased(kernel, fake, real))       # fake (n, d), real (m, d)

A kernel maps (n, d) and (m, d) to (n, m), float32. Over several devices each holds a share of both samples: its rows
meet the gathered samples of all, and the value, the same on every device, is that of the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxgan import collectives

Kernel: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """|x_i - y_j|²: (n, d), (m, d) -> (n, m) float32, never negative.

    By |x|² + |y|² - 2 x·y, one matrix product. What cancels in it is as large as the distances from the mean of y, to
    which both are moved first: distances do not notice, nor do their gradients.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    centre = lax.stop_gradient(y.mean(0))
    x, y = x - centre, y - centre
    products = jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
    return jnp.maximum(jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1) - 2 * products, 0.0)


def gaussian(bandwidths: Sequence[float]) -> Kernel:
    """Σ_σ exp(-|x - y|² / 2σ), the mixture of arXiv:1502.02761 (sections 2.1 and 4.1): σ is a variance there."""

    def kernel(x: jax.Array, y: jax.Array) -> jax.Array:
        distances = squared_distances(x, y)
        return sum((jnp.exp(distances * (-0.5 / sigma)) for sigma in bandwidths), jnp.zeros_like(distances))

    return kernel


def polynomial(x: jax.Array, y: jax.Array) -> jax.Array:
    """(x·y / d + 1)³, the kernel of KID (arXiv:1801.01401, section 4)."""
    products = jnp.matmul(x.astype(jnp.float32), y.astype(jnp.float32).T, precision=lax.Precision.HIGHEST)
    return (products / x.shape[1] + 1) ** 3


def biased(kernel: Kernel, x: jax.Array, y: jax.Array) -> jax.Array:
    """MMD² of samples x (n, d) and y (m, d), a scalar: the V-statistic, never negative but for rounding.

    mean k(x, x') - 2 mean k(x, y) + mean k(y, y') over all pairs (arXiv:1502.02761, eq. 3), each with itself too.
    """
    xs, ys = collectives.gather(x), collectives.gather(y)
    return collectives.mean(kernel(x, xs).mean() - 2 * kernel(x, ys).mean() + kernel(y, ys).mean())


def unbiased(kernel: Kernel, x: jax.Array, y: jax.Array) -> jax.Array:
    """MMD² without the pairs of a point with itself, n, m >= 2: the U-statistic (JMLR 13, 2012, eq. 3)."""
    xs, ys = collectives.gather(x), collectives.gather(y)
    within = _mean_without_self(kernel, x, xs) + _mean_without_self(kernel, y, ys)
    return collectives.mean(within - 2 * kernel(x, ys).mean())


def root(value: jax.Array) -> jax.Array:
    """√MMD², 0 where rounding has made MMD² negative, and there of gradient 0 instead of infinity.

    It weighs the gradient by 1 / 2√MMD², which keeps it from fading as the two come near (arXiv:1502.02761, eq. 4).
    """
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)


def _mean_without_self(kernel: Kernel, x: jax.Array, xs: jax.Array) -> jax.Array:
    """The mean of k(x_i, xs_j) over i != j, for rows x (b, d) of xs (n, d)."""
    n = len(xs)
    own = jax.vmap(lambda a: kernel(a[None], a[None])[0, 0])(x)
    return (n * kernel(x, xs).mean() - own.mean()) / (n - 1)
