"""Images from a trained run. The ending of --out says what is made: a grid, an array file, an animation, or a folder.

    python -m experiments.generate --run=runs/digits --out=grid.png --num=64
    python -m experiments.generate --run=runs/digits --out=images.npz --num=10000 --truncation=0.7
    python -m experiments.generate --run=runs/digits --out=walk.gif --num=16 --frames=120
    python -m experiments.generate --run=runs/digits --out=images/ --num=10000 --classes=3,5

A folder holds numbered PNGs, those of a conditional model in a sub-folder for each class; `--dataset=folder:images` and
`--dataset=npz:images.npz` train on the result. The same seed gives the same images, whatever their number.
"""

import dataclasses
import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import jax
import numpy as np
import tqdm
from etils import epath
from PIL import Image

from jaxgan import files, flags, loop, memory, numerics, report, trained
from jaxgan.config import Common
from jaxgan.errors import InputError
from jaxgan.flags import option
from jaxgan.images import to_uint8
from jaxgan.trained import Trained

ENDINGS = (".png", ".npz", ".gif")  # and none: a folder
STOPS = 4  # latents that each tile of an animation visits
FRAME_MS = 50
LARGEST_GIF = 65_535  # pixels a side
OWN = re.compile(r"\d+/|(\d+/)?\d+\.png")  # what this script writes into a folder


NEEDS = {"frames": flags.Need(lambda c: c.out.lower().endswith(".gif"), "without --out=NAME.gif, an animation")}


@dataclasses.dataclass(frozen=True)
class Config:
    needs: ClassVar[Mapping[str, flags.Need]] = NEEDS

    run: str = option("", "directory of the run")
    out: str = option("", "what to write: a grid.png, arrays.npz, an animated walk.gif, or a folder of PNGs")
    num: int = option(64, "images, or tiles of an animation")
    seed: int = option(0, "seed of the latents")
    classes: tuple[int, ...] = option((), "classes of a conditional model, which take turns; empty: all of them")
    truncation: float | None = option(
        None, "largest |z|, or ψ of a style generator: below 1 more typical images of less variety"
    )
    step: int | None = option(None, "the checkpoint to take; none: the newest")
    frames: int = option(80, f"frames of an animation, {1000 // FRAME_MS} a second")
    overwrite: bool = option(False, "replace --out if it exists")
    allow_code: bool = option(False, "run code from outside jaxgan, if the run names a network there")


def main(config: Config) -> None:
    out, ending = check(config)
    loop.setup(Common(num_hosts=1))
    gan = trained.load(config.run, step=config.step, allow=config.allow_code).truncated(config.truncation)
    h, w, c = gan.generator.shape
    # All latents, and all images but for those that go into files of their own.
    numbers = gan.generator.latent * (STOPS if ending == ".gif" else 1) * 4 + (h * w * c if ending else 0)
    memory.check(config.num * numbers, f"--num={config.num} images of {h}x{w}x{c}", "expected fewer")
    if not ending and c not in (1, 3):
        raise InputError(f"--out={config.out}: a PNG has 1 or 3 channels, these images {c}; expected an .npz")
    label = gan.labels(np.resize(config.classes, config.num) if config.classes else None, config.num)
    key = numerics.key(config.seed)
    try:
        if ending == ".gif":
            stops = gan.latents(key, STOPS * config.num).reshape(STOPS, config.num, -1)
            files.write(out, animate(gan, stops, label, config))
        else:
            batches = generate(gan, gan.latents(key, config.num), label)
            if ending == ".png":
                report.save_png(out, report.grid(np.concatenate(list(batches))))
            elif ending == ".npz":
                files.write(out, archive(np.concatenate(list(batches)), label))
            else:
                write_folder(out, batches, label, gan.generator.num_classes)
    except OSError as error:
        raise InputError(f"cannot write --out={config.out}: {error.strerror or error}") from None
    what = f"{config.frames} frames of {config.num} tiles" if ending == ".gif" else f"{config.num} images"
    print(f"wrote {what}, {h}x{w}x{c}, to {config.out}")


def check(config: Config) -> tuple[epath.Path, str]:
    """Where to write, and the ending ("": a folder). Raises InputError for what is wrong before anything is loaded."""
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
    ending = "" if config.out.endswith(("/", os.sep)) else epath.Path(config.out).suffix.lower()
    if ending and ending not in ENDINGS:
        raise InputError(
            f"--out={config.out}: unknown ending {ending!r}; expected {', '.join(ENDINGS)}, "
            f"or a folder: no ending, or a slash at the end"
        )
    return files.destination("--out", config.out, config.overwrite, folder=not ending, own=OWN), ending


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
    grids = (report.grid(to_uint8(gan.images(z, label))) for z in bar)
    pictures = (Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid) for grid in grids)
    first = next(pictures)
    if max(first.size) > LARGEST_GIF:
        raise InputError(f"--num={config.num}: a GIF of {first.width}x{first.height} pixels; {LARGEST_GIF} is the most")
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=pictures, duration=FRAME_MS, loop=0)
    return buffer.getvalue()


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
    classes: int,
    names: Sequence[str] = (),
) -> None:
    """PNGs `000017.png`, of a conditional model `3/000017.png`, all or none: they are moved into place together.

    Class folders have `names`, or as many digits as the last class, so that their order is that of the classes.
    """
    folders = names or [f"{i:0{len(str(classes - 1))}d}" for i in range(classes)]

    def save(part: epath.Path, i: int, image: np.ndarray) -> None:
        inner = part if label is None else part / folders[label[i]]
        report.save_png(inner / f"{i:06d}.png", image)

    with files.replacing(out) as part, ThreadPoolExecutor() as pool:
        start = 0
        for images in batches:
            list(pool.map(save, itertools.repeat(part), range(start, start + len(images)), images))
            start += len(images)


if __name__ == "__main__":
    flags.main(Config, {}, main)
