"""Which games lose modes? Rings and grids of Gaussians, the same dense networks, five ways to play, several seeds.

    python -m experiments.toy --workdir=runs/toy
    python -m experiments.toy --workdir=runs/toy_ring --data=ring --methods=relativistic --seeds=1

Prints a table by the protocol of VEEGAN and PacGAN (`jaxgan/metrics/modes.py`) and, since 2,500 samples resolve little,
of 100,000 too. Leaves DIR/table.json, a picture of the last samples and an animated one of all methods on their way.
Started again, it goes on with the cases that are missing.
"""

import dataclasses
import functools
import io
import json
import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from jaxgan import adversarial, files, flags, hosts, loop, losses, numerics, penalties, report, schedule, workdir
from jaxgan.config import Common, check_least
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game, State
from jaxgan.metrics.modes import Modes, modes

SAMPLES = {"few": 2500, "many": 100_000}
SHOWN = 1000  # points in a picture
INK = np.array([30, 90, 200], np.uint8)


class Mixture(NamedTuple):
    """Gaussians N(centre, σ² I) of equal weight, and how long to train on them.

    A larger batch makes the modes more even, more steps make them sharper: of the same ten million points, the ring
    (σ a hundredth of its radius) needs the one, the grid (three times as many modes) the other.
    """

    centres: np.ndarray
    sigma: float
    batch_size: int
    steps: int


def _ring() -> Mixture:
    angle = 2 * np.pi * np.arange(8) / 8
    return Mixture(np.stack([np.cos(angle), np.sin(angle)], 1), 0.01, 1024, 10_000)


def _grid() -> Mixture:
    line = np.arange(-4.0, 5.0, 2.0)
    return Mixture(np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2), 0.05, 512, 20_000)


MIXTURES = {"ring": _ring(), "grid": _grid()}


class Method(NamedTuple):
    """What differs between the methods. Networks, Adam (β1 0), the rate and the number of moves are the same."""

    loss: losses.Loss
    pack: int = 1
    penalise: Callable[[Callable], list[penalties.Penalty]] = lambda falling: []
    disc_steps: int = 1


METHODS = {
    "gan": Method(losses.non_saturating),
    "least_squares": Method(losses.least_squares),
    # λ and the number of critic moves of the paper (arXiv:1704.00028, algorithm 1).
    "wgan_gp": Method(losses.wasserstein, penalise=lambda falling: [penalties.wgan_gp(10.0)], disc_steps=5),
    "pacgan2": Method(losses.non_saturating, pack=2),
    # arXiv:2501.05441, with a γ that falls: at a constant .01 the penalty blurs modes to many times their width.
    "relativistic": Method(
        losses.relativistic, penalise=lambda falling: [penalties.r1(falling), penalties.r2(falling)]
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    workdir: str = option("", "directory of the table and the pictures", resumable=True)
    data: tuple[str, ...] = option(tuple(MIXTURES), "mixtures to learn", tuple(MIXTURES), resumable=True)
    methods: tuple[str, ...] = option(tuple(METHODS), "ways to play", tuple(METHODS), resumable=True)
    seeds: int = option(5, "runs of each, in one program")
    seed: int = option(0, "the first of them")
    steps: int = option(0, "pairs of moves, fewer where a step has more than two of them; 0: the mixture's own")
    batch_size: int = option(0, "points a move; 0: the mixture's own")
    width: int = option(64, "units of a layer")
    learning_rate: tuple[float, ...] = option((2e-3, 1e-5), "of both players: start,end, geometrically")
    gamma: tuple[float, ...] = option((0.1, 1e-5), "of R1 and R2: start,end, geometrically")
    frames: int = option(20, "pictures of an animation")


# --- networks


def spread(scale: float) -> Callable:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


class Generator(nn.Module):
    """z (b, latent) -> points (b, 2)."""

    latent: int = 2
    width: int = 64

    @nn.compact
    def __call__(self, z: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        x = z
        for i in range(5):
            first = spread(1.0 if i == 0 else 0.1)
            x = nn.relu(nn.Dense(self.width, kernel_init=nn.initializers.he_normal(), bias_init=first)(x))
        return nn.Dense(2)(x)


class Discriminator(nn.Module):
    """points (b, 2 pack) -> logits (b,)."""

    width: int = 64
    mixes_batch: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None, train: bool = False) -> jax.Array:
        for i in range(5):
            first = spread(0.5 if i == 0 else 0.1)  # kinks all over the plane
            x = nn.relu(nn.Dense(self.width, kernel_init=nn.initializers.he_normal(), bias_init=first)(x))
        return nn.Dense(1)(x)[:, 0]


# --- one method on one mixture, all seeds at once


def falling(values: tuple[float, ...], images: float) -> Callable[[jax.Array], jax.Array]:
    """start (end / start)^t, t from 0 to 1 in so many images: what has to fall by orders of magnitude."""
    start, end = values if len(values) == 2 else values * 2
    return lambda seen: start * (end / start) ** jnp.minimum(seen / images, 1.0)


def steps_of(config: Config, method: Method) -> int:
    """As many moves for every method."""
    return max(1, 2 * config.steps // (1 + method.disc_steps))


def make_game(config: Config, method: Method) -> tuple[adversarial.Pair, Game]:
    pair = adversarial.Pair(Generator(width=config.width), Discriminator(config.width), pack=method.pack)
    total = steps_of(config, method) * config.batch_size
    rate, beta2 = falling(config.learning_rate, total), schedule.anneal((0.9, 0.99), 0.9 * total)

    def adam(seen: jax.Array) -> optax.GradientTransformation:
        return optax.adam(rate(seen), 0.0, schedule.at(beta2, seen))

    game = adversarial.game(
        pair,
        method.loss,
        gen_optimizer=adam,
        disc_optimizer=adam,
        penalties=method.penalise(falling(config.gamma, 0.9 * total)),
        disc_steps=method.disc_steps,
    )
    return pair, game


def train(config: Config, mixture: Mixture, method: Method) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Samples (seeds, n, 2) of the last generators, those of the first seed on the way, and the seconds it took.

    The seeds are a mapped axis of one program, which has no use for the loop of other experiments: nothing is saved but
    the samples. Data are drawn anew in each step, as from the mixture itself; lengths are in units of its own extent.
    """
    pair, game = make_game(config, method)
    extent = float(np.sqrt(np.mean(mixture.centres**2) + mixture.sigma**2))
    centres = jnp.asarray(mixture.centres / extent, jnp.float32)
    rows = jnp.broadcast_to(jnp.arange(config.batch_size), (game.draws, config.batch_size))

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        mode_key, noise_key = jax.random.split(key)
        mode = jax.random.randint(mode_key, rows.shape, 0, len(centres), jnp.int32)
        noise = mixture.sigma / extent * jax.random.normal(noise_key, (*rows.shape, 2), jnp.float32)
        return {"image": centres[mode] + noise, "row": rows}

    def step(state: State, _: Any) -> tuple[State, None]:
        data_key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), len(game.moves))
        return game.step(state, draw(data_key))[0], None

    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
    def advance(state: State, steps: int) -> State:
        return jax.vmap(lambda state: jax.lax.scan(step, state, None, length=steps)[0])(state)

    @functools.partial(jax.jit, static_argnums=1)
    def sample(state: State, n: int) -> jax.Array:
        z = jax.random.normal(numerics.key(config.seed), (n, pair.generator.latent), jnp.float32)
        points: Any = jax.vmap(lambda p: pair.generator.apply({"params": p}, z))(state.players["gen"].params)
        return extent * points

    example = {"image": jnp.zeros((1, 2)), "row": jnp.arange(1)}
    keys = jax.vmap(numerics.key)(jnp.arange(config.seed, config.seed + config.seeds))
    state = jax.jit(jax.vmap(lambda key: game.init(key, example)))(keys)
    start = time.monotonic()
    shown, done, steps = [np.asarray(sample(state, SHOWN))[0]], 0, steps_of(config, method)
    for i in range(1, config.frames + 1):
        now = steps * i // config.frames
        state, done = advance(state, now - done), now
        shown.append(np.asarray(sample(state, SHOWN))[0])
    return np.asarray(sample(state, SAMPLES["many"])), shown, time.monotonic() - start


def figures(points: np.ndarray, mixture: Mixture) -> dict[str, Any]:
    """Of samples (n, 2) of one seed: by the published protocol, and of all."""
    few, many = (modes(points[:n], mixture.centres, mixture.sigma) for n in SAMPLES.values())
    return {name: plain(found) for name, found in zip(SAMPLES, (few, many), strict=True)}


def plain(found: Modes) -> dict[str, float]:
    return {
        "found": found.found,
        "high_quality": found.high_quality,
        "reverse_kl": found.reverse_kl,
        "spread": float(np.mean(found.spread)),
    }


# --- table and pictures


def picture(points: np.ndarray, mixture: Mixture, side: int = 160) -> np.ndarray:
    """Points (n, 2) on white: uint8 (side, side, 3)."""
    reach = 1.25 * np.abs(mixture.centres).max()
    place = np.floor((points / reach + 1) / 2 * side).astype(int)
    x, y = place[((place >= 0) & (place < side)).all(1)].T
    canvas = np.full((side, side, 3), 255, np.uint8)
    canvas[side - 1 - y, x] = INK
    return np.pad(canvas, ((1, 1), (1, 1), (0, 0)), constant_values=200)


def animation(frames: list[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    first, *rest = (Image.fromarray(frame).quantize(16) for frame in frames)
    durations = [200] * len(rest) + [2000]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return buffer.getvalue()


def line(name: str, rows: list[dict[str, Any]], modes: int, seconds: float) -> str:
    few, many = ({key: [row[n][key] for row in rows] for key in rows[0][n]} for n in SAMPLES)
    found = f"{np.mean(few['found']):5.1f} of {modes:2d} (least {min(few['found']):2d})"
    return (
        f"  {name:14s} {found}  KL {np.mean(few['reverse_kl']):.3f} |"
        f" KL {np.mean(many['reverse_kl']):.4f} (most {max(many['reverse_kl']):.4f})"
        f"  within 3σ {np.mean(many['high_quality']):.1%} (least {min(many['high_quality']):.1%})"
        f"  spread {np.mean(many['spread']):.2f} ({min(many['spread']):.2f} to {max(many['spread']):.2f})"
        f"  {seconds / len(rows):.0f} s a run"
    )


def check(config: Config) -> None:
    check_least(config, dict.fromkeys(("seeds", "width", "frames"), 1) | dict.fromkeys(("steps", "batch_size"), 0))
    if not 0 <= config.seed <= 2**32 - config.seeds:
        raise InputError(f"--seed={config.seed}: expected a number from 0 to {2**32 - config.seeds}")
    for name in ("data", "methods"):
        if not getattr(config, name):
            raise InputError(f"--{name}= is empty; expected at least one")
    for name in ("learning_rate", "gamma"):
        values = getattr(config, name)
        if len(values) not in (1, 2) or min(values) <= 0:
            raise InputError(f"--{name}={','.join(map(str, values))}: expected one value above 0, or start,end")
    if config.batch_size % 2:
        raise InputError(f"--batch_size={config.batch_size}: expected an even number, for pairs of points")
    for name in config.methods:
        for data in config.data:
            steps = steps_of(dataclasses.replace(config, steps=config.steps or MIXTURES[data].steps), METHODS[name])
            if steps < config.frames:
                raise InputError(f"--frames={config.frames}: expected at most the {steps} steps of {name}")


def main(config: Config) -> None:
    common = Common(workdir=config.workdir, seed=config.seed, num_hosts=1)
    loop.setup(common)
    check(config)
    if not config.workdir:
        raise InputError("--workdir is empty; expected a directory for the table, for example --workdir=runs/toy")
    known = flags.check_same(config, files.reach(config.workdir))
    directory = workdir.claim(common)
    if not known:
        flags.write(config, directory)
    table: dict[str, Any] = {}
    for data in config.data:
        mixture, films = MIXTURES[data], {}
        own = {name: getattr(config, name) or getattr(mixture, name) for name in ("batch_size", "steps")}
        print(f"{data}: {len(mixture.centres)} modes, σ {mixture.sigma}; of 2,500 samples | of 100,000")
        for name in config.methods:
            kept = directory / f"{data}_{name}.npz"
            if not kept.exists():
                points, shown, seconds = train(dataclasses.replace(config, **own), mixture, METHODS[name])
                rows = [figures(x, mixture) for x in points]
                buffer = io.BytesIO()
                np.savez(buffer, shown=np.stack(shown), rows=json.dumps(rows), seconds=seconds)
                files.write(kept, buffer.getvalue())
            stored = np.load(io.BytesIO(kept.read_bytes()))
            rows, seconds = json.loads(str(stored["rows"])), float(stored["seconds"])
            films[name] = [picture(points, mixture) for points in stored["shown"]]
            table[f"{data}/{name}"] = {"seconds": seconds, "seeds": rows}
            hosts.tell(line(name, rows, len(mixture.centres), seconds))
        frames = [np.concatenate(row, 1) for row in zip(*films.values(), strict=True)]
        files.write(directory / f"{data}.gif", animation(frames))
        report.save_png(directory / f"{data}.png", frames[-1])
    files.write(directory / "table.json", json.dumps(table, indent=1) + "\n")
    print(f"wrote {directory}/table.json, {' and '.join(f'{data}.png, {data}.gif' for data in config.data)}")


if __name__ == "__main__":
    flags.main(Config, {}, main, doc=__doc__ or "")
