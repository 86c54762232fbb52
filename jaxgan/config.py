"""The flags that every experiment has. An experiment's own config inherits from `Common` and adds its fields.

(Inheritance, the one time outside of networks: a config is a flat list of flags, and its common part is written once.)
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from jaxgan.errors import InputError
from jaxgan.flags import Need, option, written

NEEDS = {"rollbacks": Need(lambda c: c.on_nonfinite == "rollback", "without --on_nonfinite=rollback")}


@dataclasses.dataclass(frozen=True)
class Common:
    needs: ClassVar[Mapping[str, Need]] = NEEDS

    workdir: str = option(
        "", "directory of the run; started again, the same command goes on where it stopped", resumable=True
    )
    seed: int = option(0, "seed of everything: weights, latents, order of the data")
    steps: int = option(10_000, "training steps", resumable=True)
    batch_size: int = option(64, "images a step, over all devices")
    dataset: str = option("digits", "digits, any TFDS name, folder:DIR, npz:FILE or idx:DIR")
    split: str = option("train", "split of the data set to train on")
    data_dir: str = option("", "where prepared TFDS data sets lie; empty: TFDS's own default", resumable=True)
    manual_dir: str = option(
        "", "original files from which TFDS prepares a data set, for machines offline", resumable=True
    )
    size: str = option("", "resize images to 64 or 48x64 (height x width); empty: as they are")
    crop: str = option(
        "center", "center or none: where the aspect ratio of --size differs, cut or stretch; 108, 20x20: cut that first"
    )
    channels: int = option(0, "1: grey, 3: colour, 4: RGBA, 0: as the images are, transparent files on white")
    skip_bad_images: bool = option(
        False, "leave out files of folder:DIR that cannot be read; decodes all of them once before the run"
    )
    mirror: bool = option(False, "flip half of the images left to right")
    placement: str = option("auto", "data on the devices, or streamed", ("auto", "resident", "stream"), resumable=True)
    resident_gb: float = option(4.0, "data up to this size is kept on every device", resumable=True)
    model: str = option("dcgan", "an architecture of jaxgan/models, or a module of your own: pkg.module")
    loss: str = option("non_saturating", "a loss of jaxgan/losses.py, or your own: pkg.module:name")
    dtype: str = option("float32", "arithmetic of the networks; parameters stay float32", ("float32", "bfloat16"))
    sample_every: int = option(1000, "steps between grids of samples; 0: none", resumable=True)
    eval_every: int = option(1000, "steps between evaluations; 0: none", resumable=True)
    eval_samples: int = option(1000, "samples of an evaluation")
    checkpoint_every: int = option(1000, "steps between checkpoints; 0: only the last", resumable=True)
    keep: int = option(2, "latest checkpoints to keep, beside the best", resumable=True)
    steps_per_call: int = option(50, "steps in one compiled call; a row of metrics.jsonl each")
    devices: int = option(0, "devices to use; 0: all", resumable=True)
    deterministic: bool = option(False, "bit-exact repeats on a GPU, at some cost of speed")
    tensorboard: bool = option(True, "write TensorBoard events", resumable=True)
    profile: bool = option(
        False, "record the third call, or the last of fewer, to WORKDIR/profile (TensorBoard, Perfetto)", resumable=True
    )
    coordinator: str = option(
        "", "HOST:PORT of host 0, for --num_hosts; empty: one host, or those of a TPU slice or srun", resumable=True
    )
    num_hosts: int = option(
        0, "processes of this run, each with devices of its own; 0: see --coordinator, 1: only this", resumable=True
    )
    host_id: int = option(-1, "which of them this is, from 0", resumable=True)
    host_timeout: int = option(100, "seconds in which a host must start or show that it lives", resumable=True)
    call_timeout: float = option(
        600.0, "seconds, and ten times the slowest call before, until a call is taken to hang; 0: never", resumable=True
    )
    on_nonfinite: str = option(
        "stop",
        "a loss or weight is not finite: stop, or go back to the last checkpoint, with other noise and half the rates",
        ("stop", "rollback"),
        resumable=True,
    )
    rollbacks: int = option(3, "how often, at most", resumable=True)
    dry_run: bool = option(False, "say what would be trained, and write nothing", resumable=True)


def check_numbers(config: Common) -> None:
    """Raises InputError for numbers that no run can have."""
    for name in ("steps", "batch_size", "steps_per_call", "keep"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name}={getattr(config, name)}: expected at least 1")
    for name in ("sample_every", "eval_every", "checkpoint_every", "rollbacks"):
        if getattr(config, name) < 0:
            raise InputError(f"--{name}={getattr(config, name)}: expected 0 (never) or more")
    for name, most in {"steps": 2**31 - 1, "batch_size": 2**24, "steps_per_call": 2**20, "eval_samples": 2**24}.items():
        if getattr(config, name) > most:
            raise InputError(f"--{name}={getattr(config, name)}: expected at most {most:,}")
    check_least(config, {"resident_gb": 0})
    if config.eval_every and config.eval_samples < 2:
        raise InputError(f"--eval_samples={config.eval_samples}: expected at least 2, which have a covariance")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed={config.seed}: expected a number from 0 to {2**32 - 1}")


def check_least(config: Any, least: Mapping[str, float]) -> None:
    """Raises InputError for a number, or one of several, below the least that its flag may have."""
    for name, low in least.items():
        values = getattr(config, name)
        if min(values if isinstance(values, tuple) else (values,), default=low) < low:
            raise InputError(f"--{name}={written(values)}: expected at least {low}")


def check_decays(config: Any, names: Iterable[str]) -> None:
    """Raises InputError for what is no share of a moving average that stays: Adam divides by 1 less it."""
    for name in names:
        values = getattr(config, name)
        if not all(0 <= value < 1 for value in (values if isinstance(values, tuple) else (values,))):
            raise InputError(f"--{name}={written(values)}: expected 0 or more, and less than 1")


def kimg(images: int) -> str:
    """Thousands of images, as the progress of a training is counted; of a short one with what is behind the point."""
    return f"{images / 1000:,.0f} kimg" if images >= 100_000 else f"{images / 1000:g} kimg"
