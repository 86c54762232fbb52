"""Moment matching networks: the Parzen window against SciPy, the two games, and whole runs, interrupted in either."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import kstest, multivariate_normal

import jaxgan
from experiments import gmmn
from jaxgan import data, play
from jaxgan.metrics import parzen
from jaxgan.models.gmmn import Autoencoder, Generator
from tests import runs
from tests.runs import QUIET, bits, compile_quickly, lines, same_run

__all__ = ["compile_quickly"]  # a fixture

TINY = ("--widths=8,8", "--latent=3", "--ae_widths=12,4", "--batch_size=16", "--ae_batch_size=8")
TINY += ("--steps_per_call=5", "--checkpoint_every=10", "--ae_steps=20", "--steps=20", *QUIET)


def sparse(n, d, seed):
    rng = np.random.default_rng(seed)
    return rng.random((n, d)) * (rng.random((n, d)) < 0.2)


def test_log_densities_against_float64():
    """As long as MNIST's images, more of them than a compiled call takes, and not a multiple."""
    samples, images, sigmas = sparse(50, 784, 0), sparse(parzen.ROWS + 3, 784, 1), (0.08, 0.2, 0.6)
    found = parzen.log_densities(samples.reshape(-1, 28, 28, 1), images.reshape(-1, 28, 28, 1), sigmas)
    distances = cdist(images, samples, "sqeuclidean")
    for row, sigma in zip(found, sigmas, strict=True):
        exact = logsumexp(-distances / (2 * sigma**2), axis=1) - np.log(50) - 392 * np.log(2 * np.pi * sigma**2)
        np.testing.assert_allclose(row, exact, rtol=1e-5, atol=0.01)
    alone = multivariate_normal(samples[0], 0.2**2).logpdf(images[:5])
    np.testing.assert_allclose(parzen.log_densities(samples[:1], images[:5], [0.2])[0], alone, rtol=1e-5)


def test_validation_images_choose_sigma_and_test_images_give_the_figure():
    """Samples at 0 and images of N(0, s² I): the best σ is their own s, whatever the test images would prefer."""
    rng, d = np.random.default_rng(0), 50
    validation, test = 0.3 * rng.normal(size=(2000, d)), 0.1 * rng.normal(size=(500, d))
    found = parzen.evaluate(np.zeros((4, d)), validation, test)
    assert found.sigma == pytest.approx(0.3, rel=0.03)  # half a step of the finer grid
    exact = multivariate_normal(np.zeros(d), found.sigma**2).logpdf(test)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-5)
    assert found.error == pytest.approx(exact.std(ddof=1) / np.sqrt(500), rel=1e-4)
    expected = multivariate_normal(np.zeros(d), found.sigma**2).logpdf(validation).mean()
    assert found.validation == pytest.approx(expected, rel=1e-5)


def test_the_generator_sees_a_uniform_latent():
    generator = Generator((2, 2, 1), latent=3, widths=())
    z = jax.random.normal(jax.random.key(0), (500, 3))
    params = {"network": {"Dense_0": {"kernel": jnp.eye(3, 4), "bias": jnp.zeros(4)}}}
    matched = generator.apply({"params": params}, z, method="matched")
    uniform = np.asarray(jax.scipy.special.logit(matched))[:, :3]
    assert kstest(uniform.ravel(), "uniform", (-1, 2)).pvalue > 0.01
    assert np.corrcoef(uniform.T)[np.triu_indices(3, 1)] == pytest.approx(0, abs=0.15)
    images = generator.apply({"params": params}, z)
    np.testing.assert_allclose(images.reshape(500, 4), 2 * matched - 1, atol=1e-6)


def test_a_generator_of_codes_ends_in_the_decoder():
    shape, key = (4, 3, 2), jax.random.key(0)
    autoencoder = Autoencoder(shape, (7, 5), (0.5, 0.5))
    images = jax.random.uniform(key, (6, *shape), minval=-1)
    trained = autoencoder.init(key, images)["params"]
    generator = Generator(shape, latent=3, widths=(8,), decoder_widths=(5, 7))
    z = jax.random.normal(key, (6, 3))
    params = generator.init(key, z)["params"]
    assert jax.tree.map(jnp.shape, params["decoder"]) == jax.tree.map(jnp.shape, trained["decoder"])
    params = params | {"decoder": trained["decoder"]}
    codes = generator.apply({"params": params}, z, method="matched")
    logits = autoencoder.apply({"params": trained}, codes, method=lambda model, codes: model.decoder(codes))
    np.testing.assert_allclose(generator.apply({"params": params}, z), 2 / (1 + np.exp(-logits)) - 1, atol=1e-6)
    # Dropout is of training alone, and what is encoded is what is decoded.
    whole = autoencoder.apply({"params": trained}, images)
    again = autoencoder.apply({"params": trained}, images, method="encode")
    np.testing.assert_allclose(
        autoencoder.apply({"params": trained}, again, method=lambda model, codes: model.decoder(codes)),
        whole,
        atol=1e-6,
    )
    noisy = [autoencoder.apply({"params": trained}, images, True, rngs={"noise": jax.random.key(i)}) for i in (1, 2)]
    assert not np.allclose(noisy[0], noisy[1]) and not np.allclose(noisy[0], whole)


def test_images_are_told_apart():
    """Training, validation and test images make up the split, and none is in two of them."""
    images = gmmn.load(gmmn.Config())
    parts = [part.read(np.arange(part.num_examples)) for part in (images.train, images.validation, images.test)]
    assert [len(part["image"]) for part in parts] == [1197, 300, 300]
    whole = data.read_all(data.load("digits"))["image"]
    together = np.concatenate([part["image"] for part in parts])
    assert sorted(x.tobytes() for x in together) == sorted(x.tobytes() for x in whole)
    assert len({x.tobytes() for x in together}) == 1797, "so that the line above says what it should"


here = functools.partial(runs.here, script=gmmn)


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, capfd, monkeypatch):
    """In the first game and in the second; and what was trained in the first stands still in the second."""
    code, _, err = here(capfd, *TINY, f"--workdir={tmp_path / 'whole'}")
    assert code == 0, err

    class Killed(Exception):
        pass

    def kill_after(title, step):
        def stop(stacked, game, first):
            if game.moves[0].title == title and first >= step:
                raise Killed

        return stop

    for title in ("autoencoder", "gen"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(play, "stop_if_diverged", kill_after(title, 10))
            here(capfd, *TINY, f"--workdir={tmp_path / 'run'}")
    code, _, err = here(capfd, *TINY, f"--workdir={tmp_path / 'run'}")
    assert code == 0 and "at step 10" in err
    for place in (".", "autoencoder"):
        same_run(tmp_path / "run" / place, tmp_path / "whole" / place)
    before, after = bits(tmp_path / "run" / "autoencoder"), bits(tmp_path / "run")
    for name, part in (("encoder", "players/encoder/params"), ("decoder", "players/gen/params/decoder")):
        prefix = f"players/autoencoder/params/{name}"
        ours = {key.removeprefix(part): value for key, value in after.items() if key.startswith(part)}
        assert ours == {key.removeprefix(prefix): v for key, v in before.items() if key.startswith(prefix)} != {}
    code, _, err = here(capfd, *TINY, "--ae_dropout=0,0", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and "ae_dropout" in err


def test_the_figure_of_a_run(tmp_path, capfd):
    """Printed at the end, written to metrics.jsonl, and that of the samples of the loaded run."""
    argv = [*TINY, "--eval_every=20", "--eval_samples=100", f"--workdir={tmp_path}", "--ema=100"]
    code, out, err = here(capfd, *argv)
    assert code == 0, err
    (row,) = [row for row in map(json.loads, lines(tmp_path)) if "eval/parzen" in row]
    assert f"log-likelihood {row['eval/parzen']:.1f} ± {row['eval/parzen_error']:.1f} nats of 300 test" in out
    samples = (jaxgan.load(tmp_path).sample(jax.random.key(1), 100) + 1) / 2
    images = gmmn.load(gmmn.Config())
    test = images.test.read(np.arange(300))["image"] / 255
    densities = parzen.log_densities(samples, test, [row["eval/parzen_sigma"]])[0]
    assert row["eval/parzen"] == pytest.approx(densities.mean(), rel=1e-5)
    held = [json.loads(line) for line in lines(tmp_path / "autoencoder")]
    assert 0 < held[-1]["eval/cross_entropy"] < held[0]["autoencoder/loss"]
    assert here(capfd, *argv)[1].endswith(out.splitlines()[-1] + "\n"), "asked again, it says the same"


@pytest.mark.parametrize("preset", gmmn.PRESETS)
def test_every_preset_takes_real_steps(preset, tmp_path, capfd):
    pixels = np.random.default_rng(0).integers(0, 256, (36, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "data.npz", image=pixels)
    argv = [f"--preset={preset}", f"--dataset=npz:{tmp_path / 'data.npz'}", "--test_split=", *TINY]
    code, _, err = here(capfd, *argv, "--steps=2", "--ae_steps=2", f"--workdir={tmp_path / 'run'}")
    assert code == 0, err
    (row,) = map(json.loads, lines(tmp_path / "run"))
    assert row["step"] == 2 and 0 < row["gen/mmd"] == pytest.approx(row["gen/loss"] ** 2, rel=0.1)
    assert (tmp_path / "run" / "autoencoder").exists() == (preset != "gmmn_mnist")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--space=code", "codes"),
        ("--bandwidths=1,0", "above 0"),
        ("--ae_dropout=0.5", "2 rates"),
        ("--ae_dropout=0.5,1", "less than 1"),
        ("--learning_rate=", "start,end"),
        ("--learning_rate=-1", "--learning_rate=-1.0: expected at least 0"),
        ("--ae_learning_rate=1,-1", "--ae_learning_rate=1.0,-1.0"),
        ("--ema=-5", "--ema=-5.0"),
        ("--ae_batch_size=9", "nearest: 8 or 10"),
        ("--latent=0", "at least 1"),
        ("--model=dcgan", "gmmn"),
        ("--test_split=test", "train"),
    ],
)
def test_wrong_flags(flag, words, tmp_path, capfd):
    code, out, err = here(capfd, flag, f"--workdir={tmp_path / 'run'}")
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert words in err and not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(tmp_path, capfd):
    code, out, err = here(capfd, f"--workdir={tmp_path / 'run'}", "--dry_run")
    assert (code, err, list(tmp_path.iterdir())) == (0, "", [])
    for word in ("1,197 to train", "300 for validation", "autoencoder", "3,000 steps", "2,000 steps"):
        assert word in out, out
