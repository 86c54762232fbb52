"""EGBAD: Zenati et al. 2018 (arXiv:1802.06222), anomaly detection with a bidirectional GAN (arXiv:1605.09782).

The discriminator tells (x, E(x)) from (G(z), z); generator and encoder move together, to be taken for each other.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import softplus

from jaxgan import adversarial
from jaxgan.anomaly import parts
from jaxgan.anomaly.parts import Networks, Plan, Residuals, Weights
from jaxgan.game import Game, Move, Player
from jaxgan.models.dcgan import Generator
from jaxgan.models.encoder import Encoder, JointDiscriminator

ALPHA = 0.9  # of the image's residual in the score, 1 - α of the features' (arXiv:1802.06222, section 4)


def networks(shape: tuple[int, int, int], width: int, latent: int, dtype: Any) -> Networks:
    return {
        "gen": Generator(shape, latent=latent, width=width, dtype=dtype),
        "disc": JointDiscriminator(shape, latent, width, dtype=dtype),
        "enc": Encoder(shape, latent, width, dtype=dtype),
    }


def game(networks: Networks, plan: Plan) -> Game:
    gen, disc, enc = (networks[name] for name in ("gen", "disc", "enc"))

    def logits(params, state, batch, key):
        """Of (x, E(x)) and of (G(z), z), and the new variables of both."""
        now = {name: parts.with_params(p, params.get(name, p.params)) for name, p in state.players.items()}
        z = adversarial.latents(key, batch["row"], gen.latent)
        found, enc_variables = parts.train(enc, now["enc"], batch["image"])
        made, gen_variables = parts.train(gen, now["gen"], z)
        images, latents = jnp.concatenate([batch["image"], made]), jnp.concatenate([found, z])
        real, fake = jnp.split(disc.apply(now["disc"], images, latents), 2)
        return real, fake, {"gen": gen_variables, "enc": enc_variables}

    def disc_loss(params, state, batch, key):
        real, fake, _ = logits(params, state, batch, key)
        return jnp.mean(softplus(-real) + softplus(fake)), ({"real": jnp.mean(real), "fake": jnp.mean(fake)}, {})

    def loss(params, state, batch, key):
        real, fake, variables = logits(params, state, batch, key)
        return jnp.mean(softplus(real) + softplus(-fake)), ({}, variables)

    return Game(
        {
            "disc": Player(parts.start(disc, jnp.zeros((1, gen.latent))), plan.adam(2e-4)),
            "gen": Player(parts.decoder(gen), plan.adam(2e-4)),
            "enc": Player(parts.start(enc), plan.adam(2e-4)),
        },
        (Move("disc", disc_loss), Move(("gen", "enc"), loss, name="gen")),
    )


def residuals(networks: Networks, weights: Weights, images: jax.Array) -> Residuals:
    """α |x - G(E(x))| + (1 - α) |f(x, E(x)) - f(G(E(x)), E(x))|, sums (ibid., section 3, with feature matching)."""
    z = networks["enc"].apply(weights["enc"], images)
    again = networks["gen"].apply(weights["gen"], z)
    seen = [parts.features(networks["disc"], weights["disc"], x, z) for x in (images, again)]
    image = jnp.sum(jnp.abs(images - again), (1, 2, 3))
    feature = jnp.sum(jnp.abs(seen[0] - seen[1]), 1)
    return Residuals({"egbad": ALPHA * image + (1 - ALPHA) * feature}, again)
