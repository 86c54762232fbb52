"""A figure with its uncertainty, from repeats of the whole measurement: other seeds, or other samples."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t

from jaxgan.errors import InputError


class Interval(NamedTuple):
    mean: float
    half_width: float  # the mean lies within it, at the level of confidence, if the values are normal


def interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval:
    """Values (n,), n >= 2, of independent repeats -> their mean ± t s / √n, t Student's of n - 1 degrees of freedom."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"values of shape {values.shape}: expected (n,), of 2 repeats or more")
    if not np.isfinite(values).all():
        raise InputError(
            f"value {values[~np.isfinite(values)][0]} of repeat {np.argmin(np.isfinite(values))}: not finite"
        )
    if not 0 < level < 1:
        raise InputError(f"level of confidence {level}: expected between 0 and 1, such as 0.95")
    quantile = t.ppf((1 + level) / 2, len(values) - 1)
    return Interval(float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(len(values))))


def shown(values: Sequence[float]) -> str:
    """A figure as text, of as many repeats as there are: "-" of none, with half of its 95% interval where they differ.

    Where one is not a number, or infinite, so is the mean: "nan", "inf".
    """
    if not values:
        return "-"
    if not all(map(math.isfinite, values)):
        return f"{sum(values) / len(values)}"
    if min(values) == max(values):
        return f"{values[0]:,.0f}" if values[0] == round(values[0]) else f"{values[0]:.4g}"
    found = interval(values)
    return f"{found.mean:.4g} ± {found.half_width:.2g}"
