"""The smallest complete experiment, made to be copied: its own flags and generator, everything else from jaxgan.

    python -m experiments.template --workdir=runs/template --steps=200
    python -m experiments.generate --run=runs/template --out=template.png --allow_code

experiments/image.py has what this leaves out: evaluation, conditioning, schedules, several penalties.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgan import adversarial, data, flags, lookup, loop, losses, models, numerics, parallel, penalties, report
from jaxgan.config import Common, check_least
from jaxgan.flags import option
from jaxgan.game import State
from jaxgan.trained import Trained, network


@dataclasses.dataclass(frozen=True)
class Config(Common):
    # Each field is a flag. Those of every experiment are in jaxgan/config.py; to change a default, repeat one here.
    steps: int = option(2000, "training steps", resumable=True)
    model: str = option("mlp", "an architecture of jaxgan/models: its discriminator plays against the generator below")
    width: int = option(256, "hidden units of the generator")
    learning_rate: float = option(2e-4, "of both players' Adam")
    r1: float = option(0.1, "weight of the R1 penalty")


# A row of flags for each result that you want to reproduce by name: --preset=wide.
PRESETS: dict[str, dict[str, Any]] = {"wide": {"width": 1024}}


class Generator(nn.Module):
    """z (b, latent) -> images (b, *shape) in [-1, 1]."""

    shape: tuple[int, int, int]
    num_classes: int = 0  # this one is unconditional
    latent: int = 32
    width: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        # Your network: these two lines. For images use `jaxgan.layers.Conv` and `ConvTranspose`: on a CPU a step is
        # faster with them than with `flax.linen.Conv`, which works too.
        x = nn.relu(nn.Dense(self.width, dtype=self.dtype)(z))
        x = nn.Dense(math.prod(self.shape), dtype=self.dtype)(x)
        return jnp.tanh(x.astype(jnp.float32)).reshape(-1, *self.shape)


def main(config: Config) -> None:
    loop.setup(config)
    loop.check(config)
    check_least(config, {"width": 1, "learning_rate": 0, "r1": 0})
    devices = parallel.devices_for(config.batch_size, config.devices)
    chosen: tuple[str, ...] = ("split", "data_dir", "manual_dir", "size", "crop", "channels")
    cache = loop.cache_dir() / "decoded"
    given = {name: getattr(config, name) for name in chosen}
    source = data.load(
        config.dataset, cache=cache, skip_bad=config.skip_bad_images, prepare=not config.dry_run, **given
    )
    home, dtype = lookup.module("model", config.model, models, ("Generator", "Discriminator")), jnp.dtype(config.dtype)
    pair = adversarial.Pair(
        Generator(source.shape, width=config.width, dtype=dtype),
        home.Discriminator(source.shape, dtype=dtype),
    )
    # Your loss: `losses.Loss(disc, gen)`, two functions of logits, in place of this lookup; see jaxgan/losses.py.
    loss = lookup.member("loss", config.loss, losses, losses.Loss)
    # Your game: where two players and these moves do not do, write `Game(players, moves)`; see jaxgan/game.py.
    game = adversarial.game(
        pair,
        loss,
        gen_optimizer=optax.adam(config.learning_rate, b1=0.5),
        disc_optimizer=optax.adam(config.learning_rate, b1=0.5),
        penalties=[penalties.r1(config.r1)],
        ema=10_000.0,  # images until the generator's average forgets half
    )
    example = {"image": np.zeros((1, *source.shape), np.float32), "label": np.zeros(1, np.int32), "row": np.arange(1)}
    if config.dry_run:
        loop.check_step(game, config, example, devices)
        print(f"would train on {source.num_examples} images {source.shape} of {source.name} in {config.workdir}")
        return

    def sample(state: State) -> np.ndarray:
        gen = state.players["gen"]
        gan = Trained.of(pair.generator, gen.averaged, gen.variables)
        return report.grid(gan.sample(numerics.key(config.seed), 64))

    options: tuple[str, ...] = ("batch_size", "seed", "placement", "resident_gb", "mirror")
    feed = data.place(source, draws=game.draws, devices=devices, **{name: getattr(config, name) for name in options})
    # Your metrics: `evaluate=`, a function of the state to a dict of numbers, as experiments/image.py has one.
    about = {"networks": {"generator": network(pair.generator)}}
    loop.run(game, feed, config, example=example, devices=devices, about=about, sample=sample)


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
