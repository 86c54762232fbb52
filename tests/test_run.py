"""Whole runs of an experiment: killed and resumed, refused, diverged, repeated, continued; and every preset.

`JAXGAN_KILLS=5 python -m pytest tests/test_run.py -k killed` is the long form: more kills, and XLA's optimisations,
which cost more than the runs and are therefore skipped otherwise.
"""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from jaxgan import checkpoint
from tests.runs import (
    KILLS,
    STEPS,
    TINY,
    compile_quickly,
    here,
    leaves,
    lines,
    program,
    rows,
    same_run,
    snapshot,
    start,
)

__all__ = ["compile_quickly"]  # a fixture

# The rate jumps from 1e-4 to 1e22 where the cosine first differs from 1 in float32, after some 14 steps.
JUMP = ("--optimizer=sgd", "--learning_rate=1e-4,1e30")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """So that a stray file of a relative path is seen."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = program(workdir, *TINY, f"--steps={STEPS}", "--placement=resident")
    assert code == 0, err
    assert out.startswith(f"trained {STEPS} steps") and str(workdir) in out
    return workdir


def test_a_whole_run_says_all_of_it(whole):
    assert [row["step"] for row in rows(whole)] == [str(step) for step in range(5, STEPS + 1, 5)]
    names = [name for name, _ in leaves(checkpoint.read(whole / "checkpoints"))]
    parts = ("step", "images", "key", "players/gen/params", "players/gen/ema", "players/gen/variables/batch_stats")
    parts += ("players/disc/params", "players/disc/optimizer", "players/gen/optimizer")
    assert [part for part in parts if not any(name.startswith(part) for name in names)] == []
    state = checkpoint.read(whole / "checkpoints")
    assert state["step"] == STEPS and state["images"] == 8 * STEPS
    losses = [float(row["disc/loss"]) for row in rows(whole)]
    assert all(map(math.isfinite, losses)) and len(set(losses)) == len(losses)


def killed(workdir, delay, *argv):
    """Starts a run, kills it `delay` seconds after its first row of metrics; False if it had ended before."""
    seen = set(lines(workdir))
    with (workdir.parent / "stderr.txt").open("a") as stderr:
        process = start(workdir, *argv, stdout=subprocess.DEVNULL, stderr=stderr)
        limit = time.monotonic() + 300
        while process.poll() is None and not set(lines(workdir)) - seen:  # the seconds tell rows apart
            assert time.monotonic() < limit, "no row of metrics in five minutes"
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        code = process.wait()
    assert code in (0, -signal.SIGKILL), (workdir.parent / "stderr.txt").read_text()
    return code != 0


@pytest.mark.parametrize("placement", [pytest.param("resident", marks=pytest.mark.slow), "stream"])
def test_a_killed_run_ends_in_the_same_bits(whole, tmp_path, placement):
    """And a stream gives the bits of resident data, which the undisturbed run had."""
    seconds = [json.loads(line)["seconds"] for line in lines(whole)]
    chance, window = random.Random(f"{placement}{KILLS}"), (seconds[-1] - seconds[0]) / max(KILLS, 1)
    argv = (*TINY, f"--steps={STEPS}", f"--placement={placement}")
    workdir, landed = tmp_path / "run", 0
    while landed < KILLS:
        if killed(workdir, chance.uniform(0, window), *argv):
            landed += 1
        else:  # this time it was faster than the undisturbed run had been
            shutil.rmtree(workdir)
            landed, window = 0, window / 2
    code, out, err = program(workdir, *argv)
    assert code == 0, err
    assert f"trained {STEPS} steps" in out
    same_run(workdir, whole)
    # Nor does anything half written stay behind.
    kept = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    assert kept == sorted(p.name for p in (whole / "checkpoints").iterdir())


def test_a_finished_run_says_so_and_more_steps_continue_it(tmp_path, capfd):
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    assert here(capfd, *TINY, f"--steps={STEPS}", f"--workdir={whole}")[0] == 0
    argv = (*TINY, f"--workdir={workdir}")
    assert here(capfd, *argv, "--steps=30")[0] == 0
    before = snapshot(tmp_path)
    for steps in (30, 20):
        code, out, err = here(capfd, *argv, f"--steps={steps}")
        assert (code, err) == (0, "")
        assert out == f"{workdir} is already trained for 30 steps; --steps={steps} asks for no more\n"
        assert snapshot(tmp_path) == before
    code, _, err = here(capfd, *argv, f"--steps={STEPS}")
    assert code == 0 and f"resuming {workdir} at step 30" in err
    same_run(workdir, whole)
    assert f"--steps={STEPS}\n" in (workdir / "flags.txt").read_text()


def test_a_flag_file_repeats_a_run(whole, tmp_path):
    code, _, err = program(tmp_path / "other", f"--flagfile={whole}/flags.txt", f"--workdir={tmp_path / 'other'}")
    assert code == 0, err
    same_run(tmp_path / "other", whole)


@pytest.mark.parametrize("steps", [15, 7])
def test_a_call_is_recorded(steps, tmp_path, capfd):
    """What TensorBoard's profile plugin and Perfetto read; of a run of fewer than three calls too."""
    code, _, err = here(capfd, *TINY, f"--steps={steps}", "--profile", f"--workdir={tmp_path / 'run'}")
    assert code == 0, err
    names = [path.name for path in (tmp_path / "run" / "profile").rglob("*")]
    assert "perfetto_trace.json.gz" in names and any(name.endswith(".xplane.pb") for name in names)


def test_a_dry_run_writes_nothing(tmp_path, capfd):
    before = snapshot(tmp_path)
    code, out, err = here(capfd, *TINY, f"--workdir={tmp_path / 'run'}", "--dry_run")
    assert (code, err, snapshot(tmp_path)) == (0, "", before)
    for word in ("1,797 images of 8x8x1, 10 classes", "gen", "disc", "4,000 steps, 32 kimg", str(tmp_path / "run")):
        assert word in out, out


def test_a_run_that_diverges_names_the_move_and_the_step(tmp_path, capfd):
    workdir = tmp_path / "run"
    code, out, err = here(capfd, *TINY, *JUMP, "--steps=200", f"--workdir={workdir}")
    assert code == 3 and out == ""
    *_, last = err.splitlines()
    found = re.match(r"error: the loss of move '(disc|gen)' is not finite in step (\d+) ", last)
    assert found and "Traceback" not in err, err
    step = int(found[2])
    kept = checkpoint.Checkpoints(workdir / "checkpoints").steps
    assert f"the checkpoint of step {kept[-1]} stands." in last
    assert 10 <= kept[-1] <= step < 50  # steps count from 0, so the loss of step n is that of the state after n
    state = checkpoint.read(workdir / "checkpoints")
    assert state["step"] == kept[-1]
    assert all(np.isfinite(x).all() for name, x in leaves(state) if x.dtype.kind == "f")
    assert all(value not in ("None", "nan", "inf") for row in rows(workdir) for value in row.values())
    assert int(rows(workdir)[-1]["step"]) <= step
    # Started again it fails again, and the checkpoint still stands.
    before = snapshot(workdir / "checkpoints")
    assert here(capfd, *TINY, *JUMP, "--steps=200", f"--workdir={workdir}")[0] == 3
    assert snapshot(workdir / "checkpoints") == before


def test_a_run_that_diverges_before_it_saved_promises_no_checkpoint(tmp_path, capfd):
    code, _, err = here(capfd, *TINY, *JUMP, "--steps=200", "--checkpoint_every=0", f"--workdir={tmp_path / 'run'}")
    assert code == 3
    assert "not finite in step" in err and "no checkpoint" in err and "stands" not in err


def picture(path, size=(8, 8), colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, colour, np.uint8)).save(path)
    return path


@pytest.fixture
def places(tmp_path, whole):
    """Folders, files and runs to be refused, by the names that the table below calls them."""
    for i in range(3):
        picture(tmp_path / "plain" / f"{i}.png", colour=i)
        picture(tmp_path / "mixed" / f"{i}.png", (8, 8) if i else (6, 8))
        picture(tmp_path / "broken" / f"{i}.png")
    data = (tmp_path / "broken" / "1.png").read_bytes()
    (tmp_path / "broken" / "1.png").write_bytes(data[:40])
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("no archive, no folder")
    np.savez(tmp_path / "keys.npz", pixels=np.zeros((4, 8, 8), np.uint8))
    np.savez(tmp_path / "floats.npz", image=np.zeros((4, 8, 8), np.float32))
    np.savez(tmp_path / "labels.npz", image=np.zeros((4, 8, 8), np.uint8), label=np.zeros(3, np.int64))
    np.savez(tmp_path / "objects.npz", image=np.array([{}, {}]))
    (tmp_path / "loose" / "checkpoints").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{")
    shutil.copytree(whole, tmp_path / "other")
    return tmp_path


# What is given (a {} is the folder of `places`), and words that the one line holds.
REFUSED = {
    "preset": ("--preset=dcgan_digit", "'dcgan_digit'", "'dcgan_digits'"),
    "flag": ("--bath_size=8", "--bath_size", "--batch_size"),
    "stray argument": ("train", "'train'", "--name=value"),
    "flag file": ("--flagfile={}/none.txt", "none.txt"),
    "data set": ("--dataset=digts --data_dir={}/tfds", "'digts'", "digits"),
    "data set without a name": ("--dataset=", "''"),
    "kind of data": ("--dataset=foldr:{}/plain", "'foldr'", "'folder'"),
    "split": ("--split=trian", "'trian'", "'train'"),
    "loss": ("--loss=hing", "'hing'", "'hinge'"),
    "loss of a module": ("--loss=jaxgan.losses:hing", "'hing'", "'hinge'"),
    "loss of no module": ("--loss=no.such:loss", "'no.such'"),
    "model": ("--model=dcgn", "'dcgn'", "'dcgan'"),
    "model of no module": ("--model=no.such", "'no.such'"),
    "model that is a file": ("--model=dcgan.py", "'dcgan.py'", "'dcgan'"),
    "variant": ("--model=resnet --size=32 --latent=0 --variant=sngn", "'sngn'", "'sngan'"),
    "path length of no styles": ("--path_length=2", "--path_length", "--model=stylegan2"),
    "model that is none": ("--model=jaxgan.losses", "jaxgan.losses", "Generator"),
    "model that is no GAN": ("--model=classifier", "'classifier'", "dcgan, infogan, mlp"),
    "model without the argument": ("--model=mlp --variant=deep", "'variant'", "mlp"),
    "model without batch norm": ("--model=mlp --width=0 --nodisc_batch_norm", "'batch_norm'", "mlp"),
    "optimizer": ("--optimizer=adamm", "'adamm'", "'adam'"),
    "dtype": ("--dtype=float16", "'float16'", "float32"),
    "crop": ("--crop=centre", "'centre'", "'center'"),
    "placement": ("--placement=steam", "'steam'", "'stream'"),
    "size": ("--size=64*64", "'64*64'", "48x64"),
    "size 0": ("--size=0", "'0'"),
    "channels": ("--channels=2", "channels 2", "digits"),
    "channels below 0": ("--channels=-1", "-1"),
    "batch size": ("--batch_size=9", "9", "8 or 10"),
    "batch size 0": ("--batch_size=0", "--batch_size=0"),
    "batch and micro-batches": ("--accumulate=3", "--accumulate=3", "2 or 4"),
    "devices": ("--devices=3", "--devices=3", "2"),
    "steps": ("--steps=0", "--steps=0"),
    "steps of no number": ("--steps=ten", "ten", "integer"),
    "steps a call": ("--steps_per_call=0", "--steps_per_call=0"),
    "keep": ("--keep=0", "--keep=0"),
    "every": ("--checkpoint_every=-1", "--checkpoint_every=-1"),
    "samples of an evaluation": ("--eval_every=5 --eval_samples=1", "--eval_samples=1", "2"),
    "seed": ("--seed=99999999999999999999", "99999999999999999999"),
    "disc steps": ("--disc_steps=0", "--disc_steps=0"),
    "penalty every": ("--r1=1 --penalty_every=0", "--penalty_every=0"),
    "accumulate": ("--accumulate=0", "--accumulate=0"),
    "width": ("--width=-4", "--width=-4"),
    "latent": ("--latent=-8", "--latent=-8"),
    "rate without a value": ("--learning_rate=", "--learning_rate="),
    "rate of three values": ("--learning_rate=1,2,3", "--learning_rate=1.0,2.0,3.0"),
    "beta2": ("--beta2=", "--beta2="),
    "generator's beta2 of 1": ("--gen_beta2=1", "--gen_beta2=1.0", "less than 1"),
    "a generator's decay of no Adam": ("--gen_beta2=0.9 --optimizer=sgd", "--gen_beta2=0.9 does nothing", "=adam"),
    "penalty of three values": ("--r1=1,2,3", "--r1=1.0,2.0,3.0"),
    "average of three values": ("--ema=1,2,3", "--ema=1.0,2.0,3.0"),
    "gradients clipped below 0": ("--clip_gradients=-1", "--clip_gradients=-1.0", "at least 0"),
    "weights clipped below 0": ("--clip_weights=-0.01", "--clip_weights=-0.01"),
    "rate below 0": ("--learning_rate=-1e-4", "--learning_rate=-0.0001", "at least 0"),
    "rate that ends below 0": ("--learning_rate=1e-4,-1", "--learning_rate=0.0001,-1.0"),
    "generator's rate below 0": ("--gen_learning_rate=-1", "--gen_learning_rate=-1.0"),
    "beta1 above 1": ("--beta1=1.5", "--beta1=1.5", "less than 1"),
    "beta2 of 1": ("--beta2=0.9,1", "--beta2=0.9,1.0", "less than 1"),
    "R1 below 0": ("--r1=-1", "--r1=-1.0"),
    "R2 below 0": ("--r2=-1", "--r2=-1.0"),
    "WGAN-GP below 0": ("--wgan_gp=-1", "--wgan_gp=-1.0"),
    "DRAGAN below 0": ("--dragan=-1", "--dragan=-1.0"),
    "consistency below 0": ("--consistency=-1,-2", "--consistency=-1.0,-2.0"),
    "data of less than nothing": ("--resident_gb=-1", "--resident_gb=-1.0"),
    "images packed": ("--pack=3 --devices=1", "--pack=3", "nearest: 2 or 4"),
    "one class of several": ("--classes=3 --conditional", "--classes=3", "two classes"),
    "a diagnosis that never comes": ("--diagnose", "--diagnose does nothing", "--eval_every"),
    "features that nothing sees": ("--features=inception", "--features=inception does nothing", "--metrics=fid"),
    "a target of no augmentation": ("--ada_target=0.6", "--ada_target=0.6 does nothing", "--augment"),
    "a share of no augmentation": ("--augment_probability=0.1", "--augment_probability=0.1", "--augment"),
    "steps between no penalties": ("--penalty_every=4", "--penalty_every=4 does nothing", "--r1"),
    "steps between no path lengths": ("--path_every=2", "--path_every=2 does nothing", "--path_length"),
    "a ramp of no average": ("--ema= --ema_ramp=.05", "--ema_ramp=0.05 does nothing", "--ema"),
    "images of no schedule": ("--anneal_images=5", "--anneal_images=5.0 does nothing", "start,end"),
    "a decay of no Adam": ("--beta1=0.9 --optimizer=rmsprop", "--beta1=0.9 does nothing", "--optimizer=adam"),
    "decays of no Adam": ("--beta2=0.9 --optimizer=sgd", "--beta2=0.9 does nothing", "--optimizer=adam"),
    "annealing": ("--ema=1,2 --anneal_images=0", "--anneal_images=0"),
    "broken image": ("--dataset=folder:{}/broken", "broken/1.png"),
    "broken image, known size": ("--dataset=folder:{}/broken --size=8 --channels=1", "broken/1.png"),
    "images of several sizes": ("--dataset=folder:{}/mixed", "mixed", "--size=8x8"),
    "empty folder": ("--dataset=folder:{}/empty", "empty", ".png"),
    "no folder": ("--dataset=folder:{}/none", "none"),
    "folder without a name": ("--dataset=folder:", "folder:DIR"),
    "folder that is a file": ("--dataset=folder:{}/words.txt", "words.txt"),
    "no npz file": ("--dataset=npz:{}/none.npz", "none.npz"),
    "npz that is a folder": ("--dataset=npz:{}/plain", "plain"),
    "npz that is none": ("--dataset=npz:{}/words.txt", "words.txt"),
    "npz of other keys": ("--dataset=npz:{}/keys.npz", "keys.npz", "pixels"),
    "npz of floats": ("--dataset=npz:{}/floats.npz", "floats.npz", "float32"),
    "npz of too few labels": ("--dataset=npz:{}/labels.npz", "labels.npz", "(3,)"),
    "npz of objects": ("--dataset=npz:{}/objects.npz", "objects.npz"),
    "classes without labels": ("--dataset=folder:{}/plain --conditional", "--conditional", "plain"),
    "no work directory": ("--workdir=", "--workdir"),
    "a file as work directory": ("--workdir={}/words.txt", "words.txt"),
    "a file above the work directory": ("--workdir={}/words.txt/run", "words.txt"),
    "a name too long for a directory": ("--workdir={}/" + 300 * "x", "xxx"),
    "a pattern as work directory": ("--workdir={}/r1=[0.3,0.03]", "r1=[0.3,0.03]", "'['"),
    "a pattern above the work directory": ("--workdir={}/a\\b*/run", "'*'"),
    "work directory of another config": ("--workdir={}/other --batch_size=16 --loss=hinge", "16", "hinge", "other"),
    "checkpoints of unknown config": ("--workdir={}/loose", "loose", "config.json"),
    "metrics of unknown config": ("--workdir={}/notes", "notes", "config.json"),
    "unreadable config": ("--workdir={}/config", "config/config.json"),
}


def one_line(err, words):
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert [word for word in words if word not in err] == [], err


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_one_line_and_leaves_nothing(case, places, capfd):
    given, *words = REFUSED[case]
    before = snapshot(places)
    argv = [f"--workdir={places / 'run'}", *TINY, "--steps=5", *given.format(places).split(" ")]
    code, out, err = here(capfd, *argv)
    one_line(err, words)
    assert (code, out) == (2, "")
    assert snapshot(places) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_without_permission_is_refused(tmp_path, capfd):
    (tmp_path / "closed").mkdir(mode=0o500)
    code, out, err = here(capfd, *TINY, f"--workdir={tmp_path}/closed/run")
    one_line(err, ["closed/run", "denied"])
    assert (code, out) == (2, "") and list((tmp_path / "closed").iterdir()) == []


def test_wrong_input_is_refused_by_the_program_too(places):
    """Seen from outside: nothing that JAX or the interpreter says besides, whatever exits while threads run."""
    before = snapshot(places)
    code, out, err = program(places / "run", *TINY, f"--dataset=folder:{places}/broken", "--placement=stream")
    one_line(err, ["broken/1.png"])
    assert (code, out, snapshot(places)) == (2, "", before)


def test_a_stream_that_meets_a_broken_image_goes_on_when_it_is_mended(places, capfd):
    """It is read only when its turn comes, so the run has begun."""
    data = f"--dataset=folder:{places}/broken"
    argv = (*TINY, f"--workdir={places / 'run'}", data, "--size=8", "--channels=1", "--placement=stream", "--steps=5")
    code, out, err = here(capfd, *argv)
    one_line(err, ["broken/1.png", "mend or remove"])
    assert (code, out) == (2, "") and lines(places / "run") == []
    picture(places / "broken" / "1.png")
    assert here(capfd, *argv)[0] == 0
    assert [row["step"] for row in rows(places / "run")] == ["5"]


def test_a_run_whose_every_checkpoint_is_cut_short_is_refused(whole, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for file in (workdir / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = snapshot(tmp_path)
    code, out, err = here(capfd, f"--flagfile={whole}/flags.txt", f"--workdir={workdir}", f"--steps={STEPS + 10}")
    *warnings, last = err.splitlines()
    one_line(last + "\n", ["run/checkpoints"])
    assert (code, out) == (2, "") and "Traceback" not in err
    assert len(warnings) <= len(list((workdir / "checkpoints").iterdir()))  # one names each of the damaged
    assert snapshot(tmp_path) == before
