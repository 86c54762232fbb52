"""Images from a trained run. The ending of --out says what is made: a grid, an array file, an animation, or a folder.

    python -m experiments.generate --run=runs/digits --out=grid.png --num=64
    python -m experiments.generate --run=runs/digits --out=images.npz --num=10000 --truncation=0.7
    python -m experiments.generate --run=runs/digits --out=walk.gif --num=16 --frames=120
    python -m experiments.generate --run=runs/digits --out=images/ --num=10000 --classes=cat,dog

A folder holds numbered PNGs, those of a conditional model in a sub-folder for each class, which has the name of the
class; `--dataset=folder:images` and `--dataset=npz:images.npz` train on the result. One image alone (`--num=1`) is
written as it is, at its own size. The same seed gives the same images, whatever their number.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import jax
import numpy as np
import tqdm
from etils import epath
from PIL import Image

from jaxgan import classes, files, flags, folders, loop, memory, numerics, report, trained, workdir
from jaxgan.config import Common
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.images import MODES, to_uint8
from jaxgan.trained import Trained

ENDINGS = (".png", ".npz", ".gif")  # and none: a folder
STOPS = 4  # latents that each tile of an animation visits
FRAME_MS = 50
LARGEST_GIF = 65_535  # pixels a side
CLEAR = 255  # the place in the palette of a GIF that is transparent
OPAQUE = 128  # the least alpha of what is not transparent in a GIF, which has no degrees


NEEDS = {"frames": flags.Need(lambda c: c.out.lower().endswith(".gif"), "without --out=NAME.gif, an animation")}


@dataclasses.dataclass(frozen=True)
class Config:
    needs: ClassVar[Mapping[str, flags.Need]] = NEEDS

    run: str = option("", "directory of the run")
    out: str = option("", "what to write: a grid.png, arrays.npz, an animated walk.gif, or a folder of PNGs")
    num: int = option(64, "images, or tiles of an animation")
    seed: int = option(0, "seed of the latents")
    classes: tuple[str, ...] = option(
        (), "classes of a conditional model, by name or number, which take turns; empty: all of them"
    )
    truncation: float | None = option(
        None, "largest |z|, or ψ of a style generator: below 1 more typical images of less variety"
    )
    step: int | None = option(None, "the checkpoint to take; none: the newest")
    frames: int = option(80, f"frames of an animation, {1000 // FRAME_MS} a second")
    overwrite: bool = option(False, "replace --out if it exists")
    allow_code: bool = option(False, "run code from outside jaxgan, if the run names a network there")


def main(config: Config) -> None:
    check(config)
    loop.setup(Common(num_hosts=1))
    out, ending = place(config, flags.read(files.reach(config.run))["config"])
    gan = trained.load(config.run, step=config.step, allow=config.allow_code)
    if config.truncation == 0 and not gan.styled:
        raise InputError("--truncation=0: expected a number above 0, the largest |z|; 0 is for style generators")
    gan = gan.truncated(config.truncation)
    h, w, c = gan.generator.shape
    # All latents, and all images but for those that go into files of their own.
    numbers = gan.generator.latent * (STOPS if ending == ".gif" else 1) * 4 + (h * w * c if ending else 0)
    memory.check(config.num * numbers, f"--num={config.num} images of {h}x{w}x{c}", "expected fewer")
    if ending != ".npz" and c not in MODES:
        raise InputError(f"--out={config.out}: a picture has 1, 3 or 4 channels, these images {c}; expected an .npz")
    count = gan.generator.num_classes
    names = class_names(config.run, count)
    if config.classes and not count:
        raise InputError(
            f"--classes={','.join(map(str, config.classes))}: the generator of {config.run} is unconditional"
        )
    chosen = classes.resolve(config.classes, names, count, config.run) or tuple(range(count))
    label = gan.labels(np.resize(chosen, config.num) if chosen else None, config.num)
    key = numerics.key(config.seed)
    try:
        if ending == ".gif":
            stops = gan.latents(key, STOPS * config.num).reshape(STOPS, config.num, -1)
            files.write(out, animate(gan, stops, label, config))
        else:
            batches = generate(gan, gan.latents(key, config.num), label)
            if ending == ".png":
                report.save_png(out, picture(np.concatenate(list(batches))))
            elif ending == ".npz":
                files.write(out, archive(np.concatenate(list(batches)), label))
            else:
                write_folder(out, batches, label, count, names)
    except OSError as error:
        raise InputError(f"cannot write --out={config.out}: {error.strerror or error}") from None
    what = f"{config.frames} frames of {config.num} tiles" if ending == ".gif" else f"{config.num} images"
    if chosen:
        what += f" of {classes.shown([classes.names_of(names, count)[k] for k in chosen])}"
    print(f"wrote {what}, {h}x{w}x{c}, to {config.out}")


def check(config: Config) -> None:
    """Raises InputError for a flag that is wrong, before anything is read."""
    for name, example in {"run": "runs/digits", "out": "grid.png"}.items():
        if not getattr(config, name):
            raise InputError(f"--{name} is empty; expected for example --{name}={example}")
    for name, least in {"num": 1, "frames": 2}.items():
        if getattr(config, name) < least:
            raise InputError(f"--{name}={getattr(config, name)}: expected at least {least}")
    if config.truncation is not None and config.truncation < 0:
        raise InputError(
            f"--truncation={config.truncation}: expected a number above 0, the largest |z|, or ψ of a style generator, "
            "of which 0 is the mean image"
        )
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed={config.seed}: expected 0 to {2**32 - 1}")


def class_names(run: str, count: int | None = None) -> tuple[str, ...]:
    """Of the data that a run was trained on, in its order; () where they are not `count` names (None: any number)."""
    names = tuple(workdir.data_of(files.reach(run)).get("classes", ()))
    return names if count in (None, len(names)) else ()


def place(config: Config, stored: dict[str, Any]) -> tuple[epath.Path, str]:
    """Where to write, and the ending ("": a folder). Raises InputError for a place that may not be written to."""
    ending = "" if config.out.endswith(("/", os.sep)) else epath.Path(config.out).suffix.lower()
    if ending and ending not in ENDINGS:
        raise InputError(
            f"--out={config.out}: unknown ending {ending!r}; expected {', '.join(ENDINGS)}, "
            f"or a folder: no ending, or a slash at the end"
        )
    names = class_names(config.run)
    homes = "|".join([r"\d+", *(re.escape(home) for home in folders.class_folders(names, len(names)))])
    own = re.compile(rf"({homes})/|(({homes})/)?\d{{6,}}\.png")  # what this script writes into a folder
    out = files.destination("--out", config.out, config.overwrite, folder=not ending, own=own)
    dataset, split, inside = str(stored.get("dataset", "")), str(stored.get("split", "train")), False
    kind, _, folder = dataset.partition(":")
    if kind == "folder" and ending in ("", ".png"):
        with contextlib.suppress(InputError):  # the data need not be there, nor be readable
            inside = folders.reads(folder, split, out)
    if inside:
        raise InputError(f"--out={config.out} lies in {dataset}, the data of the run; choose a place outside")
    return out, ending


def picture(images: np.ndarray) -> np.ndarray:
    """What a .png and a frame of a .gif show: a grid, or one image alone as it is."""
    return images[0] if len(images) == 1 else report.grid(images)


def generate(gan: Trained, z: jax.Array, label: np.ndarray | None) -> Iterator[np.ndarray]:
    """uint8 images, batch by batch, with a bar if it takes long."""
    with tqdm.tqdm(total=len(z), desc="generating", unit=" images", delay=1.0, leave=False) as bar:
        for images in gan.batches(z, label):
            yield to_uint8(images)
            bar.update(len(images))


def archive(images: np.ndarray, label: np.ndarray | None) -> bytes:
    buffer = io.BytesIO()
    arrays = {"image": images} if label is None else {"image": images, "label": label}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def animate(gan: Trained, stops: jax.Array, label: np.ndarray | None, config: Config) -> bytes:
    """A GIF that loops; its first frame is the grid that the same flags make of a .png."""
    path = walk(stops, config.frames)
    bar = tqdm.tqdm(path, "generating", config.frames, unit=" frames", delay=1.0, leave=False)
    pictures = (frame(picture(to_uint8(gan.images(z, label)))) for z in bar)
    first = next(pictures)
    if max(first.size) > LARGEST_GIF:
        raise InputError(f"--num={config.num}: a GIF of {first.width}x{first.height} pixels; {LARGEST_GIF} is the most")
    buffer = io.BytesIO()
    # Where there is transparency, each frame is wiped before the next.
    clear = {"transparency": CLEAR, "disposal": 2} if first.mode == "P" else {}
    first.save(buffer, format="GIF", save_all=True, append_images=pictures, duration=FRAME_MS, loop=0, **clear)
    return buffer.getvalue()


def frame(array: np.ndarray) -> Image.Image:
    """uint8 (h, w, 1, 3 or 4) as an image of a GIF: RGBA on white where it is seen at all, the rest transparent."""
    if array.shape[-1] != 4:
        return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    colors = Image.fromarray(report.on_white(array)).quantize(CLEAR)
    places = np.where(array[..., 3] < OPAQUE, np.uint8(CLEAR), np.asarray(colors))
    image = Image.fromarray(places, "P")
    image.putpalette([*(colors.getpalette() or []), *[255] * 768][:768])
    return image


def walk(stops: jax.Array, frames: int) -> Iterator[jax.Array]:
    """Points (n, latent) on the way through stops (s, n, latent) and back to the first.

    Between independent stops lie arcs, whose points are all N(0, I), since cos² + sin² = 1. A straight line would pass
    through latents far shorter than any that the generator was trained on (arXiv:1609.04468, section 2.1).
    """
    for t in np.arange(frames) * (len(stops) / frames):
        i, angle = int(t), (t % 1) * np.pi / 2
        yield float(np.cos(angle)) * stops[i] + float(np.sin(angle)) * stops[(i + 1) % len(stops)]


def write_folder(
    out: epath.Path,
    batches: Iterator[np.ndarray],
    label: np.ndarray | None,
    count: int,
    names: Sequence[str] = (),
) -> None:
    """PNGs `000017.png`, of a conditional model `cat/000017.png`, all or none: they are moved into place together.

    names: of the classes, which folders have too (`folders.class_folders`).
    """
    homes = folders.class_folders(names, count)

    def save(part: epath.Path, i: int, image: np.ndarray) -> None:
        inner = part if label is None else part / homes[label[i]]
        report.save_png(inner / f"{i:06d}.png", image)

    with files.replacing(out) as part, ThreadPoolExecutor() as pool:
        start = 0
        for images in batches:
            list(pool.map(save, itertools.repeat(part), range(start, start + len(images)), images))
            start += len(images)


if __name__ == "__main__":
    flags.main(Config, {}, main)
