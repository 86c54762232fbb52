"""Random access to labelled images as a `Source`: arrays, an npz file, a folder. (`prepared` adds those of TFDS.)"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from jaxgan import images
from jaxgan.errors import InputError

IMAGES, LABELS = ("image", "images", "x"), ("label", "labels", "y")  # keys of an npz file


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to one split: images already cropped, resized, and of the wanted number of channels.

    `read` takes indices (n,) in [0, num_examples) and gives {"image": uint8 (n, h, w, c), "label": int32 (n,)}; the
    labels of an unlabelled source are zeros. Threads may call it at the same time.
    """

    name: str
    num_examples: int
    shape: tuple[int, int, int]  # (h, w, c)
    num_classes: int  # 0: unlabelled
    read: Callable[[np.ndarray], dict[str, np.ndarray]]
    class_names: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return self.num_examples * int(np.prod(self.shape))


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
) -> Source:
    """A source over uint8 (n, h, w) or (n, h, w, c) and integer labels (n,) or (n, 1), converted once, here."""
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or not len(image):
        raise InputError(f"{name}: images are uint8 (n, h, w) or (n, h, w, c), given {image.dtype} {image.shape}")
    image = image[..., None] if image.ndim == 3 else image
    channels = images.check_channels(image.shape[-1], channels, name)
    shape = (*(size or image.shape[1:3]), channels)
    if image.shape[1:] != shape:
        fit = functools.partial(images.fit_array, size=shape[:2], channels=channels, crop=crop)
        fitted = images.in_threads(fit, list(image), f"resizing {name}", images.workers_for(image.shape[1:]))
        image = np.stack(list(fitted))
    num_classes = 0
    if label is None:
        label = np.zeros(len(image), np.int32)
    else:
        label = check_labels(label, len(image), name)
        num_classes = max(len(class_names), int(label.max()) + 1)

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image[indices], "label": label[indices]}

    return Source(name, len(image), shape, num_classes, read, class_names)


def check_labels(label: np.ndarray, n: int, name: str) -> np.ndarray:
    """int32 (n,), or an InputError that says what the labels are instead."""
    flat = label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label
    if flat.shape != (n,) or not np.issubdtype(flat.dtype, np.integer) or flat.min() < 0:
        raise InputError(f"{name}: labels are integers >= 0 of shape ({n},), given {label.dtype} {label.shape}")
    return flat.astype(np.int32)


def npz(name: str, path: str, split: str, size: tuple[int, int] | None, crop: str, channels: int) -> Source:
    """Images and labels of an .npz file: keys `image`, `images`, `x`; with a split, `x_test` or `test_images`."""
    file = epath.Path(path).expanduser()
    if not path or not file.exists():
        raise InputError(f"no file {path!r} for --dataset={name}; expected npz:FILE")
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            keys = tuple(arrays.keys())
            image, label = (
                next((arrays[k] for k in keys_of(names, split) if k in keys), None) for names in (IMAGES, LABELS)
            )
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no npz file of plain arrays ({first_line(error)})") from error
    if image is None:
        wanted = ", ".join(keys_of(IMAGES, split))
        raise InputError(
            f"{path} has no images for split {split!r}: expected one of {wanted}; it holds {', '.join(keys)}"
        )
    return from_arrays(name, image, label, size=size, crop=crop, channels=channels)


def keys_of(names: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The keys under which a split may be found; a name alone stands for `train`."""
    plain = names if split == "train" else ()
    return plain + tuple(f"{n}_{split}" for n in names) + tuple(f"{split}_{n}" for n in names)


def folder(name: str, path: str, split: str, size: tuple[int, int] | None, crop: str, channels: int) -> Source:
    """The PNG, JPEG and WebP files below a folder. Its sub-folders, sorted, are the classes; with fewer than two, none.

    A sub-folder named as the split (`DIR/train/...`) is taken for the whole. Hidden files are passed over.
    Unless both `size` and `channels` are given, the header of every file is read here (10,000 files: 2 s).
    """
    root = epath.Path(path).expanduser()
    if not path or not root.is_dir():
        raise InputError(f"no folder {path!r} for --dataset={name}; expected folder:DIR")
    if (root / split).is_dir():
        root = root / split
    elif split != "train":
        raise InputError(f"unknown split {split!r}: {path} has no sub-folder of that name")
    images.check_channels(3, channels, name)
    files = list_images(root)
    if not files:
        raise InputError(f"no images in {root}; expected files that end in {', '.join(images.SUFFIXES)}")
    classes = sorted({f.rpartition("/")[0].partition("/")[0] for f in files})
    if "" in classes and len(classes) > 1:
        loose = next(f for f in files if "/" not in f)
        raise InputError(f"{root} has sub-folders, which are classes, and images beside them, such as {loose}")
    classes = classes if len(classes) > 1 else []
    number = {c: i for i, c in enumerate(classes)}
    label = np.array([number.get(f.split("/")[0], 0) for f in files], np.int32)
    paths = [os.fspath(root / f) for f in files]
    if size and channels:
        shape = (*size, channels)
    else:
        shapes = images.in_threads(measure, paths, f"measuring {name}")
        shape = images.common_shape(((*(size or s[:2]), s[2]) for s in shapes), name, channels)

    def decode(path: str) -> np.ndarray:
        with reading(path):
            image = images.decode(epath.Path(path).read_bytes(), size, shape[-1], crop)
            if image.shape != shape:
                raise ValueError(f"its shape is {image.shape}, which was {shape}")
            return image

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        decoded = list(images.in_threads(decode, [paths[i] for i in indices], workers=images.workers_for(shape)))
        return {"image": np.stack(decoded), "label": label[indices]}

    return Source(name, len(files), shape, len(classes), read, tuple(classes))


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Names the file in the error for one that is no whole image."""
    try:
        yield
    except images.UNREADABLE as error:
        raise InputError(f"{path} is not a readable image ({first_line(error)}); mend or remove it") from error


def first_line(error: Exception) -> str:
    """What an exception says, or else its kind."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def measure(path: str) -> tuple[int, int, int]:
    """(h, w, c) of an image file."""
    with reading(path), epath.Path(path).open("rb") as file:
        return images.measure(file)


def list_images(root: epath.Path) -> list[str]:
    """Sorted paths below `root`, relative to it, of the files that are images by their names. Follows links."""
    found = []
    if "://" in os.fspath(root):
        folders = [root]
        while folders:
            for path in folders.pop().iterdir():
                # A name that says image is not asked whether it is a folder: each answer is a trip over the network.
                if path.name.lower().endswith(images.SUFFIXES):
                    found.append(path.relative_to(root).as_posix())
                elif path.is_dir():
                    folders.append(path)
    else:
        for directory, _, names in os.walk(root, followlinks=True):
            inner = os.path.relpath(directory, root)
            found += [n if inner == "." else f"{inner}/{n}".replace(os.sep, "/") for n in names]
    visible = (f for f in found if not any(part.startswith(".") for part in f.split("/")))
    return sorted(f for f in visible if f.lower().endswith(images.SUFFIXES))


def read_all(source: Source, chunk: int = 1024) -> dict[str, np.ndarray]:
    """Every image and label, in order, with a progress bar if that takes long."""
    image = np.empty((source.num_examples, *source.shape), np.uint8)
    label = np.empty(source.num_examples, np.int32)
    with images.bar((), source.num_examples, f"reading {source.name}") as bar:
        for start in range(0, source.num_examples, chunk):
            rows = np.arange(start, min(start + chunk, source.num_examples))
            data = source.read(rows)
            image[rows], label[rows] = data["image"], data["label"]
            bar.update(len(rows))
    return {"image": image, "label": label}
