"""Files and arrays of pixels -> uint8 images of one size and one number of channels. On the host, in threads."""

import collections
import concurrent.futures
import functools
import hashlib
import importlib
import io
import itertools
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, TypeVar

import numpy as np
import PIL
import tqdm
from etils import epath
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin, features

from jaxgan import layout
from jaxgan.errors import InputError, unknown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by the number of channels
CROPS = ("center", "none")  # or a window in the middle, in pixels: 108, 20x20
LARGEST = 2**27  # pixels of an image: 134 million, half a gigabyte as Pillow holds them
UNREADABLE = (  # what Pillow raises for bytes that are no whole image
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    AssertionError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)
ORIENTATION = 0x0112  # the EXIF tag
TURNED = range(5, 9)  # its values that exchange width and height
PNG, JPEG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff"  # how files begin


@functools.cache
def module_of(name: str) -> Any:
    """A module of Pillow, without its own words about damaged files: the error says what is wrong, with the name."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger(f"PIL.{name}").setLevel(logging.CRITICAL)
    return importlib.import_module(f"PIL.{name}")


def plugin(name: str, reader: str) -> Callable[[IO[bytes]], Image.Image]:
    """A reader of a rarer format, whose module is imported with the first such file."""
    return lambda file: getattr(module_of(name), reader)(file)


# What is read, by how a file begins and not by its name. (`Image.open` knows 40 formats more, of which some start other
# programs, and prints a warning of its own for an image of 89 million pixels.)
FORMATS: dict[re.Pattern[bytes], Callable[[IO[bytes]], Image.Image]] = {
    re.compile(re.escape(PNG[:8])): PngImagePlugin.PngImageFile,
    re.compile(JPEG): JpegImagePlugin.jpeg_factory,
    re.compile(rb"RIFF....WEBP", re.DOTALL): WebPImagePlugin.WebPImageFile,
    re.compile(rb"BM"): plugin("BmpImagePlugin", "BmpImageFile"),
    re.compile(rb"II[*+]\0|MM\0[*+]"): plugin("TiffImagePlugin", "TiffImageFile"),
    re.compile(rb"P[1-6][\s#]"): plugin("PpmImagePlugin", "PpmImageFile"),
}
NAMES = "PNG, JPEG, WebP, BMP, TIFF, PGM or PPM"
BITS, FORMAT, PHOTOMETRIC = 258, 339, 262  # TIFF tags: bits of each sample, kind of number, what 0 means
PLAIN = (0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE)  # JPEG segments without say in how pixels are read: no EXIF, no profile
FRAMES = (0xC0, 0xC1, 0xC2)  # JPEG segments with the size of the image: baseline, extended, progressive

T = TypeVar("T")
R = TypeVar("R")


def parse_size(text: str) -> tuple[int, int] | None:
    """(h, w) of `"64"` or `"48x64"`; None for `""`, which leaves images as they are."""
    if not text:
        return None
    parts = str(text).lower().split("x")
    if len(parts) > 2 or not all(p.isdecimal() and p.strip("0") for p in parts):
        raise InputError(f"size {text!r:.80} is neither a number of pixels (64) nor HEIGHTxWIDTH (48x64)")
    if max(map(len, parts)) > 9 or int(parts[0]) * int(parts[-1]) > LARGEST:
        raise InputError(f"size {text:.40}: expected images of at most {LARGEST:,} pixels")
    return int(parts[0]), int(parts[-1])


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] -> 0 to 255, rounded; uint8 as it is. Raises InputError for levels in another dtype."""
    if images.dtype == np.uint8:
        return images
    layout.check_floats(images)
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)


def window(crop: str) -> tuple[int, int] | None:
    """(h, w) of the part in the middle that `crop` keeps; None for the names in `CROPS`.

    Raises InputError for anything else.
    """
    if crop in CROPS:
        return None
    if not crop[:1].isdecimal():
        raise unknown("crop", crop, CROPS, "or pixels of a window in the middle, such as 108 or 20x20")
    try:
        return parse_size(crop)
    except InputError as error:
        raise InputError(f"--crop={crop[:40]}: {error}") from None


def fit(image: Image.Image, size: tuple[int, int], crop: str = "center") -> Image.Image:
    """Resizes to `size` (h, w). `crop="center"` cuts the largest centred box of that aspect ratio; `"none"` stretches;
    `"108"` or `"20x20"` (h x w) first cuts a window of so many pixels in the middle, and then as `"center"` does.

    Lanczos with the support scaled to the reduction, on uint8: the resize whose FID agrees with high-quality
    downsampling (arXiv:2104.11222, section 3). Enlarging with it may ring by a few grey levels. Raises InputError for a
    window larger than the image.
    """
    h, w = size
    if cut := window(crop):
        tall, wide = cut
        if tall > image.height or wide > image.width:
            raise InputError(f"--crop={crop}: the image has only {image.height}x{image.width} pixels")
        x, y = (image.width - wide) // 2, (image.height - tall) // 2
        image, crop = image.crop((x, y, x + wide, y + tall)), "center"
    if image.size == (w, h):
        return image
    left, top = 0.0, 0.0
    if crop == "center":
        scale = min(image.width / w, image.height / h)
        left, top = (image.width - w * scale) / 2, (image.height - h * scale) / 2
    return image.resize((w, h), Image.Resampling.LANCZOS, box=(left, top, image.width - left, image.height - top))


def fit_array(image: np.ndarray, size: tuple[int, int], channels: int, crop: str = "center") -> np.ndarray:
    """uint8 (h, w, c) -> uint8 (*size, channels). Grey, colour and RGBA convert into each other, nothing else does.

    RGBA is resized with its colors weighted by alpha, as Pillow does: what is transparent lends no color to an edge.
    """
    if image.shape[-1] != channels:
        image = np.asarray(convert(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image), channels))
        image = image.reshape(*image.shape[:2], channels)
    if image.shape[:2] == size == (window(crop) or size):
        return image
    if channels == 4:
        return np.asarray(fit(Image.fromarray(image), size, crop))
    planes = [
        fit(Image.fromarray(image[..., c]), size, crop) for c in range(channels)
    ]  # the filter is separable by channel
    return np.stack([np.asarray(p) for p in planes], axis=-1)


def check_channels(given: int, wanted: int, what: str) -> int:
    """The channels of the result: as `given` for 0, else `wanted`. Raises InputError where no conversion exists."""
    if wanted and wanted != given and not (wanted in MODES and given in MODES):
        raise InputError(
            f"channels {wanted} from the {given} of {what}: only grey (1), colour (3) and RGBA (4) convert into each "
            "other; other numbers of channels are read from npz:FILE, as they are"
        )
    return wanted or given


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF tag says. (`exif_transpose` copies, so it is called for few.)"""
    return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Grey (1; luma of ITU-R 601), colour (3) or RGBA (4). Of 16 bits the upper 8 are kept.

    Without a channel for it, what is transparent shows white. What has no transparency is opaque.
    """
    mode = MODES[channels]
    if image.mode.startswith("I"):
        deep, clear = np.asarray(image).astype(np.uint32), image.info.get("transparency")
        image = Image.fromarray((deep >> 8).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data and image.mode != "RGBA":
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if image.mode == "RGBA" and channels != 4:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.load()  # reads the file, which convert of the same mode would do with a copy
    return image if image.mode == mode else image.convert(mode)


def opened(file: IO[bytes]) -> Image.Image:
    """The image of a file in one of `FORMATS`, of which only the header is read; of several frames, the first.

    ValueError for another format, and for more than `LARGEST` pixels: a file of a few bytes can claim any number.
    """
    start = file.read(12)
    file.seek(0)
    reader = next((reader for magic, reader in FORMATS.items() if magic.match(start)), None)
    if reader is None:
        raise ValueError(f"it is no {NAMES}" if start else "it is empty")
    image = reader(file)
    w, h = image.size
    if w * h > LARGEST:
        image.close()
        raise ValueError(f"it has {h}x{w} pixels, and {LARGEST:,} are the most that are read")
    if image.format == "TIFF":
        check_tiff(image)
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and any("RGB;16" in str(tile) for tile in getattr(image, "tile", ())):
        image.info["transparency"] = tuple(value >> 8 for value in clear)  # as Pillow keeps the pixels
    return image


def check_tiff(image: Any) -> None:
    """Raises ValueError for samples that Pillow reads on another scale than 0 to 255 or 65,535."""
    bits, kinds = (np.atleast_1d(image.tag_v2.get(tag, 1)).tolist() for tag in (BITS, FORMAT))
    inverted = image.tag_v2.get(PHOTOMETRIC) == 0 and 16 in bits
    if not {*bits} <= {1, 2, 4, 8, 16} or {*kinds} != {1} or inverted:
        image.close()
        raise ValueError(
            f"its samples have {max(bits)} bits{', signed or floats' if {*kinds} != {1} else ''}"
            f"{', 0 for white' if inverted else ''}; expected a TIFF of 8 or 16 bits, unsigned, 0 for black"
        )


def decode(data: bytes, size: tuple[int, int] | None, channels: int, crop: str = "center") -> np.ndarray:
    """The bytes of an image file -> uint8 (h, w, channels), turned upright by its EXIF tag."""
    image = plain(data)
    if image is None:
        with opened(io.BytesIO(data)) as file:
            image = convert(upright(file), channels)
    else:
        image = convert(image, channels)
    image = fit(image, size, crop) if size else image
    return np.asarray(image).reshape(image.height, image.width, channels)


def plain(data: bytes) -> Image.Image | None:
    """The image of a JPEG or PNG of 8 bits whose header holds its size and its coding and nothing else; else None.

    The decoders that Pillow's plugins call, and the same bits, without the plugins, which read headers in Python: that
    takes as long as the pixels of a small image, and threads wait for each other in them.
    """
    try:
        found = plain_jpeg(data) if data.startswith(JPEG) else plain_png(data) if data.startswith(PNG) else None
        # A large one gains nothing, and may be a bomb.
        return Image.frombytes(*found) if found and 0 < found[1][0] * found[1][1] < 2**24 else None
    except UNREADABLE:
        return None  # `opened` will say what is wrong


def plain_jpeg(data: bytes) -> tuple | None:
    """(mode, (w, h), data, decoder, its arguments), by ITU-T T.81, appendix B."""
    at, frame = 2, b""
    while (kind := data[at + 1]) != 0xDA:  # the scan
        if data[at] != 0xFF or kind not in (PLAIN if frame else PLAIN + FRAMES):
            return None
        if kind in FRAMES:
            frame = data[at + 4 : at + 10]
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    bits, h, w, c = struct.unpack(">BHHB", frame)
    mode = {1: "L", 3: "RGB"}.get(c)
    return (mode, (w, h), data, "jpeg", mode, "") if mode and bits == 8 else None


def plain_png(data: bytes) -> tuple | None:
    """(mode, (w, h), compressed pixels, decoder, its arguments), by RFC 2083, sections 3 and 4."""
    w, h, bits, colour, *methods = struct.unpack(">IIBBBBB", data[16:29])
    mode = {0: "L", 2: "RGB"}.get(colour)
    if not mode or bits != 8 or any(methods) or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]):
        return None
    at, coded = 33, []
    while (kind := data[at + 4 : at + 8]) != b"IEND":
        if kind != b"IDAT":
            return None
        n = int.from_bytes(data[at : at + 4])
        coded.append(data[at + 8 : at + 8 + n])
        at += n + 12
    return mode, (w, h), b"".join(coded), "zip", mode, 0


def measure(file: IO[bytes]) -> tuple[int, int, int]:
    """(h, w, c) of an image file, from its header alone."""
    with opened(file) as image:
        w, h = image.size
        c = 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") else 3
        if image.format == "TIFF":  # its size is that of the turned image
            return h, w, c
        return (w, h, c) if image.getexif().get(ORIENTATION, 1) in TURNED else (h, w, c)


def common_shape(shapes: Iterable[tuple[int, ...]], what: str, channels: int = 0) -> tuple[int, int, int]:
    """The one shape (h, w, c) of images that are to stay as they are. Where there are several, InputError suggests one.

    channels: what all are converted to; 0: all have to be grey, or all colour.
    """
    shapes = list(shapes)
    sizes = collections.Counter(s[:2] for s in shapes)
    if not shapes:
        raise InputError(f"{what} has no images")
    (h, w), most = sizes.most_common(1)[0]
    grey = sum(s[2] == 1 for s in shapes)
    mixed = not channels and 0 < grey < len(shapes)
    if len(sizes) > 1:
        raise InputError(
            f"the {len(shapes)} images of {what} have {len(sizes)} sizes; give one, for example --size={h}x{w}, "
            f"which {most} of them have" + ("; some are grey and some colour: give --channels=3 too" if mixed else "")
        )
    if mixed:
        raise InputError(
            f"of the {len(shapes)} images of {what}, {grey} are grey and {len(shapes) - grey} colour; give "
            "--channels=3 to read all as colour, or --channels=1 as grey"
        )
    return h, w, channels or shapes[0][2]


def checked(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The image, if it is of the shape that those of its kind have; else ValueError."""
    if image.shape != shape:
        raise ValueError(f"its shape is {image.shape}, which was {shape}")
    return image


def version() -> str:
    """What decides about the bits of a decoded image beside its file: Pillow, its decoders, this module."""
    decoders = [features.version(name) for name in ("jpg", "libjpeg_turbo", "webp", "libtiff")]
    code = hashlib.sha256(epath.Path(__file__).read_bytes()).hexdigest()
    return f"{PIL.__version__} {decoders} {code}"


def in_threads(function: Callable[[T], R], items: Sequence[T], text: str = "", workers: int = 0) -> Iterator[R]:
    """`map` over threads, in order; `text` shows a bar. `workers=1` for tiny images, where the interpreter is the cost.

    Pillow decodes and resizes without the interpreter's lock. Items go in groups, for handing one over costs 50 us.
    """
    groups = [items[i : i + 16] for i in range(0, len(items), 16)]
    workers = workers or min(32, 2 * (os.cpu_count() or 1))
    if workers == 1 or len(groups) < 2:
        yield from bar(map(function, items), len(items), text)
        return
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            done = pool.map(lambda group: [function(item) for item in group], groups)
            yield from bar(itertools.chain.from_iterable(done), len(items), text)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error the rest would be read for nothing


def stacked(decode: Callable[[T], np.ndarray], items: Sequence[T], shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 (n, *shape): `decode` of each item, in threads, which write each image where it belongs."""
    out = np.empty((len(items), *shape), np.uint8)

    def put(i: int) -> None:
        out[i] = decode(items[i])

    collections.deque(in_threads(put, range(len(items)), workers=workers_for(shape)), maxlen=0)
    return out


def workers_for(shape: Sequence[int]) -> int:
    """1 where images (h, w, c) are so small that the interpreter is the cost (28x28: four are no faster), else 0."""
    return int(shape[0] * shape[1] <= 48 * 48)


def bar(items: Iterable[R], total: int, text: str) -> "tqdm.tqdm[R]":
    """A progress bar that appears only if the work takes longer than two seconds; none without `text`."""
    return tqdm.tqdm(items, text, total, delay=2.0, mininterval=0.5, unit=" images", leave=False, disable=not text)
