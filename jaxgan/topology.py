"""Chips that are not here: XLA compiles for them all the same, and says what a program would take of their memory.

TPUs need the compiler alone (`pip install libtpu`), NVIDIA GPUs JAX's plugin (`pip install 'jax[cuda13]'`, of the
installed version of JAX). No chip, no driver and no account. (How fast a program runs is another matter.)
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from jaxgan.errors import InputError, unknown


@dataclasses.dataclass(frozen=True)
class Chips:
    devices: list[Any]
    backend: str  # as `jaxgan.layers.conv.backend` has it
    room: int = 0  # bytes of each; 0: unknown


# Of the datasheets and of what JAX reads off such devices: multiprocessors, L2 cache, clock in GHz, bytes a second,
# bytes, compute capability, shared memory of a multiprocessor.
GPUS = {
    "a100": ("NVIDIA A100-SXM4-80GB", 108, 40, 1.41, 2.04e12, 80 * 2**30, (8, 0), 167936),
    "h100": ("NVIDIA H100 80GB HBM3", 132, 50, 1.98, 3.35e12, 80 * 2**30, (9, 0), 233472),
    "h200": ("NVIDIA H200", 132, 60, 1.98, 4.8e12, 140 * 2**30, (9, 0), 233472),
}
# The chips of a host, of how many axes a slice is, and GiB of a chip.
TPUS = {"v4": ("2x2x1", 3, 32), "v5e": ("2x4", 2, 16), "v5p": ("2x2x1", 3, 95), "v6e": ("2x4", 2, 32)}
POD = 256


def chips(name: str) -> Chips:
    """`here` (the devices at hand), `h100` or `h100:8`, `v5e:2x4` (the sides of a slice) or `v5e` (a TPU host's chips).

    Raises InputError for a name that no compiler at hand knows.
    """
    kind, _, shape = name.partition(":")
    if kind == "here":
        if shape:
            raise InputError(f"--topology={name}: here are {jax.device_count()} devices; --devices takes fewer")
        return Chips(jax.devices(), jax.default_backend())
    if kind in GPUS:
        if not re.fullmatch(r"[1-9]\d{0,2}", shape or "1"):
            raise InputError(f"--topology={name}: expected 1 to 999 GPUs, for example {kind}:8")
        return gpus(kind, int(shape or 1))
    if kind not in TPUS:
        raise unknown("kind of chip", kind, ("here", *GPUS, *TPUS), "for example h100:8 or v5e:2x4")
    host, axes, _ = TPUS[kind]
    sides = shape or host
    if (
        not re.fullmatch(r"[1-9]\d?" + r"(x[1-9]\d?)" * (axes - 1), sides)
        or math.prod(map(int, sides.split("x"))) > POD
    ):
        what = f"{axes} sides of a slice of at most {POD} chips"
        raise InputError(f"--topology={name}: expected the {what}, for example {kind}:{host}")
    return tpus(kind, sides)


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package
        return False


def tpus(kind: str, shape: str) -> Chips:
    if not installed("libtpu"):
        raise InputError(f"--topology={kind} needs the TPU compiler: pip install libtpu")
    # The compiler would ask the machine which TPU it is, complain that it is none, and want to be alone on it.
    alone = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for key, value in alone.items():
        os.environ.setdefault(key, value)
    sides = [int(n) for n in shape.split("x")]
    # All as if of one host: a slice of several runs the same program.
    bounds = {"chips_per_host_bounds": (*sides, *[1] * (3 - len(sides)))}
    whole = {"chip_config_name": "megacore"} if kind in ("v4", "v5p") else {}  # two cores of a chip are one device
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **bounds, **whole)
    except Exception as error:  # of several kinds, by what is wrong and by version
        raise InputError(
            f"--topology={kind}:{shape}: the TPU compiler says {str(error).splitlines()[0][:200]}"
        ) from None
    return Chips(list(found.devices), "tpu", TPUS[kind][2] * 2**30)


def gpus(kind: str, count: int) -> Chips:
    version = next((v for v in (13, 12) if installed(f"jax_plugins.xla_cuda{v}")), 0)
    if not version:
        raise InputError(f"--topology={kind} needs JAX's plugin for NVIDIA GPUs: pip install 'jax[cuda13]'")
    title, cores, cache, clock, bandwidth, memory, (major, minor), shared = GPUS[kind]
    config = f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          core_count: {cores} fpus_per_core: {128 if major >= 9 else 64} threads_per_warp: 32
          threads_per_core_limit: 2048 threads_per_block_limit: 1024
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_core: {shared} shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared - 1024}
          l2_cache_size: {cache * 2**20} clock_rate_ghz: {clock} memory_bandwidth: {int(bandwidth)}
          device_memory_size: {memory}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: {version} }}
        device_description_str: "{title}"
    """
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name=kind, target_config=config, topology=f"1x1x{count}"
        )
    except Exception as error:  # as above
        raise InputError(f"--topology={kind}: JAX's plugin says {str(error).splitlines()[0][:200]}") from None
    return Chips(list(found.devices), "gpu", memory)
