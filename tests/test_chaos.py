"""Runs that are disturbed come through, or say in one line why not. `python -m tests.chaos` is the long form."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from jaxgan import checkpoint, files, report, workdir
from jaxgan.errors import Diverged, InputError, Preempted, StorageFault
from jaxgan.preemption import Preemption
from tests import chaos, small
from tests.runs import ROOT, TINY, rows, same_run


def test_rates_fall_at_a_rollback(tmp_path, capfd):
    """(1 - 2.5)^n overflows; from the last checkpoints on (1 - 1.25)^n does not, and the numbers are those by hand.

    That of step 110 is finite, but its loss is not: so the one before it is tried next.
    """
    state = small.run(tmp_path / "run", rate=2.5, steps=300, on_nonfinite="rollback")
    _, err = capfd.readouterr()
    assert re.findall(r"back to step (\d+), learning rates times ([\d.]+), other noise; (\d)", err) == [
        ("110", "0.5", "2"),
        ("100", "0.25", "1"),
    ]
    step = 100
    assert float(state.players["one"].params["x"]) == pytest.approx(0, abs=1e-30)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 301, 5))
    assert [row.get("rollbacks", 0) for row in rows] == [2 * int(row["step"] > step) for row in rows]
    at = 1.5**step  # in absolute value
    expected = np.mean([0.5 * (at * (1 - 2.5 / 4) ** k) ** 2 for k in range(5)])
    assert rows[step // 5]["one/loss"] == pytest.approx(expected, rel=1e-3)
    first = jax.random.key_data(small.game(0.1).init(jax.random.key(0), None).key)
    assert (jax.random.key_data(state.key) != first).any()
    assert "stands" not in err and "after the checkpoint of step 110, which is moved aside; back to step 100" in err
    # A run that went back is continued at the lower rate: killed and resumed, it ends in the same bits. So does one
    # that is resumed before it went back: the checkpoint it goes on from has led nowhere yet.
    for name, first in {"after": 200, "before": 110}.items():
        small.run(tmp_path / name, rate=2.5, steps=first, on_nonfinite="rollback")
        small.run(tmp_path / name, rate=2.5, steps=300, on_nonfinite="rollback")
        same_run(tmp_path / name, tmp_path / "run")


def test_rollbacks_have_an_end(tmp_path):
    with pytest.raises(Diverged, match="checkpoint of step"):
        small.run(tmp_path / "run", rate=50.0, steps=300, on_nonfinite="rollback", rollbacks=2)
    with pytest.raises(Diverged, match="no checkpoint had been saved"):
        small.run(tmp_path / "none", rate=1e30, steps=300, checkpoint_every=0, on_nonfinite="rollback", rollbacks=1)


def figure(state):
    return {"x": float(state.players["one"].params["x"])}


def signalled(number, at=None):
    """An evaluation that sends this process a signal, once; `at` makes it wait for the end, which does not come."""
    sent = []

    def evaluate(state):
        if not sent:
            sent.append(int(state.step))
            os.kill(os.getpid(), number)
            if at:
                time.sleep(60)
        return {"x": float(state.players["one"].params["x"])}

    return evaluate


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("long", [False, True])
def test_a_signal_saves_and_the_run_goes_on(tmp_path, number, long):
    options, before = {"steps": 40, "eval_every": 10}, signal.getsignal(number)
    small.run(tmp_path / "whole", evaluate=figure, **options)
    began = time.monotonic()
    with pytest.raises(Preempted, match=rf"{signal.Signals(number).name} at step 10, saved"):
        small.run(tmp_path / "run", evaluate=signalled(number, long), **options)
    assert time.monotonic() - began < 30
    assert int(checkpoint.read(tmp_path / "run" / "checkpoints")["step"]) == 10
    assert signal.getsignal(number) == before
    small.run(tmp_path / "run", evaluate=figure, **options)
    same_run(tmp_path / "run", tmp_path / "whole")


def test_what_a_signal_interrupts_is_done_at_the_next_start(tmp_path, capfd):
    """The last evaluation too, and its picture."""
    options = {"steps": 10, "eval_every": 10, "sample_every": 10, "sample": lambda state: np.zeros((4, 4, 1), np.uint8)}
    small.run(tmp_path / "whole", evaluate=figure, **options)
    with pytest.raises(Preempted, match="at step 10, saved"):
        small.run(tmp_path / "run", evaluate=signalled(signal.SIGTERM), **options)
    with pytest.raises(Preempted, match="before a new step"):  # and again
        small.run(tmp_path / "run", evaluate=signalled(signal.SIGTERM), **options)
    capfd.readouterr()
    for said in ("trained 10 steps", "already trained for 10 steps"):
        small.run(tmp_path / "run", evaluate=figure, **options)
        assert said in capfd.readouterr().out
    same_run(tmp_path / "run", tmp_path / "whole")
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["0000010.png"]


def test_what_a_signal_interrupts_is_done_once_and_counts_for_the_best(tmp_path):
    """Whether the run is killed before its next checkpoint or not, and if the best is the one that was interrupted."""
    options = {"steps": 60, "eval_every": 10, "checkpoint_every": 20, "keep": 1, "best": "max:eval/x"}

    def killed(state):
        if int(state.step) == 30:
            raise KeyError("killed")
        return figure(state)

    small.run(tmp_path / "whole", evaluate=figure, **options)
    interrupted = {**options, "eval_every": 20}
    with pytest.raises(Preempted, match="at step 20, saved"):
        small.run(tmp_path / "run", evaluate=signalled(signal.SIGTERM), **interrupted)
    saved = tmp_path / "run" / "checkpoints"
    assert checkpoint.describe(saved, 20)["metrics"] == {}
    with pytest.raises(KeyError):
        small.run(tmp_path / "run", evaluate=killed, **options)
    whole = checkpoint.describe(tmp_path / "whole" / "checkpoints", 20)["metrics"]
    assert checkpoint.describe(saved, 20)["metrics"] == whole != {}
    (saved / "20" / "later.json").write_text("{")  # as if it were killed before: the row, which is there, comes anew
    small.run(tmp_path / "run", evaluate=figure, **options)
    assert [row["step"] for row in rows(tmp_path / "run")] == [str(step) for step in range(5, 61, 5)]
    for run in ("run", "whole"):
        assert checkpoint.Checkpoints(tmp_path / run / "checkpoints").steps == [20, 60]


def test_a_run_killed_after_a_rollback_goes_the_same_way(tmp_path):
    """Before it has saved anything at the lower rate."""
    options = {"rate": 2.5, "steps": 200, "on_nonfinite": "rollback", "sample_every": 5}

    def drawing(at=None):
        calls = []

        def sample(state):
            calls.append(int(state.step))
            if at and calls.count(at) > 1:
                raise KeyError("killed")
            return np.zeros((4, 4, 1), np.uint8)

        return sample

    small.run(tmp_path / "whole", sample=drawing(), **options)
    for at in (105, 110):
        with pytest.raises(KeyError):
            small.run(tmp_path / f"run{at}", sample=drawing(at), **options)
        small.run(tmp_path / f"run{at}", sample=drawing(), **options)
        same_run(tmp_path / f"run{at}", tmp_path / "whole")


EVENTS = """
import resource, sys
from jaxgan import report
with report.Report(sys.argv[1], total_steps=200, batch_size=1, bar=False) as log:
    log.log(1, 1, {"loss": 0.5})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    for step in range(2, 200):
        log._writer.add_scalar("x" * 1000, 0.5, step)
print("ended")
"""


def test_a_full_disk_under_tensorboard_stops_nothing(tmp_path):
    """Its thread would end, and the training wait for it."""
    command = [sys.executable, "-c", EVENTS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ended\n" and "cannot write TensorBoard's" in done.stderr, done.stderr


def test_signals_before_and_after(tmp_path):
    with pytest.raises(Preempted, match="before a new step"), Preemption():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    heard = []
    thread = threading.Thread(target=lambda: heard.append(Preemption().__enter__().asked))
    thread.start()
    thread.join()
    assert heard == [False]  # elsewhere than in the main thread there are no signals, and no error either


def test_a_picture_that_cannot_be_written_ends_the_run(tmp_path):
    """As on a full disk. The thread that writes it has no caller; the next save asks."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("a file")
    with pytest.raises(StorageFault, match=r"cannot write to .*run.*no checkpoint had been saved"):
        small.run(tmp_path / "run", sample=lambda state: np.zeros((4, 4, 1), np.uint8), sample_every=5)


def test_half_a_row_is_not_left_behind(tmp_path, monkeypatch):
    with report.Report(tmp_path, total_steps=10, batch_size=1, tensorboard=False, bar=False) as log:
        log.log(1, 1, {"loss": 0.5})
        before = (tmp_path / "metrics.jsonl").read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        try:
            with pytest.raises(OSError):
                log.log(2, 2, {"loss": 0.25})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        log.log(2, 2, {"loss": 0.25})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_text_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Or a loss of power may leave an empty file. Pictures, thousands of which may be written, are not waited for."""
    seen = []

    def fsync(number):
        seen.extend((path.name[:12], path.read_bytes()) for path in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", fsync)
    files.write(tmp_path / "config.json", "{}")
    files.write(tmp_path / "0.png", bytes(100))
    assert seen == [(".config.json", b"{}")] and (tmp_path / "config.json").read_text() == "{}"


def test_one_run_a_directory(tmp_path):
    with workdir.held(tmp_path):
        second = workdir.held(tmp_path)
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
            second.__enter__()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / workdir.LOCK).write_text("left behind by one that was killed")
    (tmp_path / ".config.json.123.part").write_text("half")
    with workdir.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_programs(tmp_path):
    """Signals, seen from outside."""
    assert "signals in" in chaos.signals(tmp_path, 1, (*TINY, "--steps=400", "--checkpoint_every=100"))


@pytest.mark.parametrize("kind", ["full_disk"])
def test_faults(kind, tmp_path):
    said = chaos.KINDS[kind][0](tmp_path, 1)
    if said.startswith("skipped"):
        pytest.skip(said)


@pytest.mark.slow
@pytest.mark.parametrize("kind", chaos.KINDS)
def test_the_long_form(kind, tmp_path):
    function, times = chaos.KINDS[kind]
    assert function(tmp_path, times)
