"""ALAD (arXiv:1812.02288): a generator and an encoder, and three discriminators that hold them to each other.

    xz    tells (x, E(x)) from (G(z), z)
    xx    tells (x, x) from (x, G(E(x)))
    zz    tells (z, z) from (z, E(G(z)))

A row is as anomalous as the features of xx, before its logits, differ between (x, x) and (x, G(E(x))): their L1
distance (section 3.4).
Discriminators are spectrally normalised, as there. Ours are the widths, the rates, which fall, and no dropout.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import softplus

from jaxgan import adversarial
from jaxgan.anomaly import parts
from jaxgan.anomaly.parts import Networks, Plan, Residuals, Weights
from jaxgan.game import Game, Move, Player, State
from jaxgan.models.alad import Critic, Encoder, Generator

PAIRS = ("xz", "xx", "zz")
RATE = 1e-3


def networks(shape: Sequence[int], width: int, latent: int, dtype: Any, pairs: Sequence[str] = PAIRS) -> dict[str, Any]:
    made: dict[str, Any] = {
        "gen": Generator(tuple(shape), latent=latent, width=width, dtype=dtype),
        "enc": Encoder(latent, width, dtype),
    }
    return made | {name: Critic(width, dtype=dtype) for name in pairs}


def game(networks: Networks, plan: Plan) -> Game:
    """The discriminators of the pairs that `networks` has, in one move, then generator and encoder in another."""

    def disc_loss(params, state, batch, key):
        z = adversarial.latents(key, batch["row"], networks["gen"].latent)
        total, variables = judged(networks, params, state, batch["image"], z)
        return total, ({}, variables)

    def loss(params, state, batch, key):
        z = adversarial.latents(key, batch["row"], networks["gen"].latent)
        total, _ = confused(networks, params, state, batch["image"], z)
        return total, ({}, {})

    moves = Move(critics(networks), disc_loss, name="disc"), Move(("gen", "enc"), loss, name="gen")
    return Game(players(networks, plan), moves)


def critics(networks: Networks) -> tuple[str, ...]:
    return tuple(name for name in PAIRS if name in networks)


def players(networks: Networks, plan: Plan) -> dict[str, Player]:
    gen, enc = networks["gen"], networks["enc"]
    made = {name: Player(start(networks, name), plan.adam(RATE)) for name in critics(networks)}
    return made | {"gen": Player(parts.decoder(gen), plan.adam(RATE)), "enc": Player(parts.start(enc), plan.adam(RATE))}


def judged(networks: Networks, params: Any, state: State, x: jax.Array, z: jax.Array) -> tuple[jax.Array, dict]:
    """The loss of the discriminators, and their new variables: each has to tell its pairs."""
    weights, variables, total = parts.of(state), {}, jnp.float32(0)
    shown, _ = pairs(networks, weights, x, z)
    for name in critics(networks):
        both = [jnp.concatenate(sides) for sides in zip(*shown[name], strict=True)]
        own = parts.with_params(state.players[name], params[name])
        (logits, _), new = parts.train(networks[name], own, *both)
        real, fake = jnp.split(logits, 2)
        total += jnp.mean(softplus(-real)) + jnp.mean(softplus(fake))
        variables[name] = new
    return total, variables


def confused(networks: Networks, params: Any, state: State, x: jax.Array, z: jax.Array) -> tuple[jax.Array, tuple]:
    """The loss of generator and encoder, for whom each pair is to be taken for the other; E(x) and G(E(x))."""
    weights, total = parts.of(state), jnp.float32(0)
    moving = {name: parts.with_params(state.players[name], params[name]) for name in ("gen", "enc")}
    shown, made = pairs(networks, weights | moving, x, z)
    for name in critics(networks):
        real, fake = (networks[name].apply(weights[name], *side)[0] for side in shown[name])
        total += jnp.mean(softplus(real)) + jnp.mean(softplus(-fake))
    return total, made


def pairs(networks: Networks, weights: Weights, x: jax.Array, z: jax.Array) -> tuple[dict[str, tuple], tuple]:
    """{pair: (what is real, what is not)} of rows x (b, ...) and latents z (b, latent); E(x) and G(E(x))."""

    def play(name: str, inputs: jax.Array) -> jax.Array:
        return networks[name].apply(weights[name], inputs)

    fake, found = play("gen", z), play("enc", x)
    again, back = play("gen", found), play("enc", fake)
    shown = {"xz": ((x, found), (fake, z)), "xx": ((x, x), (x, again)), "zz": ((z, z), (z, back))}
    return shown, (found, again)


def start(networks: Networks, name: str) -> Any:
    """The `init` of the player of a pair."""

    def init(key, batch):
        sides = {"x": batch["image"], "z": jnp.zeros((len(batch["image"]), networks["gen"].latent))}
        variables = dict(networks[name].init(key, *(sides[side] for side in name)))
        return variables.pop("params"), variables

    return init


def residuals(networks: Networks, weights: Weights, images: jax.Array) -> Residuals:
    again = networks["gen"].apply(weights["gen"], networks["enc"].apply(weights["enc"], images))
    features = [networks["xx"].apply(weights["xx"], images, other)[1] for other in (images, again)]
    return Residuals({"feature": parts.absolute(features[0] - features[1])}, again)
