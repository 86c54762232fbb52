"""Runs to be disturbed, and what is expected of them: what the modules `chaos_*` share."""

import re
import time
from pathlib import Path

from tests.runs import program, same_run

SEED = 0
PROMISED = {0: "", 2: "error: ", 3: "error: ", 74: "error: ", 75: "stopped by ", 76: "error: "}


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


def ended(done: tuple[int, str, str], code: int, *words: str) -> str:
    """The promised exit code, in one line with these words; no traceback."""
    found, _, err = done
    assert found == code and "Traceback" not in err, (found, err)
    last = err.splitlines()[-1] if err else ""
    assert last.startswith(PROMISED[code]), err
    assert [word for word in words if word not in err] == [], err
    return last
