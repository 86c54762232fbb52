"""A folder of image files as a `Source`; which of its files cannot be read, and how they are left out."""

import collections
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
from etils import epath

from jaxgan import files, images, lastwords
from jaxgan.classes import ordered
from jaxgan.errors import InputError, printable
from jaxgan.sources import Source, fingerprint, first_line, reading

LONGEST = 2**30  # bytes of a file: twice the pixels of the largest image
FEW = 2_000  # files whose headers are read even if they are not needed: in half a second
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev")
IDX = re.compile(r"idx[13][-.]ubyte", re.IGNORECASE)  # in the names of MNIST's files
LISTED = 10  # of the files left out, on the terminal
ADVICE = "mend or remove it, or leave it out with --skip_bad_images"


def folder(
    name: str,
    path: str,
    split: str,
    size: tuple[int, int] | None,
    crop: str,
    channels: int,
    skip_bad: bool = False,
    cache: epath.PathLike | None = None,
) -> Source:
    """The image files below a folder. Its sub-folders are the classes, in order (`classes.ordered`); with fewer than
    two there are none.

    A sub-folder named as the split (`DIR/train/...`) is taken for the whole, but for a `train` that is a class among
    others (`is_split`). Hidden files are passed over.
    The header of every file is read here (10,000 files: 2 s), but for large sets with `size` and `channels` given.
    skip_bad: every file is decoded here, and those that cannot be are left out; which ones is kept in `cache`.
    """
    root = epath.Path(path).expanduser()
    if not path or not root.is_dir():
        raise InputError(f"no folder {path!r} for --dataset={name}; expected folder:DIR")
    if is_split(root, split):
        root = root / split
    elif split != "train":
        raise InputError(f"unknown split {split!r}: {path} has no sub-folder of that name")
    images.check_channels(3, channels, name)
    found, bad, others = list_images(root)
    if not skip_bad:
        for wrong, reason in bad.items():
            raise InputError(f"{root / wrong} is not a readable image ({reason}); {ADVICE}")
    if not found:
        raise InputError(
            f"no images in {root}; expected files that end in {', '.join(images.SUFFIXES)}{instead(root, others)}"
        )
    classes = classes_of(found, root)
    skipped: tuple[str, ...] = ()
    if skip_bad:
        bad |= unreadable(name, root, [f for f in found if f not in bad], cache)
        skipped = tuple(f"{f}: {bad[f]}" for f in sorted(bad))
        report(skipped, len(found), name)
        found = [f for f in found if f not in bad]
        for empty in sorted(set(classes) - {f.split("/")[0] for f in found}):
            reason = next(line for line in skipped if line.startswith(f"{empty}/"))
            raise InputError(f"no image of class {empty!r} of {name} can be read, such as {reason}; mend or remove it")
    number = {c: i for i, c in enumerate(classes)}
    label = np.array([number.get(f.split("/")[0], 0) for f in found], np.int32)
    paths = [os.fspath(root / f) for f in found]
    if size and channels and len(paths) > FEW:
        shape = (*size, channels)
    else:
        shapes = images.in_threads(measure, paths, f"measuring {name}")
        shape = images.common_shape(((*(size or s[:2]), s[2]) for s in shapes), name, channels)

    tell(others, name)
    tell_nested(found, root)

    def decode(path: str) -> np.ndarray:
        with reading(path, ADVICE):
            return images.checked(images.decode(contents(path), size, shape[-1], crop), shape)

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": images.stacked(decode, [paths[i] for i in indices], shape), "label": label[indices]}

    def identity() -> bytes:
        return fingerprint(paths, pathlib.Path(root).absolute(), shape, size, crop, classes)  # the file has labels too

    remote_root = files.is_remote(root)

    @functools.cache
    def sizes() -> list[int | str]:
        # To ask for sizes or times of remote files, one by one, would take as long as to read them.
        return [""] * len(paths) if remote_root else [size_of(path) for path in paths]

    def digest(rows: np.ndarray | None) -> str:
        chosen = range(len(found)) if rows is None else rows
        known = sizes()
        code = hashlib.sha256()
        for i in chosen:
            code.update(f"{found[i]}\0{known[i]}\n".encode())
        return code.hexdigest()[:32]

    return Source(
        name,
        len(found),
        shape,
        len(classes),
        read,
        tuple(classes),
        None if remote_root else identity,
        skipped,
        tuple(found),
        label=label,
        digest=digest,
    )


def classes_of(found: Sequence[str], root: epath.Path) -> list[str]:
    """The sub-folders that files lie in, in the order of classes; none where there are fewer than two."""
    classes = ordered({f.rpartition("/")[0].partition("/")[0] for f in found})
    if "" in classes and len(classes) > 1:
        loose = next(f for f in found if "/" not in f)
        raise InputError(
            f"{root} has sub-folders, which are classes, and images beside them, such as {loose}; move these into a "
            f"sub-folder, or name one folder to read, such as folder:{root / next(c for c in classes if c)}"
        )
    forms: dict[str, str] = {}
    for c in classes:  # as when a disk of macOS, which takes letters apart, is copied onto one of Linux
        if (other := forms.setdefault(unicodedata.normalize("NFC", c), c)) != c:
            raise InputError(f"the classes {other!a} and {c!a} of {root} are one name in two Unicode forms; merge them")
    return classes if len(classes) > 1 else []


def class_folder(name: str) -> str:
    """The folder of a class: its name, with a percent code for each character that a file system may not hold."""
    return re.sub(r'[\0-\x1f/\\:*?"<>|]|^\.|[. ]$', lambda found: f"%{ord(found[0]):02X}", name)


def class_folders(names: Sequence[str], classes: int) -> list[str]:
    """A folder for each class, by `class_folder`; by number where there are no names, or none that make folders.

    Numbers have as many digits as the last class, so that their order is that of the classes in any listing.
    """
    found = [class_folder(name) for name in names]
    distinct = {unicodedata.normalize("NFC", name).casefold() for name in found}  # as macOS and Windows tell them apart
    with contextlib.suppress(UnicodeEncodeError):
        lengths = [len(os.fsencode(name)) for name in found]
        if len(distinct) == len(found) == classes and all(0 < n < 256 for n in lengths):
            return found
    return [f"{i:0{len(str(classes - 1))}d}" for i in range(classes)]


def is_split(root: epath.Path, split: str) -> bool:
    """Whether the sub-folder `split` is to be taken for the whole.

    `train` is what is asked for where nothing is, and may be a class (beside a bus and a car). Raises InputError for it
    beside other folders of images of which none is called as a split (`test`, `val2017`).
    """
    if pathlib.PurePath(split).name != split or not (root / split).is_dir():
        return False
    beside = [path for path in root.iterdir() if path.name != split and not path.name.startswith(".") and path.is_dir()]
    if split != "train" or any(path.name.lower().startswith(SPLITS) for path in beside):
        return True
    for path in sorted(beside):
        if list_images(path)[0]:
            raise InputError(
                f"{root} has images in {split} and in {path.name}: two classes, or two splits? Expected "
                f"folder:{root / split} for the one split, or another name for the class"
            )
    return True


def reads(path: str, split: str, place: epath.PathLike) -> bool:
    """Whether images that come to lie in `place` would be taken for images of the folder."""
    files.check_remote(path)
    root, place = epath.Path(path).expanduser(), epath.Path(place).expanduser()
    if files.is_remote(root) != files.is_remote(place) or not path or not root.is_dir():
        return False
    if not files.is_remote(root):
        root, place = (epath.Path(os.path.realpath(p)) for p in (root, place))
    if root not in (place, *place.parents):
        return False
    inside = place.relative_to(root).parts
    if is_split(root, split) and inside[:1] != (split,):
        apart = split != "train" or any(other.name.lower() in SPLITS[1:] for other in root.iterdir())
        return not apart  # a folder of images beside `train` makes that a class
    return not any(part.startswith(".") for part in inside)


def measure(path: str) -> tuple[int, int, int]:
    """(h, w, c) of an image file."""
    with reading(path, ADVICE), epath.Path(path).open("rb") as file:
        return images.measure(file)


def size_of(path: str) -> int:
    """Bytes of a local image file."""
    with reading(path, ADVICE):
        return pathlib.Path(path).stat().st_size


def contents(path: str) -> bytes:
    """The bytes of an image file; ValueError for more of them than any has."""
    if "://" not in path and (n := pathlib.Path(path).stat().st_size) > LONGEST:
        raise ValueError(f"it has {n:,} bytes, and {LONGEST:,} are the most that are read")
    return epath.Path(path).read_bytes()


# --- what lies in a folder


Others = collections.Counter[str]  # how many files are no images by their names, by the ends of these


def list_images(root: epath.Path) -> tuple[list[str], dict[str, str], Others]:
    """Sorted paths below `root`, relative to it, of what are images by their names; {path: what is wrong}; the rest.

    Hidden files and folders are passed over. Links are followed, but a folder is read once: by links it may lie in
    itself, or be reached in any number of ways.
    """
    found, bad, others = remote(root) if files.is_remote(root) else local(root)
    return sorted(found), bad, others


def remote(root: epath.Path) -> tuple[list[str], dict[str, str], Others]:
    found, folders, others = [], [root], Others()
    while folders:
        for path in folders.pop().iterdir():
            # A name that says image is not asked whether it is a folder: each answer is a trip over the network.
            if path.name.startswith("."):
                continue
            if path.name.lower().endswith(images.SUFFIXES):
                found.append(path.relative_to(root).as_posix())
            elif path.is_dir():
                folders.append(path)
            else:
                others[pathlib.PurePath(path.name).suffix.lower()] += 1
    return found, {}, others


def local(root: epath.Path) -> tuple[list[str], dict[str, str], Others]:
    found: list[str] = []
    bad: dict[str, str] = {}
    others = Others()
    seen: dict[tuple[int, int], str] = {}
    folders, links = (
        [""],
        list[str](),
    )  # links come last: what is a folder and what is its double does not depend on names
    while folders or links:
        inner = folders.pop() if folders else links.pop()
        try:
            status = pathlib.Path(root, inner).stat()
            with os.scandir(root / inner) as entries:
                inside = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name, reverse=True)
        except OSError as error:
            bad[inner or "."] = f"its folder cannot be listed: {error.strerror}"
            continue
        if (other := seen.setdefault((status.st_dev, status.st_ino), inner or ".")) != (inner or "."):
            bad[inner] = f"it is a link to the folder {other}, which is read already"
            continue
        for entry in inside:
            path = f"{inner}/{entry.name}" if inner else entry.name
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.name.lower().endswith(images.SUFFIXES):
                    found.append(path)
                    # No question to the disk, which has told the kind with the name; a pipe would be waited for.
                    if not entry.is_file():
                        nothing = entry.is_symlink() and not pathlib.Path(root, path).exists()
                        bad[path] = "it is a link to nothing" if nothing else "it is no file but a pipe or a device"
                else:
                    others[pathlib.PurePath(entry.name).suffix.lower()] += 1
            except OSError as error:  # links in a circle
                found.append(path)
                bad[path] = str(error.strerror)
    return found, bad, others


def instead(root: epath.Path, others: Others) -> str:
    """What lies in a folder without images, and how some of it is read, for an error message."""
    if not others:
        return ""
    most = ", ".join(f"{n:,} {ending or 'without an ending'}" for ending, n in others.most_common(3))
    way = ""
    if any(IDX.search(path.name) for path in root.iterdir()):
        way = f"; idx files are read with --dataset=idx:{root}"
    elif ".npz" in others:
        way = "; arrays are read with --dataset=npz:FILE"
    elif others.keys() & {".zip", ".tar", ".gz", ".tgz", ".xz", ".7z"}:
        way = "; archives are to be unpacked first"
    elif others.keys() & {".gif", ".heic", ".avif", ".jp2", ".tga", ".psd"}:
        way = "; images of other formats are to be converted first, for example to PNG"
    return f" (it holds: {most}){way}"


def tell_nested(found: Sequence[str], root: epath.Path) -> None:
    """Names the folder to give where all images lie in one folder of folders, as an unpacked archive often has them."""
    tops = {f.partition("/")[0] for f in found}
    inner = sorted({f.split("/")[1] for f in found if f.count("/") > 1})
    if len(tops) == 1 and len(inner) > 1 and all(f.count("/") > 1 for f in found):
        only = root / next(iter(tops))
        names = ", ".join(inner[:3]) + (", ..." if len(inner) > 3 else "")
        line = f"{root} has one folder, so no classes; --dataset=folder:{only} has {len(inner)}: {names}"
        lastwords.say(printable(line), sys.stderr)


def tell(others: Others, name: str) -> None:
    """Says what was passed over: photos of another format would go missing without a word."""
    if others:
        kinds = ", ".join(f"{n:,} {ending or 'without an ending'}" for ending, n in others.most_common(3))
        wanted = ", ".join(images.SUFFIXES)
        line = f"passed over {others.total():,} files of {name} that do not end in {wanted} (most: {kinds})"
        lastwords.say(printable(line), sys.stderr)


# --- what cannot be read


def unreadable(name: str, root: epath.Path, found: Sequence[str], cache: epath.PathLike | None) -> dict[str, str]:
    """{file: reason} of those that do not decode. Kept in a file of `cache` until one of all files changes."""
    paths = [os.fspath(root / f) for f in found]
    file, identity = None, ""
    if cache is not None and not files.is_remote(root):
        with contextlib.suppress(OSError):  # `problem` will name the file
            identity = fingerprint(paths).hex()
    if identity:
        code = hashlib.sha256(repr(os.fspath(root.absolute())).encode()).hexdigest()[:12]
        file = epath.Path(cache).expanduser() / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)[-64:]}-{code}.checked"
        try:
            known = json.loads(file.read_text())
            if known["identity"] == identity:
                return {str(f): str(reason) for f, reason in known["bad"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass
    reasons = images.in_threads(problem, paths, f"checking {name}")
    bad = {f: reason for f, reason in zip(found, reasons, strict=True) if reason}
    if file:
        with contextlib.suppress(OSError):
            files.write(file, json.dumps({"identity": identity, "bad": bad}))
    return bad


def problem(path: str) -> str:
    """Why an image file cannot be read; "" if it can."""
    try:
        images.decode(contents(path), None, 3)
    except images.UNREADABLE as error:
        return first_line(error)
    return ""


def report(skipped: Sequence[str], total: int, name: str) -> None:
    """Says which files are left out. Raises InputError for more than half of them."""
    if not skipped:
        return
    if 2 * len(skipped) > total:
        raise InputError(
            f"{len(skipped)} of the {total} images of {name} cannot be read, such as {skipped[0]}; "
            "--skip_bad_images leaves out half of them at most"
        )
    more = [f"and {len(skipped) - LISTED} more"] if len(skipped) > LISTED else []
    lines = [f"left out {len(skipped)} of the {total} images of {name}:", *skipped[:LISTED], *more]
    lastwords.say("\n  ".join(map(printable, lines)), sys.stderr)
