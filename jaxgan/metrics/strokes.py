"""The shape of what is drawn light on dark, by the moments of its ink: slant, breadth and stroke width.

Ink is 0 at -1 and 1 at 1, the mean of the channels, less the darkest. All figures are means over the ink; an image
without any has NaN.
"""

from typing import NamedTuple

import numpy as np


class Strokes(NamedTuple):
    slant: np.ndarray  # (n,) columns to the right for each row upwards: the shear that deskewing takes out; 0: upright
    breadth: np.ndarray  # (n,) pixels, standard deviation of the ink along a row, once deskewed
    thickness: np.ndarray  # (n,) pixels, 2 area / perimeter, the perimeter by the total variation


def strokes(images: np.ndarray) -> Strokes:
    """Of images (n, h, w, c) in [-1, 1]."""
    ink = (np.asarray(images, np.float64).mean(-1) + 1) / 2
    ink = ink - ink.min((1, 2), keepdims=True)
    _, h, w = ink.shape
    y, x = np.arange(h, dtype=np.float64)[::-1, None], np.arange(w, dtype=np.float64)  # rows count upwards
    with np.errstate(invalid="ignore", divide="ignore"):
        mass = ink.sum((1, 2))
        dx, dy = (p - ((ink * p).sum((1, 2)) / mass)[:, None, None] for p in (x, y))
        xx, xy, yy = ((ink * p).sum((1, 2)) / mass for p in (dx * dx, dx * dy, dy * dy))
        slant = xy / yy
        padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
        across, along = np.diff(padded, axis=1)[:, :, 1:], np.diff(padded, axis=2)[:, 1:]
        variation = np.sqrt(across**2 + along**2).sum((1, 2))
        return Strokes(slant, np.sqrt(xx - slant * xy), 2 * mass / variation)


def correlations(codes: np.ndarray, measured: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Pearson's r (c,) of codes (n, c) with a figure (n,), both less the mean of their group (n,); NaN is left out.

    Groups because a 1 is thinner than a 0, whatever its code: what counts is the change within a category.
    """
    there = np.isfinite(measured)
    codes, measured, groups = codes[there].astype(np.float64), measured[there], groups[there]
    for group in np.unique(groups):
        rows = groups == group
        codes[rows] -= codes[rows].mean(0)
        measured[rows] = measured[rows] - measured[rows].mean()
    scale = np.sqrt((codes**2).sum(0) * (measured**2).sum())
    return codes.T @ measured / np.where(scale > 0, scale, np.inf)
