"""The benchmark runs and counts right; how fast anything is decides no test."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import benchmark
from jaxgan import flags

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def settings():
    """What the benchmark sets for its process, it sets for this one."""
    before = jax.config.read("jax_disable_most_optimizations")
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.config.update("jax_default_matmul_precision", "highest")  # as conftest.py has it


def check(table, printed, programs):
    (case,) = table["cases"]
    assert [row["program"] for row in case["programs"]] == programs
    assert all(value > 0 for value in case["peak_gflops"].values())
    for row in case["programs"]:
        assert row["ms"] > 0 and row["images_per_second"] == pytest.approx(8e3 / row["ms"])
        assert f"{row['ms']:.2f} ms" in printed
    return case


def test_smoke(tmp_path):
    """As a user runs it: a table on the screen and the same figures in a file."""
    argv = ["--smoke", "--cases=mlp28", "--placement=resident,stream,none,draw", f"--out={tmp_path}/bench.json"]
    command = [sys.executable, "-m", "experiments.benchmark", *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    programs = ["resident x2", "stream x2", "none x2", "draw x2"]
    check(json.loads((tmp_path / "bench.json").read_text()), done.stdout, programs)


@pytest.mark.slow
def test_a_peer_of_flax(tmp_path, capsys):
    argv = ["--smoke", "--cases=dcgan32", "--peer=flax", f"--out={tmp_path}/bench.json"]
    flags.main(benchmark.Config, {}, benchmark.main, argv)
    case = check(json.loads((tmp_path / "bench.json").read_text()), capsys.readouterr().out, ["resident x2", "flax"])
    assert set(case["ratios"]) == {"resident x2 float32"}


def test_a_peer_counts_for_its_own_dtype():
    def peer(name, dtype, *seconds):
        return benchmark.Program(name, lambda: 0.0, 0.0, dtype=dtype, seconds=list(seconds))

    peers = [peer("eager", "float32", 3, 9, 4), peer("compile", "float32", 5, 1, 5), peer("half", "bfloat16", 1, 1, 1)]
    assert benchmark.best(peers, "float32") is peers[0] and benchmark.best(peers, "bfloat16") is peers[2]
    assert benchmark.best(peers[2:], "float32") is None
    assert benchmark.ratio(peers[0], peers[1]) == 0.8


def test_count_is_that_of_the_layers():
    """Products of the dense pair by hand: twice the weights for each image and each pass that it takes."""
    case = benchmark.CASES["mlp28"]
    b = case.batch_size
    game = benchmark.make_game(case, "float32", accumulate=1, remat=False)
    example = {
        "image": np.zeros((b, 28, 28, 1), np.float32),
        "label": np.zeros(b, np.int32),
        "row": np.arange(b, dtype=np.int32),
    }
    first, last = 100 * 256, 784 * 1024
    g = first + 256 * 512 + 512 * 1024 + 1024 * 784
    d = last + 1024 * 512 + 512 * 256 + 256
    disc = g + 2 * (d + d + d - last)
    gen = g + d + d + g + g - first
    assert benchmark.count(game, example) == pytest.approx(2 * b * (disc + gen), rel=0.05)


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--cases=dcgan", ("'dcgan'", "dcgan32")),
        ("--rounds=0", ("--rounds=0",)),
        ("--dtype=", ("--dtype=",)),
        ("--steps_per_call=10,0", ("--steps_per_call=10,0", "at least 1")),
        ("--batch_size=-1", ("--batch_size=-1",)),
        ("--accumulate=3 --cases=mlp28", ("--accumulate=3", "mlp28", "nearest: 2 or 4")),
        ("--peer=flax --cases=mlp28", ("--peer=flax", "mlp28", "dcgan32, dcgan64")),
        ("--out={}", ("--out={}", "is a folder")),
        ("--out={}/file/x.json", ("--out={}/file/x.json", "no folder to write to")),
        ("--profile={}/file/x", ("--profile={}/file/x", "no folder to write to")),
        ("--cases=mlp28 --placement=draw --peer=torch --peer_python=nowhere/python", ("nowhere/python", "torch")),
    ],
)
def test_wrong_flags(flag, words, tmp_path, capsys):
    (tmp_path / "file").touch()
    flag, words = flag.replace("{}", str(tmp_path)), [word.replace("{}", str(tmp_path)) for word in words]
    with pytest.raises(SystemExit) as ending:
        flags.main(benchmark.Config, {}, benchmark.main, flag.split())
    assert ending.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words)
