"""A table of malformed inputs: flags, images, archives, configs and checkpoints, and how each is refused.

    for case in cases():
        found = refuse(case, folder)     # {"code": 2, "seconds": 0.3, "out": "", "err": "error: ...", "left": []}
        problems(case, found)            # []

A case makes its files in an empty folder and gives the arguments of an experiment. What is expected of all of them:
exit code 2, one line on stderr that begins with `error: ` and holds the case's words, no file written, 10 s at most.
"""

import contextlib
import importlib
import io
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxgan import flags
from tests.malformed_data import Case, among, archive_cases, arrays, encoded, image_cases
from tests.malformed_runs import checkpoint_cases, config_cases, forget_run, good_run, sampled, stored_run
from tests.runs import ROOT, TINY

__all__ = ["Case", "cases", "forget_run", "good_run", "problems", "refuse"]

SECONDS = 10  # that a refusal may take


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
    return {os.path.join(place, name) for place, *names in os.walk(folder) for name in itertools.chain(*names)}  # noqa: PTH118


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
        "a loss of the system": ("--loss=os:system", "os:system", "jaxgan.losses.Loss"),
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
        "a data set of a colon": ("--dataset=htpp:x", "'htpp'"),
        "a data set of many letters": ("--dataset=" + 5000 * "x", "xxx"),
        "a data set with arguments": ("--dataset=mnist/data_dir=x --data_dir={}", "mnist"),
        "a folder with a zero byte": ("--dataset=folder:a\0b", "\\x00"),
        "a work directory of two lines": ("--workdir=a\nb", "\\n"),
        "a work directory of no letters": ("--workdir=a\udcffb", "udcff"),
        "a flag of dashes": ("---x", "---x"),
        "a flag without a name": ("--=5", "--"),
        "a flag without a value": ("--batch_size", "batch_size"),
        "a flag of control characters": ("--x\x1b[31m=1", "x"),
        "a work directory on the web": ("--workdir=http://example.invalid/x", "'http://example.invalid/x'", "gs://"),
        "a folder on the web": ("--dataset=folder:ftp://example.invalid/x", "ftp://", "gs://"),
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
