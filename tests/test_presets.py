"""Every preset takes real steps."""

import dataclasses
import importlib
import json

import numpy as np
import pytest

from experiments import image
from jaxgan import checkpoint
from tests.runs import QUIET, compile_quickly, here, leaves, lines

__all__ = ["compile_quickly"]  # a fixture


@pytest.mark.parametrize("preset", image.PRESETS)
def test_every_preset_takes_real_steps(preset, tmp_path, capfd):
    """On random images of the size that it is for, with networks as narrow as they can be."""
    row = image.PRESETS[preset]
    side, colours = (int(row["size"]), 3) if row.get("size") else (28, 1)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, side, side, colours), np.uint8)
    np.savez(tmp_path / "data.npz", image=pixels, label=rng.permutation(np.arange(32) % 10))
    generator = importlib.import_module(f"jaxgan.models.{row.get('model', image.Config().model)}").Generator
    has = {field.name for field in dataclasses.fields(generator)}
    argv = [f"--preset={preset}", f"--dataset=npz:{tmp_path / 'data.npz'}", f"--workdir={tmp_path / 'run'}", *QUIET]
    argv += ["--steps=2", "--steps_per_call=2", "--batch_size=8", "--latent=8"] + ["--width=4"] * ("width" in has)
    code, _, err = here(capfd, *argv)
    assert code == 0, err
    (line,) = lines(tmp_path / "run")
    found = json.loads(line)
    assert found["step"] == 2 and found["images"] == 16
    assert all(isinstance(value, int | float) for name, value in found.items() if name != "images_per_second"), found
    state = checkpoint.read(tmp_path / "run" / "checkpoints")
    assert state["step"] == 2 and all(np.isfinite(x).all() for name, x in leaves(state) if x.dtype.kind == "f")
