"""What holds on other systems than Linux: no POSIX, other separators of folders, other encodings of a terminal."""

import contextlib
import ctypes
import importlib.util
import io
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxgan
from jaxgan import lastwords, memory, shelf, workdir
from jaxgan.data import load
from jaxgan.errors import InputError
from tests.runs import ROOT, TINY, here, same_run


def simulated(*commands):
    """stdout and stderr of programs that ran in a process without POSIX."""
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONWARNINGS": "ignore:only soft"}
    argv = [sys.executable, "-m", "tests.without_posix", *commands]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout, done.stderr


def test_training_sampling_and_evaluation_need_no_posix(tmp_path, capfd):
    train = " ".join(("experiments.image", f"--workdir={tmp_path}/run", *TINY))
    out, err = simulated(
        f"{train} --steps=5",
        f"{train} --steps=10",
        f"experiments.generate --run={tmp_path}/run --num=4 --out={tmp_path}/grid.png",
        f"experiments.evaluate --run={tmp_path}/run --features=pixels --metrics=kid --num=64 --out={tmp_path}/kid.json",
        f"{train} --steps=15 --num_hosts=2 --host_id=0 --coordinator=127.0.0.1:8476",
    )
    assert [line for line in out.splitlines() if line.startswith("exit")] == [*4 * ["exit code 0"], "exit code 2"], err
    assert "error: several hosts need Linux or macOS" in err and "Traceback" not in err, err
    assert f"resuming {tmp_path}/run at step 5" in err + out
    assert (tmp_path / "grid.png").exists() and json.loads((tmp_path / "kid.json").read_text())
    assert not (tmp_path / "run" / workdir.LOCK).exists()
    # The same bits as with POSIX.
    code, _, err = here(capfd, f"--workdir={tmp_path}/posix", *TINY, "--steps=10")
    assert code == 0, err
    same_run(tmp_path / "run", tmp_path / "posix")
    assert jaxgan.load(tmp_path / "run").sample(jax.random.key(0), 2).shape == (2, 8, 8, 1)


def test_a_lock_is_taken_from_a_process_that_died_and_not_from_one_that_lives(tmp_path):
    code = (
        "import os, time\nfrom pathlib import Path\nfrom jaxgan import workdir\n"
        f"with workdir.held(Path({str(tmp_path)!r})):\n    print(os.getpid(), flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        pid = int(process.stdout.readline())
        with pytest.raises(InputError, match=f"in use by process {pid} on "), workdir.held(tmp_path):
            pass
        assert json.loads((tmp_path / workdir.LOCK).read_text())["process"] == pid
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / workdir.LOCK).exists()
    with workdir.held(tmp_path):
        assert json.loads((tmp_path / workdir.LOCK).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_removed_while_it_is_open_is_removed_then(tmp_path, monkeypatch):
    """As on Windows."""
    unlink, refused = Path.unlink, []

    def once(self, missing_ok=False):
        if self.name == workdir.LOCK and not refused:
            refused.append(self)
            raise PermissionError(13, "used by another process")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", once)
    with workdir.held(tmp_path):
        pass
    assert refused and list(tmp_path.iterdir()) == []


def test_memory_is_that_of_windows_or_without_limit(monkeypatch):
    def unreadable(*_, **__):
        raise FileNotFoundError

    class Kernel:
        class kernel32:
            def GlobalMemoryStatusEx(status):
                status = status._obj
                assert status.length == 64  # as Windows asks
                status.total, status.free = 16 << 30, 5 << 30
                return 1

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert 2**28 < memory.free() < 2**50  # of the machine, by POSIX
    monkeypatch.delattr(os, "sysconf")
    assert memory.free() == sys.maxsize
    monkeypatch.setattr(ctypes, "windll", Kernel, raising=False)
    assert memory.free() == 5 << 30


def test_a_backslash_separates_folders_on_windows_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"with '\\\\' in its name; expected a path without \* \? \[ \] \\"):
        shelf.check("C:\\runs\\digits", "--workdir=C:\\runs\\digits")
    monkeypatch.setattr(os, "sep", "\\")
    shelf.check("C:\\runs\\digits", "--workdir=C:\\runs\\digits")
    with pytest.raises(InputError, match=r"with '\*' in its name; expected a path without \* \? \[ \]$"):
        shelf.check("C:\\runs\\*", "--workdir=C:\\runs\\*")


def test_a_drive_is_part_of_the_path_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "C:\\photos" / "cat").mkdir(parents=True)
    (tmp_path / "C:\\photos" / "dog").mkdir()
    for kind in ("cat", "dog"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "C:\\photos" / kind / "1.png")
    np.savez("C:\\x.npz", images=np.zeros((3, 8, 8), np.uint8))
    photos = load("folder:C:\\photos")
    assert (photos.num_examples, photos.class_names, photos.files) == (2, ("cat", "dog"), ("cat/1.png", "dog/1.png"))
    assert load("npz:C:\\x.npz").num_examples == 3


def test_a_character_that_the_terminal_lacks_is_an_escape(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    lastwords.open_streams()
    print("λ ± 1", flush=True)
    assert written.getvalue().rstrip() == b"\\u03bb \xb1 1"


def test_a_pipe_that_nobody_reads_is_told_without_poll(monkeypatch):
    monkeypatch.delattr(select, "poll")
    for unread in (False, True):
        reader, writer = os.pipe()
        stream = os.fdopen(writer, "w")
        stream.write("words")
        if unread:
            os.close(reader)
        assert lastwords.unread(stream) is unread
        with contextlib.suppress(OSError):
            stream.close()
        if not unread:
            os.close(reader)


def test_a_tfds_set_where_array_record_has_no_package_is_one_line(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "array_record" else find(name, *a)
    )
    with pytest.raises(InputError, match=r"--dataset=mnist needs the package array_record"):
        load("mnist")
