"""Rings and grids: the data, the games, and a table from start to end."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import toy
from tests import runs
from tests.runs import compile_quickly

__all__ = ["compile_quickly"]  # a fixture

TINY = ("--steps=4", "--frames=2", "--seeds=2", "--width=4", "--batch_size=8")


run = functools.partial(runs.here, script=toy)


def test_mixtures_are_the_published_ones():
    ring, grid = toy.MIXTURES["ring"], toy.MIXTURES["grid"]
    np.testing.assert_allclose(np.linalg.norm(ring.centres, axis=1), 1)
    gaps = np.linalg.norm(ring.centres - np.roll(ring.centres, 1, axis=0), axis=1)
    np.testing.assert_allclose(gaps, 2 * np.sin(np.pi / 8))
    assert ring.sigma == 0.01 and grid.sigma == 0.05
    assert sorted(map(tuple, grid.centres)) == [(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)]


def test_a_perfect_sampler_is_perfect():
    """1 - e^-4.5 of a plane's Gaussian lies within 3σ."""
    rng = np.random.default_rng(0)
    for mixture in toy.MIXTURES.values():
        n = toy.SAMPLES["many"]
        mode = rng.integers(0, len(mixture.centres), n)
        points = mixture.centres[mode] + mixture.sigma * rng.normal(size=(n, 2))
        found = toy.figures(points, mixture)
        assert found["few"]["found"] == len(mixture.centres)
        assert found["many"]["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=0.002)
        assert found["many"]["reverse_kl"] < 0.001 and found["many"]["spread"] == pytest.approx(1, abs=0.01)


def test_falling():
    at = toy.falling((1.0, 0.01), 100.0)
    np.testing.assert_allclose([at(jnp.float32(x)) for x in (0, 50, 100, 500)], [1, 0.1, 0.01, 0.01], rtol=1e-5)
    assert float(toy.falling((0.3,), 10.0)(jnp.float32(7))) == pytest.approx(0.3)


def test_every_method_makes_as_many_moves():
    config = toy.Config(steps=600)
    assert [toy.steps_of(config, toy.METHODS[name]) for name in ("gan", "pacgan2", "wgan_gp")] == [600, 600, 200]


def test_table(tmp_path, capfd):
    methods = ("pacgan2", "relativistic")
    argv = (f"--workdir={tmp_path}/toy", "--data=ring", f"--methods={','.join(methods)}", *TINY)
    code, out, err = run(capfd, *argv)
    assert code == 0, err
    table = json.loads((tmp_path / "toy" / "table.json").read_text())
    assert set(table) == {f"ring/{method}" for method in methods}
    for row in table.values():
        assert len(row["seeds"]) == 2
        assert all(np.isfinite(list(seed[n].values())).all() for seed in row["seeds"] for n in toy.SAMPLES)
    names = {path.name for path in (tmp_path / "toy").iterdir()}
    assert {"ring.gif", "ring.png", "table.json", "config.json"} <= names
    again = run(capfd, *argv)
    assert again[:2] == (0, out)  # from what is there
    code, _, err = run(capfd, *argv, "--seed=1")
    assert code == 2 and "seed is '0' there, '1' here" in err


@pytest.mark.parametrize(
    "wrong", ["--seeds=0", "--methods=", "--gamma=-1", "--batch_size=7", "--frames=99", "--data=rings", "--seed=-1"]
)
def test_wrong_flags(wrong, tmp_path, capfd):
    code, _, err = run(capfd, f"--workdir={tmp_path}/toy", "--steps=4", wrong)
    assert code == 2 and wrong.split("=")[0] in err and not (tmp_path / "toy").exists()
    assert len(err.strip().splitlines()) == 1
