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
from jaxgan.layers import norm
from jaxgan.models import inception
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


HALF = ("stylegan2", "r3gan")


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_presets_compute_as_their_authors_did(preset):
    """Chainer's SNGAN, TensorFlow's SAGAN and BigGAN's code train in float32, StyleGAN2 and R3GAN in half precision."""
    config = image.Config(**PRESETS[preset])
    assert config.dtype == ("bfloat16" if config.model in HALF else "float32")
    assert (config.beta1, config.dequantize) == (0.0, preset == "sngan_cifar10")
    beta2 = {"sngan": (0.9,), "sagan": (0.9,), "biggan": (0.999,)}  # the papers'; SAGAN's code leaves .999
    assert config.beta2 == beta2.get(preset.partition("_")[0], config.beta2)


@pytest.mark.parametrize("preset, expected", [("biggan_cifar10", 1e-5), ("biggan_imagenet128", 1e-4)])
def test_biggan_presets_have_the_epsilon_of_the_code_behind_their_figures(preset, expected):
    """All batch norms divide by sqrt(0 + epsilon): 1e-5 of the PyTorch code for CIFAR-10, 1e-4 of the paper's."""
    seen, config = [], image.Config(**PRESETS[preset])
    normalised = norm._normalised

    def spy(x, mean, var, epsilon, *rest):
        seen.append(epsilon)
        return normalised(x, mean, var, epsilon, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "_normalised", spy)
        side = side_of(PRESETS[preset])
        generator = image.networks(config, (side, side, 3), 10).generator.clone(width=4)
        z, label = np.zeros((1, generator.latent), np.float32), np.zeros(1, np.int32)
        jax.eval_shape(generator.init, jax.random.key(0), z, label)
    assert len(seen) == (7 if side == 32 else 11) and set(seen) == {expected}


def test_published_presets_choose_by_fid_where_inception_is(tmp_path, capfd, monkeypatch):
    """And by distance where its weights are not, which one line says; a run goes on by what it began with."""
    monkeypatch.setenv("JAXGAN_CACHE", str(tmp_path / "cache"))

    def config(preset, *argv):
        found = flags.parse(image.Config, PRESETS, [f"--preset={preset}", *argv])
        return found, image.with_features(found), capfd.readouterr().err

    for preset in PUBLISHED:
        row, found, err = config(preset)
        if preset == "r3gan_stacked_mnist":
            assert (found.metrics, found.features, err) == (("modes",), "classifier", "")
            continue
        assert (row.metrics, row.features, row.eval_samples) == (("fid",), "auto", 10_000)
        assert (found.metrics, found.features) == (("distance",), "classifier")
        assert f"{tmp_path}/cache/inception/{inception.FILE}: distance is measured in place of FID" in err
        assert err.count("\n") == 1
    workdir = f"--workdir={tmp_path / 'run'}"
    without = config("sngan_cifar10", workdir)[1]
    assert config("sngan_cifar10", "--eval_every=0")[2] == ""
    _, found, err = config("sngan_cifar10", "--metrics=fid,kid", "--features=classifier")
    assert (found.metrics, found.features, err) == (("fid", "kid"), "classifier", "")

    file = tmp_path / "cache" / "inception" / inception.FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    _, found, err = config("sngan_cifar10", workdir)
    assert (found.metrics, found.features, err) == (("fid",), "inception", "")
    flags.write(found, tmp_path / "run")
    file.unlink()
    assert config("sngan_cifar10", workdir)[1:] == (found, "")
    flags.write(without, tmp_path / "run")
    file.write_bytes(b"")
    assert config("sngan_cifar10", workdir)[1:] == (without, "")
    # A file that is named has to be there.
    missing = tmp_path / "weights.pth"
    _, found, err = config("sngan_cifar10", f"--inception_weights={missing}")
    assert (found.features, err) == ("inception", "")
    code, _, err = here(capfd, *arguments("sngan_cifar10", tmp_path), "--workdir=" + str(tmp_path / "other"),
                        "--eval_every=2", "--eval_samples=8", f"--inception_weights={missing}")  # fmt: skip
    assert code == 2 and f"no file '{missing}'" in err and not (tmp_path / "other").exists()


# Millions of parameters of G and D, as the papers or their authors' code have them.
COUNTS = {
    "sngan_cifar10": (4.28, 1.05),
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
