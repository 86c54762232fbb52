"""The commands of both READMEs, as they stand but smaller, on a folder of one's own three classes.

A command that cannot run here is parsed, so that a wrong flag is found, and `UNABLE` says why it is no more than that.
"""

import csv
import dataclasses
import importlib
import json
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import jaxgan
from experiments import image
from jaxgan import data, flags
from jaxgan.anomaly import tabular
from jaxgan.errors import InputError
from jaxgan.metrics import classify
from tests import runs
from tests.runs import ROOT, compile_quickly, optimised_classifier

__all__ = ["compile_quickly", "optimised_classifier"]  # fixtures

READMES = ("README.md", "experiments/README.md")
WHOLE = re.compile(r"python -m experiments\.(\w+)((?: [^`\"\n#]+)?)")
ROW = re.compile(r"^\| [^|]+ \| `(\w+) (--[^`]*)` \|", re.MULTILINE)  # of the table of uses, which names no python
CLASSES = ("ant", "bee", "wasp")

# {what a command has in it: why it does not run here}
UNABLE = {
    "=gs://": "a bucket of Google's",
    "--coordinator=": "several machines",
    "=/shared/": "a cluster's disk, and SLURM",
    "--topology=": "the compilers of chips that are not here; tests/test_ahead.py compiles for CPUs",
    "--peer=torch": "PyTorch; tests/test_torch_peer.py has it where it is installed",
    ",...": "the dots stand for more runs",
}
DOWNLOADED = "an original data set, which nobody downloads for a test"
# {words of a command: why it is only parsed in the short form of the tests}
SLOW = {
    "toy --workdir": "ten games",
    "--metrics=all": "classifiers of samples, and thousands of paths",
    "augment --workdir=": "as folder:photos",
    "augment --dataset=folder:photos --size=32 --workdir": "as the one with --per_class",
    "transfer --workdir=": "three runs",
    "anomaly --workdir=": "as folder:normal",
    "anomaly_table --workdir=": "as --table=normal.csv",
    "interpret --run=runs/infogan": "as the one of runs/digits",
    "transfer --source_run=runs/mnist --dataset=folder:photos --workdir": "as the one of all images",
}

SHORT = ("--steps=2", "--steps_per_call=2", "--batch_size=8")
TRAINED = (*SHORT, "--width=4", "--latent=8", "--notensorboard")
CLASSIFIED = ("--num=12", "--classifier_steps=4", "--classifier_width=4", "--seeds=2", "--per_class=4")
SMALL = {
    "image": (*TRAINED, "--eval_every=0", "--sample_every=2"),
    "generate": ("--num=6",),
    "evaluate": ("--num=40",),
    "anomaly": (*TRAINED,),
    "anomaly_table": (*SHORT, "--width=8", "--seeds=1", "--notensorboard"),
    "augment": (*TRAINED, "--sample_every=0", "--tries=2", *CLASSIFIED),
    "transfer": ("--steps=2", "--tuned_steps=2", "--evaluations=1", "--eval_samples=16", "--batch_size=4"),
    "interpret": ("--num=48", "--directions=2", "--restarts=2", "--projection_steps=3", "--units=3"),
    "template": (*SHORT, "--width=8", "--sample_every=2", "--notensorboard"),
    "toy": ("--steps=4", "--frames=2", "--seeds=1", "--width=4", "--batch_size=8"),
    "infogan": (*SHORT, "--width=2", "--noise=3", "--notensorboard", "--sample_every=0", "--eval_samples=16"),
    "gmmn": (*SHORT, "--ae_steps=2", "--notensorboard"),
}
# Where sizes of the command itself are smaller than its defaults: {words of the command: more flags}.
SMALLER = {
    "--repeats=3": ("--repeats=2",),
    "--dataset=folder:photos --size=64": ("--size=16",),
    "anomaly --workdir": ("--normal=3",),  # in place of each digit in turn
    "--dataset=folder:bottle": ("--size=8",),
    "--dataset=folder:photos --size=32": ("--size=16",),
    "--num_images=0": ("--method=scratch,finetune",),
    "transfer --workdir": ("--source_width=4", "--source_steps=2", "--method=scratch,finetune", "--num_images=4"),
}


def documented():
    """(script, argument, ...) of each command, once, in the order of the READMEs."""
    commands = {}
    for name in READMES:
        text = (ROOT / name).read_text().replace("\\\n", " ")
        for match in sorted((*WHOLE.finditer(text), *ROW.finditer(text)), key=lambda match: match.start()):
            script, arguments = match.groups()
            if arguments.strip():
                commands[script, *shlex.split(arguments)] = None
    return [*commands]


COMMANDS = documented()


def parsed(command):
    """The script of a command, and its config."""
    script = importlib.import_module(f"experiments.{command[0]}")
    return script, flags.parse(script.Config, getattr(script, "PRESETS", {}), command[1:])


def title(command):
    return " ".join(command)


def unable(command):
    """Why a command does not run here; "" if it does."""
    text = title(command)
    for words, reason in UNABLE.items():
        if words in text:
            return reason
    try:
        dataset = getattr(parsed(command)[1], "dataset", "")
    except InputError:  # which the tests show
        return ""
    return "" if not dataset or ":" in dataset or data.is_own(dataset) else DOWNLOADED


def small(command):
    """The arguments of a command with smaller sizes: each flag once, as somebody would type it."""
    text = title(command)
    sizes = () if "--mode=score" in command else SMALL[command[0]]  # scores are of what was fitted
    more = [flag for words, flags in SMALLER.items() if words in text for flag in flags]
    arguments = [word for word in command[1:] if "=" in word or not word.startswith("--")]
    switches = [word for word in (*command[1:], *sizes, *more) if word not in arguments and "=" not in word]
    last = {word.partition("=")[0]: word for word in (*arguments, *sizes, *more) if "=" in word}
    return *last.values(), *dict.fromkeys(switches)


# --- what the commands name


def picture(path, rng, level=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (
        rng.integers(0, 256, (20, 24, 3)) if level is None else np.clip(level + rng.normal(0, 9, (20, 24, 3)), 0, 255)
    )
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def table(path, rng, rows, shift=0.0):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("length", "weight", "age"))
        writer.writerows(rng.normal((shift, 50, 3), 1, (rows, 3)).round(3).tolist())


def place(home):
    """Folders of photos in three classes, normal and new ones, tables, and sets to compare, below `home`."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        for i in range(12):
            picture(home / "photos" / name / f"{i}.png", rng, 40 + 80 * k)
    for name, count in (("normal", 100), ("new", 6), ("real", 40), ("ours", 40), ("theirs", 40)):
        for i in range(count):
            picture(home / name / f"{i}.png", rng, None if name == "new" else 120)
    for name, count in (("train/good", 24), ("test/good", 4), ("test/broken_large", 4)):
        for i in range(count):
            picture(home / "bottle" / name / f"{i}.png", rng, None if "broken" in name else 120)
    table(home / "normal.csv", rng, 110)
    table(home / "new.csv", rng, 8, shift=3.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with all that the commands name, their runs included: copies of one, for each compiles for seconds."""
    folder = tmp_path_factory.mktemp("documented")
    place(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags.main(image.Config, image.PRESETS, image.main, (*SMALL["image"], "--workdir=runs/digits"))
    for name in ("biggan", "mnist", "infogan/seed-2"):
        shutil.copytree(folder / "runs" / "digits", folder / "runs" / name)
    flags.write(image.Config(workdir="runs/mine"), folder / "flags")
    return folder


@pytest.fixture(autouse=True)
def there(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(classify, "STEPS", 8)
    monkeypatch.setenv("COLUMNS", "120")


# --- what they promise


def shows(path):
    with Image.open(path) as opened:
        opened.load()
    return True


def of_image(home, config, out):
    run = home / config.workdir
    stored = json.loads((run / "config.json").read_text())
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1 and (run / "checkpoints" / "2").is_dir()
    assert shows(run / "samples" / "0000002.png") and f"everything lies in {config.workdir}" in out
    gan = jaxgan.load(run)
    assert np.asarray(gan.sample(jax.random.key(0), 3)).shape == (
        3,
        *stored["networks"]["generator"]["arguments"]["shape"],
    )


def of_generate(home, config, out):
    assert shows(home / config.out)


def of_evaluate(home, config, out):
    names = config.run or config.samples
    assert all(name.split(":")[-1].split("/")[-1] in out for name in names) and "frechet" in out, out
    if config.out:
        text = (home / config.out).read_text()
        assert all(name in text for name in names) and json.loads(text)


def of_anomaly(home, config, out):
    if config.mode == "score":
        rows = list(csv.DictReader((home / config.out).open()))
        files = sorted(row["image"] for row in rows)
        assert files == sorted(f"{i}.png" for i in range(6)) and all(0 <= float(row["p_value"]) <= 1 for row in rows)
        assert len([*(home / config.heatmaps).iterdir()]) == 7 and "of 6 images score above" in out
        return
    assert (home / config.workdir / "anomaly.json").exists()
    measured = config.test_split or config.normal == "3"
    assert ("AUROC" in out) == bool(measured), out


def of_anomaly_table(home, config, out):
    if config.mode == "score":
        rows = list(csv.DictReader((home / config.out).open()))
        assert (
            len(rows) == 8 and all(0 <= float(row["p_value"]) <= 1 for row in rows) and "of 8 rows score above" in out
        )
        return
    assert (home / config.workdir / tabular.FILE).exists()


def of_augment(home, config, out):
    run = home / config.workdir
    made = np.load(run / "synthetic-4-seed0.npz")
    classes = 3 if "photos" in config.dataset else 10
    assert np.bincount(made["label"]).tolist() == [12] * classes
    assert "real" in out and "synthetic" in out


def of_transfer(home, config, out):
    run = home / config.workdir
    told = json.loads((run / "report.json").read_text())
    assert shows(run / "chart.png") and shows(run / "samples.png") and told
    if config.num_images == (0,):  # of all three classes, less what is held out
        assert flags.read(next(run.glob("finetune-*")))["examples"] == 18  # the other half is held out
    assert (
        "scratch" in out
        and "finetune" in out
        and f"wrote report.json, chart.png and samples.png to {config.workdir}" in out
    )


def of_interpret(home, config, out):
    assert "<html" in (home / config.out / "index.html").read_text() and (home / config.out / "report.json").exists()


def of_template(home, config, out):
    assert shows(home / config.workdir / "samples" / "0000002.png")


def of_toy(home, config, out):
    assert len(json.loads((home / config.workdir / "table.json").read_text())) == 10
    assert shows(home / config.workdir / "ring.gif") and shows(home / config.workdir / "grid.gif")


PROMISES = {name.removeprefix("of_"): function for name, function in globals().items() if name.startswith("of_")}


@pytest.mark.parametrize("command", COMMANDS, ids=title)
def test_a_documented_command_is_understood(command, home):
    """Those that cannot run here too."""
    if "--flagfile=runs/mine/flags.txt" in command:
        command = tuple(word.replace("runs/mine", "flags") for word in command)
    _, config = parsed(command)
    assert dataclasses.is_dataclass(config)
    parsed((command[0], *small(command)) if command[0] in SMALL else command)


RUN = [
    pytest.param(
        command, marks=[pytest.mark.slow] if any(words in title(command) for words in SLOW) else [], id=title(command)
    )
    for command in COMMANDS
    if not unable(command)
]


@pytest.mark.parametrize("command", RUN)
def test_a_documented_command_does_what_it_says(command, home, capfd):
    script, config = parsed((command[0], *small(command)))
    for name in ("out", "heatmaps"):
        if value := getattr(config, name, ""):
            shutil.rmtree(home / value) if (home / value).is_dir() else (home / value).unlink(missing_ok=True)
    if getattr(config, "mode", "") != "score" and getattr(config, "workdir", ""):
        shutil.rmtree(home / config.workdir, ignore_errors=True)  # other commands have the same
    code, out, err = runs.here(capfd, *small(command), script=script)
    assert code == 0, err
    PROMISES[command[0]](home, config, out)


def test_every_command_is_found_and_every_reason_is_of_one():
    text = "\n".join(map(title, COMMANDS))
    for words in (
        "image --workdir=runs/digits",
        "toy --workdir=runs/toy",
        "template --workdir=runs/template",
        "image --dataset",
    ):
        assert words in text
    assert len(COMMANDS) >= 30 and [words for words in UNABLE if words not in text] == []
    assert len(RUN) >= 20
