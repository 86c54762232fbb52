"""What goes wrong on real machines, done to real runs on purpose, many times.

    python -m tests.chaos                      # everything; an hour or so on two cores
    python -m tests.chaos --only=kills --times=20

Each function does one kind of harm `times` times and returns a line for the table; it raises where a promise is broken.
The suite calls the same functions with small numbers.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from jaxgan import checkpoint
from tests import malformed
from tests.runs import ROOT, TINY, lines, program, rows, same_run, snapshot, start

SEED = 0


# --- runs to be disturbed


def undisturbed(folder: Path, *argv: str) -> Path:
    workdir = folder / "whole"
    code, out, err = program(workdir, *argv)
    assert code == 0 and "trained" in out, err
    return workdir


def shape(workdir: Path) -> list[str]:
    """The names of all files, but for those that are named by time, place or contents."""
    names = (str(path.relative_to(workdir)) for path in workdir.rglob("*"))
    return sorted(re.sub(r"/d/[0-9a-f]{32}$", "/d/*", name) for name in names if "tfevents" not in name)


def intact(workdir: Path, whole: Path) -> None:
    """Ended in the same bits, and nothing half written or damaged stayed behind."""
    same_run(workdir, whole)
    left = [name for name in shape(workdir) if re.search(r"tmp|part|damaged|\.lock|\.writable", name)]
    assert left == []
    strip = re.compile(r"/d/\*$")
    ours, theirs = ({name for name in shape(run) if not strip.search(name)} for run in (workdir, whole))
    assert ours == theirs, ours ^ theirs


def steps_of(workdir: Path) -> list[int]:
    found = (workdir / "checkpoints").glob("*")
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def wait_for(condition, process, seconds=300.0):
    """True when it holds, False when the process ended before."""
    limit = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < limit, f"nothing happened in {seconds} s"
        time.sleep(0.001)
    return True


# --- SIGKILL

KILLED = (*TINY, "--steps=120", "--checkpoint_every=5")


def kills(folder: Path, times: int, argv: tuple[str, ...] = KILLED, rows_first: bool = False) -> str:
    """Kills at random moments; every second one while a checkpoint is being written.

    A run is killed up to ten times, then ends by itself and has to be the undisturbed one.
    """
    chance = random.Random(SEED)
    whole = undisturbed(folder, *argv)
    seconds = [json.loads(line)["seconds"] for line in lines(whole)]
    window = seconds[-1] - seconds[0]
    landed = writing = runs = early = 0
    while landed < times:
        workdir = folder / f"killed{runs}"
        runs += 1
        for _ in range(min(10, times - landed)):
            seen = set(lines(workdir))
            with (folder / "stderr.txt").open("w") as stderr:
                process = start(workdir, *argv, stdout=subprocess.DEVNULL, stderr=stderr)
            parts = workdir / "checkpoints"

            def written(parts=parts) -> bool:
                return any(parts.glob("*tmp*"))

            def new(workdir=workdir, seen=seen) -> bool:
                return bool(set(lines(workdir)) - seen)

            if landed % 2:
                alive = wait_for(written, process)
                time.sleep(chance.uniform(0, 0.05))
            elif not rows_first and landed % 8 == 0:  # in the start: imports, compilation, restoring
                alive = True
                time.sleep(chance.uniform(0, 5))
            else:
                alive = wait_for(lambda new=new: new(), process)
                time.sleep(chance.uniform(0, window / 10))
            process.kill()
            process.wait()
            if not alive or process.returncode == 0:
                break  # it had ended
            assert process.returncode == -signal.SIGKILL, (folder / "stderr.txt").read_text()
            landed, writing = landed + 1, writing + written()
            early += not lines(workdir)
            whole_ones, at = steps_of(workdir), len(lines(workdir))
            if at and whole_ones:  # of rows every 5 steps, the last save and the one under way may be lost
                assert whole_ones[-1] >= 5 * at - 15, (whole_ones, at)
        before = steps_of(workdir)
        code, _, err = program(workdir, *argv)
        assert code == 0 and "Traceback" not in err, err
        resumed = re.search(r"resuming .* at step (\d+)", err)
        assert int(resumed[1] if resumed else 0) == (before[-1] if before and before[-1] < 120 else 0) or not resumed, (
            err
        )
        intact(workdir, whole)
        shutil.rmtree(workdir)
    return f"{landed} SIGKILLs in {runs} runs, {writing} while a checkpoint was written, {early} before the first row"


# --- SIGTERM and SIGINT

SIGNALLED = (*TINY, "--steps=4000", "--steps_per_call=40", "--checkpoint_every=400")


def signals(folder: Path, times: int, argv: tuple[str, ...] = SIGNALLED) -> str:
    """Every stopped run says which step it saved, and that is what is there."""
    chance = random.Random(SEED)
    whole = undisturbed(folder, *argv)
    clock = [json.loads(line)["seconds"] for line in lines(whole)]
    call = max(b - a for a, b in itertools.pairwise(clock))
    window = clock[-1] - clock[0]
    landed = runs = 0
    slowest = 0.0
    while landed < times:
        workdir = folder / f"stopped{runs}"
        runs += 1
        for i in range(min(10, times - landed)):
            seen = set(lines(workdir))
            with (folder / "stderr.txt").open("w") as stderr:
                process = start(workdir, *argv, stdout=subprocess.DEVNULL, stderr=stderr)
            if not wait_for(lambda workdir=workdir, seen=seen: set(lines(workdir)) - seen, process):
                break
            time.sleep(chance.uniform(0, window / 12))
            process.send_signal(signal.SIGINT if i % 3 == 2 else signal.SIGTERM)
            code, err = process.wait(timeout=60), (folder / "stderr.txt").read_text()
            if code == 0:
                break
            said = re.search(r"stopped by SIG(TERM|INT) at step (\d+), saved ([\d.]+) s after the signal", err)
            assert code == 75 and said and "Traceback" not in err, err
            state = checkpoint.read(workdir / "checkpoints")
            assert int(said[2]) == steps_of(workdir)[-1] == int(state["step"]) == int(rows(workdir)[-1]["step"])
            slowest = max(slowest, float(said[3]))
            landed += 1
        code, _, err = program(workdir, *argv)
        assert code == 0, err
        same_run(workdir, whole)
        shutil.rmtree(workdir)
    assert slowest < call + 5, (slowest, call)
    return (
        f"{landed} signals in {runs} runs: saved within {slowest:.1f} s of the signal, a call takes up to {call:.1f} s"
    )


def signals_at_odd_moments(folder: Path, times: int) -> str:
    """Before the first step nothing is written; a second signal ends at once."""
    chance = random.Random(SEED)
    for i in range(times):
        workdir = folder / f"early{i}"
        process = start(workdir, *TINY, "--steps=100000", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(chance.uniform(2.0, 3.0))
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=60)[1]
        assert process.returncode in (75, -signal.SIGTERM), err  # the latter before there was anything to listen
        assert "Traceback" not in err, err
        assert not steps_of(workdir) or "at step" in err, err
    workdir = folder / "twice"
    argv = (*TINY, "--steps=1000000", "--steps_per_call=10000")  # a call takes half a minute
    process = start(workdir, *argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert wait_for(lambda: lines(workdir), process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 2, err
    return f"{times} SIGTERMs before the first step; a second signal ended a long call at once"


# --- faults

FAULTY = (*TINY, "--steps=40", "--sample_every=10")
PROMISED = {0: "", 2: "error: ", 3: "error: ", 74: "error: ", 75: "stopped by "}


def ended(done: tuple[int, str, str], code: int, *words: str) -> str:
    """The promised exit code, in one line with these words; no traceback."""
    found, _, err = done
    assert found == code and "Traceback" not in err, (found, err)
    last = err.splitlines()[-1] if err else ""
    assert last.startswith(PROMISED[code]), err
    assert [word for word in words if word not in err] == [], err
    return last


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
        if "damaged" in err:
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
        victim.write_bytes(good[: chance.randrange(len(good) - 12)])
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
        values = [np.asarray(x) for x in _leaves(state)]
        assert all(np.isfinite(x).all() for x in values if x.dtype.kind == "f")
        done = program(workdir, *FAULTY, *JUMP, f"--seed={i}", "--steps=60", "--on_nonfinite=rollback", "--rollbacks=2")
        last = ended(done, 3, "1 rollbacks left", "0 rollbacks left", "learning rates times 0.25")
        assert "not finite" in last
    return f"{times} losses that were not finite: stopped; rolled back twice, then stopped"


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [tree]


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


# --- malformed input


def malformed_input(folder: Path, times: int) -> str:
    """Flags, images, archives, configs and checkpoints (`tests/malformed.py`), each given to a program of its own."""
    chosen = list(malformed.cases())
    random.Random(SEED).shuffle(chosen)
    slowest, wrong = 0.0, []
    for i, case in enumerate(chosen[:times]):
        place = folder / str(i)
        place.mkdir()
        found = malformed.refuse(case, place)
        slowest = max(slowest, found["seconds"])
        wrong += [f"{case.name}: {problem}" for problem in malformed.problems(case, found)]
    malformed.forget_run()
    assert not wrong, "; ".join(wrong)
    return f"{min(times, len(chosen))} malformed inputs refused, the slowest in {slowest:.1f} s"


# --- long runs

LONG_RUN = """
import os, sys
import numpy as np
from tests import small

def count():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

seen = []
def evaluate(state):
    seen.append(count())
    return {"x": float(state.players["one"].params["x"])}

def sample(state):
    return np.full((64, 64, 3), int(state.step) % 256, np.uint8)

small.run(sys.argv[1], rate=1e-4, steps=int(sys.argv[2]), steps_per_call=1, sample_every=100, eval_every=20,
          checkpoint_every=200, tensorboard=True, evaluate=evaluate, sample=sample)
print(*(",".join(map(str, row)) for row in seen))
"""


def long_run(folder: Path, calls: int) -> str:
    """Memory, open files and threads over so many calls, with logs, pictures, evaluations and checkpoints.

    The least of a tenth of the run is compared with the least of another, for a save under way has threads and buffers.
    """
    command = [sys.executable, "-c", LONG_RUN, str(folder / "run"), str(calls)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = np.array([list(map(int, row.split(","))) for row in done.stdout.splitlines()[-1].split()])
    tenth = len(seen) // 10
    early, late = seen[tenth : 2 * tenth].min(0), seen[-tenth:].min(0)
    growth = late[0] / early[0] - 1
    assert growth < 0.01 and late[1] <= early[1] and late[2] <= early[2], (early, late)
    size = sum(path.stat().st_size for path in (folder / "run" / "checkpoints").rglob("*") if path.is_file())
    assert len(steps_of(folder / "run")) == 2
    return (
        f"{calls:,} calls: resident memory {early[0] / 2**20:.1f} to {late[0] / 2**20:.1f} MiB ({growth:+.2%}), "
        f"files {early[1]} to {late[1]}, threads {early[2]} to {late[2]}; checkpoints {size / 2**10:.0f} KiB"
    )


KINDS = {
    "kills": (kills, 200),
    "signals": (signals, 50),
    "odd_signals": (signals_at_odd_moments, 10),
    "full_disk": (full_disk, 10),
    "read_only": (read_only, 10),
    "damaged_checkpoints": (damaged_checkpoints, 10),
    "half_a_line": (half_a_line, 10),
    "altered_data": (altered_data, 10),
    "broken_streams": (broken_streams, 10),
    "divergence": (divergence, 10),
    "two_at_once": (two_at_once, 10),
    "malformed_input": (malformed_input, 100),
    "long_run": (long_run, 10_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of harm, commas between")
    parser.add_argument("--times", type=int, default=0, help="how often each is done; 0: its own number")
    given = parser.parse_args()
    failed = []
    for name in given.only.split(","):
        function, times = KINDS[name]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                said, mark = function(Path(folder), given.times or times), "ok  "
            except AssertionError as error:
                said, mark = " ".join(str(error).split())[-2000:], "FAIL"
                failed.append(name)
        print(f"{mark} {name:20s} {time.monotonic() - began:6.0f} s  {said}", flush=True)
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
