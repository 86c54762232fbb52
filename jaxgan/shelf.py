"""The folder in which checkpoints lie: which are there and whole, which were moved aside, and their later scores."""

import contextlib
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
SCORES = "scores.json"  # in a checkpoint: its metrics, where they were found after it was saved
MATCHED = "*?[]\\"  # Orbax matches names of files against the whole path, and so loses or mixes up parts of checkpoints


def check(directory: epath.PathLike, what: str) -> None:
    """Raises InputError for a path below which no checkpoint could be read again."""
    path = os.fspath(absolute(directory))
    for character in sorted(set(path) & set(MATCHED)):
        named = what if character in what else f"{what}, which is {path!r}"
        raise InputError(
            f"{named}: checkpoints cannot be read below a folder with {character!r} in its name; "
            f"expected a path without {' '.join(MATCHED)}"
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


def score(checkpoint: epath.Path, metrics: Mapping[str, float]) -> None:
    """Keeps what a checkpoint was found to be worth after it was saved."""
    files.write(checkpoint / SCORES, json.dumps(metrics, allow_nan=False) + "\n")


def scores(checkpoint: epath.Path) -> dict[str, Any] | None:
    """What `score` kept; None where there is nothing, or nothing that can be read."""
    with contextlib.suppress(OSError, ValueError), files.faults(checkpoint):
        found = json.loads((checkpoint / SCORES).read_text())
        return found if isinstance(found, dict) else None
    return None
