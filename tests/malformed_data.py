"""Malformed images and archives for the table of `malformed`."""

import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

Make = Callable[[Path], list[str]]  # an empty folder -> arguments


class Case(NamedTuple):
    name: str
    make: Make
    words: tuple[str, ...] = ()  # that the one line holds
    script: str = "image"


# --- images


def png(w: int, h: int, data: bytes = b"", bits: int = 8, colour: int = 0, clear: bytes = b"") -> bytes:
    """A PNG whose header says what it is told to; `clear`: the colour that is transparent."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0))
    header += chunk(b"tRNS", clear) if clear else b""
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def encoded(form: str = "PNG", size: tuple[int, int] = (8, 8), mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def lying_jpeg() -> bytes:
    """A JPEG of 8x8 whose header says 65000x65000."""
    data = encoded("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 65000, 65000) + data[at + 4 :]


def among(name: str, wrong: bytes, *given: str) -> Make:
    """A folder of three good images and this one."""

    def make(folder: Path) -> list[str]:
        (folder / "x").mkdir()
        for i in range(3):
            (folder / "x" / f"{i}.png").write_bytes(encoded())
        (folder / "x" / name).write_bytes(wrong)
        return [f"--dataset=folder:{folder / 'x'}", *given]

    return make


def image_cases() -> Iterator[Case]:
    whole, gif = encoded(), encoded("GIF")
    table = {
        "nothing": b"",
        "prose": b"this is no image\n",
        "a page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a GIF": gif,
        "a TIFF of floats": encoded("TIFF", mode="F"),
        "half a TIFF": encoded("TIFF")[:100],
        "a TIFF's first bytes": b"II*\0",
        "a BMP's first bytes": b"BM" + bytes(20),
        "a PGM of 60,000 x 60,000": b"P5 60000 60000 255\n" + bytes(1000),
        "a PGM of words": b"P2\neight 8 255\n",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) print\n",
        "a vector graphic": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "zeros": bytes(1000),
        "a header alone": whole[:33],
        "half a header": whole[:20],
        "a PNG of 60,000 x 60,000": png(60_000, 60_000, bytes(1000)),
        "a PNG of 2 billion": png(2**31 - 1, 2**31 - 1),
        "a PNG of no width": png(0, 8),
        "a PNG of 3 bits": png(8, 8, bytes(72), bits=3),
        "a PNG of colour 9": png(8, 8, bytes(72), colour=9),
        "a JPEG of 65,000 x 65,000": lying_jpeg(),
        "a JPEG's first bytes": b"\xff\xd8\xff",
        "a WebP's first bytes": b"RIFF\x10\0\0\0WEBPVP8 ",
        "a sound": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
    }
    for name, wrong in table.items():
        yield Case(f"image: {name}", among("3.png", wrong), ("3.png", "--skip_bad_images"))
    bomb = png(60_000, 60_000, bytes(1000))
    known = ("--size=8", "--channels=1")
    yield Case("image: a bomb of known size", among("3.png", bomb, *known), ("3.png", "60000x60000"))
    yield Case("image: a bomb to skip, of another suffix", among("3.JPeG", bomb, "--split=x", "--skip_bad_images"), ())
    short = encoded("JPEG", (64, 64), quality=95)[:900]
    yield Case("image: a JPEG whose pixels end early", among("3.jpg", short, *known), ("3.jpg",))
    escape = among("3\x1b[31m.png", b"")
    yield Case("image: a name that commands a terminal", escape, ("3\\x1b[31m.png",))

    def special(kind: Callable[[Path], object], *given: str, good: int = 3) -> Make:
        def make(folder: Path) -> list[str]:
            (folder / "x").mkdir()
            for i in range(good):
                (folder / "x" / f"{i}.png").write_bytes(encoded())
            kind(folder / "x")
            return [f"--dataset=folder:{folder / 'x'}", *given]

        return make

    def a_socket(folder: Path) -> None:
        here = os.getcwd()  # noqa: PTH109  a socket's name is short
        os.chdir(folder)
        try:
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind("3.png")
        finally:
            os.chdir(here)

    def classes(folder: Path) -> None:
        for name in ("caf\u00e9", "cafe\u0301"):
            (folder / name).mkdir()
            (folder / name / "0.png").write_bytes(encoded())

    def fan(folder: Path) -> None:
        for i in range(40):  # two links each: 2^40 ways to the last
            (folder / f".{i}").mkdir()
            for side in "ab":
                (folder / f".{i}" / side).symlink_to(folder / f".{i + 1}")
        (folder / "way").symlink_to(folder / ".0")

    kinds: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
        "a pipe": (lambda x: os.mkfifo(x / "3.png"), ("3.png", "pipe")),
        "a socket": (a_socket, ("3.png", "pipe")),
        "a link to a device": (lambda x: (x / "3.png").symlink_to("/dev/zero"), ("3.png", "device")),
        "a link to nothing": (lambda x: (x / "3.png").symlink_to(x / "none"), ("3.png", "link to nothing")),
        "a link to itself": (lambda x: (x / "3.png").symlink_to(x / "3.png"), ("3.png",)),
        "a folder in itself": (lambda x: (x / "again").symlink_to(x), ("again", "link")),
        "links that fan out": (fan, ("link",)),
    }
    for name, (kind, words) in kinds.items():
        yield Case(f"image: {name}", special(kind), words)
        yield Case(f"image: {name}, of known size", special(kind, *known), words)
    yield Case("image: a class in two forms of Unicode", special(classes, good=0), ("Unicode", "\\xe9"))
    for wrong in (b"", png(60_000, 60_000)):
        bad = special(lambda x, wrong=wrong: [(x / f"bad{i}.png").write_bytes(wrong) for i in range(4)])
        skip = lambda folder, bad=bad: [*bad(folder), "--skip_bad_images"]  # noqa: E731
        yield Case(f"image: most to skip, of {len(wrong)} bytes", skip, ("4 of the 7", "half"))
    hidden = special(lambda x: (x / "class" / ".x.png").parent.mkdir(), good=0)
    yield Case("image: classes without images", hidden, ("no images",))


# --- archives


def npy(shape: tuple[int, ...], dtype: str = "|u1", body: bytes = b"", version: int = 1) -> bytes:
    """An .npy file whose header says what it is told to."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + body


def zipped(compression: int = zipfile.ZIP_DEFLATED, **entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def arrays(**given) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **given)
    return file.getvalue()


class Ran:
    """What a pickle may do to whoever reads it."""

    def __reduce__(self):
        return exec, ("raise SystemExit(99)",)


def archive_cases() -> Iterator[Case]:
    image, rng = np.zeros((20, 8, 8), np.uint8), np.random.default_rng(0)
    noise = arrays(image=rng.integers(0, 256, (20, 8, 8), np.uint8))
    altered = bytearray(noise)
    altered[len(altered) // 2] ^= 255
    stored = bytearray(zipped(zipfile.ZIP_STORED, image=npy((20, 8, 8), body=bytes(1280))))
    stored[700] ^= 1
    encrypted = bytearray(zipped(image=npy((2, 8, 8), body=bytes(128))))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    pickled = io.BytesIO()
    np.save(pickled, np.array([Ran()]), allow_pickle=True)
    table = {
        "a bomb that is not there": (zipped(image=npy((10**6, 10**6, 3))), ("declares",)),
        "a bomb of labels": (zipped(image=npy((2, 8, 8), body=bytes(128)), label=npy((10**12,), "<i8")), ("declares",)),
        "a shape beyond counting": (zipped(image=npy((10**30,))), ("declares",)),
        "a shape below zero": (zipped(image=npy((-2, -8, 8), body=bytes(128))), ("declares",)),
        "a shape of another size": (zipped(image=npy((2, 8, 8), body=bytes(64))), ("declares",)),
        "a header of prose": (zipped(image=b"\x93NUMPY\x01\x00\x10\x00" + b"hello world!!!!\n"), ("npz",)),
        "a header of brackets": (zipped(image=b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 65535), ("npz",)),
        "a header without end": (zipped(image=b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), ("npz",)),
        "a version to come": (zipped(image=npy((2, 8, 8), version=9)), ("version",)),
        "no magic": (zipped(image=bytes(500)), ("npz",)),
        "an empty entry": (zipped(image=b""), ("npz",)),
        "code": (zipped(image=pickled.getvalue()), ("objects",)),
        "structures": (arrays(image=np.zeros(4, [("a", "u1"), ("b", "u1")])), ("uint8",)),
        "altered bytes": (bytes(altered), ("npz",)),
        "an altered pixel": (bytes(stored), ("npz", "CRC")),
        "a password": (bytes(encrypted), ("npz",)),
        "half of it": (noise[: len(noise) // 2], ("npz",)),
        "nothing": (b"", ("npz",)),
        "no entries": (zipped(), ("no images",)),
        "another array format": (npy((2, 8, 8), body=bytes(128)), ("npz",)),
        "no images": (arrays(image=image[:0]), ("(0, 8, 8)",)),
        "images of no pixels": (arrays(image=np.zeros((4, 0, 8), np.uint8)), ("(4, 0, 8)",)),
        "images of NaN": (arrays(image=np.full((4, 8, 8), np.nan, np.float32)), ("float32",)),
        "images of rank 5": (arrays(image=image[..., None, None]), ("(20, 8, 8, 1, 1)",)),
        "images of 16 bits": (arrays(image=image.astype(np.uint16)), ("uint16",)),
        "labels below zero": (arrays(image=image, label=np.full(20, -1)), ("labels",)),
        "labels beyond counting": (arrays(image=image, label=np.arange(20) * 10**9), ("19000000000", "131,072")),
        "labels of 64 bits": (arrays(image=image, label=np.full(20, 2**64 - 1, np.uint64)), ("18446744073709551615",)),
        "labels of fractions": (arrays(image=image, label=np.zeros(20)), ("float64",)),
        "labels of words": (arrays(image=image, label=np.full(20, "cat")), ("labels",)),
        "labels of one number": (arrays(image=image, label=np.int64(3)), ("labels",)),
        "labels of two columns": (arrays(image=image, label=np.zeros((20, 2), int)), ("(20, 2)",)),
    }
    for name, (content, words) in table.items():

        def make(folder: Path, content=content) -> list[str]:
            (folder / "x.npz").write_bytes(content)
            return [f"--dataset=npz:{folder / 'x.npz'}"]

        yield Case(f"npz: {name}", make, ("x.npz", *words))

    def pipe(folder: Path) -> list[str]:
        os.mkfifo(folder / "x.npz")
        return [f"--dataset=npz:{folder / 'x.npz'}"]

    yield Case("npz: a pipe", pipe, ("x.npz",))
