"""An .npz file of images and labels as a `Source`. Headers are judged before memory is taken for what they claim."""

import io
import math
import zipfile

import numpy as np
from etils import epath
from numpy.lib import format as npy

from jaxgan import files, memory
from jaxgan.errors import InputError
from jaxgan.sources import Source, first_line, from_arrays

IMAGES, LABELS = ("image", "images", "x"), ("label", "labels", "y")  # keys of an npz file
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
LONGEST = 1 << 16  # bytes of the header of an array


def npz(name: str, path: str, split: str, size: tuple[int, int] | None, crop: str, channels: int) -> Source:
    """Images and labels of an .npz file: keys `image`, `images`, `x`; with a split, `x_test` or `test_images`."""
    file = epath.Path(path).expanduser()
    if not path or not files.is_plain(file):
        raise InputError(f"no file {path!r} for --dataset={name}; expected npz:FILE")
    try:
        with file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            keys = [next((key for key in keys_of(names, split) if key in entries), "") for names in (IMAGES, LABELS)]
            image, label = (array(archive, entries[key], path) if key else None for key in keys)
            # The archive's own checksum of the array, whatever its compression.
            digest = f"{entries[keys[0]].CRC:08x} {entries[keys[0]].file_size}" if keys[0] else ""
    except InputError:
        raise
    except Exception as error:  # damage shows as any error at all: of the zip, its compressions, the header's syntax
        raise InputError(f"{path} is no npz file of plain arrays ({first_line(error)})") from error
    if image is None:
        wanted = ", ".join(keys_of(IMAGES, split))
        raise InputError(
            f"{path} has no images for split {split!r}: expected one of {wanted}; it holds {', '.join(entries)}"
        )
    return from_arrays(name, image, label, size=size, crop=crop, channels=channels, digest=digest)


def keys_of(names: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The keys under which a split may be found; a name alone stands for `train`."""
    plain = names if split == "train" else ()
    return plain + tuple(f"{n}_{split}" for n in names) + tuple(f"{split}_{n}" for n in names)


def array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str) -> np.ndarray:
    """An array of the archive. Raises InputError for one that memory does not hold, ValueError for one that is damaged.

    A file of a few kilobytes can declare any shape, and can also hold it: zeros compress a thousandfold.
    """
    with archive.open(entry) as opened:
        head = io.BytesIO(opened.read(LONGEST))
    version = npy.read_magic(head)
    if version not in HEADERS:
        raise ValueError(f"{entry.filename} is of version {version} of its format; expected (1, 0) or (2, 0)")
    shape, _, dtype = HEADERS[version](head)
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds Python objects")
    nbytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or nbytes != entry.file_size - head.tell():
        raise ValueError(f"{entry.filename} declares {dtype} {shape}, and holds {entry.file_size - head.tell()} bytes")
    memory.check(nbytes, f"{dtype} {shape} of {path}")
    with archive.open(entry) as opened:
        return npy.read_array(opened, allow_pickle=False)
