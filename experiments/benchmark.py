"""How long a training step takes, where its time goes, and what a peer takes for the same.

    python -m experiments.benchmark                                    # every case, float32, data on the device
    python -m experiments.benchmark --cases=dcgan64 --peer=torch --peer_python=other/bin/python
    python -m experiments.benchmark --cases=dcgan64 --dtype=float32,bfloat16 --steps_per_call=1,10,100
    python -m experiments.benchmark --cases=dcgan64 --placement=resident,stream --dataset=folder:faces

A step is all of it: both players, penalties, Adam, moving average, the draw of images and latents. Programs of one case
take turns, so that a machine whose speed drifts slows all of them; medians are printed, and medians of the ratios turn
by turn. A peer runs in a process of its own, in each of its modes; its best of the same dtype counts.

FLOP are those of XLA's plain convolutions as XLA counts them, whatever algorithm runs (on a CPU jaxgan's need fewer, so
that the share of the peak, a large matrix product on the same device, can pass 100%).
"""

import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import flax_peer
from experiments.benchmark_cases import CASES, LARGE, Case, make_game, players
from jaxgan import adversarial, data, files, flags, numerics, parallel, sources
from jaxgan.config import check_least
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.game import Game
from jaxgan.layers import grouped
from jaxgan.layers.conv import plain

PLACEMENTS = ("resident", "stream", "none", "draw")
PEERS = ("none", "torch", "flax")
MANY = 2**23  # steps, more than are ever measured
MODES = ("eager", "channels_last", "compile")


@dataclasses.dataclass(frozen=True)
class Config:
    cases: tuple[str, ...] = option(
        tuple(name for name in CASES if name not in LARGE), "what to train", choices=tuple(CASES)
    )
    batch_size: int = option(0, "images a step; 0: the case's own")
    width: int = option(0, "base number of channels; 0: the case's own")
    dtype: tuple[str, ...] = option(("float32",), "arithmetic of the networks", ("float32", "bfloat16"))
    placement: tuple[str, ...] = option(
        ("resident",), "where images come from; none: one fixed batch; draw: no step, only its input", PLACEMENTS
    )
    steps_per_call: tuple[int, ...] = option((10,), "steps in one compiled call")
    dataset: str = option("", "images to train on, resized to the case's; empty: 1,024 of noise")
    accumulate: int = option(1, "micro-batches of a batch")
    remat: bool = option(False, "keep less of a pass in memory and compute it again for the gradient")
    devices: int = option(1, "devices to use; 0: all")
    rounds: int = option(5, "turns of each program; the medians count")
    peer: str = option("none", "what to measure beside it: PyTorch, or Flax's own layers (dcgan)", PEERS)
    peer_python: str = option("", "the Python that has torch; empty: this one")
    modes: tuple[str, ...] = option(MODES, "ways to run PyTorch", MODES)
    profile: str = option("", "a folder for a profile of one call of each program (TensorBoard, Perfetto)")
    out: str = option("", "a JSON file for the figures; empty: none")
    smoke: bool = option(False, "tiny networks and one round: whether it runs, not how fast")


@dataclasses.dataclass
class Program:
    """Something that trains a few steps whenever `run` is called, and returns seconds per step."""

    name: str
    run: Callable[[], float]
    compile_seconds: float
    mebibytes: float = 0.0  # of the compiled program: arguments, results and what lies between
    gigaflop: float = 0.0  # a step
    dtype: str = "float32"
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


# --- ours


def count(game: Game, example: dict[str, Any]) -> float:
    """FLOP of a step by XLA's count, move by move, since it counts the body of a loop once."""
    total = 0.0
    state = jax.eval_shape(game.init, numerics.key(0), example)
    for move in game.moves:
        alone = Game(game.players, (dataclasses.replace(move, times=1, every=1, accumulate=1, draw=True),))
        batch = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in example.items()}
        with plain(), grouped.using(grouped.XLA):
            program = jax.jit(lambda *args, alone=alone: alone.step(*args))
            cost: Any = program.lower(state, batch).cost_analysis()
        total += cost["flops"] * move.times / move.every
    return total


def ours(case: Case, config: Config, source: data.Source) -> Iterator[Program]:
    devices = parallel.devices_for(case.batch_size, config.devices)
    for dtype in config.dtype:
        game = make_game(case, dtype, config.accumulate, config.remat)
        for placement in config.placement:
            place = placement if placement in ("resident", "stream") else "resident"
            feed = data.place(source, batch_size=case.batch_size, draws=game.draws, devices=devices, placement=place)
            for steps in config.steps_per_call:
                if placement == "draw":
                    yield drawn(feed, steps, dtype)
                else:
                    yield compiled(case, game, feed, placement, steps, dtype, devices)


def drawn(feed: data.Feed, steps: int, dtype: str) -> Program:
    """The resident input alone: what it adds to a step at most."""
    calls = feed.calls(0, MANY, steps)

    def body(total: jax.Array, x: Any) -> tuple[jax.Array, None]:
        batch = feed.draw(feed.resident, x)
        return total + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(batch)), None

    start = time.perf_counter()
    first = jax.tree.map(lambda x: x[0], next(calls))
    call = jax.jit(lambda x: jax.lax.scan(body, jnp.float32(0), x)[0]).lower(first).compile()
    compile_seconds = time.perf_counter() - start

    def run() -> float:
        start = time.perf_counter()
        jax.device_get(call(jax.tree.map(lambda x: x[0], next(calls))))
        return (time.perf_counter() - start) / steps

    return Program(f"draw x{steps}", run, compile_seconds, dtype=dtype)


def compiled(case: Case, game: Game, feed: data.Feed, placement: str, steps: int, dtype: str, devices: list) -> Program:
    example = {
        "image": np.zeros((case.batch_size, *case.shape), np.float32),
        "label": np.zeros(case.batch_size, np.int32),
        "row": np.arange(case.batch_size, dtype=np.int32),
    }
    draw, resident = feed.draw, feed.resident
    if placement == "none":
        first = jax.tree.map(lambda x: x[0, 0], next(feed.calls(0, 1, 1)))
        fixed = jax.jit(feed.draw)(feed.resident, first)
        draw, resident = (lambda resident, x: resident), parallel.replicate(fixed, devices)
    state = parallel.replicate(jax.jit(game.init)(numerics.key(0), example), devices)
    calls = feed.calls(0, MANY, steps)
    x = next(calls)
    start = time.perf_counter()
    call = parallel.compile_steps(game, draw, devices)
    call = call.lower(state, resident, x).compile()
    compile_seconds = time.perf_counter() - start
    memory = call.memory_analysis()
    held = [state]

    def run() -> float:
        start = time.perf_counter()
        held[0], metrics = call(held[0], resident, next(calls))
        jax.device_get(metrics)
        return (time.perf_counter() - start) / steps

    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Program(
        f"{placement} x{steps}",
        run,
        compile_seconds,
        (used - memory.alias_size_in_bytes) / 2**20,
        count(game, example) / 1e9,
        dtype,
    )


# --- peers


def flax(case: Case) -> Program:
    """One jitted step a call: inside a scan, XLA's weight gradients of convolutions are far slower still on a CPU."""
    pair = adversarial.Pair(
        flax_peer.Generator(case.shape, case.width), flax_peer.Discriminator(case.shape, case.width)
    )
    game = players(case, pair)
    rng = np.random.default_rng(0)
    rows = np.arange(case.batch_size, dtype=np.int32)
    example = {"image": rng.uniform(-1, 1, (case.batch_size, *case.shape)).astype(np.float32), "row": rows}
    batch = jax.device_put({name: x[None] for name, x in example.items()})
    held = [jax.jit(game.init)(numerics.key(0), example)]
    start = time.perf_counter()
    step = jax.jit(game.step, donate_argnums=0).lower(held[0], batch).compile()
    compile_seconds = time.perf_counter() - start

    def run() -> float:
        start = time.perf_counter()
        held[0], metrics = step(held[0], batch)
        jax.device_get(metrics)
        return time.perf_counter() - start

    return Program("flax", run, compile_seconds)


def torch(case: Case, config: Config, steps: int) -> Iterator[Program]:
    fields = dataclasses.asdict(case)
    for dtype in config.dtype:
        for mode in config.modes:
            command = [config.peer_python or sys.executable, "-m", "experiments.torch_peer"]
            command += [json.dumps(fields), f"--mode={mode}", f"--dtype={dtype}", f"--steps={steps}"]
            try:
                worker: Any = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            except OSError as error:
                raise InputError(
                    f"cannot run --peer_python={config.peer_python}: {error.strerror}; expected a Python that has torch"
                ) from None
            answer = json.loads(worker.stdout.readline() or '{"failed": "it ended without a word"}')
            if "failed" in answer:
                print(f"  torch {mode} {dtype}: {answer['failed']}", file=sys.stderr)
                continue

            def run(worker: Any = worker) -> float:
                worker.stdin.write("run\n")
                return json.loads(worker.stdout.readline())["seconds"]

            yield Program(f"torch {mode}", run, answer["ready"], dtype=dtype)


# --- the table


def peak(dtype: str) -> float:
    """GFLOP/s of a large matrix product."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds) / 1e9


def best(peers: Sequence[Program], dtype: str) -> Program | None:
    """The fastest that computes in `dtype`: that a peer is faster in bfloat16 says nothing of float32."""
    return min((peer for peer in peers if peer.dtype == dtype), key=lambda peer: peer.median, default=None)


def ratio(peer: Program, own: Program) -> float:
    """How many times as long the peer takes: the median of the ratios, turn by turn."""
    return statistics.median(a / b for a, b in zip(peer.seconds, own.seconds, strict=True))


def measure(case: Case, config: Config) -> dict[str, Any]:
    if config.dataset:
        size = f"{case.shape[0]}x{case.shape[1]}"  # and nothing kept: what is measured is decoding
        source = data.load(config.dataset, size=size, channels=case.shape[2], cache_gb=0)
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (1024, *case.shape), np.uint8)
        source = sources.from_arrays("noise", pixels)
    own = list(ours(case, config, source))
    peers: list[Program] = []
    if config.peer == "torch":
        peers = list(torch(case, config, max(1, min(config.steps_per_call))))
    elif config.peer == "flax" and case.model == "dcgan":
        peers = [flax(case)]
    programs = own + peers
    for program in programs:
        program.run()  # warm
        if config.profile and program in own:
            folder = f"{files.reach(config.profile)}/{case.name}-{program.name.replace(' ', '-')}-{program.dtype}"
            with jax.profiler.trace(folder, create_perfetto_trace=True):
                program.run()
    for _ in range(config.rounds):
        for program in programs:
            program.seconds.append(program.run())
    print(f"{case.name}: {case.model} {'x'.join(map(str, case.shape))}, width {case.width}, batch {case.batch_size}")
    peaks = {dtype: peak(dtype) for dtype in config.dtype}
    rows = []
    for program in programs:
        rate = program.gigaflop / program.median
        row = {
            "program": program.name,
            "dtype": program.dtype,
            "ms": program.median * 1e3,
            "images_per_second": case.batch_size / program.median,
            "seconds_per_kimg": 1000 * program.median / case.batch_size,
            "gigaflop": program.gigaflop,
            "share_of_peak": rate / peaks[program.dtype],
            "mebibytes": program.mebibytes,
            "compile_seconds": program.compile_seconds,
            "seconds": program.seconds,
        }
        rows.append(row)
        spread = f"({min(program.seconds) * 1e3:.1f} to {max(program.seconds) * 1e3:.1f})"
        work = f"{program.gigaflop:8.2f} GFLOP {row['share_of_peak']:5.0%} {program.mebibytes:7.0f} MiB"
        print(
            f"  {program.name:20s} {program.dtype:8s} {row['ms']:9.2f} ms {spread:20s}"
            f" {row['images_per_second']:9.1f} img/s {row['seconds_per_kimg']:8.3f} s/kimg"
            f" {work if program in own else ' ' * len(work)} {program.compile_seconds:5.1f} s to compile"
        )
    ratios = {}
    for program in own:
        rival = best(peers, program.dtype)
        if rival:
            ratios[f"{program.name} {program.dtype}"] = ratio(rival, program)
            print(f"  {rival.name} takes {ratio(rival, program):.2f} times as long as {program.name} {program.dtype}")
    reference = own[0]
    for program in own[1:]:
        share = ratio(program, reference)
        print(f"  {program.name} {program.dtype} takes {share:.3f} of {reference.name} {reference.dtype}")
    return {"case": dataclasses.asdict(case), "peak_gflops": peaks, "programs": rows, "ratios": ratios}


def check(config: Config) -> None:
    """What can be wrong with the flags alone."""
    for name in ("cases", "dtype", "placement", "steps_per_call", "modes"):
        if not getattr(config, name):
            raise InputError(f"--{name}= is empty; expected at least one")
    check_least(config, dict.fromkeys(("rounds", "accumulate", "steps_per_call"), 1))
    for name in ("width", "batch_size"):
        if getattr(config, name) < 0:
            raise InputError(f"--{name}={getattr(config, name)}: expected at least 1, or 0 for the case's own")
    if config.out:
        files.destination("--out", config.out, overwrite=True)
    if config.profile:
        files.destination("--profile", config.profile, overwrite=True, folder=True)
    if config.peer == "flax":
        without = [name for name in config.cases if CASES[name].model != "dcgan"]
        if len(without) == len(config.cases):
            known = ", ".join(case.name for case in CASES.values() if case.model == "dcgan")
            raise InputError(f"--peer=flax has no networks for --cases={','.join(without)}; expected some of {known}")
        if without:
            print(f"without a peer: {', '.join(without)}, for which --peer=flax has no networks", file=sys.stderr)


def main(config: Config) -> None:
    check(config)
    numerics.fix()
    numerics.start()
    jax.config.update("jax_default_matmul_precision", "highest" if config.dtype == ("float32",) else None)
    if config.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
        config = dataclasses.replace(config, width=4, batch_size=8, rounds=1, steps_per_call=(2,))
    chosen = [CASES[name] for name in config.cases]
    for name in ("width", "batch_size"):
        if getattr(config, name):
            chosen = [dataclasses.replace(case, **{name: getattr(config, name)}) for case in chosen]
    for case in chosen:
        share = case.batch_size // len(parallel.devices_for(case.batch_size, config.devices))
        parallel.check_divides("accumulate", config.accumulate, share, f"images of a device of {case.name}")
    device = jax.devices()[0]
    about = {
        "device": device.device_kind,
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = [measure(case, config) for case in chosen]
    if config.out:
        files.write(
            files.reach(config.out),
            json.dumps({**about, "config": dataclasses.asdict(config), "cases": results}, indent=1),
        )


if __name__ == "__main__":
    flags.main(Config, {}, main, doc=__doc__ or "")
