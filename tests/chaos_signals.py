"""SIGKILL, SIGTERM and SIGINT at random moments."""

import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from jaxgan import checkpoint
from tests.chaos_runs import SEED, intact, steps_of, undisturbed, wait_for
from tests.runs import TINY, lines, program, rows, same_run, start

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

# A good part of the time goes by in evaluations.
EVALUATED = ("--eval_every=800", "--metrics=fid", "--features=pixels", "--eval_samples=100")
SIGNALLED = (*TINY, *EVALUATED, "--steps=4000", "--steps_per_call=40", "--checkpoint_every=400")


def signals(folder: Path, times: int, argv: tuple[str, ...] = SIGNALLED) -> str:
    """Every stopped run says which step it saved, and that is what is there."""
    chance = random.Random(SEED)
    whole = undisturbed(folder, *argv)
    clock = [json.loads(line)["seconds"] for line in lines(whole)]
    call = max(b - a for a, b in itertools.pairwise(clock))
    window = clock[-1] - clock[0]
    landed = runs = evaluations = 0
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
            assert int(said[2]) == steps_of(workdir)[-1] == int(state["step"])
            stored = checkpoint.describe(workdir / "checkpoints", int(said[2]))["metadata"]
            owed = bool(stored.get("owed"))  # in an evaluation: its row is for the next start
            assert (int(rows(workdir)[-1]["step"]) == int(said[2])) != owed
            evaluations += owed
            slowest = max(slowest, float(said[3]))
            landed += 1
        code, _, err = program(workdir, *argv)
        assert code == 0, err
        same_run(workdir, whole)
        shutil.rmtree(workdir)
    assert slowest < call + 5, (slowest, call)
    return (
        f"{landed} signals in {runs} runs, {evaluations} in an evaluation: saved within {slowest:.1f} s of the signal, "
        f"a call takes up to {call:.1f} s"
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
    time.sleep(1.5)  # less than a second apart they would count as one
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 2, err
    return f"{times} SIGTERMs before the first step; a second signal ended a long call at once"
