"""Orthogonal regularisation: penalties of a network's parameters that keep its filters apart.

A kernel (..., d) counts as the matrix W (n, d) whose columns are its d filters. Kernels are the leaves named "kernel"
of two axes or more; embeddings are none, be they leaves of another name or the kernels of a layer called "embed".
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp


def off_diagonal(params: Any) -> jax.Array:
    """Σ ||W^T W ⊙ (1 - I)||²_F over the kernels: the squared products of every filter with every other; scalar.

    Eq. 3 of arXiv:1809.11096 but for β, 1e-4 there, for the generator: filters are driven apart, their norms left free,
    so that its images stay in order where latents are drawn from the middle of their distribution.
    """
    return _sum(params, _off_diagonal)


def from_identity(params: Any) -> jax.Array:
    """Σ ||W^T W - I||²_F over the kernels (arXiv:1609.07093; arXiv:1809.11096, eq. 2); scalar."""
    return _sum(params, _from_identity)


# Both Gram matrices have the same ||·||_F, and that of a wide W, from a latent to thousands of features, is far smaller
# on the other side: 20² numbers instead of 24,576² in BigGAN's first layer.


def _off_diagonal(w: jax.Array) -> jax.Array:
    n, d = w.shape
    if d <= 2 * n:
        return jnp.sum(jnp.square((w.T @ w) * (1 - jnp.eye(d))))
    # At least (d - n) / d of the first sum is left: filters of so few dimensions cannot all be orthogonal.
    return jnp.sum(jnp.square(w @ w.T)) - jnp.sum(jnp.square(jnp.sum(jnp.square(w), 0)))


def _from_identity(w: jax.Array) -> jax.Array:
    n, d = w.shape
    if d <= n:
        return jnp.sum(jnp.square(w.T @ w - jnp.eye(d)))
    return jnp.sum(jnp.square(w @ w.T - jnp.eye(n))) + (d - n)  # the eigenvalues 0 of W^T W, d - n of them


def _sum(params: Any, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return sum((function(w) for w in _kernels(params)), jnp.float32(0))


def _kernels(params: Any) -> Iterator[jax.Array]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(entry, "key", entry)) for entry in path]
        if names[-1] == "kernel" and leaf.ndim > 1 and "embed" not in names:
            yield leaf.astype(jnp.float32).reshape(-1, leaf.shape[-1])
