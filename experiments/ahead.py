"""What a training step takes on chips that are not here: it is compiled for them and not run.

    python -m experiments.ahead --preset=r3gan_cifar10 --shape=32x32x3 --topology=v4:2x2x1 --accumulate=2
    python -m experiments.ahead --flagfile=runs/mine/flags.txt --topology=h100:8
    python -m experiments.ahead --topology=here

The flags are those of experiments.image and a few more; `--shape` stands for data that are not here either. So it is
known before a machine is rented that a run's program compiles there, and fits. TPUs need `pip install libtpu`, NVIDIA
GPUs `pip install 'jax[cuda13]'`, and neither a chip. (Each kernel of a GPU costs its host some microseconds.)
"""

import dataclasses
import math
import re
import time
from collections import Counter
from typing import Any

import jax
import numpy as np

from experiments import image
from experiments.benchmark import count
from experiments.image_presets import PRESETS
from jaxgan import data, flags, parallel, topology
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.layers import conv
from jaxgan.memory import text

FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all")  # of HLO: nothing is done
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "f16": 2, "pred": 1}
SHARE = 0.93  # of a GPU's memory: what CUDA leaves to a program


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    topology: str = option("here", "chips: here, a100, h100, h200 or h100:8, v4, v5e, v5p, v6e or v5e:2x4")
    shape: str = option("", "images of HEIGHTxWIDTHxCHANNELS, instead of reading those of --dataset")
    num_classes: int = option(0, "their classes, with --shape")
    examples: int = option(50_000, "how many they are, with --shape")


def absent(config: Config) -> data.Source:
    """Images of which nothing is known but what the flags say."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", config.shape):
        raise InputError(f"--shape={config.shape}: expected height, width and channels, for example 64x64x3")
    if config.examples < 1 or config.num_classes < 0:
        raise InputError(f"--examples={config.examples}, --num_classes={config.num_classes}: expected at least 1 and 0")
    if config.conditional and config.num_classes < 2:
        raise InputError(f"--conditional with --num_classes={config.num_classes}: expected 2 or more")
    shape = tuple(map(int, config.shape.split("x")))

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        raise AssertionError("there is nothing to read")

    return data.Source(config.shape, config.examples, shape, config.num_classes, read)


def main(config: Config) -> None:
    if config.topology != "here":  # or JAX would look for such chips
        jax.config.update("jax_platforms", "cpu")
    if config.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    chips = topology.chips(config.topology)
    if not 0 <= config.devices <= len(chips.devices):
        raise InputError(f"--devices={config.devices}, but {config.topology} has {len(chips.devices)}")
    devices = chips.devices[: config.devices or None]
    image.check(config, len(devices))
    source = absent(config) if config.shape else image.load(config, config.split)
    pair = image.networks(config, source.shape, source.num_classes)
    game = image.make_game(config, pair)
    feed = data.place(
        source,
        batch_size=config.batch_size,
        draws=game.draws,
        devices=devices,
        placement=config.placement,
        resident_gb=config.resident_gb,
        mirror=config.mirror,
        read=False,
    )
    share = config.batch_size // len(devices)
    print(f"chips    {len(devices)} x {devices[0].device_kind}, {share} images each")
    one = image.example_of(source)
    state = jax.eval_shape(game.init, jax.random.key(config.seed), one)
    steps = min(config.steps_per_call, feed.max_steps)
    with conv.backend(chips.backend):
        call = parallel.compile_steps(game, feed.draw, devices)
        start = time.perf_counter()
        compiled = compile_or_refuse(call.lower(parallel.like(state, devices), *feed.like(steps)), chips)
        seconds = time.perf_counter() - start
    done, reduced = operations(compiled.as_text())
    used = compiled.memory_analysis()
    kept, beside = used.argument_size_in_bytes, used.temp_size_in_bytes
    room = f" of {text(chips.room)}" if chips.room else ""
    print(f"memory   {text(kept)} of state and data and {text(beside)} to compute with on a chip{room}")
    example = {
        n: np.repeat(np.float32(x) if n == "image" else np.int32(x), config.batch_size, 0) for n, x in one.items()
    }
    kernels = f", {done:,} kernels" if chips.backend == "gpu" else ""
    print(f"step     {count(game, example) / 1e9 / len(devices):,.1f} GFLOP on a chip{kernels}")
    if len(devices) > 1:
        print(f"reduced  {text(reduced)} over the chips in a step")
    print(f"compiled in {seconds:.0f} s, {steps} steps a call")


def compile_or_refuse(lowered: Any, chips: topology.Chips) -> Any:
    """Raises InputError for what these chips have no memory for."""
    hint = "expected a smaller --batch_size or --width, --accumulate=2 or more, or --remat"
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.search(r"\(([\d.]+\w)\) exceeds available \w+ \(([\d.]+\w)\)", str(error))
        what = f"{sizes[1]} of the {sizes[2]} that there are" if sizes else "more memory than there is"
        raise InputError(f"a step takes {what} on a chip; {hint}") from None
    used = compiled.memory_analysis()
    nbytes = used.argument_size_in_bytes + used.temp_size_in_bytes
    if chips.backend == "gpu" and chips.room and nbytes > SHARE * chips.room:
        raise InputError(f"a step takes {text(nbytes)} of the {text(chips.room)} that there are on a chip; {hint}")
    return compiled


def operations(hlo: str) -> tuple[int, int]:
    """Of a step in a compiled scan over steps: how many operations it is, and the bytes that all-reduces give."""
    blocks: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ .*\{\n)", hlo):
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", block):
            blocks[head[1]] = re.findall(r"^  (?:ROOT )?%?[\w.\-]+ = (.*)$", block, re.M)

    def kinds(lines: list[str]) -> Counter:
        return Counter(m[1] for line in lines if (m := re.search(r"[\])}] ([a-z][\w\-]*)\(", line)))

    def work(lines: list[str]) -> int:
        return sum(n for kind, n in kinds(lines).items() if kind not in FREE)

    bodies = [blocks[name] for name in re.findall(r"body=%?([\w.\-]+)", hlo) if name in blocks]
    step = max(bodies or blocks.values(), key=work)
    reduced = 0
    for line in step:
        if found := re.match(r"(.*?) all-reduce(?:-done)?\(", line):
            for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", found[1]):
                reduced += BYTES.get(kind, 4) * math.prod(int(n) for n in sides.split(",") if n)
    return work(step), reduced


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
