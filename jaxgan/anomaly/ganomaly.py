"""GANomaly: Akcay et al. 2018 (arXiv:1805.06725).

The generator is an autoencoder, without latents of its own; a second encoder looks at what it drew. The score is how
far the two codes are apart: those of normal images agree, as both encoders have learned on them alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import softplus

from jaxgan.anomaly import parts
from jaxgan.anomaly.parts import Networks, Plan, Residuals, Weights
from jaxgan.game import Game, Move, Player
from jaxgan.models.dcgan import Discriminator, Generator
from jaxgan.models.encoder import Encoder

ADVERSARIAL, CONTEXTUAL, CODE = 1.0, 50.0, 1.0  # weights of section 3.2; 50 as in the authors' code


def networks(shape: tuple[int, int, int], width: int, latent: int, dtype: Any) -> Networks:
    return {
        "gen": Generator(shape, latent=latent, width=width, dtype=dtype),
        "disc": Discriminator(shape, width=width, batch_norm=False, dtype=dtype),
        "enc": Encoder(shape, latent, width, dtype=dtype),
        "again": Encoder(shape, latent, width, dtype=dtype),
    }


def game(networks: Networks, plan: Plan) -> Game:
    gen, disc, enc, again = (networks[name] for name in ("gen", "disc", "enc", "again"))

    def disc_loss(params, state, batch, key):
        players = {name: parts.with_params(p, p.params) for name, p in state.players.items()}
        z, _ = parts.train(enc, players["enc"], batch["image"])
        drawn, _ = parts.train(gen, players["gen"], z)
        both = jnp.concatenate([batch["image"], drawn])
        real, fake = jnp.split(disc.apply({"params": params["disc"]}, both), 2)
        return jnp.mean(softplus(-real) + softplus(fake)), ({"real": jnp.mean(real), "fake": jnp.mean(fake)}, {})

    def loss(params, state, batch, key):
        """Equations 1 to 3: the critic's features, the pixels and the codes of x and of what was drawn agree."""
        now = {name: parts.with_params(state.players[name], params[name]) for name in params}
        z, enc_variables = parts.train(enc, now["enc"], batch["image"])
        drawn, gen_variables = parts.train(gen, now["gen"], z)
        code, again_variables = parts.train(again, now["again"], drawn)
        weights = {"params": state.players["disc"].params}
        real, fake = jnp.split(parts.features(disc, weights, jnp.concatenate([batch["image"], drawn])), 2)
        terms = {
            "adversarial": jnp.mean(parts.squared(real - fake)),
            "image": jnp.mean(parts.absolute(batch["image"] - drawn)),
            "code": jnp.mean(parts.squared(z - code)),
        }
        total = ADVERSARIAL * terms["adversarial"] + CONTEXTUAL * terms["image"] + CODE * terms["code"]
        return total, (terms, {"enc": enc_variables, "gen": gen_variables, "again": again_variables})

    movers = {name: Player(parts.start(networks[name]), plan.adam(2e-4)) for name in ("enc", "again")}
    return Game(
        {"disc": Player(parts.start(disc), plan.adam(2e-4)), "gen": Player(parts.decoder(gen), plan.adam(2e-4))}
        | movers,
        (Move("disc", disc_loss), Move(("enc", "gen", "again"), loss, name="gen")),
    )


def residuals(networks: Networks, weights: Weights, images: jax.Array) -> Residuals:
    """|E1(x) - E2(G(x))|₁ (eq. 5)."""
    z = networks["enc"].apply(weights["enc"], images)
    drawn = networks["gen"].apply(weights["gen"], z)
    return Residuals({"code": parts.absolute(z - networks["again"].apply(weights["again"], drawn))}, drawn)
