"""What the environment asks of JAX changes no run: types, random numbers; and a JAX that cannot start."""

import contextlib
import importlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import image
from jaxgan import numerics, parallel, trained
from jaxgan.metrics import classify
from jaxgan.metrics.smoothness import slerp
from jaxgan.models.classifier import Classifier
from tests.runs import QUIET, ROOT, compile_quickly, here, narrow_dense, same_run

__all__ = ["compile_quickly", "narrow_dense"]  # fixtures

TINY = ("--model=mlp", "--latent=8", "--batch_size=8", "--steps_per_call=3", *QUIET)


@contextlib.contextmanager
def environment():
    """Settings of the process, as JAX_ENABLE_X64=1 and the like make them."""
    given = {
        "jax_enable_x64": True,
        "jax_default_prng_impl": "rbg",
        "jax_threefry_partitionable": False,
        "jax_numpy_dtype_promotion": "standard",
    }
    before = {name: getattr(jax.config, name) for name in given}
    for name, value in given.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_types_and_generators_of_the_environment_change_no_bit_of_a_run_or_its_samples(tmp_path, capfd):
    argv = (*TINY, "--steps=6", "--sample_every=6", "--wgan_gp=1", "--instance_noise=0.1", "--augment=diffaugment")
    assert here(capfd, *argv, f"--workdir={tmp_path / 'plain'}")[0] == 0
    plain = trained.load(tmp_path / "plain")
    key = jax.random.key(0)
    images = plain.sample(key, 5, truncation=0.7)
    with environment():
        assert jnp.zeros(()).dtype == jnp.float64
        assert here(capfd, *argv, f"--workdir={tmp_path / 'other'}")[0] == 0
    same_run(tmp_path / "plain", tmp_path / "other")
    grids = [(tmp_path / name / "samples" / "0000006.png").read_bytes() for name in ("plain", "other")]
    assert grids[0] == grids[1]
    with environment():
        again = trained.load(tmp_path / "other")
        np.testing.assert_array_equal(again.sample(key, 5, truncation=0.7), images)
        latents = np.asarray(again.latents(key, 5), np.float64)  # as NumPy makes them
        assert again.images(latents).dtype == np.float32


def test_types_and_generators_of_the_environment_change_no_bit_of_a_game_without_a_script():
    """A notebook: nothing but the library's own calls."""
    config = image.Config(
        model="mlp",
        latent=8,
        batch_size=8,
        dragan=(1.0,),
        augment="diffaugment",
        ema_ramp=0.05,
        learning_rate=(2e-4, 1e-4),
    )
    game = image.make_game(config, image.networks(config, (8, 8, 1), 0))
    example = {
        "image": np.linspace(-1, 1, 8 * 64, dtype=np.float32).reshape(8, 8, 8, 1),
        "label": np.zeros(8, np.int32),
        "row": np.arange(8, dtype=np.int32),
    }
    batch = {name: np.stack([x] * game.draws) for name, x in example.items()}

    def played():
        state = parallel.replicate(game.init(numerics.key(3), example), jax.devices()[:1])
        call = parallel.compile_steps(game, lambda resident, x: jax.tree.map(jnp.asarray, batch), jax.devices()[:1])
        state, metrics = call(state, {}, {"step": np.zeros((1, 2), np.int32)})
        return jax.device_get((state.players, metrics))

    plain = played()
    with environment():
        other = played()
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_types_and_generators_of_the_environment_change_no_classifier(monkeypatch):
    monkeypatch.setattr(classify, "STEPS", 3)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(32, dtype=np.int32) % 2
    plain = classify.train(Classifier(2), images, labels)
    with environment():
        other = classify.train(Classifier(2), images, labels)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert slerp(jnp.ones((1, 2)), jnp.zeros((1, 2)) + 0.5, jnp.float32(0.5)).dtype == jnp.float32


MINIMAL = {
    "ahead": ("--topology=here",),
    "anomaly": (),
    "anomaly_table": (),
    "augment": (),
    "benchmark": (),
    "evaluate": ("--run=r",),
    "generate": ("--run=r", "--out=o.png"),
    "gmmn": (),
    "image": (),
    "infogan": (),
    "interpret": ("--run=r", "--out=page"),
    "template": (),
    "toy": (),
    "transfer": (),
}


@pytest.mark.parametrize("script", MINIMAL)
def test_a_jax_that_cannot_start_is_one_line(script, tmp_path, monkeypatch, capfd):
    def devices():
        raise RuntimeError(
            "Unable to initialize backend 'foo': it is\nnot known (set JAX_PLATFORMS='' to automatically choose ...)"
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "devices", devices)
    code, out, err = here(capfd, *MINIMAL[script], script=importlib.import_module(f"experiments.{script}"))
    assert (code, out) == (2, "")
    assert err.startswith("error: JAX_PLATFORMS=cpu cannot start: Unable to initialize backend 'foo': it is not known;")
    assert err.count("\n") == 1 and not any(tmp_path.iterdir())


def test_platforms_that_are_not_here_are_one_line(tmp_path):
    for platform in ("cuda", "nonsense"):
        command = [sys.executable, "-m", "experiments.image", f"--workdir={tmp_path / 'run'}"]
        environ = os.environ | {"JAX_PLATFORMS": platform}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
        if platform == "cuda" and done.returncode == 0:
            continue  # there is one
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"JAX_PLATFORMS={platform} cannot start" in done.stderr and "JAX_PLATFORMS=cpu" in done.stderr
    assert not any(tmp_path.iterdir())
