"""What a player's loss holds beside the adversarial one: functions of what its move has computed anyway.

A regulariser maps a `View` of the move to a scalar and the player's new variables. Penalties of the critic's input
gradient are in `penalties.py`, since they share the forward pass in another way.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgan import collectives

Critic = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


class View(NamedTuple):
    """A move of one player: of the discriminator, with everything; of the generator, `real_logits` may be None.

    real, fake: images (b, h, w, c); their logits (b,), of augmented images where the game augments.
    critic: key -> ((variables, images) -> logits, variables), the discriminator at the parameters of this move.
    """

    params: Any
    variables: Any
    real: jax.Array
    fake: jax.Array
    real_logits: Any
    fake_logits: jax.Array
    keys: jax.Array  # (b,), one an image
    critic: Callable[[jax.Array], Critic]
    key: jax.Array


class Regulariser(NamedTuple):
    """A term of one player's loss.

    function: View -> scalar, the player's new variables.
    weight: a number, or a function of the images seen.
    variables: what the regulariser keeps, beside the network's own, with its first values: {collection: tree}.
    """

    name: str
    function: Callable[[View], tuple[jax.Array, Any]]
    player: str = "disc"
    weight: Any = 1.0
    variables: Mapping[str, Any] = {}


def lecam(weight: Any = 0.3, decay: float = 0.99) -> Regulariser:
    """E (D(x) - α_F)² + E (D(G(z)) - α_R)², α moving averages of the logits (arXiv:2104.03310, eq. 4 and 5).

    It keeps the discriminator's outputs for reals near those it used to have for fakes, and the other way round: for
    little data. The averages are over all devices and start at the first batch's.
    """

    def function(view: View) -> tuple[jax.Array, Any]:
        kept = view.variables["lecam"]
        means = collectives.mean({"real": view.real_logits.mean(), "fake": view.fake_logits.mean()})
        means = jax.lax.stop_gradient(means)
        keep = jnp.where(kept["count"] > 0, decay, 0.0)
        real, fake = (keep * kept[name] + (1 - keep) * means[name] for name in ("real", "fake"))
        value = jnp.mean(jnp.square(view.real_logits - fake)) + jnp.mean(jnp.square(view.fake_logits - real))
        return value, {**view.variables, "lecam": {"real": real, "fake": fake, "count": kept["count"] + 1}}

    start = {name: jnp.zeros(()) for name in ("real", "fake", "count")}
    return Regulariser("lecam", function, weight=weight, variables={"lecam": start})


def consistency(transform: Callable[[jax.Array, jax.Array], jax.Array], weight: Any = 10.0) -> Regulariser:
    """E (D(x) - D(T(x)))² at real images (arXiv:1910.12027, eq. 4; λ 10). transform: keys (b,), images -> images."""
    return Regulariser("consistency", _changed(transform, "real"), weight=weight)


def consistency_fake(transform: Callable[[jax.Array, jax.Array], jax.Array], weight: Any = 10.0) -> Regulariser:
    """The same at generated images: with `consistency`, balanced consistency (arXiv:2002.04724, algorithm 1; λ 10)."""
    return Regulariser("consistency_fake", _changed(transform, "fake"), weight=weight)


def _changed(transform: Callable[[jax.Array, jax.Array], jax.Array], name: str):
    def function(view: View) -> tuple[jax.Array, Any]:
        images, logits = getattr(view, name), getattr(view, f"{name}_logits")
        changed, variables = view.critic(view.key)(view.variables, transform(view.keys, images))
        return jnp.mean(jnp.square(logits - changed)), variables

    return function


def orthogonal(player: str, weight: Any = 1e-4) -> Regulariser:
    """Σ ||WᵀW ⊙ (1 - I)||²_F over the kernels of a player (arXiv:1809.11096, eq. 3; there β 1e-4 and the generator)."""
    return Regulariser("orthogonal", lambda view: (off_diagonal(view.params), view.variables), player, weight)


def off_diagonal(params: Any) -> jax.Array:
    """Σ of the squared products between different filters, over every leaf "kernel" (..., d), d its filters."""
    total = jnp.float32(0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1] == jax.tree_util.DictKey("kernel") and leaf.ndim > 1:
            w = leaf.astype(jnp.float32).reshape(-1, leaf.shape[-1])
            gram = w.T @ w
            total += jnp.sum(jnp.square(gram)) - jnp.sum(jnp.square(jnp.diagonal(gram)))
    return total
