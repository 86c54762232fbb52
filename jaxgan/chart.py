"""Line charts as pictures: panels of curves over a logarithmic axis, drawn with Pillow alone."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Told apart by colour-blind readers too (Okabe and Ito, 2008).
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SIDE, LEFT, RIGHT, TOP, BOTTOM = 420, 58, 14, 34, 46  # pixels: of the plot, and around it
FINER = 2  # drawn so many times as large, then reduced


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves of one plot: {name: [(x, y), ...]}, each a list of curves [(x > 0, y > 0)] in one colour.

    levels: {name: y}, horizontal dashed lines.
    """

    title: str
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)


def draw(panels: Sequence[Panel], x_label: str, y_label: str) -> np.ndarray:
    """A picture uint8 (h, w, 3), the panels side by side on common logarithmic axes; one legend, in that corner
    of them which curves leave free.

    Text is ASCII, which is what Pillow's own font has.
    """
    points = [p for panel in panels for lines in panel.curves.values() for line in lines for p in line]
    levels = [y for panel in panels for y in panel.levels.values()]
    spans = span([x for x, _ in points], 0.0), span([*(y for _, y in points), *levels], 0.04)
    names = list(dict.fromkeys(name for panel in panels for name in (*panel.curves, *panel.levels)))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    drawn = [_panel(panel, colour, spans, x_label, y_label if i == 0 else "") for i, panel in enumerate(panels)]
    _legend(drawn, colour)
    size = (LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM)
    return np.concatenate([np.asarray(picture.resize(size, Image.Resampling.BOX)) for picture in drawn], axis=1)


def span(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The decimal logarithms of the ends of an axis, a share of its length beyond the least and the largest value."""
    low, high = math.log10(min(values)), math.log10(max(values))
    high = max(high, low + 0.1)
    return low - margin * (high - low), high + margin * (high - low)


def beside(picture: np.ndarray, names: Sequence[str], width: int = 96) -> np.ndarray:
    """A picture (h, w, 1 or 3) of rows of one height, with the name of each row to the left of it."""
    label = Image.new("RGB", (width, picture.shape[0]), "white")
    pen, font = ImageDraw.Draw(label), ImageFont.load_default(13)
    for i, name in enumerate(names):
        pen.text((width - 6, (i + 0.5) * picture.shape[0] / len(names)), name, fill="black", font=font, anchor="rm")
    return np.concatenate([np.asarray(label), np.broadcast_to(picture, (*picture.shape[:2], 3))], axis=1)


def _legend(pictures: Sequence[Image.Image], colour: Mapping[str, str]) -> None:
    """Writes the names where the fewest pixels are of a curve: into a corner of one of the pictures."""
    font = ImageFont.load_default(13 * FINER)
    width = max(int(font.getlength(name)) for name in colour) + 32 * FINER
    height, gap = FINER * (17 * len(colour) + 6), FINER * 8
    corners = [
        (picture, x, y)
        for picture in pictures
        for x in (FINER * (LEFT + SIDE) - gap - width, FINER * LEFT + gap)
        for y in (FINER * TOP + gap // 2, FINER * (TOP + SIDE) - gap // 2 - height)
    ]

    def covered(corner: tuple[Image.Image, int, int]) -> int:
        picture, x, y = corner
        seen = np.asarray(picture.crop((x, y, x + width, y + height)), np.int16)
        return int(np.sum((np.ptp(seen, axis=-1) > 40) | (seen.max(-1) < 100)))  # the grid is a light grey

    picture, x, y = min(corners, key=covered)
    pen = ImageDraw.Draw(picture)
    for i, name in enumerate(colour):
        middle, left = y + FINER * (11 + 17 * i), x + width - 32 * FINER - int(font.getlength(name))
        pen.rectangle([left, middle - 8 * FINER, x + width, middle + 8 * FINER], fill="white")  # over a line below it
        pen.text((x + width - 26 * FINER, middle), name, fill=colour[name], font=font, anchor="rm")
        pen.line([(x + width - 20 * FINER, middle), (x + width, middle)], fill=colour[name], width=2 * FINER)


def _panel(panel: Panel, colour: Mapping[str, str], spans: tuple, x_label: str, y_label: str) -> Image.Image:
    picture = Image.new("RGB", ((LEFT + SIDE + RIGHT) * FINER, (TOP + SIDE + BOTTOM) * FINER), "white")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13 * FINER)

    def at(x: float, y: float) -> tuple[float, float]:
        """Pixels of a point given by its logarithms."""
        (left, right), (low, high) = spans
        return (
            FINER * (LEFT + SIDE * (x - left) / (right - left)),
            FINER * (TOP + SIDE * (high - y) / (high - low)),
        )

    for axis, (low, high) in enumerate(spans):
        for value in ticks(low, high):
            place = math.log10(value)
            ends = (
                [at(place, spans[1][0]), at(place, spans[1][1])]
                if axis == 0
                else [at(spans[0][0], place), at(spans[0][1], place)]
            )
            pen.line(ends, fill="#dddddd", width=FINER)
            x, y = ends[0]
            anchor, x, y = ("mt", x, y + 4 * FINER) if axis == 0 else ("rm", x - 5 * FINER, y)
            pen.text((x, y), short(value), fill="#444444", font=font, anchor=anchor)
    pen.rectangle([*at(spans[0][0], spans[1][1]), *at(spans[0][1], spans[1][0])], outline="#888888", width=FINER)
    middle = FINER * (LEFT + SIDE / 2)
    pen.text((middle, FINER * 8), panel.title, fill="black", font=ImageFont.load_default(15 * FINER), anchor="mt")
    pen.text((middle, FINER * (TOP + SIDE + 24)), x_label, fill="black", font=font, anchor="mt")
    pen.text((FINER * 4, FINER * 10), y_label, fill="black", font=font, anchor="lt")
    for name, level in panel.levels.items():
        (x, y), (end, _) = at(spans[0][0], math.log10(level)), at(spans[0][1], 0)
        for start in np.arange(x, end, 10 * FINER):
            pen.line([(start, y), (min(start + 5 * FINER, end), y)], fill=colour[name], width=FINER)
    for name, curves in panel.curves.items():
        for line in curves:
            pen.line(
                [at(math.log10(x), math.log10(y)) for x, y in line], fill=colour[name], width=2 * FINER, joint="curve"
            )
    return picture


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between 10^low and 10^high; powers alone where they are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 3 else (1,)
    within = [f * 10.0**p for p in powers for f in factors]
    return [x for x in within if low - 1e-9 <= math.log10(x) <= high + 1e-9]


def short(value: float) -> str:
    """3000 -> 3k, 0.05 -> 0.05."""
    for limit, sign in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{sign}"
    return f"{value:g}"
