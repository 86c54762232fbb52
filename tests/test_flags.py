import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from absl import flags as absl_flags
from hypothesis import given
from hypothesis import strategies as st

from jaxgan import flags
from jaxgan.errors import InputError

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Common:
    workdir: str = flags.option("", "where the run is kept", resumable=True)
    steps: int = flags.option(100, "training steps", resumable=True)


@dataclasses.dataclass(frozen=True)
class Config(Common):
    loss: str = flags.option("hinge", "adversarial loss", choices=("hinge", "logistic"))
    lr: float = flags.option(2e-4, "learning rate")
    mirror: bool = flags.option(False, "flip half of the images")
    metrics: tuple[str, ...] = flags.option(("fid",), "what to evaluate")
    seed: int | None = flags.option(None, "none: drawn from the clock")


PRESETS = {
    "big": {"steps": 7, "lr": 1, "mirror": True, "metrics": ("fid", "kid"), "seed": 3},
    "plain": {"loss": "logistic"},
}


def parse(*argv: str) -> Config:
    return flags.parse(Config, PRESETS, argv, "What it does.")


def test_default_then_preset_then_flag():
    assert parse() == Config()
    assert parse("--preset=big") == Config(steps=7, lr=1.0, mirror=True, metrics=("fid", "kid"), seed=3)
    # A flag wins over the preset wherever it stands, and also when it restores the default.
    for argv in (
        ["--preset=big", "--steps=100", "--nomirror"],
        ["--steps", "100", "--mirror=false", "--preset", "big"],
    ):
        assert parse(*argv) == Config(lr=1.0, metrics=("fid", "kid"), seed=3)
    assert parse("--seed=none", "--metrics=", "--preset=big").seed is None
    assert parse("--metrics=", "--preset=big").metrics == ()
    assert isinstance(parse("--preset=big").lr, float)


def test_a_run_of_before_a_flag_goes_on_without_what_its_preset_says_of_it(tmp_path):
    flags.write(Config(workdir=str(tmp_path)), tmp_path)
    argv = ("--preset=big", f"--workdir={tmp_path}")
    assert parse(*argv).metrics == ("fid", "kid")
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["config"]["metrics"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert parse(*argv) == Config(workdir=str(tmp_path), steps=7, lr=1.0, mirror=True, seed=3)
    assert parse(*argv, "--metrics=kid").metrics == ("kid",)  # which `check_same` refuses


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--step=3"], ["--step;", "did you mean --steps?"]),
        (["--los=hinge"], ["did you mean --loss?"]),
        (["--steps=many"], ["--steps=many", "an integer"]),
        (["--steps=1.5"], ["--steps=1.5", "an integer"]),
        (["--lr=nan"], ["--lr=nan", "finite"]),
        (["--mirror=maybe"], ["--mirror=maybe", "true or false"]),
        (["--nomirror=true"], ["mirror"]),
        (["--loss=hing"], ["--loss", "'hing'", "did you mean 'hinge'?", "logistic"]),
        (["--preset=bg"], ["preset 'bg'", "did you mean 'big'?"]),
        (["--steps=3", "extra", "--lr=1"], ["'extra'", "--name=value"]),
        (["--steps"], ["--steps"]),
        (["--flagfile=/no/such"], ["--flagfile", "/no/such"]),
    ],
)
def test_wrong_input_is_one_line_that_says_what_was_expected(argv, words):
    with pytest.raises(InputError) as error:
        parse(*argv)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("row", [{"stepz": 1}, {"steps": "many"}, {"loss": "hing"}, {"steps": None}, {"steps": True}])
def test_a_preset_that_fits_no_flags_fails_at_start_even_when_unused(row):
    with pytest.raises(InputError, match="preset 'bad'"):
        flags.parse(Config, {"bad": row}, [])


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters=","), min_size=1)
configs = st.builds(
    Config,
    workdir=words,
    steps=st.integers(),
    loss=st.sampled_from(["hinge", "logistic"]),
    lr=st.floats(allow_nan=False, allow_infinity=False),
    mirror=st.booleans(),
    metrics=st.lists(words, max_size=3).map(tuple),
    seed=st.none() | st.integers(),
)


@given(config=configs)
def test_a_written_flag_file_gives_the_same_config(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("run")
    flags.write(config, folder)
    assert parse(f"--flagfile={folder / 'flags.txt'}") == config
    assert parse("--preset=big", f"--flagfile={folder / 'flags.txt'}") == config
    assert parse(f"--flagfile={folder / 'flags.txt'}", "--steps=1") == dataclasses.replace(config, steps=1)
    assert flags.check_same(config, folder)


def test_write_read(tmp_path):
    flags.write(Config(steps=5), tmp_path / "run", {"shape": [8, 8, 1]})
    stored = flags.read(tmp_path / "run")
    assert stored["shape"] == [8, 8, 1]
    assert stored["config"] == json.loads(json.dumps(dataclasses.asdict(Config(steps=5))))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "flags.txt"]
    with pytest.raises(InputError, match=r"the character '\\n', which no flag file can"):
        flags.write(Config(workdir="a\nb"), tmp_path / "other")
    with pytest.raises(InputError, match="not a run"):
        flags.read(tmp_path)
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(InputError, match="cannot read"):
        flags.read(tmp_path)


def test_a_directory_of_another_config_is_refused(tmp_path):
    assert not flags.check_same(Config(), tmp_path)
    flags.write(Config(steps=5, seed=1), tmp_path)
    assert flags.check_same(Config(steps=9, workdir="elsewhere", seed=1), tmp_path)
    assert flags.check_same(Config(seed=2), tmp_path, ignore=("seed",))
    with pytest.raises(InputError) as error:
        flags.check_same(Config(lr=1.0, metrics=(), seed=1), tmp_path)
    message = str(error.value)
    assert "lr is '0.0002' there, '1.0' here" in message and "metrics is 'fid' there, '' here" in message
    assert "seed" not in message and "steps" not in message

    @dataclasses.dataclass(frozen=True)
    class Newer(Config):
        blur: float = flags.option(0.0, "a field that the stored run did not know")

    same = Newer(seed=1)
    assert flags.check_same(same, tmp_path)
    with pytest.raises(InputError, match=r"blur is '0.0' there, '2.0' here"):
        flags.check_same(dataclasses.replace(same, blur=2.0), tmp_path)
    flags.write(same, tmp_path)
    with pytest.raises(InputError, match=r"blur is '0.0' there, no flag here"):
        flags.check_same(Config(seed=1), tmp_path)


@pytest.mark.parametrize("flag", ["--helpshort", "--help", "-h", "--helpfull"])
def test_help_lists_presets_and_flags(flag, capsys):
    with pytest.raises(SystemExit) as leave:
        parse(flag, "--preset=big")
    shown = capsys.readouterr().out
    assert leave.value.code == 0
    assert all(word in shown for word in ["What it does.", "plain", "--loss=logistic", "--steps=7", "learning rate"])
    assert "hinge | logistic" in shown


def test_main(capsys):
    ran = []
    flags.main(Config, PRESETS, ran.append, ["--steps=3"])
    assert ran == [Config(steps=3)]

    def fails(config):
        raise InputError("no such\nthing")

    for run, argv, message in [(fails, [], "error: no such thing\n"), (ran.append, ["--steps=x"], "error: --steps=x")]:
        with pytest.raises(SystemExit) as leave:
            flags.main(Config, PRESETS, run, argv)
        assert leave.value.code == 2
        shown = capsys.readouterr()
        assert shown.err.startswith(message) and shown.err.count("\n") == 1 and not shown.out
    assert len(ran) == 1


def test_a_flag_without_use_is_refused_where_it_was_typed_for_a_new_run(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Needy(Config):
        needs: ClassVar = {"lr": flags.Need(lambda config: config.steps > 1, "without --steps above 1")}

    for argv in (["--steps=1", "--lr=0.5"], ["--lr", "0.5", "--preset=one"]):
        with pytest.raises(InputError, match=r"--lr=0\.5 does nothing without --steps above 1"):
            flags.parse(Needy, {"one": {"steps": 1}}, argv)
    (tmp_path / "old.txt").write_text("--lr=0.5\n")
    for argv in (["--lr=0.5"], ["--steps=1", "--lr=2e-4"], ["--steps=1", f"--flagfile={tmp_path}/old.txt"]):
        flags.parse(Needy, {}, argv)
    assert flags.parse(Needy, {"half": {"lr": 0.5}}, ["--preset=half", "--steps=1"]).lr == 0.5
    assert flags.parse(Needy, {}, ["--steps=1", "--lr=0.5"], typed=()).lr == 0.5  # read from a run's flags.txt
    flags.write(Needy(steps=1, lr=0.5), tmp_path)
    assert flags.parse(Needy, {}, ["--steps=1", "--lr=0.5", f"--workdir={tmp_path}"]).lr == 0.5


SCRIPT = """
import dataclasses, sys, time
from jaxgan import flags, lastwords
@dataclasses.dataclass(frozen=True)
class Config:
    lines: int = flags.option(1, "to print")
    trained: bool = flags.option(False, "only what came of it is told")
def run(config):
    time.sleep(0.2)  # whoever reads has gone
    sys.stderr.write("working\\n")
    for _ in range(config.lines):
        (lastwords.say if config.trained else print)("x" * 99)
    open(sys.argv[-1], "w").write("done")
flags.main(Config, {}, run, sys.argv[1:-1])
"""


@pytest.mark.parametrize(
    ("shell", "code", "told", "done"),
    [
        ("{} --helpshort x | true", 141, "", False),
        ("{} {file} | true", 141, "working\n", True),
        ("{} --lines=9999 {file} | true", 141, "working\n", False),
        ("{} --trained {file} | true", 0, "working\n", True),
        ("{} --trained {file} > /dev/full", 0, "working\n", True),
        ("{} {file} > /dev/full", 74, "working\nerror: cannot write to stdout: No space left on device\n", True),
        ("{} --helpshort x > /dev/full", 74, "error: cannot write to stdout: No space left on device\n", False),
        ("{} {file} >&- 2>&-", 0, "", True),
        ("{} --lines=many x 2>&-", 2, "", False),
    ],
)
def test_where_nobody_reads_there_is_no_traceback(shell, code, told, done, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    shell = shell.replace("{file}", str(tmp_path / "done")).replace("{}", f"{sys.executable} {tmp_path}/script.py")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PYTHONPATH": os.curdir}
    shell = f"set -o pipefail; {shell}"
    ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=env, cwd=ROOT)
    assert (ended.returncode, ended.stderr, (tmp_path / "done").exists()) == (code, told, done)


def test_nothing_global_and_nothing_heavy():
    assert "mirror" not in absl_flags.FLAGS
    script = "import sys, jaxgan.flags; print([name for name in ('jax', 'orbax', 'tensorflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
