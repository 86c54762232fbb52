"""How much an image tells of the code it was made from: InfoGAN's lower bound of their mutual information.

    I(c; G(z, c)) >= L_I = H(c) + E log Q(c | G(z, c))                    (arXiv:1606.03657, eq. 4 and 5)

Q is a softmax over categories, and a normal distribution over each number, whose mean and deviation it tells. All in
nats: a category out of K has log K to tell, a number that is uniform on (-1, 1) any amount, for it can be told to any
precision. `LEAST` bounds that: rewarded for more, a generator hides codes in images instead of drawing digits.

Which categories they are, the bound leaves open: any ten kinds will do. `invariance` asks that the category of
a real image stays the same when the image is turned, scaled, sheared and moved a little, which holds for digits and for
few other divisions: the mutual information of the two categories (arXiv:1807.06653, eq. 3). It needs no labels either.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgan import collectives
from jaxgan.regularisers import Regulariser, View

LEAST, MOST = math.log(0.5), 1.0  # of a log standard deviation: a code told exactly would outweigh everything


class Recognised(NamedTuple):
    """What Q says of images."""

    logits: jax.Array  # (b, categorical)
    mean: jax.Array  # (b, continuous)
    log_std: jax.Array  # (b, continuous)


def recognised(output: jax.Array, categorical: int, continuous: int) -> Recognised:
    """A discriminator's output (b, 1 + categorical + 2 continuous), the verdict first."""
    if output.ndim != 2 or output.shape[1] != 1 + categorical + 2 * continuous:
        raise ValueError(f"an output {output.shape} for {categorical} categories and {continuous} numbers")
    logits, mean, log_std = jnp.split(output[:, 1:], [categorical, categorical + continuous], -1)
    return Recognised(logits, mean, jnp.clip(log_std, LEAST, MOST))


def surprise(said: Recognised, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log Q(c | x) of codes (b, >= categorical + continuous), the category one-hot first: (b,), (b, continuous)."""
    k, c = said.logits.shape[1], said.mean.shape[1]
    category = -jnp.sum(codes[:, :k] * jax.nn.log_softmax(said.logits), -1)
    z = (codes[:, k : k + c] - said.mean) * jnp.exp(-said.log_std)
    return category, 0.5 * jnp.square(z) + said.log_std + 0.5 * math.log(2 * math.pi)


def bound(said: Recognised, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L_I in nats: of the category, (), and of each number, (continuous,)."""
    category, numbers = surprise(said, codes)
    k = said.logits.shape[1]
    return math.log(max(k, 1)) - category.mean(), math.log(2) - numbers.mean(0)


def regulariser(
    player: str, codes: Callable[[jax.Array], jax.Array], categorical: int, continuous: int, weights: tuple[Any, Any]
) -> list[Regulariser]:
    """-λ L_I less its constant, at generated images, for the generator and for the discriminator, of which Q is a part.

    codes: latents (b, z) -> codes, as the generator reads them. weights: λ of the category, and of the numbers.
    """

    def term(name: str, place: int, weight: Any) -> Regulariser:
        def function(view: View) -> tuple[jax.Array, Any]:
            said = recognised(view.fake_output, categorical, continuous)
            value = surprise(said, codes(view.z))[place]
            return value.mean(0).sum(), view.variables

        return Regulariser(name, function, player, weight)

    wanted = (("category", 0, categorical), ("numbers", 1, continuous))
    return [term(name, i, weights[i]) for name, i, there in wanted if there]


def shared(p: jax.Array, q: jax.Array, even: float = 1.0) -> jax.Array:
    """Mutual information, in nats, of two categories of which images have the probabilities p and q (b, k) (ibid.).

    even: weight of the categories' entropies (1 in eq. 3): above 1, all categories are used about as often.
    """
    joint = collectives.mean(p.T @ q / len(p))  # of all devices: the information is not linear in it
    joint = jnp.maximum((joint + joint.T) / 2, 1e-12)
    return jnp.sum(joint * (jnp.log(joint) - even * (jnp.log(joint.sum(0)) + jnp.log(joint.sum(1))[:, None])))


EVEN = 1.5
TURN, SCALE, SHEAR, SHIFT = (
    math.radians(20),
    0.2,
    0.2,
    0.1,
)  # the most of each, uniform around none; of the image's side


def warped(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Images (b, h, w, c), each turned, scaled, sheared and moved a little by a key (b,) of its own; edges go on."""
    _, h, w, _ = images.shape
    y, x = (jnp.arange(n) - (n - 1) / 2 for n in (h, w))

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        turn, scale, shear, *shift = jax.random.uniform(key, (5,), jnp.float32, minval=-1.0, maxval=1.0)
        zoom, (sin, cos) = jnp.exp(SCALE * scale), (jnp.sin(TURN * turn), jnp.cos(TURN * turn))
        along = x[None] + SHEAR * shear * y[:, None]
        rows = zoom * (cos * y[:, None] + sin * along) + SHIFT * h * shift[0] + (h - 1) / 2
        columns = zoom * (cos * along - sin * y[:, None]) + SHIFT * w * shift[1] + (w - 1) / 2
        look = jax.vmap(lambda plane: jax.scipy.ndimage.map_coordinates(plane, [rows, columns], 1, "nearest"), 2, 2)
        return look(image)

    return jax.vmap(one)(keys, images)


def invariance(categorical: int, continuous: int, weight: Any) -> Regulariser:
    """-λ I(category of x; category of x warped) at real images, of the discriminator's head Q."""

    def function(view: View) -> tuple[jax.Array, Any]:
        output, variables = view.critic(view.key)(view.variables, warped(view.keys, view.real))
        p, q = (jax.nn.softmax(recognised(o, categorical, continuous).logits) for o in (view.real_output, output))
        return -shared(p, q, EVEN), variables

    return Regulariser("invariance", function, "disc", weight)
