"""Random access to labelled images as a `Source`: arrays, and what was decoded before.

(`folders`, `archives` and `prepared` make sources of image files, of npz files and of TFDS.)
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import math
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxgan import classes, files, images, lastwords, layout, memory
from jaxgan.errors import InputError

CLASSES = 2**17  # the most that numbers may tell: a number of a class is also the length of a table


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to one split: images already cropped, resized, and of the wanted number of channels.

    `read` takes indices (n,) in [0, num_examples) and gives {"image": uint8 (n, h, w, c), "label": int32 (n,)}; the
    labels of an unlabelled source are zeros. Threads may call it at the same time. `identity` digests the files and all
    that is done to them, into 32 bytes that are others when `read` may give others; None where nothing is decoded.
    `digest` tells a run whether these are the images that it began with: it depends on names and sizes of files, or on
    checksums, and neither on where the files are nor on how they are decoded.
    The rows of a table are images of shape (d,) and of type float32 (`of_rows`).
    """

    name: str
    num_examples: int
    shape: Any  # three integers (h, w, c), or one (d,) of a table
    num_classes: int  # 0: unlabelled
    read: Callable[[np.ndarray], dict[str, np.ndarray]]
    class_names: tuple[str, ...] = ()
    identity: Callable[[], bytes] | None = None
    skipped: tuple[str, ...] = ()  # files that were left out, and why
    files: tuple[str, ...] = ()  # that the examples were read from, one each, where there are such
    dtype: type = np.uint8  # of "image"
    label: np.ndarray | None = None  # all labels, int32 (n,), where they are in memory
    read_labels: Callable[[], np.ndarray] | None = None  # the same without decoding images, where that can be
    digest: Callable[[np.ndarray | None], str] | None = None  # of the examples at these places, None: of all
    left_out: tuple[str, ...] = ()  # classes of the data that `only` left out

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return self.num_examples * math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def subset(self, rows: np.ndarray) -> "Source":
        """The examples at these places, in their order, repetitions included."""
        rows, read, read_labels, digest = np.asarray(rows), self.read, self.read_labels, self.digest
        names = tuple(self.files[i] for i in rows) if self.files else ()

        def chosen(indices: np.ndarray) -> dict[str, np.ndarray]:
            return read(rows[indices])

        return dataclasses.replace(
            self,
            num_examples=len(rows),
            read=chosen,
            identity=None,
            files=names,
            label=None if self.label is None else self.label[rows],
            read_labels=None if read_labels is None else lambda: read_labels()[rows],
            digest=None if digest is None else lambda part: digest(rows if part is None else rows[part]),
        )

    def only(self, wanted: Sequence[str | int]) -> "Source":
        """The examples of these classes, by name or number (`classes.resolve`), which become 0, 1, ... in this order.

        Unnamed classes are named by their numbers from here on. Reads every label.
        """
        numbers = classes.resolve(wanted, self.class_names, self.num_classes, self.name)
        counts = collections.Counter(numbers)
        for again in (x for x, k in zip(wanted, numbers, strict=True) if counts[k] > 1):
            raise InputError(f"--classes: the class {again} of {self.name} is given twice; expected each once")
        place = np.full(self.num_classes, -1, np.int32)
        place[list(numbers)] = np.arange(len(numbers))
        part = self.subset(np.flatnonzero(place[labels(self)] >= 0))
        known = names_of(self)
        left_out = tuple(name for k, name in enumerate(known) if place[k] < 0)
        return part.numbered(place, tuple(known[k] for k in numbers), (*self.left_out, *left_out))

    def in_order(self, names: Sequence[str]) -> "Source":
        """The same examples, with their classes numbered as `names`, which has all of theirs and may have more."""
        known = names_of(self)
        if known == tuple(names):
            return self
        number = {name: k for k, name in enumerate(names)}
        place = np.array([number[name] for name in known], np.int32)
        return self.numbered(place, tuple(names), self.left_out)

    def numbered(self, place: np.ndarray, names: tuple[str, ...], left_out: tuple[str, ...] = ()) -> "Source":
        """With the label place[k] for k, which is the place of its class among `names`."""
        read, read_labels = self.read, self.read_labels

        def renumbered(indices: np.ndarray) -> dict[str, np.ndarray]:
            examples = read(indices)
            return {**examples, "label": place[examples["label"]]}

        return dataclasses.replace(
            self,
            read=renumbered,
            label=None if self.label is None else place[self.label],
            read_labels=None if read_labels is None else lambda: place[read_labels()],
            num_classes=len(names),
            class_names=names,
            left_out=left_out,
            identity=None,
        )


class OtherClasses(InputError):
    """The data have other classes than a run was trained on."""


def names_of(source: Source) -> tuple[str, ...]:
    """One name for each class: its number where the data name none."""
    return classes.names_of(source.class_names, source.num_classes)


def as_trained(source: Source, names: Sequence[str], run: str, chosen: bool = False, part: bool = False) -> Source:
    """`source` with its classes numbered as a run has them, by their names.

    The order of folders is not that of every version (`classes.ordered`), and a number is no identity: after a rename
    all labels behind it would be others. So a run keeps the names in its own order, and meets any data by these.

    Args:
      names: of the run's classes, in its order.
      run: the directory of the run, for the message.
      chosen: whether the run was trained on some classes of its data; the others are left out.
      part: whether classes may be missing, as in test data.

    Raises:
      OtherClasses: where the data have other classes.
    """
    known = names_of(source)
    if part and not known:
        return source
    missing, new = set(names) - set(known), set(known) - set(names)
    if (missing and not part) or (new and not chosen) or not known:
        raise OtherClasses(
            f"{source.name} has the classes {classes.shown(known)}; {run} was trained on {classes.shown(names)}"
            f"{classes.differing(known, names)}: expected the same names"
        )
    if new:
        source = source.only([k for k, name in enumerate(known) if name not in new])
    return source.in_order(names)


def as_begun(source: Source, names: Sequence[str], run: str) -> Source:
    """`source` with its classes, those that the flags select, numbered as in the unfinished run `run`."""
    try:
        return as_trained(source, names, f"the run in {run}") if names else source
    except OtherClasses as error:
        there = set(names) <= {*names_of(source), *source.left_out} and len(names) <= classes.LISTED
        advice = f", or --classes={','.join(names)}" if there else ""
        raise OtherClasses(f"{error}{advice}, or another --workdir") from None


def check_filled(source: Source) -> None:
    """Raises InputError for classes without images, where the labels are in memory (`data.place` has the others).

    A generator would make images of such a class too, which are of no class at all.
    """
    if source.num_classes and source.label is not None:
        refuse_empty(source, source.label)


def refuse_empty(source: Source, label: np.ndarray) -> None:
    """Raises InputError for classes of `source` that none of these labels (n,) names."""
    counts, names = np.bincount(label, minlength=source.num_classes), names_of(source)
    empty = [names[k] for k in np.flatnonzero(counts == 0)]
    if empty:
        filled = [names[k] for k in np.flatnonzero(counts)]
        some = ",".join(filled) if len(filled) <= classes.LISTED else f"{','.join(filled[: classes.LISTED])},..."
        others = f", nor have {classes.shown(empty[1:])}" if empty[1:] else ""
        raise InputError(
            f"class {empty[0]} of {source.name} has no images{others}; --classes={some} trains on those that have some"
        )


def held_out(
    load: Callable[[str], Source], source: Source, split: str, test_split: str, labelled: bool = True
) -> Source:
    """The images of `test_split`, to measure by what was trained on those of `split`, `source`.

    Its labels are numbered as those of `source` (`like`). Raises InputError where they are the same ones, or others: in
    shape or, if `labelled`, in what their labels mean; where not `labelled`, labels of other classes stay as they are.
    """
    if test_split == split:
        raise InputError(f"--test_split={test_split} is --split; expected images that no training sees")
    test = load(test_split)
    if test.shape != source.shape:
        raise InputError(f"test images {test.shape} of another shape than {source.shape}; --size makes them equal")
    if labelled:
        return like(test, source)
    with contextlib.suppress(OtherClasses):
        return like(test, source)
    return test


def like(test: Source, source: Source) -> Source:
    """`test` with the classes of `source`, numbered as there; test images may lack some. Those that `source` left out
    are left out. Raises OtherClasses for test images of further classes."""
    theirs, ours = names_of(test), names_of(source)
    if bool(theirs) != bool(ours) or not {*theirs} <= {*ours, *source.left_out}:
        known = [x.class_names or x.num_classes for x in (test, source)]
        raise OtherClasses(f"the test images have the classes {known[0]}, {source.name} {known[1]}; expected the same")
    if not source.class_names:  # numbers mean the same
        return test
    left = set(source.left_out)
    kept = [k for k, name in enumerate(theirs) if name not in left]
    return (test.only(kept) if len(kept) < len(theirs) else test).in_order(ours)


def check_classes(test: Source, source: Source) -> None:
    """Raises InputError unless the labels of the two mean the same; a test set may lack the last of unnamed classes."""
    # By name: in folders, a number is a place among those that the split has.
    fewer = not source.class_names and 0 < test.num_classes <= source.num_classes
    if test.class_names != source.class_names or not (fewer or test.num_classes == source.num_classes):
        theirs, ours = (x.class_names or x.num_classes for x in (test, source))
        raise InputError(f"the test images have the classes {theirs}, {source.name} {ours}; expected the same")


def about(source: Source, digest: str | None = None) -> dict[str, Any]:
    """What a run keeps of its data, as JSON: see `check_about`. digest: of all examples, where it is known."""
    digest = digest or (source.digest(None) if source.digest else "")
    found = {"classes": list(source.class_names), "num_classes": source.num_classes, "shape": list(source.shape)}
    return found | {"examples": source.num_examples} | ({"digest": digest} if digest else {})


def check_about(here: Mapping[str, Any], there: Mapping[str, Any], whose: str) -> None:
    """Raises InputError where the data that `here` tells of are not those of `there`, as far as that tells.

    The order of a run, its labels and its images follow from them. A run of an older version has no digest.
    """
    if there.get("examples") not in (None, here["examples"]):
        raise InputError(
            f"the data hold {here['examples']:,} examples, {whose} {there['examples']:,}; expected as many"
        )
    known = there.get("classes") or []
    if known and known != here["classes"]:
        raise OtherClasses(
            f"the data have the classes {classes.shown(here['classes'], here['num_classes'])}, {whose} "
            f"{classes.shown(known)}{classes.differing(here['classes'], known)}; expected the same, in this order"
        )
    if there.get("num_classes") not in (None, here["num_classes"]):
        raise OtherClasses(
            f"the data have {here['num_classes']} classes, {whose} {there['num_classes']}; expected as many"
        )
    if there.get("digest") and here.get("digest") and there["digest"] != here["digest"]:
        raise InputError(
            f"the data hold other images than {whose}, by the names and sizes of files or by checksums; expected the "
            "same ones, or another --workdir"
        )


def is_own(name: str) -> bool:
    """Whether `jaxgan.datasets` has a data set of this name."""
    return name.isidentifier() and importlib.util.find_spec(f"jaxgan.datasets.{name}") is not None


def from_arrays(
    name: str,
    image: np.ndarray,
    label: np.ndarray | None = None,
    *,
    class_names: tuple[str, ...] = (),
    size: tuple[int, int] | None = None,
    crop: str = "center",
    channels: int = 0,
    digest: str = "",
) -> Source:
    """A source over uint8 (n, h, w) or (n, h, w, c) and integer labels (n,) or (n, 1), converted once, here.

    digest: of the arrays, where it is known without reading all of them.
    Raises InputError for other arrays, with the line that helps: `images.transpose(0, 2, 3, 1)` for channels first.
    """
    layout.check(image.shape, name)
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or not image.size:
        raise InputError(
            f"{name}: images are uint8 (n, h, w) or (n, h, w, c), given {image.dtype} {image.shape}"
            f"{layout.conversion(image) if image.ndim in (3, 4) else ''}"
        )
    image = image[..., None] if image.ndim == 3 else image
    given = image
    channels = images.check_channels(image.shape[-1], channels, name)
    shape = (*(size or image.shape[1:3]), channels)
    if image.shape[1:] != shape or images.window(crop) not in (None, shape[:2]):
        # A list of them, and the array that is made of it.
        memory.check(2 * len(image) * math.prod(shape), f"to resize the {len(image):,} images of {name} to {shape}")
        fit = functools.partial(images.fit_array, size=shape[:2], channels=channels, crop=crop)
        fitted = images.in_threads(fit, list(image), f"resizing {name}", images.workers_for(image.shape[1:]))
        # Of what was given, for another version may resize to other pixels.
        digest = digest or hashlib.sha256(np.ascontiguousarray(given).data).hexdigest()
        image = np.stack(list(fitted))
    num_classes = 0
    if label is None:
        label = np.zeros(len(image), np.int32)
    else:
        label = check_labels(label, len(image), name)
        num_classes = max(len(class_names), int(label.max()) + 1)

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image[indices], "label": label[indices]}

    @functools.cache
    def base() -> str:
        return digest or hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()

    def digest_of(rows: np.ndarray | None) -> str:
        return combined(f"{base()} {hashlib.sha256(label.data).hexdigest()}", rows)

    return Source(name, len(image), shape, num_classes, read, class_names, label=label, digest=digest_of)


def combined(digest: str, rows: np.ndarray | None) -> str:
    """The digest of the examples at these places of data that are told by `digest`; None: of all."""
    code = hashlib.sha256(digest.encode())
    code.update(b"" if rows is None else np.ascontiguousarray(rows, np.int64).data)
    return code.hexdigest()[:32]


def of_rows(name: str, x: np.ndarray) -> Source:
    """A source over the rows of a table, float32 (n, d), which reach the network as they are."""
    if x.dtype != np.float32 or x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise InputError(f"{name}: rows are finite float32 (n, d), given {x.dtype} {x.shape}")

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": x[indices], "label": np.zeros(len(indices), np.int32)}

    return Source(name, len(x), x.shape[1:], 0, read, dtype=np.float32)


def check_labels(label: np.ndarray, n: int, name: str) -> np.ndarray:
    """int32 (n,), or an InputError that says what the labels are instead."""
    flat = label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label
    if flat.shape != (n,) or not np.issubdtype(flat.dtype, np.integer) or flat.min() < 0:
        raise InputError(f"{name}: labels are integers >= 0 of shape ({n},), given {label.dtype} {label.shape}")
    if flat.max() >= CLASSES:
        raise InputError(
            f"{name}: label {flat.max()} of {n:,} images; expected class numbers below {CLASSES:,}, without gaps"
        )
    return flat.astype(np.int32)


def fingerprint(paths: Sequence[str], *how: Any) -> bytes:
    """32 bytes of files, by their paths, sizes, times and inodes, of what is done to them, and of the decoders.

    A file that is put in another's place, of the same size and with its time (`cp -p`, `rsync -t`, `touch -r`), has
    another inode or another time of the change of its inode, which nobody can set.
    """
    code = hashlib.sha256(repr((images.version(), how)).encode())
    for path in paths:
        if "://" in path:
            remote = epath.Path(path).stat()
            known: tuple[Any, ...] = (remote.length, remote.mtime)
        else:
            local = pathlib.Path(path).absolute()
            stat = local.stat()
            path = os.fspath(local)
            known = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        code.update(repr((path, *known)).encode())
    return code.digest()


@contextlib.contextmanager
def reading(path: str, advice: str = "mend or remove it") -> Iterator[None]:
    """Names the file in the error for one that is no whole image."""
    try:
        yield
    except InputError as error:  # of the flags, not of the file
        raise InputError(f"{path}: {error}") from None
    except images.UNREADABLE as error:
        raise InputError(f"{path} is not a readable image ({first_line(error)}); {advice}") from error


def first_line(error: Exception) -> str:
    """What an exception says, or else its kind."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


HEADER = 64  # bytes: identity, digest


class Kept:
    """The `read` of a source that decodes each image once: what was read stays in host memory.

    When all of it is there it goes into `file` too, from which a later process takes it in place of decoding, provided
    that the identity is the same and no bit has changed. The file is the memory as it lies: identity, SHA-256 of all
    but itself, labels, pixels. Where it cannot be written, there is none.
    """

    def __init__(self, source: Source, file: epath.PathLike | None = None):
        n, labels = source.num_examples, HEADER + 4 * source.num_examples
        memory.check(
            source.nbytes,
            f"the {n:,} images {source.shape} of {source.name}",
            "--placement=stream reads them as they are needed",
        )
        self.source = source
        self.file = file if source.identity else None
        self.identity = b""
        self.memory = np.empty(labels + source.nbytes, np.uint8)  # pages are taken as they are filled
        self.label = self.memory[HEADER:labels].view(np.int32)
        self.image: np.ndarray = self.memory[labels:].view(source.dtype).reshape(n, *source.shape)
        self.known = np.zeros(n, bool)
        self.lock = threading.Lock()

    def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        self.fill(indices)
        return {"image": self.image[indices], "label": self.label[indices]}

    def whole(self, chunk: int = 1024) -> dict[str, np.ndarray]:
        """Every image and label, in order and read-only: no copies. A progress bar if that takes long."""
        n = len(self.known)
        with images.bar((), n, f"reading {self.source.name}") as bar:
            for start in range(0, n, chunk):
                rows = np.arange(start, min(start + chunk, n))
                self.fill(rows)
                bar.update(len(rows))
        image, label = self.image.view(), self.label.view()
        image.flags.writeable = label.flags.writeable = False
        return {"image": image, "label": label}

    def fill(self, indices: np.ndarray) -> None:
        """Reads those that are not known yet."""
        with self.lock:
            if self.file and self.source.identity and not self.identity:
                self.identity = self.source.identity()
                self.known[:] = self.recall(self.file)
        missing = np.unique(indices[~self.known[indices]])
        if not len(missing):
            return
        new = self.source.read(missing)
        self.image[missing], self.label[missing] = new["image"], new["label"]
        self.known[missing] = True  # last, so that another thread reads whole images or decodes them itself
        with self.lock:
            if self.file and self.known.all():
                self.memory[:HEADER] = np.frombuffer(self.identity + self.digest(), np.uint8)
                with contextlib.suppress(OSError):
                    files.write(self.file, self.memory.data)
                self.file = None

    def recall(self, file: epath.PathLike) -> bool:
        """Whether the file was of this identity and whole, and has filled the memory."""
        try:
            with epath.Path(file).open("rb") as opened:
                identity = opened.read(len(self.identity))
                if len(identity) == len(self.identity) and identity != self.identity:
                    return False  # of other files, or decoded in another way
                opened.seek(0)
                whole = opened.readinto(self.memory) == self.memory.nbytes and not opened.read(1)
            problem = "" if whole and self.memory[32:HEADER].tobytes() == self.digest() else "is damaged"
        except FileNotFoundError:
            return False
        except OSError as error:
            problem = f"cannot be read ({first_line(error)})"
        if problem:
            lastwords.say(f"{file} {problem}; {self.source.name} is decoded again", sys.stderr)
        return not problem

    def digest(self) -> bytes:
        """32 bytes of the identity, all labels and all pixels. (1.8 GB/s where SHA-256 has instructions.)"""
        code = hashlib.sha256(self.identity)
        code.update(self.memory[HEADER:].data)
        return code.digest()


def labels(source: Source) -> np.ndarray:
    """Every label, in order, without all images in memory at once."""
    if source.label is not None:
        return source.label
    if isinstance(source.read, Kept):  # in memory, or in a file, sooner than records are read
        return source.read.whole()["label"]
    if source.read_labels is not None:
        return source.read_labels()
    n = source.num_examples
    return np.concatenate([source.read(np.arange(i, min(i + 4096, n)))["label"] for i in range(0, n, 4096)])


def read_all(source: Source) -> dict[str, np.ndarray]:
    """Every image and label, in order; read-only, for they may be the source's own."""
    return (source.read if isinstance(source.read, Kept) else Kept(source)).whole()
