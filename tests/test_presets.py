"""Every preset takes real steps; those of papers' own size at least fit together, or under the marker `slow`."""

import dataclasses
import importlib
import json
import re
import shutil

import jax
import numpy as np
import pytest

import jaxgan
from experiments import image
from experiments.image_presets import PRESETS, PUBLISHED
from jaxgan import checkpoint, flags
from tests.runs import QUIET, compile_quickly, here, leaves, lines, same_run

__all__ = ["compile_quickly"]  # a fixture


# Those of digits at 8x8 below, which compile in reasonable time.
FAMILIES = {"sngan_mnist", "biggan_digits", "stylegan2_digits", "r3gan_digits"}
# What other tests leave out; the rest differs from them in a flag or two.
SHORT = {"mlp_digits", "wgan_gp_mnist"}


def side_of(row):
    """Of the images that a preset is for: what it resizes to, or what its data set has."""
    name = row.get("dataset", "digits")
    own = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "stacked_mnist": 28, "cifar10": 32}
    return int(row.get("size") or own.get(name) or re.search(r"(\d+)x\d+$", name)[1])


def arguments(preset, folder, *more):
    """Random images of the size that a preset is for, and networks as narrow as they can be."""
    row = PRESETS[preset]
    side = side_of(row)
    colours = 1 if side == 8 or "mnist" in row["dataset"] else 3
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, side, side, colours), np.uint8)
    np.savez(folder / "data.npz", image=pixels, label=rng.permutation(np.arange(32) % 10))
    generator = importlib.import_module(f"jaxgan.models.{row.get('model', image.Config().model)}").Generator
    has = {field.name for field in dataclasses.fields(generator)}
    argv = [f"--preset={preset}", f"--dataset=npz:{folder / 'data.npz'}", *QUIET, "--steps_per_call=2"]
    width = ["--width=8"] if row.get("model") in ("resnet", "biggan") else ["--width=4"]
    return argv + ["--batch_size=8", "--latent=8"] + width * ("width" in has) + list(more)


def test_rmsprop_moves_by_its_rate_however_small_the_gradients():
    """ε beside the root, as where WGAN's authors ran it: a clipped critic's gradients are 1e-5 and less."""
    config = image.Config(optimizer="rmsprop", learning_rate=(5e-5,))
    rule = image.optimizer(config, config.learning_rate)(jax.numpy.uint32(0))
    gradient = jax.numpy.array([1e-6, -1e-5, 0.1])
    update, _ = rule.update(gradient, rule.init(gradient))
    np.testing.assert_allclose(update, [-5e-4, 5e-4, -5e-4], rtol=0.2)  # of one gradient: 5e-5 / sqrt(1 - 0.99)


def test_path_length_accumulates_as_the_other_moves_do():
    config = image.Config(model="stylegan2", width=8, path_length=2.0, accumulate=4)
    game = image.make_game(config, image.networks(config, (8, 8, 1), 0))
    assert {move.title: move.accumulate for move in game.moves} == {"disc": 4, "gen": 4, "gen_path": 4}


@pytest.mark.parametrize(
    "preset",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in SHORT)) for name in PRESETS if name not in FAMILIES],
)
def test_every_preset_takes_real_steps(preset, tmp_path, capfd):
    code, _, err = here(capfd, *arguments(preset, tmp_path, "--steps=2", f"--workdir={tmp_path / 'run'}"))
    assert code == 0, err
    (line,) = lines(tmp_path / "run")
    found = json.loads(line)
    assert found["step"] == 2 and found["images"] == 16
    assert all(isinstance(value, int | float) for name, value in found.items() if name != "images_per_second"), found
    state = checkpoint.read(tmp_path / "run" / "checkpoints")
    assert state["step"] == 2 and all(np.isfinite(x).all() for name, x in leaves(state) if x.dtype.kind == "f")


# (Two of the four take as long to compile as a tenth of all tests, and have little that the others lack.)
@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("biggan_digits", "sngan_mnist")))
        for name in sorted(FAMILIES)
    ],
)
def test_families_on_one_and_two_devices_resume_and_sample(preset, tmp_path, capfd):
    """Four steps at once, and two and two, on one device: the same bits. Two on two devices. The average's images."""

    def steps(run, n, devices):
        argv = arguments(preset, tmp_path, f"--steps={n}", f"--workdir={tmp_path / run}", f"--devices={devices}")
        code, _, err = here(capfd, *argv, "--checkpoint_every=2")
        assert code == 0, err

    steps("whole", 4, 1)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    steps("parts", 4, 1)
    same_run(tmp_path / "whole", tmp_path / "parts")
    steps("two", 2, 2)
    (first, *_), (both,) = (list(map(json.loads, lines(tmp_path / run))) for run in ("whole", "two"))
    for name in ("disc/loss", "gen/loss"):
        assert np.isfinite(both[name]) and both[name] == pytest.approx(first[name], rel=0.1)
    gan = jaxgan.load(tmp_path / "two")
    images = gan.sample(jax.random.key(0), 3)
    assert np.isfinite(images).all() and np.abs(images).max() <= 1 and np.ptp(images) > 0
    averaged = checkpoint.read(tmp_path / "two" / "checkpoints")["players"]["gen"]["ema"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(gan.params), averaged)


# Millions of parameters of G and D, as the papers or their authors' code have them.
COUNTS = {
    "biggan_cifar10": (4.30, 4.21),
    "biggan_imagenet128": (70.43, 87.98),
    "stylegan2_ffhq256": (24.77, 24.00),
    "r3gan_cifar10": (20.78, 21.28),
    "r3gan_ffhq64": (22.43, 22.38),
    "r3gan_imagenet32": (82.91, 86.55),
    "r3gan_imagenet64": (103.57, 107.21),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_presets_fit_together(preset):
    """Networks, losses and optimizers, by their shapes alone; `-m slow` takes their steps."""
    config = flags.parse(image.Config, PRESETS, [f"--preset={preset}", "--workdir=nowhere"])
    side = side_of(PRESETS[preset])
    classes = (1000 if "image" in config.dataset else 10) if config.conditional else 0
    pair = image.networks(config, (side, side, 3), classes)
    game = image.make_game(config, pair)
    batch = {
        "image": jax.ShapeDtypeStruct((8, side, side, 3), np.float32),
        "label": jax.ShapeDtypeStruct((8,), np.int32),
        "row": jax.ShapeDtypeStruct((8,), np.int32),
    }
    state = jax.eval_shape(game.init, jax.random.key(0), batch)
    counts = [sum(x.size for x in jax.tree.leaves(state.players[name].params)) / 1e6 for name in ("gen", "disc")]
    if preset in COUNTS:
        assert counts == pytest.approx(COUNTS[preset], abs=0.006)
