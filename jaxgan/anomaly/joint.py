"""A GAN whose encoder plays along: f-AnoGAN's networks and residuals (see `fanogan`), trained at once.

The generator also has to draw what the encoder saw, so that normal images come back as they were, and the encoder
both to find the latents of generated images, as E(G(z)) = z, and to map real ones to where latents are: mean 0 and
covariance I over the batch. What it sees is noisy, so that fine detail has to come from the generator. The weights are
ours.

Four residuals score. Against AnoGAN's pixel residual, that of the image is blurred: an edge that is off by a pixel is
no anomaly. The others are that of the critic's features, E(G(E(x))) - E(x), and the length of E(x).
"""

import jax
import jax.numpy as jnp
from jax.nn import softplus

from jaxgan import adversarial, losses, penalties
from jaxgan.anomaly import fanogan, parts
from jaxgan.anomaly.parts import Networks, Plan, Residuals, Weights
from jaxgan.game import Game, Move, Player

RECONSTRUCTION = 50.0  # weight of the mean squared residual of an image, in [-1, 1]
NOISE = 0.3  # standard deviation of what is added to the image that the encoder sees
R1 = 0.1

networks = fanogan.networks


def game(networks: Networks, plan: Plan) -> Game:
    gen, disc, enc = (networks[name] for name in ("gen", "disc", "enc"))
    pair = adversarial.Pair(gen, disc)

    def disc_loss(params, state, batch, key):
        return adversarial.disc_loss(pair, losses.non_saturating, [penalties.r1(R1)], params, state, batch, key)

    def loss(params, state, batch, key):
        z_key, noise_key = jax.random.split(key)
        images, keys = batch["image"], adversarial.image_keys(noise_key, batch["row"])
        noise = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:], jnp.float32))(keys)
        z = adversarial.latents(z_key, batch["row"], gen.latent)
        encoder = parts.with_params(state.players["enc"], params["enc"])
        generator = parts.with_params(state.players["gen"], params["gen"])
        found, encoder_variables = parts.train(enc, encoder, images + NOISE * noise)
        made, generator_variables = parts.train(gen, generator, jnp.concatenate([z, found]))
        fake, again = jnp.split(made, 2)
        back, encoder_variables = parts.train(enc, encoder | encoder_variables, jax.lax.stop_gradient(fake))
        terms = {
            "adversarial": jnp.mean(softplus(-disc.apply({"params": state.players["disc"].params}, fake))),
            "image": jnp.mean(parts.squared(images - again)),
            "latent": jnp.mean(parts.squared(z - back)),
            "prior": prior(found),
        }
        total = terms["adversarial"] + RECONSTRUCTION * terms["image"] + terms["latent"] + terms["prior"]
        return total, (terms, {"gen": generator_variables, "enc": encoder_variables})

    return Game(
        {
            "disc": Player(pair.init_discriminator, plan.adam(2e-4)),
            "gen": Player(pair.init_generator, plan.adam(1e-3)),
            "enc": Player(parts.start(enc), plan.adam(1e-3)),
        },
        (Move("disc", disc_loss), Move(("gen", "enc"), loss, name="gen")),
    )


def prior(z: jax.Array) -> jax.Array:
    """How far the latents (b, d) of a batch are from N(0, I) in mean and covariance: scalar, 0 where they agree."""
    mean = jnp.mean(z, 0)
    covariance = (z - mean).T @ (z - mean) / len(z)
    return jnp.mean(mean**2) + jnp.sum((covariance - jnp.eye(z.shape[1])) ** 2) / z.shape[1]


def residuals(networks: Networks, weights: Weights, images: jax.Array) -> Residuals:
    enc = networks["enc"]
    z = enc.apply(weights["enc"], images)
    _, feature, again = fanogan.compare(networks, weights, images, z)
    scores = {
        "image": parts.squared(parts.blurred(images - again)),
        "feature": feature,
        "cycle": parts.squared(enc.apply(weights["enc"], again) - z),
        "latent": parts.squared(z),
    }
    return Residuals(scores, again)
