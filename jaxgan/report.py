"""What a run says while it runs: a progress bar, `metrics.jsonl`, TensorBoard events, and sample pictures.

    with Report("runs/digits", total_steps=10_000, batch_size=64) as report:
        with report.paused():
            ...                                       # compile, evaluate: no part of the rate
        report.log(step, images, {"disc/loss": 0.69})
        report.picture("", step, images, grid(samples))

A row of `metrics.jsonl` is strict JSON: `step`, `images`, the scalars by name, then `seconds` and `images_per_second`.
Floats are written by `repr`, so two runs are equal in bits when their rows are, less the last two fields. A NaN or an
infinity is `null`.
"""

import concurrent.futures
import contextlib
import errno
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from jaxgan import files, layout
from jaxgan.errors import InputError

METRICS = "metrics.jsonl"
_PLAIN_SECONDS = 10.0  # between lines where stderr is not a terminal
_REMOTE_SECONDS = 60.0  # between uploads of metrics.jsonl to a bucket, where nothing can be appended
_LOCAL = "jaxgan"  # what stands before a local path that tensorboardX is given
_TILE = 56  # pixels; small images are enlarged to this on their longer side
_PADDING = 2


class Report:
    """Writes the record of one run. One process of a run makes one; it is closed by `close` or by leaving `with`.

    Args:
      workdir: the run's directory, made if it is missing. Rows are appended to those it holds (see `truncate`).
      total_steps: where the bar ends.
      batch_size: images a step, over all devices; the rate is counted in images.
      start_step: the step this process starts from. TensorBoard drops what an earlier process logged after it.
      owed: whether the row of `start_step` itself is still to be logged, so that TensorBoard drops that too.
      tensorboard: whether to write events (and import tensorboardX).
      bar: whether to write to stderr: a bar on a terminal, else a line every 10 seconds at most.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        total_steps: int,
        batch_size: int,
        start_step: int = 0,
        owed: bool = False,
        tensorboard: bool = True,
        bar: bool = True,
    ):
        self._workdir = epath.Path(workdir)
        if not files.is_remote(self._workdir):
            self._workdir.mkdir(parents=True, exist_ok=True)
        self._total, self._batch_size = total_steps, batch_size
        self._rows = _Rows(self._workdir / METRICS)
        # Pictures are compressed and written beside the training, one after the other.
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="report")
        self._pictures: list[concurrent.futures.Future] = []
        self._writer = None
        if tensorboard:
            from tensorboardX import SummaryWriter
            from tensorboardX.record_writer import register_writer_factory

            # Its own writers end their thread when a write fails, for which the training then waits without end.
            register_writer_factory("gs", _Events)
            register_writer_factory(_LOCAL, _Events)
            # From step 0 too: a run may have been killed before its first checkpoint, or have gone back to the start.
            purge = start_step + (0 if owed else 1)
            place = self._workdir if files.is_remote(self._workdir) else f"{_LOCAL}:{self._workdir.absolute()}"
            self._writer = SummaryWriter(str(place), purge_step=purge, flush_secs=10)
        self._bar = None
        self._plain = bar and not sys.stderr.isatty()
        if bar and not self._plain:
            form = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bar = tqdm(total=total_steps, initial=start_step, bar_format=form, dynamic_ncols=True)
        self._start = time.monotonic()
        self._spoke = -math.inf
        self._mark: float | None = (
            None  # since when the time counts; none until the first call, which compiles, is over
        )
        self._step = start_step  # the last that was logged
        self._busy = 0.0  # seconds that count, since then
        self._rate: float | None = None  # images a second, smoothed

    def log(self, step: int, images: int, scalars: Mapping[str, Any]) -> None:
        """Records `scalars`, numbers or arrays of one number, after `step` steps and `images` images.

        The rate is that of the time since the call before, less `paused` time. The first call has one only if a
        `paused` block preceded it: before that, the time is taken to be compilation.
        """
        now = time.monotonic()
        rate = None
        if self._mark is not None:
            rate = (step - self._step) * self._batch_size / max(self._busy + now - self._mark, 1e-9)
            self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
        self._step, self._busy, self._mark = step, 0.0, now
        numbers = {name: np.asarray(scalars[name]).item() for name in sorted(scalars)}
        row = {"step": step, "images": images}
        timing = {"seconds": round(now - self._start, 3), "images_per_second": rate if rate is None else round(rate, 2)}
        assert not numbers.keys() & {*row, *timing}, f"reserved names in {sorted(numbers)}"
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._rows.append(json.dumps(row | finite | timing, allow_nan=False))
        if self._writer:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)
            if rate is not None:
                self._writer.add_scalar("images_per_second", rate, step)
        with contextlib.suppress(OSError):  # the terminal may have been closed
            self._show(step, images, numbers)

    def picture(self, name: str, step: int, images: int, grid: np.ndarray) -> None:
        """Writes `grid`, uint8 (h, w, 1, 3 or 4), to `samples/{name}_{step:07d}.png` (no name: `{step:07d}.png`).

        In a thread: `flush` waits for it, and raises what it raised.
        """
        prefix = name.replace("/", "_") + "_" if name else ""
        path = self._workdir / "samples" / f"{prefix}{step:07d}.png"

        def write() -> None:
            save_png(path, grid)
            if self._writer:
                self._writer.add_image(name or "samples", grid, step, dataformats="HWC")

        self._pictures.append(self._pool.submit(write))

    def flush(self) -> None:
        """Returns when all rows and pictures are written. Raises OSError for one that could not be."""
        self._rows.flush()
        pictures, self._pictures = self._pictures, []
        for picture in pictures:
            picture.result()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is no part of the rate: compilation, evaluation, sampling."""
        if self._mark is not None:
            self._busy += time.monotonic() - self._mark
        try:
            yield
        finally:
            self._mark = time.monotonic()

    def note(self, text: str) -> None:
        """A line on stderr that leaves the bar whole. Written with `bar=False` too."""
        with contextlib.suppress(OSError):  # whoever read it is gone
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flushes, and ends threads and files; once. Raises OSError for what could not be written."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()
        self._pool.shutdown()
        try:
            self.flush()
        finally:
            if self._writer:
                self._writer.close()
                self._writer = None
            self._rows.close()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():  # the first error is the one to tell
            self.close()

    def _show(self, step: int, images: int, numbers: Mapping[str, float]) -> None:
        words = [f"{images / 1000:.1f} kimg"]
        if self._rate:
            left = (self._total - step) * self._batch_size / self._rate
            words += [f"{self._rate:.0f} img/s", f"{tqdm.format_interval(left)} left"]
        words += [f"{name} {value:.4g}" for name, value in numbers.items() if name.split("/")[-1] == "loss"]
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str(", ".join(words))
        elif self._plain and (step >= self._total or time.monotonic() - self._spoke >= _PLAIN_SECONDS):
            self._spoke = time.monotonic()
            print(f"step {step}/{self._total}, " + ", ".join(words), file=sys.stderr, flush=True)


class Silent:
    """Takes what a `Report` takes and writes nothing: for the processes of a run that are not the first."""

    def log(self, step: int, images: int, scalars: Mapping[str, Any]) -> None: ...

    def picture(self, name: str, step: int, images: int, grid: np.ndarray) -> None: ...

    def paused(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def note(self, text: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Rows:
    """Lines of a file that grows: appended one write a line, or, in a bucket, uploaded whole once a minute."""

    def __init__(self, path: epath.Path):
        self._file, self._upload = None, None
        if files.is_remote(path):
            with files.faults(path):
                self._upload = files.Upload(path, path.read_bytes() if path.exists() else b"")
        else:
            self._file = Path(path).open("ab", buffering=0)  # noqa: SIM115 it stays open

    def append(self, line: str) -> None:
        data = (line + "\n").encode()
        if self._upload:
            self._upload.write(data)
            self._upload.send(_REMOTE_SECONDS)
            return
        assert self._file
        end = self._file.seek(0, io.SEEK_END)
        try:
            if self._file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)  # no half line stays behind
            raise

    def flush(self) -> None:
        if self._upload:
            self._upload.send()

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()


class _Events:
    """A TensorBoard file as tensorboardX writes one, but without errors; in a bucket it is uploaded once a minute.

    An error would end the thread that calls this, and then the training would wait for it without end.
    """

    def __init__(self, path: str):
        self._path = _free(path.removeprefix(f"{_LOCAL}:"))
        self._warned = False
        self._file = Path(self._path).open("wb") if not files.is_remote(self._path) else None  # noqa: SIM115
        self._upload = files.Upload(self._path) if self._file is None else None

    @classmethod
    def open(cls, path: str) -> "_Events":
        return cls(path)

    @staticmethod
    def directory_check(path: str) -> None:
        """The run's directory is there."""

    def write(self, data: bytes) -> None:
        with self._warning():
            (self._file or self._upload).write(data)  # type: ignore[union-attr]

    def flush(self, seconds: float = _REMOTE_SECONDS) -> None:
        with self._warning():
            if self._file:
                self._file.flush()
            elif self._upload:
                self._upload.send(seconds)

    def close(self) -> None:
        self.flush(0.0)
        if self._file:
            with self._warning():
                self._file.close()

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                logging.getLogger(__name__).warning("cannot write TensorBoard's %s: %s", self._path, error)
            self._warned = True


def _free(path: str) -> epath.Path:
    """`path`, or with a number behind it that keeps the order where the file exists.

    tensorboardX names a file by the second: a run that resumes or goes back within one would overwrite the earlier one.
    """
    with contextlib.suppress(OSError), files.faults(path):  # of a bucket that is out of reach
        for name in (path, *(f"{path}.{i:02d}" for i in range(1, 100))):
            if not epath.Path(name).exists():
                return epath.Path(name)
    return epath.Path(path)


def truncate(workdir: epath.PathLike, step: int) -> None:
    """Drops the rows of `metrics.jsonl` after `step`, atomically; call it before a run is resumed from there.

    A line that a killed process left half written, or a disk has altered, is dropped with a warning.
    """
    path = epath.Path(workdir) / METRICS
    if not path.exists():
        return
    with files.faults(path):
        data = path.read_bytes()
    kept = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            if json.loads(line.decode())["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, TypeError, KeyError):
            logging.getLogger(__name__).warning("%s: line %d is not a whole row, dropped", path, number)
    if b"".join(kept) != data:
        files.write(path, b"".join(kept))


def grid(images: Any, columns: int = 0, scale: int = 0) -> np.ndarray:
    """One picture of many.

    Args:
      images: (n, h, w, c), uint8 or floats in [-1, 1]; values outside are clipped, NaN is black. Four channels are
        RGBA and stay so. Two are shown as red and green, and of more than four the first three.
      columns: images in a row; 0: as many as make the picture near square.
      scale: whole factor by which images are enlarged, bicubically: an eye reads 8x8 digits so, but not as squares.
        0: the least factor with which the longer side has 56 pixels.

    Returns:
      uint8 (H, W, 1, 3 or 4), row by row, with 2 white pixels between images and around them.
    """
    images = np.asarray(images)
    layout.check(images.shape, "a grid")
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(f"a grid of images of shape {images.shape}: expected (n, h, w, c), none of them 0")
    if images.dtype != np.uint8:
        images = np.nan_to_num((images.astype(np.float32) + 1) * 127.5, nan=0.0)
        images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    n, h, w, c = images.shape
    if c == 2:
        images = np.concatenate([images, np.zeros_like(images[..., :1])], axis=-1)
    images = images[..., : c if c in (1, 4) else 3]
    scale = scale or max(1, math.ceil(_TILE / max(h, w)))
    columns = min(n, columns or math.ceil(math.sqrt(n * h / w)))
    rows = math.ceil(n / columns)
    tiles = _enlarged(images, scale) if scale > 1 else images
    tiles = np.pad(tiles, ((0, 0), (_PADDING, 0), (_PADDING, 0), (0, 0)), constant_values=255)
    tiles = np.pad(tiles, ((0, rows * columns - n), (0, 0), (0, 0), (0, 0)), constant_values=255)
    _, th, tw, c = tiles.shape
    tiles = tiles.reshape(rows, columns, th, tw, c).swapaxes(1, 2).reshape(rows * th, columns * tw, c)
    return np.pad(tiles, ((0, _PADDING), (0, _PADDING), (0, 0)), constant_values=255)


def _enlarged(images: np.ndarray, scale: int) -> np.ndarray:
    """uint8 (n, h, w, c) -> (n, h * scale, w * scale, c)."""
    from PIL import Image

    n, h, w, c = images.shape
    if c == 4:  # as one image, whose colors are weighted by alpha
        pictures = (Image.fromarray(x).resize((w * scale, h * scale), Image.Resampling.BICUBIC) for x in images)
        return np.stack([np.asarray(x) for x in pictures])
    planes = images.transpose(0, 3, 1, 2).reshape(n * c, h, w)
    size = (w * scale, h * scale)
    tiles = np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC)) for x in planes])
    return tiles.reshape(n, c, h * scale, w * scale).transpose(0, 2, 3, 1)


def on_white(images: np.ndarray) -> np.ndarray:
    """RGBA images (..., 4), uint8 or floats in [-1, 1], as they show on white: (..., 3); others as they are."""
    if images.shape[-1] != 4:
        return images
    if images.dtype != np.uint8:
        alpha = np.clip((images[..., 3:] + 1) / 2, 0, 1)
        return 1 - alpha * (1 - images[..., :3])
    alpha = images[..., 3:].astype(np.float32) / 255
    return np.round(255 - alpha * (255 - images[..., :3].astype(np.float32))).astype(np.uint8)


def save_png(path: epath.PathLike, array: np.ndarray) -> None:
    """Writes uint8 (h, w) or (h, w, 1, 3 or 4) as a PNG, atomically. Four channels are RGBA."""
    from PIL import Image

    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise InputError(f"a PNG of {array.dtype} {array.shape}: expected uint8 (h, w) or (h, w, 1, 3 or 4)")
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array).save(buffer, format="PNG")
    files.write(path, buffer.getvalue())
