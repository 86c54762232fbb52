"""The directory of a run: looked at before anything is read, then made, and held by one process at a time."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from etils import epath

from jaxgan import files, flags, folders, report, shelf, sources
from jaxgan.config import Common
from jaxgan.errors import InputError, StorageFault

LOCK = ".lock"
BEAT = 60.0  # seconds between signs of life in a bucket, where no lock exists
TOKEN = uuid.uuid4().hex  # of this process
GONE = 5 * BEAT  # without a sign for so long, the run there has died


def of(config: Common) -> epath.Path:
    return epath.Path(config.workdir).expanduser()


def check(config: Common) -> None:
    """What can be wrong with a run before any data is read; writes nothing."""
    if not config.workdir:
        raise InputError("--workdir is empty; expected the directory of the run, for example --workdir=runs/digits")
    workdir = files.reach(config.workdir)
    shelf.check(workdir, f"--workdir={config.workdir}")
    kind, _, folder = config.dataset.partition(":")
    try:
        if kind == "folder" and folders.reads(folder, config.split, workdir):
            raise InputError(
                f"--workdir={config.workdir} lies in --dataset={config.dataset}, whose images would be those of its "
                "samples too; choose one outside"
            )
        if not (begun := flags.check_same(config, workdir, ignore=free(config, data_of(workdir)))):
            for name in ("checkpoints", report.METRICS):
                if (workdir / name).exists():
                    raise InputError(f"--workdir={config.workdir} holds {name} but no config.json; choose another")
        # A bucket has no directories above, or it has them as soon as something is written.
        above = () if files.is_remote(workdir) else workdir.absolute().parents
        existing = next((path for path in (workdir.absolute(), *above) if path.exists()), None)
        if existing and not existing.is_dir():
            raise InputError(f"cannot write to --workdir={config.workdir}: {existing} is not a directory")
    except OSError as error:  # a name that the file system cannot even look for
        raise InputError(f"cannot use --workdir={config.workdir}: {error.strerror or error}") from None
    if existing and not files.is_remote(workdir) and not os.access(existing, os.W_OK | os.X_OK):
        reason = f"cannot write to --workdir={config.workdir}: permission denied in {existing}, or it is read-only"
        if begun:  # it could be written to before: a supervisor may try again
            raise StorageFault(reason)
        raise InputError(reason)


def data_of(run: epath.PathLike) -> dict[str, Any]:
    """What the run in a directory keeps of its data (`data.Feed.about`); {} where there is no run.

    Older versions kept the classes of some experiments and no digest.
    """
    if not (epath.Path(run) / "config.json").exists():
        return {}
    stored = flags.read(run)
    found = stored.get("data", {})
    if not isinstance(found, dict):
        raise InputError(f"the data of {os.fspath(run)!r} are {str(found)[:60]!r}; expected an object")
    kinds: dict[str, type] = {"num_classes": int, "examples": int, "digest": str}
    found = {"examples": stored["examples"]} | found if "examples" in stored else found
    found = found | {"dataset": str(stored["config"].get("dataset", ""))}
    for name, kind in kinds.items():
        if name in found and type(found[name]) is not kind:
            raise InputError(f"the {name} of {os.fspath(run)!r} is {str(found[name])[:60]!r}; expected {kind.__name__}")
    names = found.get("classes", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"the classes of {os.fspath(run)!r} are {str(names)[:60]!r}; expected a list of names")
    return found


def check_data(config: Common, directory: epath.PathLike, here: Mapping[str, Any]) -> bool:
    """Whether a run is there. Raises InputError where it is one of another config, or of other data than `here` tells
    of (`sources.about`)."""
    begun = data_of(directory)
    same = flags.check_same(config, directory, ignore=free(config, begun, here.get("digest", "")))
    sources.check_about(here, begun, "this run began with")
    return same


def free(config: Common, begun: Mapping[str, Any], digest: str | None = None) -> set[str]:
    """Flags that may differ from those of the run that `begun` tells of (`data_of`), as its data decide.

    A folder or file that moved holds the same images, by their digest: as far as it is not known yet (`digest` is
    None), the name alone does not tell. Of named classes the names are compared (`sources.as_begun`), not how they
    were selected.
    """
    kind, colon, _ = config.dataset.partition(":")
    moved = begun.get("digest") and colon and begun["dataset"].startswith(f"{kind}:")
    moved = moved and digest in (None, begun["digest"])
    return ({"dataset"} if moved else set()) | ({"classes"} if begun.get("classes") else set())


def claim(config: Common) -> epath.Path:
    """The work directory, made if it is missing; or one line that says why it cannot be had."""
    workdir = of(config)
    shelf.check(workdir, f"--workdir={config.workdir}")  # of a part of an experiment, which is named by its data
    probe = workdir / ".writable"
    try:
        with files.faults(workdir):
            if not files.is_remote(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError), files.faults(workdir):
            if (workdir / "config.json").exists():  # it could be written to before: a supervisor may try again
                raise StorageFault(f"cannot write to {os.fspath(workdir)!r}: {error.strerror or error}") from None
        raise InputError(f"cannot write to --workdir={config.workdir}: {error.strerror or error}") from None
    return workdir


@contextlib.contextmanager
def storing(config: Common) -> Iterator[None]:
    """What is written in here beside a run is written, or the program ends in one line."""
    try:
        yield
    except OSError as error:
        raise StorageFault(f"cannot write to {config.workdir!r}: {error.strerror or error}") from None


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator["Beat"]:
    """Nobody else trains in this directory meanwhile. Raises InputError, saying who does, if somebody is at it.

    On a disk the lock ends with its process, however that ends. In a bucket a run gives a sign of life every minute,
    and one that has given none for five minutes counts as dead. Of two started in the same second, and of one that was
    taken for dead and wakes up, the one whose sign was overwritten ends within a minute (`Beat.check`).
    """
    if files.is_remote(workdir):
        beat = Beat(workdir / LOCK)
        beat.start()
        try:
            yield beat
        finally:
            beat.stop()
        return
    file = _locked(Path(workdir / LOCK), workdir)
    here = Path(workdir)
    for part in (*here.glob(".*.part"), *here.glob("samples/.*.part")):
        part.unlink(missing_ok=True)  # of a process that was killed while it wrote
    try:
        yield Beat(None)
    finally:
        _unlock(file, Path(workdir / LOCK))


class Beat:
    """Signs of life in a bucket; nothing on a disk. They come from a thread: an evaluation may take an hour."""

    def __init__(self, path: epath.Path | None):
        self._path, self._winner = path, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="beat", daemon=True)

    def start(self) -> None:
        assert self._path is not None
        try:
            who = self._there()
            silent = time.time() - float(who.get("time", 0))
            if silent < GONE and _other(who):
                raise InputError(
                    f"{os.fspath(self._path.parent)!r} is in use by {_name(who)}, which gave a sign of life "
                    f"{silent:.0f} s ago; if it has died, wait for {GONE - silent:.0f} s"
                )
            files.write(self._path, _self())
        except OSError as error:
            raise InputError(f"cannot write to {os.fspath(self._path.parent)!r}: {error}") from None
        self._thread.start()

    def check(self) -> None:
        """Raises InputError if another run has taken the directory, for which this one was dead."""
        if self._winner:
            assert self._path is not None
            raise InputError(f"{os.fspath(self._path.parent)!r} has been taken over by {self._winner}; this run ends")

    def stop(self) -> None:
        if self._path is not None:
            self._over.set()
            self._thread.join(timeout=10.0)
            with contextlib.suppress(OSError), files.faults(self._path):
                if not _other(self._there()):
                    self._path.unlink()

    def _live(self) -> None:
        assert self._path is not None
        while not self._winner and not self._over.wait(BEAT):
            with contextlib.suppress(OSError):  # the network may be back before five minutes are over
                who = self._there()
                self._winner = _name(who) if _other(who) else ""
                if not self._winner:
                    files.write(self._path, _self())

    def _there(self) -> dict:
        assert self._path is not None
        with files.faults(self._path), contextlib.suppress(FileNotFoundError):
            return _owner(self._path.read_text())
        return {}


def _other(who: dict) -> bool:
    """Whether that sign was given by another process than this one. (Containers share names and numbers.)"""
    return bool(who) and who.get("token") != TOKEN


def _locked(path: Path, workdir: epath.Path) -> IO[bytes]:
    """The file, open and locked."""
    import filelock  # here: it takes 50 ms, and only training needs it

    while True:
        try:
            file = path.open("ab+", buffering=0)
        except PermissionError:  # another user's: to lock it needs no more
            file = path.open("rb", buffering=0)
        try:
            locked = filelock.lock_descriptor(file.fileno(), blocking=False)
        except OSError:
            return file  # some network file systems have no locks; better to train than to refuse
        if not locked:
            who = _holder(file)
            file.close()
            raise InputError(
                f"{os.fspath(workdir)!r} is in use by {_name(who)}; wait for its end, or choose another --workdir"
            )
        # Whoever ends removes the file: it may have gone between our opening and our locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            with contextlib.suppress(OSError):  # no room for a name; the lock is what counts
                file.truncate(0)
                file.write(_self().encode())
            return file
        file.close()


def _unlock(file: IO[bytes], path: Path) -> None:
    """Removes the file while it is locked, so that nobody locks one that is about to go; then lets go of it."""
    removed = False
    with contextlib.suppress(OSError):  # it may have become read-only, or full; Windows keeps a file that is open
        path.unlink()
        removed = True
    with contextlib.suppress(OSError):
        file.close()
    if not removed:  # on Windows, unless somebody else has opened it since
        with contextlib.suppress(OSError):
            path.unlink()


def _holder(file: IO[bytes]) -> dict:
    """Who wrote the file. Its first byte, a brace, is what Windows locks, and so lets nobody read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        file.seek(1)
        return _owner("{" + file.read().decode())
    return {}


def _self() -> str:
    who = {"host": socket.gethostname(), "process": os.getpid(), "token": TOKEN, "time": time.time()}
    return json.dumps(who) + "\n"


def _owner(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(who: dict) -> str:
    return f"process {who['process']} on {who.get('host')}" if "process" in who else "another process"
