"""Files that are whole or absent. Paths may be local or `gs://`."""

import contextlib
import errno
import importlib.util
import logging
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator

from etils import epath

from jaxgan.errors import Ending, InputError

BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}  # what opens them, where TensorFlow is not there to do it


def check_remote(text: str) -> None:
    """Raises InputError for the path of a bucket that nothing here can open; of a local path nothing is asked."""
    kind = re.search(r"([A-Za-z0-9]+)://", text)
    if kind and kind[1] not in BUCKETS:
        raise InputError(f"{text[:200]!r}: expected a local path, {' or '.join(f'{name}://' for name in BUCKETS)}")
    installed = kind and any(importlib.util.find_spec(name) for name in (BUCKETS[kind[1]], "tensorflow"))
    if kind and not installed:
        raise InputError(f"{text[:200]!r}: to read and write {kind[0]}, pip install {BUCKETS[kind[1]]}")


def is_plain(path: epath.PathLike) -> bool:
    """Whether it is a file that has an end: not a pipe or a device, which epath takes for files."""
    return epath.Path(path).is_file() if is_remote(path) else pathlib.Path(path).is_file()


def odd(folder: epath.PathLike, tables: str, most: int) -> str:
    """What is wrong below a local folder: what is no file, or one of the name `tables` and of more bytes; else ""."""
    for path in () if is_remote(folder) else pathlib.Path(folder).rglob("*"):
        if not (path.is_dir() or path.is_file()):
            return f"{path.relative_to(folder)} is no file"
        if path.match(tables) and path.stat().st_size > most:
            return f"{path.relative_to(folder)} has more than {most:,} bytes"
    return ""


def is_remote(path: epath.PathLike) -> bool:
    """Whether this is in a bucket: nothing there can be appended to, moved at once or locked."""
    return "://" in os.fspath(path)


def reach(path: epath.PathLike) -> epath.Path:
    """`path` with the home directory for `~`. Raises `InputError` if it is in a bucket that cannot be asked for it."""
    if is_remote(path) and not os.fspath(path).startswith("gs://"):
        raise InputError(f"{os.fspath(path)!r}: expected a path on a disk, or gs://bucket/path")
    found = epath.Path(path).expanduser()
    if not is_remote(path):
        return found
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # a traceback for each request that fails
    try:
        with faults(found):
            found.exists()
            if importlib.util.find_spec("google.cloud.storage") is None:  # Orbax asks for it at the first checkpoint
                raise ImportError
    except ImportError:
        raise InputError(f"{os.fspath(path)!r} needs the client of Google Cloud Storage: pip install gcsfs") from None
    except OSError as error:
        raise InputError(f"cannot reach {os.fspath(path)!r}: {error.strerror or error}") from None
    return found


def destination(
    flag: str, path: str, overwrite: bool, folder: bool = False, own: re.Pattern[str] | None = None
) -> epath.Path:
    """Where to write the file, or the `folder`, that `flag` asks for.

    own: what may lie in a folder that is replaced: fits all names there, "a.png", of folders "3/", in them "3/a.png".
    Raises InputError for what cannot be written, and for what exists and may not be replaced.
    """
    out = reach(path)
    if folder and out.name in ("", ".."):
        raise InputError(f"{flag}={path}: expected a folder by its name")
    try:
        if out.exists():
            if not overwrite:
                raise InputError(f"{flag}={path} exists; choose another name, or replace it with --overwrite")
            if out.is_dir() != folder:
                raise InputError(f"{flag}={path} is a {'file' if folder else 'folder'}; choose another name")
            if folder and own and (name := _stranger(out, own)):
                raise InputError(f"{flag}={path} holds {name!r}, which was not written by this; choose another name")
        elif not is_remote(out):
            parent = next(p for p in out.absolute().parents if p.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise InputError(f"cannot write {flag}={path}: {os.fspath(parent)!r} is no folder to write to")
    except OSError as error:
        raise InputError(f"cannot write {flag}={path}: {error.strerror or error}") from None
    return out


def _stranger(folder: epath.Path, own: re.Pattern[str], above: str = "") -> str:
    """A name in a folder that `own` does not fit; "" if there is none."""
    for path in folder.iterdir():
        inside = path.is_dir()
        name = f"{above}{path.name}{'/' if inside else ''}"
        if not own.fullmatch(name):
            return name
        if inside and (found := _stranger(path, own, name)):
            return found
    return ""


@contextlib.contextmanager
def replacing(folder: epath.Path) -> Iterator[epath.Path]:
    """A new folder to write into, which takes the place of `folder` at the end: that is whole or as it was,
    unless a kill comes between two renames.

    In a bucket, which has no folders to move, what was there goes first.
    """
    remote = is_remote(folder)
    part = folder if remote else folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if remote and folder.exists():
        folder.rmtree()
    try:
        yield part
        if not remote:
            if folder.exists():
                folder.rename(old)
            try:
                part.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    finally:
        for leftover in () if remote else (part, old):
            if leftover.exists():
                leftover.rmtree()


@contextlib.contextmanager
def faults(path: epath.PathLike) -> Iterator[None]:
    """What goes wrong with a bucket is an OSError too: those of its clients (of HTTP, of credentials) are none."""
    try:
        yield
    except (Ending, OSError, ImportError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]) from error


def check_room(folder: epath.Path, wanted: int) -> None:
    """Raises OSError for a disk on which so many bytes will not fit: better than to find out half-way."""
    if is_remote(folder):
        return
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < wanted:
        raise OSError(
            errno.ENOSPC, f"No space left on device: {free / 2**20:.1f} MiB free, {wanted / 2**20:.1f} needed"
        )


def write(path: epath.PathLike, data: str | bytes | memoryview) -> None:
    """Writes `data` beside `path`, then moves it there: whoever reads sees the old file or the new one, never half.

    After a loss of power too, if it is text: pictures can be made again, and waiting for each would take its time.
    On Google Cloud Storage an object appears only when its upload is complete, so it is written in place.
    """
    path = epath.Path(path)
    text = isinstance(data, str)
    data = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        with faults(path):
            path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with pathlib.Path(part).open("wb") as file:
            file.write(data)
            file.flush()
            if text:
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class Upload:
    """A file of a bucket that grows. Nothing can be appended there: it is kept here, and uploaded whole by `send`."""

    def __init__(self, path: epath.Path, data: bytes = b""):
        self._path, self._data = path, bytearray(data)
        self._new, self._sent = False, time.monotonic()

    def write(self, data: bytes) -> None:
        self._data += data
        self._new = True

    def send(self, seconds: float = 0.0) -> None:
        """Uploads it if there is anything new, unless the last time is less than `seconds` ago."""
        if self._new and time.monotonic() - self._sent >= seconds:
            write(self._path, bytes(self._data))
            self._new, self._sent = False, time.monotonic()
