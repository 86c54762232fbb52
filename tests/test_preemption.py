"""Which signals count as one, and a notebook, which an interrupt must not end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxgan import checkpoint, flags
from jaxgan.config import Common
from jaxgan.errors import Preempted
from jaxgan.preemption import Preemption
from tests import small
from tests.runs import ROOT

LISTENING = """
import os, signal, sys, time
from jaxgan.preemption import Preemption
{session}
def send(number, seconds):
    os.kill(os.getpid(), number)
    time.sleep(seconds)
with Preemption() as preemption:
    preemption.begin()
    {signals}
    print("lives", flush=True)
    send(signal.SIGTERM, 5)
    print("still lives", flush=True)
"""


def listening(signals, session=""):
    """Exit code, stdout and stderr of a process that gets these signals, and then another."""
    code = LISTENING.format(signals=signals, session=session)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_signals_less_than_a_second_apart_count_as_one_and_a_later_one_ends():
    code, out, err = listening("send(signal.SIGTERM, .003); send(signal.SIGTERM, .5); send(signal.SIGINT, .7)")
    assert (code, out) == (128 + signal.SIGTERM, "lives\n"), err
    assert err.count("finishing what is under way; a second signal ends at once") == 1
    assert err.count("a second signal: ending at once") == 1


def test_no_signal_ends_an_interactive_session():
    shell = "sys.ps1 = '>>> '; sys.excepthook = lambda kind, error, _: print(kind.__name__, error)"
    _, out, err = listening("send(signal.SIGINT, 1.1)", shell)
    assert out == "lives\nKeyboardInterrupt a second SIGTERM before the run had saved\n", err
    assert err == "SIGINT: finishing what is under way; a second one raises at once\n"


def signalled(*numbers):
    """An evaluation in which these signals come, once."""
    left = list(numbers)

    def evaluate(state):
        while left:
            os.kill(os.getpid(), left.pop(0))
        time.sleep(0.05)  # in which a second signal would end the process
        return {"x": 0.0}

    return evaluate


@pytest.fixture
def ended(monkeypatch):
    """The exit codes with which the process would have ended."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_a_pair_of_signals_saves(tmp_path, ended):
    """As `timeout` sends them, one to its child and one to the group."""
    with pytest.raises(Preempted, match="SIGTERM at step 10, saved"):
        small.run(tmp_path, evaluate=signalled(signal.SIGTERM, signal.SIGTERM), steps=40, eval_every=10)
    assert int(checkpoint.read(tmp_path / "checkpoints")["step"]) == 10 and ended == []


def test_a_pair_before_training_meets_no_other_handler(ended):
    """The second comes while the first unwinds the program."""
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append("the handler of before"))
    try:
        with pytest.raises(Preempted, match="before a new step"), Preemption():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
        assert ended == []
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupted_notebook_saves_and_gets_a_keyboard_interrupt(tmp_path, monkeypatch, ended):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    with pytest.raises(KeyboardInterrupt, match="SIGINT at step 10, saved"):
        small.run(tmp_path, evaluate=signalled(signal.SIGINT), steps=40, eval_every=10)
    assert int(checkpoint.read(tmp_path / "checkpoints")["step"]) == 10 and ended == []


@pytest.mark.parametrize("error", [KeyboardInterrupt("stopped"), Preempted("stopped")])
def test_a_script_run_in_a_notebook_leaves_it_alive(error, monkeypatch, ended):
    """`%run -m experiments.image` takes its arguments from the command line, as a process of its own does."""

    def run(config):
        raise error

    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    monkeypatch.setattr(sys, "argv", ["image"])
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else SystemExit):
        flags.main(Common, {}, run)
    assert ended == []
