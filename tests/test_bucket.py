"""Runs in a bucket, as far as a stand-in can tell: `tests.bucket` says what it does not imitate."""

import json
import logging
import os
import sys
import time

import numpy as np
import pytest
from etils.epath import backend

from experiments import evaluate, generate
from jaxgan import checkpoint, files, report, shelf, workdir
from jaxgan.errors import InputError, StorageFault
from tests import bucket, small
from tests.runs import here, lines, same_run

RUN = "gs://bucket/run"


class HttpError(Exception):
    """As gcsfs raises them, which are no OSErrors."""


@pytest.fixture
def store(tmp_path, monkeypatch):
    return bucket.install(tmp_path / "gs", monkeypatch)


@pytest.fixture
def there(store):
    return store.root / "bucket" / "run"


def grey(state):
    return np.full((4, 4, 1), int(state.step), np.uint8)


def test_the_stand_in(store):
    path = files.reach("gs://bucket/a/b.txt")
    assert not path.exists() and not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    assert not path.parent.exists()
    with path.open("w") as file:
        file.write("text")
        assert not path.exists()
    assert path.parent.is_dir() and [*path.parent.iterdir()] == [path] and path.read_text() == "text"
    with pytest.raises(NotImplementedError):
        path.open("a")
    path.parent.rename("gs://bucket/c")
    assert store.objects("gs://bucket") == ["bucket/c/b.txt"] and store.changes == 3
    path.parent.parent.joinpath("c").rmtree()
    assert store.objects("gs://bucket") == []
    with pytest.raises(FileNotFoundError):
        files.reach("gs://pail/a").write_text("text")


def test_a_run(there, tmp_path):
    """The same files, rows and bits as on a disk; the second time it goes on."""
    for steps in (20, 40):
        for where in (RUN, tmp_path / "run"):
            small.run(where, steps=steps, sample=grey, sample_every=10)
        same_run(there, tmp_path / "run")
    named = [
        {path.relative_to(at) for path in at.rglob("*") if "checkpoints" not in path.parts}
        for at in (there, tmp_path / "run")
    ]
    assert named[0] == named[1]
    with pytest.raises(InputError, match="seed is '0' there, '1' here"):
        small.run(RUN, seed=1)


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_lost_at_any_moment(store, there, tmp_path, stride):
    """What a bucket holds when the machine is gone is enough to end in the same bits and the same rows."""
    options = {"steps": 40, "keep": 1, "sample": grey, "sample_every": 20}
    small.run(tmp_path / "whole", **options)
    bucket.copies(store, tmp_path / "copies", range(1, 1000, stride))
    small.run(RUN, **options)
    same_run(there, tmp_path / "whole")
    copies = sorted((tmp_path / "copies").iterdir(), key=lambda path: int(path.name))
    assert len(copies) * stride > 50
    for left in copies:
        with pytest.MonkeyPatch.context() as patch:
            bucket.install(left, patch)
            logged = {json.loads(line)["step"] for line in lines(left / "bucket" / "run")}
            saved = checkpoint.Checkpoints(f"{RUN}/checkpoints").steps
            assert logged >= set(range(5, max(saved, default=0) + 1, 5))
            small.run(RUN, **options)
            same_run(left / "bucket" / "run", tmp_path / "whole")


def sign(where, seconds, process=1):
    files.write(where, json.dumps({"host": "elsewhere", "process": process, "time": time.time() - seconds}))


def test_signs_of_life(there, monkeypatch):
    lock = files.reach(RUN) / workdir.LOCK
    sign(lock, 100)
    with pytest.raises(
        InputError, match=r"in use by process 1 on elsewhere.* 1[0-9][0-9] s ago; if it has died, wait for [12][0-9]+ s"
    ):
        small.run(RUN)
    assert not (there / "config.json").exists() and lock.exists()
    sign(lock, 1000)
    monkeypatch.setattr(workdir, "BEAT", 0.05)
    with workdir.held(lock.parent) as beat:
        first = json.loads(lock.read_text())
        assert first["process"] == os.getpid()
        until = time.monotonic() + 20
        while json.loads(lock.read_text()) == first and time.monotonic() < until:
            time.sleep(0.05)  # as in a long evaluation
        assert json.loads(lock.read_text())["time"] > first["time"]
        beat.check()
    assert not lock.exists()

    def taken(state):
        for _ in range(10):  # a sign may be overwritten by one that was under way
            sign(lock, 0, process=2)
            time.sleep(0.1)
        return {}

    with pytest.raises(InputError, match="taken over by process 2 on elsewhere"):
        small.run(RUN, evaluate=taken, eval_every=5)
    assert json.loads(lock.read_text())["process"] == 2 and not (there / "checkpoints").exists()


def test_unfinished_and_damaged_checkpoints(store, there, tmp_path, caplog):
    small.run(RUN)
    marker = there / "checkpoints/20" / shelf.WHOLE
    assert marker.exists()
    marker.unlink()
    assert checkpoint.Checkpoints(f"{RUN}/checkpoints").steps == [10]
    assert int(checkpoint.read(f"{RUN}/checkpoints")["step"]) == 10
    small.run(RUN)
    assert marker.exists() and not caplog.records
    table = there / "checkpoints/20/_CHECKPOINT_METADATA"
    table.write_bytes(table.read_bytes()[:-40])
    small.run(RUN)
    assert "trying the one before it" in caplog.text
    assert {path.name for path in (there / "checkpoints").iterdir()} == {"10", "20", "damaged-20"}
    small.run(tmp_path / "run")
    same_run(there, tmp_path / "run")


@pytest.mark.parametrize("name", ["checkpoints/20/", "metrics.jsonl"])
def test_a_bucket_that_fails(store, there, tmp_path, name):
    """One line, nothing half written, and the same command goes on."""
    seen = []

    def fault(path):
        seen.append(path)
        if name in path and seen.count(f"bucket/run/{name}") != 1:  # the first rows are those before step 10
            raise HttpError("service\nunavailable, 503")

    store.fault = fault
    with pytest.raises(
        StorageFault, match=r"cannot write .*HttpError: service unavailable, 503; the checkpoint of step 10"
    ):
        small.run(RUN)
    store.fault = None
    assert [path.name for path in (there / "checkpoints").iterdir()] == ["10"]
    assert not (there / workdir.LOCK).exists()
    small.run(RUN)
    small.run(tmp_path / "run")
    same_run(there, tmp_path / "run")


def test_tensorboard(store, there, caplog):
    small.run(RUN, tensorboard=True)
    (events,) = there.glob("events.out.tfevents.*")
    assert events.read_bytes().count(b"one/loss") == 4 and not caplog.records

    def fault(path):
        if "tfevents" in path:
            raise HttpError("no")

    store.fault = fault
    small.run("gs://bucket/other", tensorboard=True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot write TensorBoard's gs://bucket/other/events" in caplog.text


def test_the_profile_and_folders_of_images(store, there):
    small.run(RUN, profile=True)
    assert any(path.suffix == ".gz" for path in (there / "profile").rglob("*"))
    generate.write_folder(files.reach("gs://bucket/out"), iter([np.zeros((2, 4, 4, 1), np.uint8)]), None, 0)
    assert store.objects("gs://bucket/out") == ["bucket/out/000000.png", "bucket/out/000001.png"]


def test_rows_are_sent_once_a_minute(store, there, monkeypatch):
    with report.Report(RUN, total_steps=9, batch_size=1, tensorboard=False, bar=False) as log:
        for step in range(1, 4):
            log.log(step, step, {"loss": 0.5})
        assert not there.exists()
        log.flush()
        log.flush()
        assert len(lines(there)) == 3 and store.changes == 1
        monkeypatch.setattr(report, "_REMOTE_SECONDS", 0.0)
        log.log(4, 4, {"loss": 0.5})
        assert len(lines(there)) == 4
    assert store.changes == 2


def test_what_is_missing_is_said(store, tmp_path, capfd, monkeypatch):
    def said(*argv, **options):
        code, _, err = here(capfd, *argv, **options)
        assert code == 2 and len(err.splitlines()) == 1, err
        return err

    def refused(name):
        raise HttpError("Anonymous caller, 401")

    def absent(name):
        raise ImportError("Please install gcsfs to access Google Storage")

    assert "expected a path on a disk, or gs://bucket/path" in said("--workdir=s3://bucket/run")
    with pytest.raises(InputError, match="cannot write to --workdir=gs://pail/run: no such bucket"):
        small.run("gs://pail/run")
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    assert "pip install gcsfs" in said("--workdir=gs://bucket/run")
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", refused)
    assert "cannot reach 'gs://bucket/run': HttpError: Anonymous caller, 401" in said("--workdir=gs://bucket/run")
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", absent)
    assert "pip install gcsfs" in said("--workdir=gs://bucket/run")
    assert "pip install gcsfs" in said("--run=gs://bucket/run", "--out=x.png", script=generate)
    assert "pip install gcsfs" in said("--run=gs://bucket/run", script=evaluate)
    assert store.objects("gs://bucket") == []
