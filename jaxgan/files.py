"""Files that are whole or absent. Paths may be local or `gs://`."""

import os
import pathlib

from etils import epath


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
