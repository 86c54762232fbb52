"""Many hosts, malformed input, many calls."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jaxgan import checkpoint
from tests import hosts, malformed
from tests.chaos_runs import SEED, ended, steps_of
from tests.runs import ROOT, TINY, leaves, rows

STEPS = 20
# One step a call, so that every loss is written; β1 = 0 keeps the last gradient as Adam's first moment.
EACH = (*TINY, "--steps_per_call=1", f"--steps={STEPS}", "--checkpoint_every=1", f"--keep={STEPS}", "--beta1=0")


def apart(one: Path, other: Path) -> tuple[float, float]:
    """Largest differences of the first gradients and of the losses of all steps."""
    first = (checkpoint.read(run / "checkpoints", 1) for run in (one, other))
    ours, theirs = ({name: x for name, x in leaves(state) if "/mu/" in name} for state in first)
    gradient = max(np.abs(ours[name] - theirs[name]).max() for name in ours)
    names = ("disc/loss", "gen/loss")
    losses = [np.array([[float(row[name]) for name in names] for row in rows(run)]) for run in (one, other)]
    assert losses[0].shape == losses[1].shape == (STEPS, 2)
    return float(gradient), float(np.abs(losses[0] - losses[1]).max())


def many_hosts(folder: Path, times: int) -> str:
    """Two and four processes beside one of as many devices; what two wrote, gone on with by one and by four."""
    said = []
    for n in (2, 4):
        hosts.run_hosts(folder / f"one{n}", 1, *EACH, devices=n)
        hosts.run_hosts(folder / f"all{n}", n, *EACH)
        gradient, loss = apart(folder / f"one{n}", folder / f"all{n}")
        assert gradient <= 1e-6 and loss <= 1e-5, (n, gradient, loss)
        said.append(f"{n} hosts: first gradients within {gradient:.1e}, losses within {loss:.1e}")
    for n in (1, 4):
        shutil.copytree(folder / "all2", folder / f"on{n}")
        for step in range(STEPS // 2 + 1, STEPS + 1):
            shutil.rmtree(folder / f"on{n}" / "checkpoints" / str(step))
        hosts.run_hosts(folder / f"on{n}", n, *EACH)
        _, loss = apart(folder / "all2", folder / f"on{n}")
        assert loss <= 1e-5, (n, loss)
        said.append(f"gone on with by {n}: losses within {loss:.1e}")
    return "; ".join(said)


def lost_hosts(folder: Path, times: int) -> str:
    """One of two is killed or stands still: the other ends in time, in one line."""
    slowest = 0.0
    for i in range(times):
        run, number, lost = folder / f"lost{i}", (signal.SIGKILL, signal.SIGSTOP)[i % 2], i // 2 % 2
        running = hosts.start_hosts(run, 2, *TINY, "--steps=1000000", "--host_timeout=8")
        try:
            hosts.until_rows(run, 6, running)
            running[lost].signal(number)
            began = time.monotonic()
            code = running[1 - lost].wait(60)
            slowest = max(slowest, time.monotonic() - began)
            ended(
                (code, "", running[1 - lost].said), 76, "a host of this run is gone or hangs", "start all hosts again"
            )
        finally:
            hosts.end_all(running)
        assert steps_of(run)
    assert slowest < 30
    return f"{times} hosts killed or stopped: the other ended within {slowest:.1f} s, of which 8 are --host_timeout"


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
import jax
import numpy as np
from tests import small

def count():
    pages = int(open("/proc/self/statm").read().split()[1])
    files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
    return pages * os.sysconf("SC_PAGE_SIZE"), files, threads, sum(x.nbytes for x in jax.live_arrays())

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

    After a tenth, in which pools of threads fill, the first half is compared with the second: memory by the median, the
    rest by the most, for a save under way has threads and buffers of its own.
    """
    command = [sys.executable, "-c", LONG_RUN, str(folder / "run"), str(calls)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = np.array([list(map(int, row.split(","))) for row in done.stdout.splitlines()[-1].split()])
    halves = np.array_split(seen[len(seen) // 10 :], 2)
    early, late = (np.array([np.median(half[:, 0]), *half[:, 1:].max(0)]) for half in halves)
    growth = late[0] / early[0] - 1
    assert growth < 0.01 and (late[1:] <= early[1:]).all(), (early, late)
    size = sum(path.stat().st_size for path in (folder / "run" / "checkpoints").rglob("*") if path.is_file())
    assert len(steps_of(folder / "run")) == 2
    counts = (
        f"{name} {a:.0f} to {b:.0f}"
        for name, a, b in zip(("files", "threads", "bytes on devices"), early[1:], late[1:], strict=True)
    )
    return (
        f"{calls:,} calls: resident memory {early[0] / 2**20:.1f} to {late[0] / 2**20:.1f} MiB ({growth:+.2%}), "
        f"{', '.join(counts)}; checkpoints {size / 2**10:.0f} KiB"
    )
