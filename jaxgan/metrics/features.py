"""What every metric asks of its features (n, d): two axes, enough rows, one width on both sides, and finite numbers."""

from collections.abc import Iterator

import numpy as np

from jaxgan.errors import InputError

ROWS = 1024  # rows that are looked at, or turned into float64, at a time: 16 MiB of 2,048 features


def checked(features: np.ndarray, name: str, least: int = 2, why: str = "") -> np.ndarray:
    """The features themselves, float32 or float64; any other type of number comes back as float64.

    Raises InputError, which begins with `name`, for anything but at least `least` rows of finite numbers.
    """
    x = np.asarray(features)
    if x.ndim != 2 or not x.shape[1]:
        raise InputError(f"{name} of shape {x.shape}: expected (n, d), one row a sample")
    if x.dtype.kind not in "fiub":
        raise InputError(f"{name} of type {x.dtype}: expected float32 or float64")
    if len(x) < least:
        raise InputError(f"{name}: {len(x)} samples, expected at least {least}{why and f', {why}'}")
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    for start in range(0, len(x), ROWS):
        finite = np.isfinite(x[start : start + ROWS])
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            value = x[start + row, column]
            raise InputError(f"{name}: {value} in row {start + row}, column {column}, expected finite numbers")
    return x


def both(real: np.ndarray, fake: np.ndarray, least: int = 2, why: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features (n, d) and (m, d) of one width, each as in `checked`."""
    real, fake = checked(real, "real features", least, why), checked(fake, "generated features", least, why)
    same_width(real.shape[1], fake.shape[1])
    return real, fake


def same_width(real: int, fake: int) -> None:
    if real != fake:
        raise InputError(f"real features have {real} dimensions, generated ones {fake}: expected the same network's")


def blocks(n: int, rows: int) -> Iterator[slice]:
    """Slices of `rows` that cover range(n), the last of which may be shorter."""
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))
