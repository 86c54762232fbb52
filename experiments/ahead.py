"""What a training step takes on chips that are not here: it is compiled for them and not run.

    python -m experiments.ahead --preset=r3gan_cifar10 --shape=32x32x3 --num_classes=10 --topology=v4:2x2x1
    python -m experiments.ahead --flagfile=runs/mine/flags.txt --topology=h100:8
    python -m experiments.ahead --topology=here

The flags are those of experiments.image and a few more; `--shape` stands for data that are not here either. So it is
known before a machine is rented that a run's program compiles there, and fits. TPUs need `pip install libtpu`, NVIDIA
GPUs `pip install 'jax[cuda13]'`, and neither a chip. (Each kernel of a GPU costs its host some microseconds.)
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from experiments import image, image_check
from experiments.benchmark import count
from experiments.image_presets import PRESETS
from jaxgan import data, flags, loop, numerics, parallel, topology
from jaxgan.config import check_numbers
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.layers import conv
from jaxgan.memory import text
from jaxgan.sources import CLASSES

FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all")  # of HLO: nothing is done
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "f16": 2, "pred": 1}
LARGEST = 2**14  # side of an image


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    needs: ClassVar[Mapping[str, flags.Need]] = image_check.NEEDS | dict.fromkeys(
        ("size", "crop", "channels"),
        flags.Need(lambda c: not c.shape, "with --shape, which stands for the images as the run sees them"),
    )

    topology: str = option("here", "chips: here, a100, h100, h200 or h100:8, v4, v5e, v5p, v6e or v5e:2x4")
    shape: str = option("", "images of HEIGHTxWIDTHxCHANNELS, instead of reading those of --dataset")
    num_classes: int = option(0, "their classes, with --shape")
    examples: int = option(50_000, "how many they are, with --shape")


def absent(config: Config) -> data.Source:
    """Images of which nothing is known but what the flags say."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", config.shape):
        raise InputError(f"--shape={config.shape}: expected height, width and channels, for example 64x64x3")
    shape = tuple(map(int, config.shape.split("x")))
    if max(shape) > LARGEST:
        raise InputError(f"--shape={config.shape}: expected at most {LARGEST:,} of each")
    for name, least, most in (("examples", 1, 2**31 - 1), ("num_classes", 0, CLASSES)):
        if not least <= getattr(config, name) <= most:
            raise InputError(f"--{name}={getattr(config, name)}: expected a number from {least} to {most:,}")
    if config.conditional and config.num_classes < 2:
        raise InputError(f"--conditional with --num_classes={config.num_classes}: expected 2 or more")
    if config.classes:
        raise InputError("--classes with --shape: expected --num_classes instead, and --examples of them")

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        raise AssertionError("there is nothing to read")

    return data.Source(f"--shape={config.shape}", config.examples, shape, config.num_classes, read)


def main(config: Config) -> None:
    if config.topology != "here":  # or JAX would look for such chips
        jax.config.update("jax_platforms", "cpu")
    numerics.fix()
    numerics.start()
    if config.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    check_numbers(config)
    chips = topology.chips(config.topology)
    if not 0 <= config.devices <= len(chips.devices):
        raise InputError(f"--devices={config.devices}: expected 0 (all) to {len(chips.devices)} of {config.topology}")
    devices = chips.devices[: config.devices or None]
    parallel.check_shares(config.batch_size, len(devices))
    image_check.check(config, len(devices))
    for name in ("examples", "num_classes"):
        if not config.shape and getattr(config, name) != getattr(Config, name):
            raise InputError(f"--{name} without --shape: the images of --dataset={config.dataset} have their own")
    source = absent(config) if config.shape else image.load(config, config.split)
    pair = image.playing(config, source)
    game = image.make_game(config, pair)
    feed = image.place(config, source, game, devices, read=False)
    share = config.batch_size // len(devices)
    print(f"chips    {len(devices)} x {devices[0].device_kind}, {share} images each")
    steps = min(config.steps_per_call, feed.max_steps, config.steps)
    example = image.example_of(source)
    with conv.backend(chips.backend):
        state = parallel.like(loop.shapes_of(game, config, example), devices)
        call = parallel.compile_steps(game, feed.draw, devices)
        start = time.perf_counter()
        compiled = compile_or_refuse(call.lower(state, *feed.like(steps)), chips)
        seconds = time.perf_counter() - start
    used = compiled.memory_analysis()
    kept, beside = used.argument_size_in_bytes, used.temp_size_in_bytes
    room = f" of {text(chips.room)}" if chips.room else ""
    print(f"memory   {text(kept)} of state and data and {text(beside)} to compute with on a chip{room}")
    batch = {n: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype) for n, x in example.items()}
    done, reduced = operations(compiled.as_text(), steps)
    kernels = f", {done:,} kernels" if chips.backend == "gpu" else ""
    print(f"step     {count(game, batch) / 1e9 / len(devices):,.1f} GFLOP on a chip{kernels}")
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
        sizes = re.search(r"\(([\d.]+)G\) exceeds available \w+ \(([\d.]+)G\)", str(error))
        what = " of the ".join(text(int(float(n) * 2**30)) for n in sizes.groups()) if sizes else "more than all"
        raise InputError(f"a step takes {what} that there are on a chip; {hint}") from None
    used = compiled.memory_analysis()
    nbytes = used.argument_size_in_bytes + used.temp_size_in_bytes
    if chips.backend == "gpu" and chips.room:
        name = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of which JAX's own default is this one
        share = float(os.environ.get(name, 0.75))
        if nbytes > share * chips.room:
            taken = f"{text(int(share * chips.room))} that JAX takes of a chip with {name}={share:g}"
            raise InputError(f"a step takes {text(nbytes)} of the {taken}; {hint}")
    return compiled


def operations(hlo: str, steps: int) -> tuple[int, int]:
    """Of a step in a compiled scan over `steps`: operations (of branches the most), and the bytes that are reduced."""
    blocks: dict[str, list[str]] = {}
    entry = ""
    for block in re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ .*\{\n)", hlo):
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) ", block):
            blocks[head[2]] = re.findall(r"^  (?:ROOT )?%?[\w.\-]+ = (.*)$", block, re.M)
            entry = head[2] if head[1] else entry

    def trips(line: str) -> int:
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
            return int(known[1])
        condition = "\n".join(blocks[re.findall(r"condition=%?([\w.\-]+)", line)[0]])
        return max(map(int, re.findall(r"s32\[\]\S* constant\((\d+)\)", condition)), default=1)

    def work(name: str) -> tuple[int, int]:
        done = reduced = 0
        for line in blocks.get(name, ()):
            found = re.match(r"(.*?[\])}]) ([a-z][\w\-]*)\(", line)
            if not found or found[2] in FREE:
                continue
            inner = re.findall(r"(?:body|to_apply|\w+_computation)=%?([\w.\-]+)", line)
            inner += re.findall(r"%?([\w.\-]+)", "".join(re.findall(r"branch_computations=\{(.*?)\}", line)))
            if found[2] in ("while", "call", "conditional"):
                parts = [work(part) for part in inner]
                times = trips(line) if found[2] == "while" else 1
                done += times * max((part[0] for part in parts), default=0)
                reduced += times * max((part[1] for part in parts), default=0)
                continue
            done += not found[2].endswith("-done")  # the end of what began with -start
            if found[2] in ("all-reduce", "all-reduce-done"):
                for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", found[1]):
                    reduced += BYTES.get(kind, 4) * math.prod(int(n) for n in sides.split(",") if n)
        return done, reduced

    scans = [line for line in blocks[entry] if re.search(r" while\(", line) and trips(line) == steps > 1]
    step = [work(re.findall(r"body=%?([\w.\-]+)", line)[0]) for line in scans]
    return max(step, default=None) or work(entry)


if __name__ == "__main__":
    flags.main(Config, PRESETS, main)
