"""The folder of a run's checkpoints: which are there, which were moved aside, and what was found of one later."""

import contextlib
import fnmatch
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxgan import files
from jaxgan.errors import InputError

WHOLE = "commit_success.txt"  # what Orbax writes last, in a bucket
TABLE = "state/manifest.ocdbt"  # where each array lies; the last that the parts of a checkpoint are merged into
PART = ".orbax-checkpoint-tmp"  # in the name of one that is being written
LATER = "later.json"  # in a checkpoint: what was found out after it was saved
MATCHED = "*?[]"  # Orbax matches names of files against the whole path, and so loses or mixes up parts of checkpoints


def check(directory: epath.PathLike, what: str) -> None:
    """Raises InputError for a path below which no checkpoint could be read again."""
    path = os.fspath(absolute(directory))
    refused = MATCHED if os.sep == "\\" else MATCHED + "\\"  # which separates folders on Windows
    whole = fnmatch.fnmatchcase(path, path) and not ("\\" in path and "\\" in refused)
    if whole and (absolute(directory) / "config.json").exists():
        return  # a run that began there, and can be read
    for character in sorted(set(path) & set(refused)):
        named = what if character in what else f"{what}, which is {path!r}"
        raise InputError(
            f"{named}: checkpoints cannot be read below a folder with {character!r} in its name; "
            f"expected a path without {' '.join(refused)}"
        )


def absolute(directory: epath.PathLike) -> epath.Path:
    path = epath.Path(directory)
    return path if files.is_remote(path) else path.absolute()  # Orbax takes no relative paths


def steps(directory: epath.Path) -> list[int]:
    """Those of which there is a checkpoint, ascending."""
    if not directory.exists():
        return []
    paths = [path for path in directory.iterdir() if path.name.isdecimal()]
    if files.is_remote(directory):  # elsewhere a save in progress has another name
        paths = [path for path in paths if (path / WHOLE).exists()]
    return sorted(int(path.name) for path in paths)


def set_aside(directory: epath.Path, step: int) -> None:
    names = [f"damaged-{step}", *(f"damaged-{step}-{i}" for i in range(1, 100))]
    (directory / str(step)).rename(next(directory / name for name in names if not (directory / name).exists()))


def leftovers(directory: epath.Path) -> list[epath.Path]:
    """What saves that were killed, or that failed, left behind."""
    if not directory.exists():
        return []
    there = set(map(str, steps(directory)))
    return [
        path
        for path in directory.iterdir()
        if PART in path.name or (files.is_remote(path) and path.name.isdecimal() and path.name not in there)
    ]


def amend(checkpoint: epath.Path, metrics: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
    """Keeps what is to be said of a checkpoint beside, or in place of, what was said when it was saved."""
    files.write(checkpoint / LATER, json.dumps({"metrics": metrics, "metadata": metadata}, allow_nan=False) + "\n")


def amended(checkpoint: epath.Path) -> dict[str, dict[str, Any]]:
    """What `amend` kept; nothing where that cannot be read."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError), files.faults(checkpoint):
        found = json.loads((checkpoint / LATER).read_text())
        return {kind: dict(found[kind]) for kind in ("metrics", "metadata")}
    return {"metrics": {}, "metadata": {}}
