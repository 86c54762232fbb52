"""A table as a network sees it: float32 (n, d), by what the rows that it was fitted to have shown.

Numbers become arcsinh((x - mean) / deviation): close to a standard score within a deviation or two of the mean, and
logarithmic in the tails. Measurements have heavy ones, and anomalies lie a hundred deviations out, where a network that
is fed plain standard scores extrapolates wildly; clipping instead makes all that lies outside the same, and takes from
an anomaly what is anomalous about it. Only a standard score that no float64 can hold is clipped, at `FARTHEST`. A
column that is constant has no deviation: 1 is taken, so that another value is as far out as it is away. Words, and
numbers that stand for something, become one column a category, 0 or 1 as they are.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgan import memory, tables
from jaxgan.errors import InputError
from jaxgan.tables import Column, Table

POLICIES = ("error", "drop", "median")
AUTO = "auto"
TINY = 1e-9  # a deviation below this share of the largest number is one of rounding
COMMA = re.compile(r"[+-]?[\d.]*(,[\d.]+)+")  # a number as it is written somewhere, but no number
FARTHEST = 710.0  # arcsinh of the largest standard scores: the sinh of it is still a float64


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A column of numbers."""

    name: str
    mean: float
    deviation: float
    median: float  # of the numbers as they are, for missing ones

    @property
    def width(self) -> int:
        return 1


@dataclasses.dataclass(frozen=True)
class Words:
    """A column of categories, in their order; one that is not among them is 0 everywhere."""

    name: str
    categories: tuple[str, ...]

    @property
    def width(self) -> int:
        return len(self.categories)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What is kept of the rows that it was fitted to (`fit`), for those to come."""

    columns: tuple[Numbers | Words, ...]
    missing: str
    header: bool  # the columns have names, by which they must agree

    @property
    def width(self) -> int:
        return sum(column.width for column in self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """Of what `encode` gives, (d,)."""
        return tuple(
            name
            for c in self.columns
            for name in ([c.name] if isinstance(c, Numbers) else [f"{c.name}={category}" for category in c.categories])
        )

    def encode(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """float32 (m, d), and the places (m,) of these rows in the table: all, unless those with holes are dropped.

        Raises InputError for other columns than those of the fit, words where there were numbers, and missing values.
        """
        if len(table.columns) != len(self.columns):
            raise InputError(
                f"{table.name} has {len(table.columns)} columns to be seen; expected {len(self.columns)}, as in fitting"
            )
        for ours, theirs in zip(self.columns, table.columns, strict=True):
            if self.header and table.header and ours.name != theirs.name:
                raise InputError(f"{table.name} has a column {theirs.name!r} where {ours.name!r} was in fitting")
            if isinstance(ours, Numbers) and theirs.numbers is None:
                raise _words(table, theirs, "a number, as in fitting")
        places = np.arange(table.rows) if self.missing == "median" else whole(table, self.missing)
        memory.check(8 * table.rows * self.width, f"{table.rows:,} rows of {table.name} in {self.width:,} columns")
        parts = [_encoded(ours, theirs, places) for ours, theirs in zip(self.columns, table.columns, strict=True)]
        return np.concatenate(parts, 1).astype(np.float32), places

    def standard(self, x: np.ndarray) -> np.ndarray:
        """Encoded rows (m, d) -> standard scores, float64 (m, d); columns of categories as they are."""
        out = np.array(x, np.float64)
        numbers = np.repeat([isinstance(c, Numbers) for c in self.columns], [c.width for c in self.columns])
        out[:, numbers] = np.sinh(out[:, numbers])
        return out

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Encoded rows (m, d) -> float64 (m, d) in the units of the table; columns of categories as they are."""
        out, at = self.standard(x), 0
        for column in self.columns:
            if isinstance(column, Numbers):
                out[:, at] = out[:, at] * column.deviation + column.mean
            at += column.width
        return out

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def from_json(stored: Any) -> Encoding:
    """What `to_json` gave and JSON kept. Raises InputError for anything else."""
    try:
        columns: list[Numbers | Words] = []
        for column in stored["columns"]:
            if "categories" in column:
                columns.append(Words(str(column["name"]), tuple(map(str, column["categories"]))))
                continue
            numbers = Numbers(str(column["name"]), *(float(column[key]) for key in ("mean", "deviation", "median")))
            if not all(map(math.isfinite, dataclasses.astuple(numbers)[1:])) or numbers.deviation <= 0:
                raise ValueError(f"column {numbers.name!r} has no finite scale")
            columns.append(numbers)
        if not columns or stored["missing"] not in POLICIES:
            raise ValueError("no columns" if not columns else f"missing is {stored['missing']!r}")
        return Encoding(tuple(columns), stored["missing"], bool(stored["header"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the run keeps no encoding of a table ({str(error)[:100]}); expected one of a fit") from None


def fit(
    table: Table, categorical: Sequence[str] = (), missing: str = "error", rows: np.ndarray | None = None
) -> Encoding:
    """The encoding of a table's columns, by the rows at these places (m,), or by all.

    categorical: columns whose values are categories, by name or number; "auto": those that hold words.
    missing: what to do about missing values, then and later: an error, drop the row, or take the column's median.
    Raises InputError for words that are not said to be categories, and for values that are missing or infinite, in any
    row of the table.
    """
    named = {table.place(column, "--categorical") for column in categorical if column != AUTO}
    if AUTO in categorical:
        named |= {i for i, column in enumerate(table.columns) if column.numbers is None}
    for i, column in enumerate(table.columns):
        if column.numbers is None and i not in named:
            choices = f"--categorical=auto, --categorical={column.name}, or --drop={column.name}"
            raise _words(table, column, choices)
    # Each column by the rows that it has; a row is dropped only from what is encoded.
    places = np.arange(table.rows) if missing == "median" else whole(table, missing)
    kept = table.take(places if rows is None else np.intersect1d(places, rows))
    if not kept.rows:
        raise InputError(f"{table.name}: each row to fit to lacks a value; expected --missing=median")
    columns: list[Numbers | Words] = []
    for i, column in enumerate(kept.columns):
        if i in named:
            columns.append(Words(column.name, tuple(str(x) for x in np.unique(column.texts) if x)))
            continue
        assert column.numbers is not None
        known = column.numbers[np.isfinite(column.numbers)]
        if not len(known):
            seen = "" if kept.rows == table.rows else f" in the {kept.rows:,} rows to fit to"
            raise InputError(
                f"{table.name}: column {column.name!r} has no value{seen}; --drop={column.name} leaves it out"
            )
        columns.append(Numbers(column.name, *_moments(known)))
    return Encoding(tuple(columns), missing, table.header)


def _moments(known: np.ndarray) -> tuple[float, float, float]:
    """Mean, deviation and median of numbers (n,), however large: squares and sums of them may be no float64."""
    most = float(np.abs(known).max())
    exponent = math.frexp(most)[1]
    scaled = np.ldexp(known, -exponent)  # in [-1, 1], and a power of two rounds nothing
    mean, deviation, median = (math.ldexp(float(x), exponent) for x in (scaled.mean(), scaled.std(), np.median(scaled)))
    return mean, deviation if deviation > TINY * max(most, 1e-300) else 1.0, median


def holes(column: Column) -> np.ndarray:
    """Where a value is missing or infinite, bool (n,)."""
    return column.words == "" if column.numbers is None else ~np.isfinite(column.numbers)  # type: ignore[return-value]


def whole(table: Table, missing: str) -> np.ndarray:
    """Places (m,) of the rows without a hole. Raises InputError if there is a hole and no leave to drop it, or none."""
    bad = np.zeros(table.rows, bool)
    for column in table.columns:
        found = holes(column)
        if found.any() and missing == "error":
            row = int(np.argmax(found))
            value = "missing" if column.numbers is None or np.isnan(column.numbers[row]) else str(column.numbers[row])
            raise InputError(
                f"{table.name}: row {row}, column {column.name!r} is {value}, the first of {found.sum()} there; "
                "expected a number, or --missing=drop (the row) or --missing=median (of the column)"
            )
        bad |= found
    if bad.all():
        raise InputError(f"{table.name}: each of {table.rows} rows lacks a value; expected --missing=median")
    return np.flatnonzero(~bad)


def _words(table: Table, column: Column, expected: str) -> InputError:
    assert column.words is not None
    word = next(cell for cell in column.words if cell and not tables.is_number(cell))
    if COMMA.fullmatch(word):
        expected = f"1234.5 for 1.234,5 or 1,234.5, or {expected}"
    return InputError(f"{table.name}: column {column.name!r} holds {word[:40]!r}, no number; expected {expected}")


def _one_hot(ours: Words, theirs: Column) -> np.ndarray:
    """Bool (n, width).

    A run of before may keep categories `1.0` beside words, or even `1` and `1.0`: a cell that is written as one of them
    is that one, and only another is compared as a number.
    """
    written, categories = (theirs.texts if theirs.words is None else theirs.words), np.array(ours.categories, np.str_)
    exact = written[:, None] == categories
    return np.where(exact.any(1, keepdims=True), exact, theirs.texts[:, None] == tables.alike(categories))


def _encoded(ours: Numbers | Words, theirs: Column, places: np.ndarray) -> np.ndarray:
    """(m, width) of the rows at `places`, float64."""
    if isinstance(ours, Words):
        return _one_hot(ours, theirs)[places].astype(np.float64)
    assert theirs.numbers is not None
    numbers = theirs.numbers[places]
    numbers = np.where(np.isfinite(numbers), numbers, ours.median)
    with np.errstate(over="ignore"):  # of halves, whose difference is always a float64, and the same but for that
        z = (numbers / 2 - ours.mean / 2) / (ours.deviation / 2)
    return np.clip(np.arcsinh(z), -FARTHEST, FARTHEST)[:, None]
