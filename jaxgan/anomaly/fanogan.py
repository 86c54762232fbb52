"""f-AnoGAN: Schlegl et al. 2019 (doi:10.1016/j.media.2019.01.010).

A Wasserstein GAN with gradient penalty learns normal images; then, while it stands still, an encoder learns to find
their latents, by the residual of the image and that of the critic's features, "izi_f" (eq. 4). It scores too (eq. 5).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgan import adversarial, losses, penalties
from jaxgan.anomaly import parts
from jaxgan.anomaly.parts import Networks, Plan, Residuals, Weights
from jaxgan.game import Game, Move, Player
from jaxgan.models.dcgan import Discriminator, Generator
from jaxgan.models.encoder import Encoder

KAPPA = 1.0  # weight of the feature residual
CRITIC_STEPS = 5


def networks(shape: tuple[int, int, int], width: int, latent: int, dtype: Any) -> Networks:
    return {
        "gen": Generator(shape, latent=latent, width=width, dtype=dtype),
        "disc": Discriminator(shape, width=width, batch_norm=False, dtype=dtype),
        "enc": Encoder(shape, latent, width, dtype=dtype),
    }


def first(networks: Networks, plan: Plan) -> Game:
    """Algorithm 1 of arXiv:1704.00028, with λ 10."""
    return adversarial.game(
        adversarial.Pair(networks["gen"], networks["disc"]),
        losses.wasserstein,
        gen_optimizer=plan.adam(5e-4, b1=0.0, b2=0.9),
        disc_optimizer=plan.adam(5e-4, b1=0.0, b2=0.9),
        penalties=[penalties.wgan_gp(10.0)],
        disc_steps=CRITIC_STEPS,
        ema=10_000.0,
    )


def game(networks: Networks, plan: Plan) -> Game:
    """Generator and critic, whose weights are those of `first`, have no move."""

    def loss(params, state, batch, key):
        enc = parts.with_params(state.players["enc"], params["enc"])
        weights = {name: parts.with_params(p, p.params) for name, p in state.players.items() if name != "enc"}
        z, new = parts.train(networks["enc"], enc, batch["image"])
        image, feature, _ = compare(networks, weights, batch["image"], z)
        total = jnp.mean(image + KAPPA * feature)
        return total, ({"image": jnp.mean(image), "feature": jnp.mean(feature)}, {"enc": new})

    pair = adversarial.Pair(networks["gen"], networks["disc"])
    players = {
        "gen": Player(pair.init_generator, optax.set_to_zero()),
        "disc": Player(pair.init_discriminator, optax.set_to_zero()),
        "enc": Player(parts.start(networks["enc"]), plan.adam(1e-3)),
    }
    return Game(players, (Move("enc", loss),))


def compare(networks: Networks, weights: Weights, images: jax.Array, z: jax.Array) -> tuple:
    """Mean squares (b,) of the image residual and of the feature residual, and the images of `z`."""
    again = networks["gen"].apply(weights["gen"], z)
    seen = parts.features(networks["disc"], weights["disc"], jnp.concatenate([images, again]))
    real, fake = jnp.split(seen, 2)
    return parts.squared(images - again), parts.squared(real - fake), again


def residuals(networks: Networks, weights: Weights, images: jax.Array) -> Residuals:
    z = networks["enc"].apply(weights["enc"], images)
    image, feature, again = compare(networks, weights, images, z)
    return Residuals({"izi_f": image + KAPPA * feature}, again)
