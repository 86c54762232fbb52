"""How long a training step takes: jaxgan's, the same game with Flax's own layers, and what the input costs.

    python -m experiments.benchmark                     # DCGAN, 64x64x3, width 64, batch 64, float32
    python -m experiments.benchmark --size=32 --width=32 --out=bench.json

Three programs take turns, so that a machine whose speed drifts slows all of them; medians and ratios are printed:
`jaxgan` (resident data, `--steps_per_call` steps in a call), `no input` (the same call on one fixed batch), and `flax`
(`nn.Conv`, `nn.ConvTranspose` and `nn.BatchNorm` in the same game, one jitted step a call, as a first script has it:
inside a scan XLA's CPU backend is far slower still at their weight gradients, see `jaxgan/layers/conv.py`).
"""

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgan import adversarial, data, files, flags, losses, parallel, sources
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game
from jaxgan.models import dcgan


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = option(64, "height and width of the images")
    width: int = option(64, "base number of channels")
    batch_size: int = option(64, "images a step")
    steps_per_call: int = option(4, "steps in one call of jaxgan's")
    rounds: int = option(5, "times that the three take turns")
    flax: bool = option(True, "measure Flax's own layers too")
    out: str = option("", "a JSON file for the figures; empty: none")


class FlaxGenerator(nn.Module):
    """DCGAN's generator of Flax's own layers."""

    shape: tuple[int, int, int]
    width: int
    latent: int = 100

    @nn.compact
    def __call__(self, z, label=None, train=False):
        *upper, (h, w) = dcgan.sizes(self.shape)
        channels = self.width * 2 ** (len(upper) - 1)
        x = nn.Dense(h * w * channels, use_bias=False)(z).reshape(-1, h, w, channels)
        x = nn.relu(nn.BatchNorm(not train)(x))
        for _ in upper[1:]:
            channels //= 2
            x = nn.ConvTranspose(channels, (4, 4), (2, 2), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train)(x))
        return jnp.tanh(nn.ConvTranspose(self.shape[2], (4, 4), (2, 2))(x))


class FlaxDiscriminator(nn.Module):
    """DCGAN's discriminator of Flax's own layers."""

    shape: tuple[int, int, int]
    width: int
    mixes_batch = True

    @nn.compact
    def __call__(self, x, label=None, train=False):
        for i in range(len(dcgan.sizes(self.shape)) - 1):
            x = nn.Conv(self.width * 2**i, (4, 4), (2, 2), use_bias=i == 0)(x)
            x = nn.leaky_relu(x if i == 0 else nn.BatchNorm(not train)(x), 0.2)
        return nn.Dense(1)(x.reshape(x.shape[0], -1))[:, 0]


def game(generator: nn.Module, discriminator: nn.Module) -> Game:
    adam = optax.adam(2e-4, b1=0.5)
    pair = adversarial.Pair(generator, discriminator)
    return adversarial.game(pair, losses.non_saturating, gen_optimizer=adam, disc_optimizer=adam, ema=10_000.0)


def programs(config: Config) -> dict[str, Callable[[], float]]:
    """Name -> a function that runs the program once and returns seconds per step. Each is compiled here."""
    shape = (config.size, config.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, (1024, *shape), np.uint8)
    source = sources.from_arrays("noise", pixels)
    device = jax.devices()[:1]
    ours = game(dcgan.Generator(shape, width=config.width), dcgan.Discriminator(shape, width=config.width))
    feed = data.place(source, batch_size=config.batch_size, draws=ours.draws, devices=device, placement="resident")
    x = next(feed.calls(0, config.steps_per_call, config.steps_per_call))
    one = jax.tree.map(lambda x: x[0, 0], x)
    batch = jax.jit(feed.draw)(feed.resident, one)
    example = {name: value[0] for name, value in batch.items()}
    fixed = parallel.replicate(batch, device)
    plain = game(FlaxGenerator(shape, config.width), FlaxDiscriminator(shape, config.width))

    result = {
        "jaxgan": scanned(ours, feed.draw, example, feed.resident, x, device),
        "no input": scanned(ours, lambda resident, x: resident, example, fixed, x, device),
    }
    if config.flax:
        state = jax.jit(plain.init)(jax.random.key(0), example)
        step = jax.jit(plain.step, donate_argnums=0)
        result["flax"] = timed(lambda state: step(state, batch), state, 1)
    return result


def scanned(game: Game, draw: Callable, example: Any, resident: Any, x: Any, devices: list) -> Callable[[], float]:
    state = parallel.replicate(jax.jit(game.init)(jax.random.key(0), example), devices)
    call = parallel.compile_steps(game, draw, devices)
    steps = jax.tree.leaves(x)[0].shape[1]
    return timed(lambda state: call(state, resident, x), state, steps)


def timed(call: Callable[[Any], tuple[Any, Any]], state: Any, steps: int) -> Callable[[], float]:
    held = [state]

    def once() -> float:
        start = time.perf_counter()
        held[0], metrics = call(held[0])
        jax.block_until_ready((held[0].step, metrics))
        return (time.perf_counter() - start) / steps

    once()
    return once


def main(config: Config) -> None:
    for name in ("size", "width", "batch_size", "steps_per_call", "rounds"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name}={getattr(config, name)}: expected at least 1")
    jax.config.update("jax_default_matmul_precision", "highest")
    table = programs(config)
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(config.rounds):
        for name, once in table.items():
            seconds[name].append(once())
    device = jax.devices()[0]
    print(f"DCGAN {config.size}x{config.size}x3, width {config.width}, batch {config.batch_size}, float32, "
          f"{device.device_kind} ({platform.processor() or platform.machine()}), JAX {jax.__version__}")  # fmt: skip
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        spread = f"{min(seconds[name]) * 1e3:.0f} to {max(seconds[name]) * 1e3:.0f}"
        print(f"  {name:9s} {median * 1e3:9.1f} ms/step ({spread}), {config.batch_size / median:8.1f} images/s")
    # Ratios of neighbours in time, so that a drift of the machine's speed cancels.
    ratios = {f"{name} / jaxgan": ratio(seconds[name], seconds["jaxgan"]) for name in table if name != "jaxgan"}
    for name, value in ratios.items():
        print(f"  {name:18s} {value:.3f}")
    if config.out:
        figures = {"config": dataclasses.asdict(config), "seconds": seconds, "ratios": ratios, "jax": jax.__version__}
        files.write(config.out, json.dumps(figures, indent=1) + "\n")


def ratio(a: list[float], b: list[float]) -> float:
    """The median of the ratios, turn by turn."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    flags.main(Config, {}, main)
