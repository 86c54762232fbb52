"""Files that are whole or absent. Paths may be local or `gs://`."""

import importlib.util
import os
import pathlib
import re

from etils import epath

from jaxgan.errors import InputError

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
    remote = "://" in os.fspath(path)
    return epath.Path(path).is_file() if remote else pathlib.Path(path).is_file()


def odd(folder: epath.PathLike, tables: str, most: int) -> str:
    """What is wrong below a local folder: what is no file, or one of the name `tables` and of more bytes; else ""."""
    for path in () if "://" in os.fspath(folder) else pathlib.Path(folder).rglob("*"):
        if not (path.is_dir() or path.is_file()):
            return f"{path.relative_to(folder)} is no file"
        if path.match(tables) and path.stat().st_size > most:
            return f"{path.relative_to(folder)} has more than {most:,} bytes"
    return ""


def write(path: epath.PathLike, data: str | bytes | memoryview) -> None:
    """Writes `data` beside `path`, then moves it there: whoever reads sees the old file or the new one, never half.

    On Google Cloud Storage an object appears only when its upload is complete, so it is written in place.
    """
    path = epath.Path(path)
    data = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in os.fspath(path):
        path.write_bytes(data)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
