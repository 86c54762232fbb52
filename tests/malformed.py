"""A table of malformed inputs: flags, files of flags, images, archives, configs and checkpoints, and how each is refused.

    for case in cases():
        found = refuse(case, folder)     # {"code": 2, "seconds": 0.3, "out": "", "err": "error: ...\n"}

A case makes its files in an empty folder and gives the arguments of an experiment. What is expected of all of them: exit
code 2, one line on stderr that begins with `error: ` and holds the words of the case, no file written, ten seconds.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxgan import flags
from tests.runs import ROOT, TINY

SECONDS = 10  # that a refusal may take
Make = Callable[[Path], list[str]]  # an empty folder -> arguments


class Case(NamedTuple):
    name: str
    make: Make
    words: tuple[str, ...] = ()
    script: str = "image"


@functools.cache
def good_run() -> Path:
    """A run of ten steps, made once in a process; cases take copies."""
    workdir = Path(tempfile.mkdtemp(prefix="jaxgan-malformed-")) / "run"
    command = [sys.executable, "-m", "experiments.image", *TINY, "--steps=10", f"--workdir={workdir}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return workdir


def forget_run() -> None:
    """Removes what `good_run` made."""
    if good_run.cache_info().currsize:
        shutil.rmtree(good_run().parent, ignore_errors=True)
        good_run.cache_clear()


def arguments(case: Case, folder: Path) -> list[str]:
    """Makes the files of a case; for training, the flags of a run of a few seconds before its own."""
    given = case.make(folder)
    return [*TINY, "--steps=5", f"--workdir={folder / 'new'}", *given] if case.script == "image" else given


def refuse(case: Case, folder: Path, program: bool = True) -> dict:
    """Runs a case in an empty folder, as a program or in this process; `left`: what it wrote there."""
    argv = arguments(case, folder)
    before, start = listing(folder), time.monotonic()
    if program:
        command = [sys.executable, "-m", f"experiments.{case.script}", *argv]
        # So many bytes as a name on the command line may hold: any but zero.
        done = subprocess.run(list(map(os.fsencode, command)), cwd=ROOT, capture_output=True, timeout=120, check=False)
        code, out, err = done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    else:
        script, code = importlib.import_module(f"experiments.{case.script}"), 0
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as complained:
            try:
                flags.main(script.Config, getattr(script, "PRESETS", {}), script.main, argv)
            except SystemExit as ending:
                code = ending.code
        out, err = said.getvalue(), complained.getvalue()
    seconds = time.monotonic() - start
    return {"code": code, "seconds": seconds, "out": out, "err": err, "left": sorted(listing(folder) - before)}


def problems(case: Case, found: dict) -> list[str]:
    """What is not as it should be with an answer of `refuse`."""
    err, wrong = found["err"], []
    if found["code"] != 2:
        wrong.append(f"exit code {found['code']}")
    if not (err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")):
        wrong.append(f"stderr {err[-600:]!r}")
    wrong += [f"no word {word!r} in {err[:600]!r}" for word in case.words if word not in err]
    if found["out"] or found["left"]:
        wrong.append(f"it left {found['out'][:200]!r} and {found['left'][:5]}")
    if found["seconds"] > SECONDS:
        wrong.append(f"it took {found['seconds']:.1f} s")
    return wrong


def listing(folder: Path) -> set[str]:
    return {os.path.join(place, name) for place, *names in os.walk(folder) for name in sum(names, [])}  # noqa: PTH118


def cases() -> Iterator[Case]:
    """All of them, in the same order and with the same bytes each time."""
    yield from flag_cases()
    yield from flagfile_cases()
    yield from image_cases()
    yield from archive_cases()
    yield from config_cases()
    yield from checkpoint_cases()
    yield from damaged_cases()


# --- flags


def flag_cases() -> Iterator[Case]:
    table = {
        "steps beyond counting": ("--steps=99999999999", "--steps", "2,147,483,647"),
        "steps of many digits": ("--steps=" + 5000 * "9", "--steps=999", "integer"),
        "steps of a fraction": ("--steps=1e3", "--steps=1e3", "integer"),
        "a batch beyond memory": ("--batch_size=10000000 --size=64", "10,000,000", "memory"),
        "a batch beyond counting": (f"--batch_size={10**12}", "--batch_size"),
        "a call beyond counting": (f"--steps_per_call={10**9} --steps={10**9}", "--steps_per_call"),
        "an evaluation beyond counting": (f"--eval_every=5 --eval_samples={10**12}", "--eval_samples"),
        "networks beyond memory": ("--width=100000", "networks", "memory"),
        "networks beyond counting": (f"--width={10**9}", "networks"),
        "latents beyond counting": (f"--latent={10**9}", "networks"),
        "moves beyond counting": (f"--disc_steps={10**9}", "batches", "memory"),
        "a look ahead beyond counting": (f"--unroll={10**9}", "--unroll"),
        "an interval beyond counting": (f"--r1=1 --penalty_every={10**30}", "--penalty_every"),
        "pixels beyond counting": ("--size=1000000x1000000", "size", "pixels"),
        "a size of many digits": ("--size=" + 5000 * "9", "size", "pixels"),
        "pixels beyond memory": ("--size=10000", "memory", "digits"),
        "a rate of no number": ("--learning_rate=nan", "nan", "finite"),
        "a rate without end": ("--learning_rate=1e999", "1e999", "finite"),
        "rates without a number between": ("--learning_rate=1e-4,,", "--learning_rate", "number"),
        "a truth of no truth value": ("--conditional=maybe", "maybe", "true or false"),
        "a metric": ("--metrics=fidd", "'fidd'", "'fid'"),
        "features of the system": ("--eval_every=5 --metrics=fid --features=os:system", "system"),
        "a loss of the system": ("--loss=os:system", "'system'"),
        "a loss that is a module's import": ("--loss=jaxgan.losses:np.load", "'np.load'"),
        "a loss without a module": ("--loss=:x", "''"),
        "a loss above the package": ("--loss=..x:y", "'..x'"),
        "a model of the system": ("--model=os.path", "os.path"),
        "a model above the package": ("--model=../dcgan", "../dcgan"),
        "augmentation": ("--augment=color,shfit", "'shfit'"),
        "a seed below zero": ("--seed=-1", "--seed=-1"),
        "devices below zero": ("--devices=-1", "--devices=-1"),
        "a split above the folder": ("--dataset=folder:{}/x --split=../y", "../y"),
        "a data set above a folder": ("--dataset=../../etc --data_dir={}", "../../etc"),
        "a data set of a colon": ("--dataset=http://example.invalid/x", "'http'"),
        "a data set of many letters": ("--dataset=" + 5000 * "x", "xxx"),
        "a data set with arguments": ("--dataset=mnist/data_dir=x --data_dir={}", "mnist"),
        "a folder with a zero byte": ("--dataset=folder:a\0b", "\\x00"),
        "a work directory of two lines": ("--workdir=a\nb", "\\n"),
        "a work directory of no letters": ("--workdir=a\udcffb", "udcff"),
        "a flag of dashes": ("---x", "---x"),
        "a flag without a name": ("--=5", "--"),
        "a flag without a value": ("--batch_size", "batch_size"),
        "a flag of control characters": ("--x\x1b[31m=1", "x"),
        "skipping images of arrays": ("--skip_bad_images", "--skip_bad_images", "folder:DIR"),
    }
    for name, (given, *words) in table.items():

        def make(folder: Path, given=given) -> list[str]:
            (folder / "x").mkdir()
            return given.replace("{}", str(folder)).split(" ")

        yield Case(f"flags: {name}", make, tuple(words))
    table = {
        "images beyond memory": ("--num=100000000000", "--num", "memory"),
        "no images": ("--num=0", "--num=0"),
        "a class beyond counting": (f"--classes={10**30}", "class"),
        "a step beyond counting": (f"--step={10**30}", "no checkpoint of step"),
        "no truncation": ("--truncation=0", "--truncation"),
        "a file of another kind": ("--out={}/x.exe", ".exe"),
    }
    for name, (given, *words) in table.items():

        def ask(folder: Path, given=given) -> list[str]:
            return [f"--run={good_run()}", f"--out={folder}/x.png", *given.replace("{}", str(folder)).split(" ")]

        yield Case(f"generate: {name}", ask, tuple(words), "generate")


def flagfile_cases() -> Iterator[Case]:
    table = {
        "random bytes": (bytes(range(256)), ()),
        "a zero byte": (b"--workdir=a\0b\n", ("\\x00",)),
        "an unknown flag": (b"--steps=5\n--nonsense=1\n", ("--nonsense",)),
        "another that is missing": (b"--flagfile=/nowhere/x.txt\n", ("/nowhere/x.txt",)),
        "prose": (b"steps are five\n", ("steps",)),
        "a wrong value": (b"--steps=\xc3\xa9\n", ("--steps",)),
    }
    for name, (content, words) in table.items():

        def make(folder: Path, content=content) -> list[str]:
            (folder / "flags.txt").write_bytes(content)
            return [f"--flagfile={folder / 'flags.txt'}"]

        yield Case(f"flag file: {name}", make, words)

    def is_folder(folder: Path) -> list[str]:
        (folder / "flags.txt").mkdir()
        return [f"--flagfile={folder / 'flags.txt'}"]

    yield Case("flag file: a folder", is_folder, ("flags.txt",))


# --- images


def png(w: int, h: int, data: bytes = b"", bits: int = 8, colour: int = 0) -> bytes:
    """A PNG whose header says what it is told to."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0))
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
        "a TIFF": encoded("TIFF"),
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
        given = ["--skip_bad_images"]
        skip = lambda folder, bad=bad: bad(folder) + given  # noqa: E731
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


# --- runs


def stored_run(folder: Path) -> Path:
    """A copy of the good run, in which links to its files stand for them where nothing is changed."""
    shutil.copytree(good_run(), folder / "run")
    return folder / "run"


def sampled(folder: Path, *given: str) -> list[str]:
    return [f"--run={folder / 'run'}", f"--out={folder / 'grid.png'}", *given]


def config_cases() -> Iterator[Case]:
    def with_text(content: bytes) -> Make:
        def make(folder: Path) -> list[str]:
            (stored_run(folder) / "config.json").write_bytes(content)
            return sampled(folder)

        return make

    texts = {
        "nothing": b"",
        "random bytes": bytes(range(256)) * 4,
        "UTF-16": '{"config": {}}'.encode("utf-16"),
        "a list": b"[]",
        "a number": b"5",
        "no networks": b'{"config": {}}',
        "a network of a list": b'{"config": {}, "networks": {"generator": {"path": []}}}',
        "a network of null": b'{"config": {}, "networks": {"generator": null}}',
        "a network of text": b'{"config": {}, "networks": {"generator": "x"}}',
        "not a number": b'{"config": {"x": NaN}}',
        "infinity": b'{"config": {"x": -Infinity}}',
        "two entries of one name": b'{"config": {}, "config": {}}',
        "brackets beyond counting": b'{"config": ' + b"[" * 10**6,
        "brackets that close": b'{"config": {"x": ' + b"[" * 900 + b"]" * 900 + b"}}",
        "a number beyond counting": b'{"config": {"x": ' + b"9" * 10**5 + b"}}",
        "a file that is too long": b'{"config": {"x": "' + b"x" * 2**24 + b'"}}',
        "a comma too many": b'{"config": {},}',
    }
    for name, content in texts.items():
        yield Case(
            f"config: {name}", with_text(content), ("expected" if b"networks" in content else "run",), "generate"
        )

    def with_network(change: Callable[[dict], object], *given: str) -> Make:
        def make(folder: Path) -> list[str]:
            file = stored_run(folder) / "config.json"
            stored = json.loads(file.read_text())
            change(stored["networks"]["generator"])
            file.write_text(json.dumps(stored))
            return sampled(folder, *given)

        return make

    def argument(**given) -> Callable[[dict], object]:
        return lambda network: network["arguments"].update(given)

    changes: dict[str, tuple[Callable[[dict], object], tuple[str, ...]]] = {
        f"path {path}": (lambda network, path=path: network.update(path=path), ("network",) if ":" not in path else ())
        for path in (
            "os:system", "subprocess:Popen", "jaxgan...evil:Generator", "jaxgan.models...:Generator", "builtins:exec",
            "jaxgan.../../evil:Generator", "jaxgan.models.../evil:Generator", "jaxgan.losses:np.load",
            "jaxgan.models.dcgan:nn.Module", "jaxgan.models.dcgan:nn", "jaxgan.models.dcgan:__builtins__",
            "jaxgan.models.dcgan:Generator.__init__", "jaxgan.models:dcgan", ":", "", "a:b:c", "jaxgan.models.dcgan:",
            "experiments.image:Config", "jaxgan.models.none:Generator", "jaxgan.models.classifier:Classifier",
        )
    }  # fmt: skip
    changes |= {
        "a path of a number": (lambda network: network.update(path=5), ("network",)),
        "arguments of text": (lambda network: network.update(arguments="x"), ("network",)),
        "an unknown argument": (argument(colour=1), ("'colour'",)),
        "the argument parent": (argument(parent=1), ("'parent'",)),
        "a width beyond counting": (argument(width=10**9), ("width", "1,000,000,000")),
        "a width of many digits": (argument(width=10**4000), ("width",)),
        "a width that is not the weights'": (argument(width=64), ("does not fit",)),
        "a width below zero": (argument(width=-4), ("does not fit",)),
        "a width of text": (argument(width="4"), ("does not fit",)),
        "a width of a dict": (argument(width={"a": 1}), ("does not fit",)),
        "a latent of 0": (argument(latent=0), ("does not fit",)),
        "a latent of half": (argument(latent=8.5), ("does not fit",)),
        "images beyond counting": (argument(shape=[10**6, 10**6, 1]), ("does not fit",)),
        "images of another rank": (argument(shape=[8]), ("does not fit",)),
        "images of no pixels": (argument(shape=[0, 0, 0]), ("does not fit",)),
        "images of words": (argument(shape="abc"), ("does not fit",)),
        "classes beyond counting": (argument(num_classes=10**6), ("does not fit",)),
        "numbers of objects": (argument(dtype="object"), ("dtype", "float32")),
        "numbers of a list": (argument(dtype=["f4", "f4"]), ("dtype",)),
        "numbers of a petabyte": (argument(dtype="S1000000000000000"), ("dtype",)),
    }
    for name, (change, words) in changes.items():
        yield Case(f"config: {name}", with_network(change), words, "generate")

    def kinds(make_file: Callable[[Path], object]) -> Make:
        def make(folder: Path) -> list[str]:
            (stored_run(folder) / "config.json").unlink()
            make_file(folder / "run" / "config.json")
            return sampled(folder)

        return make

    yield Case("config: a pipe", kinds(os.mkfifo), ("config.json",), "generate")
    yield Case("config: a folder", kinds(lambda path: path.mkdir()), ("config.json",), "generate")
    yield Case("config: a link to itself", kinds(lambda path: path.symlink_to(path)), ("run",), "generate")
    yield Case(
        "config: a link to a device", kinds(lambda path: path.symlink_to("/dev/zero")), ("config.json",), "generate"
    )

    def of_data(**changed) -> Make:
        def make(folder: Path) -> list[str]:
            file = stored_run(folder) / "config.json"
            stored = json.loads(file.read_text())
            stored["config"].update(changed)
            file.write_text(json.dumps(stored))
            return [f"--run={folder / 'run'}", "--num=20", "--features=pixels"]

        return make

    yield Case("evaluate: a data set of a number", of_data(dataset=5), ("dataset",), "evaluate")
    yield Case("evaluate: a data set elsewhere", of_data(dataset="ns:x"), ("'ns'",), "evaluate")
    yield Case("evaluate: a size of a list", of_data(size=[8, 8]), ("size",), "evaluate")
    yield Case("evaluate: channels of text", of_data(channels="1"), ("channels",), "evaluate")
    yield Case("evaluate: a size beyond memory", of_data(size="10000"), ("memory",), "evaluate")

    def imported(folder: Path) -> list[str]:
        version = folder / "tfds" / "faces" / "1.0.0"
        version.mkdir(parents=True)
        (folder / "evil.py").write_text("raise SystemExit(99)")
        feature = {"pythonClassName": "evil.Image", "jsonFeature": {"json": "{}"}}
        features = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
        features |= {"featuresDict": {"features": {"image": feature}}}
        (version / "features.json").write_text(json.dumps(features))
        (version / "dataset_info.json").write_text(json.dumps({"name": "faces", "version": "1.0.0", "splits": []}))
        return of_data(dataset="faces", data_dir=str(folder / "tfds"))(folder)

    yield Case("evaluate: a data set that imports", imported, ("evil",), "evaluate")


def checkpoint_cases() -> Iterator[Case]:
    def changed(change: Callable[[Path], object]) -> Make:
        def make(folder: Path) -> list[str]:
            change(stored_run(folder) / "checkpoints" / "10")
            return sampled(folder)

        return make

    def replaced(name: str, content: bytes) -> Callable[[Path], object]:
        return lambda step: (step / name).write_bytes(content)

    def piped(name: str) -> Callable[[Path], object]:
        def change(step: Path) -> None:
            (step / name).unlink()
            os.mkfifo(step / name)

        return change

    def looped(step: Path) -> None:
        shutil.rmtree(step)
        step.symlink_to(step)

    def elsewhere(step: Path) -> None:
        shutil.rmtree(step)
        step.symlink_to("/")

    def absurd(step: Path) -> None:
        """Arrays of a petabyte, in the description of each."""
        import tensorstore

        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{step}/state/"}).result()
        for key in store.list().result():
            if key.endswith((b".zarray", b"zarr.json")):
                described = json.loads(store[key])
                described["shape"] = [10**5 for _ in described["shape"]]
                described["chunks"] = [10**5 for _ in described.get("chunks", ())]
                store[key] = json.dumps(described).encode()

    def leaves(step: Path) -> None:
        """A table that agrees with itself."""
        file = step / "_CHECKPOINT_METADATA"
        found = json.loads(file.read_text())
        table = found["custom_metadata"]["leaves"]
        for entry in table.values():
            entry[1] = [10**7 for _ in entry[1]]
        found["custom_metadata"]["crc"] = zlib.crc32(json.dumps(table, sort_keys=True).encode())
        file.write_text(json.dumps(found))

    def all_of(pattern: str, content: bytes) -> Callable[[Path], object]:
        return lambda step: [path.write_bytes(content) for path in step.rglob(pattern) if path.is_file()]

    table: dict[str, Callable[[Path], object]] = {
        "nothing in it": lambda step: (shutil.rmtree(step), step.mkdir()),
        "a file of its name": lambda step: (shutil.rmtree(step), step.write_text("x")),
        "a link to itself": looped,
        "a link to the root": elsewhere,
        "no table": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
        "a table of random bytes": replaced("_CHECKPOINT_METADATA", bytes(range(256))),
        "a table of brackets": replaced("_CHECKPOINT_METADATA", b"[" * 10**6),
        "a table of a list": replaced("_CHECKPOINT_METADATA", b"[]"),
        "a table of pipes": piped("_CHECKPOINT_METADATA"),
        "a tree of random bytes": replaced("state/_METADATA", bytes(range(256))),
        "a tree of nothing": replaced("state/_METADATA", b"{}"),
        "a tree of brackets": replaced("state/_METADATA", b"[" * 10**6),
        "an index of random bytes": replaced("state/manifest.ocdbt", bytes(range(256))),
        "an index of pipes": piped("state/manifest.ocdbt"),
        "arrays beyond counting": absurd,
        "a table beyond counting": leaves,
        "numbers of zeros": all_of("d/*", bytes(1000)),
        "no numbers": lambda step: [shutil.rmtree(path) for path in list(step.rglob("d"))],
    }
    for name, change in table.items():
        yield Case(f"checkpoint: {name}", changed(change), ("checkpoint",), "generate")

    def none(folder: Path) -> list[str]:
        shutil.rmtree(stored_run(folder) / "checkpoints")
        return sampled(folder)

    yield Case("checkpoint: none", none, ("no checkpoint",), "generate")


# --- random damage, the same each time


def damaged_cases(each: int = 4) -> Iterator[Case]:
    """Good files cut short, and texts of random flags."""
    chance = random.Random(0)
    for form, ending in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")):
        data = encoded(form, (40, 30))
        for _ in range(each):
            cut = chance.randrange(len(data) // 2)
            make = among(f"3.{ending}", data[:cut], "--size=8", "--channels=3")
            yield Case(f"damage: {form} cut at {cut}", make, (f"3.{ending}",))
    noise = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    data = arrays(image=noise)
    for _ in range(each):
        cut = chance.randrange(len(data))

        def archive(folder: Path, cut=cut) -> list[str]:
            (folder / "x.npz").write_bytes(data[:cut])
            return [f"--dataset=npz:{folder / 'x.npz'}"]

        yield Case(f"damage: npz cut at {cut}", archive, ("x.npz",))
    for i in range(each):
        share = chance.random()

        def config(folder: Path, share=share) -> list[str]:
            file = stored_run(folder) / "config.json"
            file.write_bytes(file.read_bytes()[: int(share * (file.stat().st_size - 2))])
            return sampled(folder)

        def checkpoint(folder: Path, share=share) -> list[str]:
            files = sorted((stored_run(folder) / "checkpoints" / "10" / "state").rglob("d/*"))
            for file in files:
                file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
            return sampled(folder)

        yield Case(f"damage: config cut, {i}", config, ("config.json",), "generate")
        yield Case(f"damage: checkpoint cut, {i}", checkpoint, ("checkpoint",), "generate")
    for i in range(each):
        text = "".join(chance.choices("abcdefghij_-=.,:/\t\x1b\u00e9\u4e2d", k=12))
        yield Case(f"damage: flag {i}", lambda _, text=text: [f"--{text}"])
