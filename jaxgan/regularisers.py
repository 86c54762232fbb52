"""What a player's loss holds beside the adversarial one: functions of what its move has computed anyway.

A regulariser maps a `View` of the move to a scalar and the player's new variables. Penalties of the critic's input
gradient are in `penalties.py`, since they share the forward pass in another way.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgan import collectives
from jaxgan.orthogonal import off_diagonal

Critic = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


class View(NamedTuple):
    """A move of one player: of the discriminator, with everything; of the generator, `real_output` may be None.

    real, fake: images (b, h, w, c). Their outputs of the discriminator are those of augmented images where the game
      augments: (b,) logits, or (b, 1 + classes) with class logits after the first.
    label: (b,) of both, or None.
    critic: key -> ((variables, images) -> output, variables), the discriminator at the parameters of this move.
    """

    params: Any
    variables: Any
    real: jax.Array
    fake: jax.Array
    real_output: Any
    fake_output: jax.Array
    label: Any
    keys: jax.Array  # (b,), one an image
    critic: Callable[[jax.Array], Critic]
    key: jax.Array
    z: Any = None  # (b, latent) of `fake`


def logit(output: jax.Array) -> jax.Array:
    """The discriminator's verdict (b,) of what it put out."""
    return output if output.ndim == 1 else output[:, 0]


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
        real_logits, fake_logits = logit(view.real_output), logit(view.fake_output)
        means = collectives.mean({"real": real_logits.mean(), "fake": fake_logits.mean()})
        means = jax.lax.stop_gradient(means)
        keep = jnp.where(kept["count"] > 0, decay, 0.0)
        real, fake = (keep * kept[name] + (1 - keep) * means[name] for name in ("real", "fake"))
        value = jnp.mean(jnp.square(real_logits - fake)) + jnp.mean(jnp.square(fake_logits - real))
        return value, {**view.variables, "lecam": {"real": real, "fake": fake, "count": kept["count"] + 1}}

    start = {name: jnp.zeros(()) for name in ("real", "fake", "count")}
    return Regulariser("lecam", function, weight=weight, variables={"lecam": start})


def consistency(transform: Callable[[jax.Array, jax.Array], jax.Array], weight: Any = 10.0) -> Regulariser:
    """E (D(x) - D(T(x)))² at real images (arXiv:1910.12027, eq. 4; λ 10). transform: keys (b,), images -> images."""
    return Regulariser("consistency", _changed(transform, "real"), weight=weight)


def consistency_fake(transform: Callable[[jax.Array, jax.Array], jax.Array], weight: Any = 10.0) -> Regulariser:
    """The same at generated images: with `consistency`, balanced consistency (arXiv:2002.04724, algorithm 1; λ 10)."""
    return Regulariser("consistency_fake", _changed(transform, "fake"), weight=weight)


def flip_and_shift(keys: jax.Array, images: jax.Array, pixels: int = 4) -> jax.Array:
    """Each image mirrored or not and moved by up to so many pixels, edges reflected (arXiv:1910.12027, section 3)."""
    reach = min(pixels, *(n - 1 for n in images.shape[1:3]))

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        flip_key, shift_key = jax.random.split(key)
        image = jnp.where(jax.random.bernoulli(flip_key, jnp.float32(0.5)), image[:, ::-1], image)
        wide = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), "reflect")
        y, x = jax.random.randint(shift_key, (2,), 0, 2 * reach + 1, jnp.int32)
        return jax.lax.dynamic_slice(wide, (y, x, 0), image.shape)

    return jax.vmap(one)(keys, images)


def _changed(transform: Callable[[jax.Array, jax.Array], jax.Array], name: str):
    def function(view: View) -> tuple[jax.Array, Any]:
        images, output = getattr(view, name), getattr(view, f"{name}_output")
        changed, variables = view.critic(view.key)(view.variables, transform(view.keys, images))
        return jnp.mean(jnp.square(logit(output) - logit(changed))), variables

    return function


def auxiliary(player: str, weight: Any = 1.0) -> Regulariser:
    """-log P(class of the image) by the discriminator's class logits: AC-GAN's L_C (arXiv:1610.09585, eq. 3).

    The discriminator learns it at real and at generated images, whose classes are those they were made for; the
    generator at its own.
    """

    def function(view: View) -> tuple[jax.Array, Any]:
        outputs = (view.real_output, view.fake_output) if player == "disc" else (view.fake_output,)
        chosen = [jnp.take_along_axis(jax.nn.log_softmax(x[:, 1:]), view.label[:, None], 1) for x in outputs]
        return -jnp.sum(jnp.stack([jnp.mean(x) for x in chosen])), view.variables

    return Regulariser("auxiliary", function, player, weight)


def orthogonal(player: str, weight: Any = 1e-4) -> Regulariser:
    """Σ ||WᵀW ⊙ (1 - I)||²_F over the kernels of a player (arXiv:1809.11096, eq. 3; there β 1e-4 and the generator)."""
    return Regulariser("orthogonal", lambda view: (off_diagonal(view.params), view.variables), player, weight)
