"""Files of arrays as a `Source`: npz, and the idx files of MNIST. Headers are checked before memory is taken."""

import gzip
import io
import math
import re
import struct
import zipfile
import zlib

import numpy as np
from etils import epath
from numpy.lib import format as npy

from jaxgan import files, memory
from jaxgan.errors import InputError
from jaxgan.sources import Source, first_line, from_arrays

IMAGES, LABELS = ("image", "images", "x"), ("label", "labels", "y")  # keys of an npz file
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
LONGEST = 1 << 16  # bytes of the header of an array
IDX_UBYTE = 8  # the type of unsigned bytes in an idx file
IDX_SPLITS = {"test": ("t10k", "test")}  # what stands for a split in a file's name, if not itself


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


def idx(name: str, path: str, split: str, size: tuple[int, int] | None, crop: str, channels: int) -> Source:
    """The idx files of a folder, packed (.gz) or not: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`.

    The test split is `t10k-...` or `test-...`; names may begin otherwise, as EMNIST's do. Without labels it has none.
    """
    root = epath.Path(path).expanduser()
    if not path or not root.is_dir():
        raise InputError(f"no folder {path!r} for --dataset={name}; expected idx:DIR with {split}-images-idx3-ubyte")
    names = sorted(file.name for file in root.iterdir() if not file.name.startswith("."))
    chosen = {kind: idx_file(name, names, kind, split) for kind in ("images", "labels")}
    if not chosen["images"]:
        known = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise InputError(
            f"{path} has no idx file of images for split {split!r}: expected {split}-images-idx3-ubyte, also .gz; "
            f"it holds {known or 'nothing'}"
        )
    image = idx_array(root / chosen["images"], (3, 4))
    label = idx_array(root / chosen["labels"], (1,)) if chosen["labels"] else None
    return from_arrays(name, image, label, size=size, crop=crop, channels=channels)


def idx_file(name: str, names: list[str], kind: str, split: str) -> str:
    """The file of this kind and split among names; "" where there is none."""
    words = IDX_SPLITS.get(split, (split,))
    fits = re.compile(rf"(^|[-_.])({'|'.join(map(re.escape, words))})[-_.]{kind}[-_.]?(idx\d.?)?(ubyte)?(\.gz)?$")
    found = [file for file in names if fits.search(file.lower())]
    plain = {file.removesuffix(".gz") for file in found}
    if len(plain) > 1:
        raise InputError(f"--dataset={name} has {len(plain)} files of {split} {kind}: {', '.join(found)}; expected one")
    return found[0] if found else ""  # the unpacked one, where there are both


def idx_array(path: epath.Path, ranks: tuple[int, ...]) -> np.ndarray:
    """The array of an idx file: two zeros, a type, the number of axes, their lengths (big-endian), the values."""
    try:
        if not files.is_plain(path):
            raise ValueError("it is no file")
        with path.open("rb") as raw:
            opened = gzip.GzipFile(fileobj=raw) if raw.read(2) == b"\x1f\x8b" else raw
            raw.seek(0)
            zeros, kind, rank = struct.unpack(">HBB", opened.read(4))
            if zeros or kind != IDX_UBYTE or rank not in ranks:
                raise ValueError(f"it begins with {zeros:04x} {kind:02x} {rank:02x}; expected 0000 08 {ranks[0]:02x}")
            shape = struct.unpack(f">{rank}I", opened.read(4 * rank))
            memory.check(math.prod(shape), f"uint8 {shape} of {path}")
            values = opened.read(math.prod(shape) + 1)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path} is no idx file ({first_line(error)})") from error
    if len(values) != math.prod(shape):
        raise InputError(f"{path} is no idx file (it declares {shape}, and holds {len(values):,} bytes or more)")
    return np.frombuffer(values, np.uint8).reshape(shape)
