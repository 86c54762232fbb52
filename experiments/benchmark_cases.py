"""What `experiments.benchmark` trains: networks, losses and sizes in words that a peer understands too."""

import dataclasses
import importlib
from typing import Any

import jax.numpy as jnp
import optax

from jaxgan import adversarial, losses, penalties
from jaxgan.game import Game


@dataclasses.dataclass(frozen=True)
class Case:
    """One training, in the same words for us and for a peer."""

    name: str
    model: str
    shape: tuple[int, int, int]
    loss: str = "non_saturating"
    variant: str = ""
    latent: int = 100
    width: int = 64
    batch_size: int = 64
    wgan_gp: float = 0.0
    r1_r2: float = 0.0  # γ of both
    disc_batch_norm: bool = True
    disc_steps: int = 1
    learning_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    ema: float = 10_000.0


# One discriminator move a step in all of them, so that their images per second compare.
CASES = {
    case.name: case
    for case in (
        Case("mlp28", "mlp", (28, 28, 1), width=256),
        Case("dcgan32", "dcgan", (32, 32, 3)),
        Case("dcgan64", "dcgan", (64, 64, 3)),
        Case("sngan32", "resnet", (32, 32, 3), "hinge", "sngan", 128, beta1=0.0, beta2=0.9),
        # R3GAN's networks of CIFAR-10, for a GPU, and half of its batch: compiled for an H100 it takes 42 of its 80 GB,
        # for all of it 61, and XLA computes parts of it again.
        Case(
            "r3gan32", "r3gan", (32, 32, 3), "relativistic", "cifar10", 64, 768, 256, r1_r2=0.05, beta1=0.0, beta2=0.9
        ),
        Case("wgangp32", "resnet", (32, 32, 3), "wasserstein", "wgan_gp", 128, wgan_gp=10.0, beta1=0.0, beta2=0.9),
    )
}
LARGE = ("r3gan32",)  # not among those that are measured if none are named


def make_game(case: Case, dtype: str, accumulate: int, remat: bool) -> Game:
    home = importlib.import_module(f"jaxgan.models.{case.model}")
    options = {"shape": case.shape, "width": case.width, "variant": case.variant, "dtype": jnp.dtype(dtype)}
    widths = (case.width, 2 * case.width, 4 * case.width)  # of mlp

    def build(network: Any, **own: Any) -> Any:
        fields = {f.name for f in dataclasses.fields(network)}
        return network(**{name: value for name, value in (options | own).items() if name in fields})

    generator = build(home.Generator, latent=case.latent, widths=widths)
    discriminator = build(home.Discriminator, batch_norm=case.disc_batch_norm, widths=widths[::-1])
    pair = adversarial.Pair(generator, discriminator, remat=remat)
    return players(case, pair, accumulate)


def players(case: Case, pair: adversarial.Pair, accumulate: int = 1) -> Game:
    adam = optax.adam(case.learning_rate, case.beta1, case.beta2)
    return adversarial.game(
        pair,
        getattr(losses, case.loss),
        gen_optimizer=adam,
        disc_optimizer=adam,
        penalties=[penalties.wgan_gp(case.wgan_gp)] * bool(case.wgan_gp)
        + [penalties.r1(case.r1_r2), penalties.r2(case.r1_r2)] * bool(case.r1_r2),
        disc_steps=case.disc_steps,
        accumulate=accumulate,
        ema=case.ema,
    )
