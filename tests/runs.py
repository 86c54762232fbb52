"""Runs of an experiment for tests: in a process of their own or in this one, and what they left behind."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import image
from jaxgan import checkpoint, flags
from jaxgan.metrics import classify
from jaxgan.models import mlp

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("JAXGAN_KILLS", "2"))
LONG = KILLS > 2
STEPS = 30 * max(KILLS, 1)
QUIET = ("--eval_every=0", "--sample_every=0", "--notensorboard")
TINY = ("--width=4", "--latent=8", "--batch_size=8", "--steps_per_call=5", "--checkpoint_every=10", *QUIET)


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """In this process too: 3 seconds of compilation for a run instead of 15, and programs shared with subprocesses."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not LONG)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def optimised_classifier():
    """Classifiers train for hundreds of steps, unlike all else here: a little optimisation is worth its time."""
    options = {"static_argnums": (0, 1), "compiler_options": {"xla_backend_optimization_level": 1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify, "_fit", jax.jit(classify._fit.__wrapped__, **options))
        yield


@pytest.fixture(scope="module", autouse=True)
def narrow_dense():
    """In this process `--model=mlp` has 24 units a layer: to draw and save millions of weights takes long."""
    with pytest.MonkeyPatch.context() as patch:
        for network in (mlp.Generator, mlp.Discriminator):

            def narrow(self, *args, widths=(24, 24, 24), init=network.__init__, **options):
                init(self, *args, widths=widths, **options)

            patch.setattr(network, "__init__", narrow)
        yield


def start(workdir, *argv, **streams):
    # With the older way to emit code (tests/conftest.py) a stream and resident data would differ in a last bit.
    env = os.environ | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace("emitters=false", "emitters=true")}
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not LONG))}
    command = [sys.executable, "-m", "experiments.image", f"--workdir={workdir}", *argv]
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **streams)


def program(workdir, *argv):
    """Exit code, stdout and stderr of a run in a process of its own."""
    process = start(workdir, *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def here(capfd, *argv, script=image):
    """The same in this process, of any experiment."""
    capfd.readouterr()
    code = 0
    try:
        flags.main(script.Config, getattr(script, "PRESETS", {}), script.main, argv)
    except SystemExit as ending:
        code = ending.code
    return code, *capfd.readouterr()


def snapshot(folder):
    """{path: digest}, of directories and hidden files too."""
    found = sorted(folder.rglob("*"))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "directory" for p in found}


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def rows(workdir):
    """What metrics.jsonl holds, less what depends on the machine; floats by their repr, so compared bit by bit."""
    clock = ("seconds", "images_per_second")
    return [{k: repr(v) for k, v in json.loads(line).items() if k not in clock} for line in lines(workdir)]


def leaves(tree, prefix=""):
    for name, value in tree.items():
        yield from leaves(value, f"{prefix}{name}/") if isinstance(value, dict) else [(prefix + name, value)]


def bits(workdir, step=None):
    """{leaf: (dtype, shape, bytes)} of a checkpoint."""
    state = checkpoint.read(workdir / "checkpoints", step)
    return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in leaves(state)}


def same_run(a, b):
    assert rows(a) == rows(b)
    ours, theirs = bits(a), bits(b)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
