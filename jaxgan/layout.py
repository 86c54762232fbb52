"""The layout and range of arrays of images: what is not uint8 (n, h, w, c) is refused with the line that helps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgan.errors import InputError

COLORS = 4  # the most channels of an image that is not a stack of measurements: RGBA
LONGEST = 4  # the largest ratio of the sides of an image that is told from a signal of many channels


def check(shape: Sequence[int], what: str) -> None:
    """Raises InputError for a shape (n, ...) that reads as (n, c, h, w), as in PyTorch, or (h, w, c, n), as in MATLAB.

    It does where an axis before the last is as short as one of colors is and the last one is not, unless the other
    reading is plausible too: small maps of many features (n, 3, 3, 64), signals of several channels (n, 1, 128, 6).
    """
    if len(shape) != 4 or shape[3] <= COLORS:
        return
    first, second, third, last = shape
    if first and second <= COLORS < third and max(third, last) <= LONGEST * min(third, last):
        order, layout, source = "0, 2, 3, 1", "(n, c, h, w)", "PyTorch"
    elif third in (3, 4) and min(first, second) > COLORS and max(first, second) <= LONGEST * min(first, second):
        order, layout, source = "3, 0, 1, 2", "(h, w, c, n)", "MATLAB"
    else:
        return
    raise InputError(
        f"{what}: images {tuple(shape)} read as {layout}, as {source} has them; expected (n, h, w, c): "
        f"images.transpose({order})"
    )


def conversion(images: np.ndarray) -> str:
    """The range of an array that is not uint8 and the code that converts it, for an error message."""
    kind = images.dtype.kind
    if kind == "b" and images.size:
        return "; to convert them: images.astype(np.uint8) * 255"
    if kind not in "iuf" or not images.size:
        return ""
    low, high = images.min(), images.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return ", not all of them finite"
    code = ""
    if kind in "iu" and low >= 0 and high < 2**16:
        code = "images.astype(np.uint8)" if high < 256 else "(images >> 8).astype(np.uint8)"
    elif kind == "f" and low >= 0 and high <= 255:
        code = f"np.round(images{' * 255' if high <= 1 else ''}).astype(np.uint8)"
    elif kind == "f" and low >= -1 and high <= 1:
        code = "np.round((images + 1) * 127.5).astype(np.uint8)"
    return f" from {low:g} to {high:g}" + (f"; to convert them: {code}" if code else "")


def check_floats(images: Any) -> None:
    """Raises InputError for images that are levels from 0 to 255 in another dtype, where [-1, 1] is expected.

    Floats are taken for levels where all of them are whole and one is above 2: no network makes that.
    """
    if images.dtype.kind in "iub":
        raise InputError(f"images of {images.dtype}: expected uint8, or floats in [-1, 1]")
    if not images.size or not 2 < images.max() <= 255 or images.min() < 0:
        return
    if (images == np.round(images)).all():
        raise InputError("images are whole numbers from 0 to 255: expected uint8 (images.astype(np.uint8)), or [-1, 1]")
