"""Disks, files, data and losses that fail."""

import contextlib
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from jaxgan import checkpoint
from tests.chaos_runs import SEED, ended, steps_of, undisturbed, wait_for
from tests.runs import TINY, leaves, lines, program, same_run, snapshot, start

FAULTY = (*TINY, "--steps=40", "--sample_every=10")


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int):
    """A file system of its own, where this user may mount one; None elsewhere."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], capture_output=True)
    if mounted.returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def full_disk(folder: Path, times: int) -> str:
    """Wherever the disk is full, be it a row, a picture or a checkpoint that finds no room."""
    chance, where = random.Random(SEED), set()
    for i in range(times):
        with small_disk(folder / f"disk{i}", chance.randrange(300, 900)) as disk:
            if disk is None:
                return "skipped: no file system can be mounted here"
            argv = (*TINY, "--steps=100000", "--sample_every=5", "--tensorboard")
            last = ended(program(disk / "run", *argv), 74, "No space left")
            where.add("checkpoint" if "the checkpoint of step" in last.split(";")[0] else "row or picture")
            assert not list((disk / "run").rglob("*tmp*")) and all(map(json.loads, lines(disk / "run")))
            stands = re.search(r"the checkpoint of step (\d+) stands", last)
            found = steps_of(disk / "run")
            assert found[-1:] == ([int(stands[1])] if stands else []), (last, found)
            if found:
                assert int(checkpoint.read(disk / "run" / "checkpoints")["step"]) == found[-1]
                shutil.rmtree(disk / "run" / "samples")
                [path.unlink() for path in (disk / "run").glob("events*")]
                more = (*argv[:-3], f"--steps={found[-1] + 5}", "--sample_every=0", "--keep=1")
                done = program(disk / "run", *more)
                assert done[0] in (0, 74), done  # as far as the room goes
    return f"{times} full disks, met by {' and '.join(sorted(where))}"


def read_only(folder: Path, times: int) -> str:
    """A disk that turns read-only under a run, as ext4 does after an error."""
    for i in range(times):
        image, disk = folder / f"image{i}", folder / f"ext{i}"
        disk.mkdir()
        with image.open("wb") as file:
            file.truncate(2**25)
        made = subprocess.run(["mkfs.ext4", "-q", image], capture_output=True)
        if made.returncode or subprocess.run(["mount", "-o", "loop", image, disk], capture_output=True).returncode:
            return "skipped: no file system can be mounted here"
        try:
            process = start(disk / "run", *TINY, "--steps=100000", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            assert wait_for(lambda disk=disk: len(steps_of(disk / "run")) > 1, process)
            subprocess.run(["mount", "-o", "remount,abort", disk], capture_output=True)
            err = process.communicate(timeout=120)[1]
            ended((process.returncode, "", err), 74, "stands")
            assert steps_of(disk / "run")
            assert int(checkpoint.read(disk / "run" / "checkpoints")["step"]) > 0
        finally:
            subprocess.run(["umount", disk], check=True)
            image.unlink()
    return f"{times} disks that turned read-only"


def damaged_checkpoints(folder: Path, times: int) -> str:
    """The newest is cut short or has a byte changed: the one before it is used, and the run ends in the same bits."""
    chance = random.Random(SEED)
    whole = undisturbed(folder, *FAULTY)
    code, _, err = program(folder / "half", *FAULTY, "--steps=25")
    assert code == 0, err
    for i in range(times):
        workdir = folder / f"damaged{i}"
        shutil.copytree(folder / "half", workdir)
        newest = workdir / "checkpoints" / str(steps_of(workdir)[-1])
        sizable = [path for path in sorted(newest.rglob("*")) if path.is_file() and "/d/" in str(path)]
        path = max(sizable, key=lambda path: path.stat().st_size)
        data = bytearray(path.read_bytes())
        if i % 2:
            del data[chance.randrange(len(data)) :]
        else:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        code, _, err = program(workdir, *FAULTY)
        assert code == 0 and "Traceback" not in err, err
        if "is damaged" in err:
            assert f"{newest}' is damaged" in err and "resuming" in err
            shutil.rmtree(next((workdir / "checkpoints").glob("damaged-*")))
        same_run(workdir, whole)
        shutil.rmtree(workdir)
    return f"{times} checkpoints cut short or with a bit flipped"


def half_a_line(folder: Path, times: int) -> str:
    chance = random.Random(SEED)
    whole = undisturbed(folder, *FAULTY)
    code, _, err = program(folder / "half", *FAULTY, "--steps=20")
    assert code == 0, err
    for i in range(times):
        workdir = folder / f"half{i}"
        shutil.copytree(folder / "half", workdir)
        line = lines(whole)[4]
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(line[: chance.randrange(1, len(line) - 1)])
        code, _, err = program(workdir, *FAULTY)
        assert code == 0 and "Traceback" not in err, err
        same_run(workdir, whole)
        shutil.rmtree(workdir)
    return f"{times} logs with half a last line"


def pictures(folder: Path, count: int = 12) -> Path:
    rng = np.random.default_rng(SEED)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def altered_data(folder: Path, times: int) -> str:
    """An archive cut short or with a byte changed is refused; nothing is written."""
    chance, rng = random.Random(SEED), np.random.default_rng(SEED)
    np.savez(folder / "good.npz", image=rng.integers(0, 256, (64, 8, 8), np.uint8))
    good = (folder / "good.npz").read_bytes()
    refused = 0
    for i in range(times):
        data = bytearray(good)
        if i % 2:
            del data[chance.randrange(len(data)) :]
        else:
            data[chance.randrange(300, len(data) - 300)] ^= 1 << chance.randrange(8)  # in the pixels
        (folder / "bad.npz").write_bytes(data)
        before = snapshot(folder)
        done = program(folder / "run", *FAULTY, f"--dataset=npz:{folder}/bad.npz")
        ended(done, 2, "bad.npz")
        assert snapshot(folder) == before
        refused += 1
    return f"{refused} altered archives"


def broken_streams(folder: Path, times: int) -> str:
    """A file that breaks while the run streams: one line, and when it is mended the run goes on to the same bits."""
    chance = random.Random(SEED)
    data = pictures(folder / "data", 64)
    argv = (*TINY, "--steps=40", f"--dataset=folder:{data}", "--size=8", "--channels=1", "--placement=stream")
    whole = undisturbed(folder, *argv)
    for i in range(times):
        workdir = folder / f"stream{i}"
        code, _, err = program(workdir, *argv, "--steps=10")
        assert code == 0, err
        victim = data / f"{chance.randrange(64):02d}.png"
        good = victim.read_bytes()
        victim.write_bytes(good[: chance.randrange(len(good) // 2)])  # less, and all pixels may still be there
        ended(program(workdir, *argv), 2, victim.name)
        victim.write_bytes(good)
        code, _, err = program(workdir, *argv)
        assert code == 0, err
        same_run(workdir, whole)
    return f"{times} files that broke in a stream"


JUMP = ("--optimizer=sgd", "--learning_rate=1e-4,1e30")  # some 14 steps in, the rate is 1e22


def divergence(folder: Path, times: int) -> str:
    for i in range(times):
        workdir = folder / f"diverged{i}"
        done = program(workdir, *FAULTY, *JUMP, f"--seed={i}", "--steps=60")
        ended(done, 3, "not finite", "stands")
        state = checkpoint.read(workdir / "checkpoints")
        values = [np.asarray(x) for _, x in leaves(state)]
        assert all(np.isfinite(x).all() for x in values if x.dtype.kind == "f")
        done = program(workdir, *FAULTY, *JUMP, f"--seed={i}", "--steps=60", "--on_nonfinite=rollback", "--rollbacks=2")
        last = ended(done, 3, "1 rollbacks left", "0 rollbacks left", "learning rates times 0.25")
        assert "not finite" in last
    return f"{times} losses that were not finite: stopped; rolled back twice, then stopped"


def two_at_once(folder: Path, times: int) -> str:
    """The second run of a directory is refused, and the first goes on."""
    first = start(folder / "run", *TINY, "--steps=1000000", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: lines(folder / "run"), first)
        for _ in range(times):
            ended(program(folder / "run", *TINY, "--steps=1000000"), 2, "in use by process", str(first.pid))
            assert first.poll() is None
    finally:
        first.terminate()
    assert first.wait(timeout=60) == 75
    assert program(folder / "run", *TINY, f"--steps={steps_of(folder / 'run')[-1] + 5}")[0] == 0
    return f"{times} second runs of one directory refused"
