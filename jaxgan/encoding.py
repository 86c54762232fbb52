"""A table as a network sees it: float32 (n, d), by what the rows that it was fitted to have shown.

Numbers become arcsinh((x - mean) / deviation): close to a standard score within a deviation or two of the mean, and
logarithmic in the tails. Measurements have heavy ones, and anomalies lie a hundred deviations out, where a network that
is fed plain standard scores extrapolates wildly; clipping instead makes all that lies outside the same, and takes from
an anomaly what is anomalous about it. Only a standard score that no float64 can hold is clipped, at `FARTHEST`. A
column that is constant has no deviation: 1 is taken, so that another value is as far out as it is away. Words, and
numbers that stand for something, become one column a category, 0 or 1 as they are, and one more for a category that
fitting has not seen, which is 0 in fitting. A column of words with about as many values as rows is left out.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgan import memory, tables
from jaxgan.errors import InputError
from jaxgan.tables import Column, Table

POLICIES = ("error", "drop", "median")
AUTO = "auto"
TINY = 1e-9  # a deviation below this share of the largest number is one of rounding
COMMA = re.compile(r"[+-]?[\d.]*(,[\d.]+)+")  # a number as it is written somewhere, but no number
MOST = 1000  # categories of a column that is not named as one of categories
ALONE = 0.5  # share of rows whose value no other row has, above which the next row's is likely new too (Good, 1953)
FEW = 20  # values, at most, that any column of words may have
UNSEEN = 1.0  # of the column that says so, which is 0 in fitting
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
    """A column of categories, in their order; one that is not among them is 0 in all of their columns.

    unseen: whether there is a column, the last, that is not 0 there. (Runs of before have none.)
    common: the category of the most rows.
    """

    name: str
    categories: tuple[str, ...]
    unseen: bool = False
    common: str = ""

    @property
    def width(self) -> int:
        return len(self.categories) + self.unseen


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A column that is not encoded. The table to encode may lack it, if its columns have names."""

    name: str
    left_out: bool = True

    @property
    def width(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What is kept of the rows that it was fitted to (`fit`), for those to come."""

    columns: tuple[Numbers | Words | LeftOut, ...]
    missing: str
    header: bool  # the columns have names, by which they must agree

    @property
    def width(self) -> int:
        return sum(column.width for column in self.columns)

    @property
    def encoded(self) -> tuple[Numbers | Words, ...]:
        """The columns that are not left out."""
        return tuple(c for c in self.columns if not isinstance(c, LeftOut))

    @property
    def names(self) -> tuple[str, ...]:
        """Of what `encode` gives, (d,)."""
        found: list[str] = []
        for c in self.encoded:
            found += [c.name] if isinstance(c, Numbers) else [f"{c.name}={category}" for category in c.categories]
            found += [f"{c.name} (unseen)"] if isinstance(c, Words) and c.unseen else []
        return tuple(found)

    @property
    def spans(self) -> tuple[slice, ...]:
        """Where each of `encoded` lies in what `encode` gives."""
        ends = np.cumsum([c.width for c in self.encoded]).tolist()
        return tuple(slice(end - c.width, end) for c, end in zip(self.encoded, ends, strict=True))

    @property
    def usual(self) -> np.ndarray:
        """float32 (d,): the median of each column of numbers, the most common category of each other one."""
        parts = [
            np.array([_arcsinh(np.array(c.median), c)])
            if isinstance(c, Numbers)
            else np.array([*(category == c.common for category in c.categories), *[False] * c.unseen], np.float64)
            for c in self.encoded
        ]
        return np.concatenate(parts).astype(np.float32)

    def encode(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """float32 (m, d), and the places (m,) of these rows in the table: all, unless those with holes are dropped.

        Raises InputError for other columns than those of the fit, words where there were numbers, and missing values.
        """
        table = self._aligned(table)
        memory.check(8 * table.rows * self.width, f"{table.rows:,} rows of {table.name} in {self.width:,} columns")
        parts, absent = zip(*map(_encoded, self.encoded, table.columns), strict=True)
        places = np.arange(table.rows) if self.missing == "median" else whole(table, self.missing, absent)
        return np.concatenate([part[places] for part in parts], 1).astype(np.float32), places

    def unseen(self, table: Table) -> dict[str, np.ndarray]:
        """{column: (rows,) bool} where a category was not seen in fitting, of the columns that have any such row."""
        pairs = zip(self.encoded, self._aligned(table).columns, strict=True)
        found = {ours.name: _one_hot(ours, theirs).unseen for ours, theirs in pairs if isinstance(ours, Words)}
        return {name: where for name, where in found.items() if where.any()}

    def _aligned(self, table: Table) -> Table:
        """The columns of a table that are encoded, as numbers where they were numbers in fitting."""
        ours: Sequence[Numbers | Words | LeftOut] = self.columns
        if self.header and table.header:
            there = {column.name for column in table.columns}
            ours = [c for c in ours if c.width or c.name in there]
        if len(table.columns) != len(ours):
            raise InputError(
                f"{table.name} has {len(table.columns)} columns to be seen; expected {len(ours)}, as in fitting"
            )
        columns = []
        for known, theirs in zip(ours, table.columns, strict=True):
            if self.header and table.header and known.name != theirs.name:
                raise InputError(f"{table.name} has a column {theirs.name!r} where {known.name!r} was in fitting")
            if not isinstance(known, LeftOut):
                columns.append(_numeric(table, theirs, "as in fitting") if isinstance(known, Numbers) else theirs)
        return dataclasses.replace(table, columns=tuple(columns))

    def standard(self, x: np.ndarray) -> np.ndarray:
        """Encoded rows (m, d) -> standard scores, float64 (m, d); columns of categories as they are."""
        out = np.array(x, np.float64)
        numbers = np.repeat([isinstance(c, Numbers) for c in self.encoded], [c.width for c in self.encoded])
        out[:, numbers] = np.sinh(out[:, numbers])
        return out

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Encoded rows (m, d) -> float64 (m, d) in the units of the table; columns of categories as they are."""
        out = self.standard(x)
        for column, span in zip(self.encoded, self.spans, strict=True):
            if isinstance(column, Numbers):
                out[:, span] = out[:, span] * column.deviation + column.mean
        return out

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def from_json(stored: Any) -> Encoding:
    """What `to_json` gave and JSON kept. Raises InputError for anything else."""
    try:
        columns: list[Numbers | Words | LeftOut] = []
        for column in stored["columns"]:
            if column.get("left_out"):
                columns.append(LeftOut(str(column["name"])))
                continue
            if "categories" in column:
                categories = tuple(map(str, column["categories"]))
                more = bool(column.get("unseen", False)), str(column.get("common", ""))
                columns.append(Words(str(column["name"]), categories, *more))
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


def typed(table: Table, categorical: Sequence[str] = ()) -> Table:
    """The table with what `fit` takes its columns for: those that are to be categories as words, others as numbers.

    Columns that `auto` finds are marked as left out where they have more than `MOST` values, or where more than a share
    `ALONE` of the rows has a value of its own, as names and identifiers have. Those that are named are kept.
    Raises InputError for a cell that is neither a number nor missing, in a column that is not to be categories.
    """
    named = {table.place(column, "--categorical") for column in categorical if column != AUTO}
    columns = []
    for i, column in enumerate(table.columns):
        if column.words is not None and column.left_out is None:
            if i in named:
                column = column._replace(left_out=False)
            elif AUTO in categorical and _is_words(column):
                column = column._replace(left_out=_is_identifier(column))
            else:
                column = _numeric(table, column, "")
        columns.append(column)
    if all(column.left_out for column in columns):
        raise InputError(
            f"{table.name}: each column has too many values to be categories; --categorical=NAME takes one all the same"
        )
    return dataclasses.replace(table, columns=tuple(columns))


def fit(
    table: Table,
    categorical: Sequence[str] = (),
    missing: str = "error",
    rows: np.ndarray | None = None,
    *,
    before: bool = False,
) -> Encoding:
    """The encoding of a table's columns, by the rows at these places (m,), or by all.

    categorical: columns whose values are categories, by name or number; "auto": those that hold words. A column of
    numbers in which some cells are words is none of them, and one with about as many values as rows is left out.
    missing: what to do about missing values, then and later: an error, drop the row, or take the column's median.
    before: as runs of before this had columns of unseen categories and left any out.
    Raises InputError for words that are not said to be categories, and for values that are missing or infinite, in any
    row of the table.
    """
    table = typed(table, categorical)
    named = {table.place(column, "--categorical") for column in categorical if column != AUTO}
    # Each column by the rows that it has; a row is dropped only from what is encoded.
    places = np.arange(table.rows) if missing == "median" else whole(table, missing)
    kept = table.take(places if rows is None else np.intersect1d(places, rows))
    if not kept.rows:
        raise InputError(f"{table.name}: each row to fit to lacks a value; expected --missing=median")
    columns: list[Numbers | Words | LeftOut] = []
    for i, column in enumerate(kept.columns):
        if column.left_out and not before:
            columns.append(LeftOut(column.name))
            continue
        if i in named or column.words is not None:
            values, counts = np.unique(column.texts[~holes(column)], return_counts=True)
            common = str(values[counts.argmax()]) if len(values) else ""
            columns.append(Words(column.name, tuple(map(str, values)), not before, common))
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
    """Where a value is missing or infinite, bool (n,); nowhere in a column that is left out."""
    if column.left_out:
        return np.zeros(len(column.texts), bool)
    if column.words is None:
        assert column.numbers is not None
        return ~np.isfinite(column.numbers)
    return _is_mark(column.words)


def whole(table: Table, missing: str, absent: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Places (m,) of the rows without a hole. Raises InputError if there is a hole and no leave to drop it, or none.

    absent: where each column has holes, if not where `holes` says.
    """
    bad = np.zeros(table.rows, bool)
    for column, found in zip(table.columns, absent or map(holes, table.columns), strict=True):
        if found.any() and missing == "error":
            row = int(np.argmax(found))
            cells = column.marks if column.words is None else column.words
            cell = "" if cells is None else str(cells[row])
            value = "missing" + (f" ({cell!r})" if cell else "")
            if column.numbers is not None and not np.isnan(column.numbers[row]):
                value = str(column.numbers[row])
            raise InputError(
                f"{table.name}: row {row}, column {column.name!r} is {value}, the first of {found.sum()} there; "
                "expected a number, or --missing=drop (the row) or --missing=median (of the column)"
            )
        bad |= found
    if bad.all():
        raise InputError(f"{table.name}: each of {table.rows} rows lacks a value; expected --missing=median")
    return np.flatnonzero(~bad)


def _is_mark(cells: np.ndarray) -> np.ndarray:
    """Where cells (n,) are of `tables.MARKS`."""
    values, places = np.unique(cells, return_inverse=True)
    return np.array([cell.lower() in tables.MARKS for cell in values.tolist()], bool)[places]


def _is_words(column: Column) -> bool:
    """Whether a column holds words, rather than numbers of which some cells are not.

    The greater part of its cells and of its distinct values are words then; a number with commas is none.
    """
    assert column.words is not None
    cells, counts = np.unique(column.words[tables.as_numbers(column).stray], return_counts=True)
    word = np.array([COMMA.fullmatch(cell) is None for cell in cells.tolist()], bool)
    known = column.words[~_is_mark(column.words)]
    return bool(2 * counts[word].sum() > len(known) and 2 * word.sum() > len(np.unique(known)))


def _is_identifier(column: Column) -> bool:
    values, counts = np.unique(column.texts[~holes(column)], return_counts=True)
    alone = (counts == 1).sum() > ALONE * counts.sum() and len(values) > FEW
    return bool(len(values) > MOST or alone)


def _numeric(table: Table, column: Column, suffix: str) -> Column:
    """A column as numbers. Raises InputError for a cell that is none, with the way out.

    suffix: of what is expected; without one, the table is fitted to, and may have columns of categories.
    """
    if column.words is None:
        return column
    read = tables.as_numbers(column)
    if not read.stray.any():
        return column._replace(numbers=read.numbers, words=None, marks=column.words)
    row, strays, numbers = int(np.argmax(read.stray)), int(read.stray.sum()), int((~np.isnan(read.numbers)).sum())
    word = str(column.words[row])
    comma = COMMA.fullmatch(word) is not None
    expected = "1234.5 for 1.234,5 or 1,234.5" if comma else "a number" + (f", {suffix}" if suffix else "")
    repair = "correct the cell, or leave it empty with --missing=drop (the row) or --missing=median (of the column)"
    if suffix:
        expected += f"; {repair}"
    elif _is_words(column) and not comma:
        expected = f"--categorical=auto or --categorical={column.name} if it holds categories, or --drop={column.name}"
    else:
        expected += f"; {repair}, or --drop={column.name}"
        if len(np.unique(column.words)) <= FEW and not comma:  # codes may be
            expected += f"; if its values are categories, --categorical={column.name}"
    counted = f" ({strays:,} of {table.rows:,} cells are none)" if numbers else ""
    raise InputError(
        f"{table.name}: row {row}, column {column.name!r} holds {word[:40]!r}, no number{counted}; expected {expected}"
    )


class OneHot(NamedTuple):
    """known: bool (n, categories). missing, unseen: bool (n,), where no category is known."""

    known: np.ndarray
    missing: np.ndarray
    unseen: np.ndarray


def _one_hot(ours: Words, theirs: Column) -> OneHot:
    """Of cells among the categories.

    A run of before may keep categories `1.0` beside words, or even `1` and `1.0`, or `-`: a cell that is written as one
    of them is that one, and only another is compared as a number.
    """
    written, categories = (theirs.texts if theirs.words is None else theirs.words), np.array(ours.categories, np.str_)
    cells, places = np.unique(written, return_inverse=True)
    exact = cells[:, None] == categories
    alike = tables.alike(cells)[:, None] == tables.alike(categories)
    known = np.where(exact.any(1, keepdims=True), exact, alike)
    missing = _is_mark(cells) & ~known.any(1)
    return OneHot(known[places], missing[places], (~known.any(1) & ~missing)[places])


def _encoded(ours: Numbers | Words, theirs: Column) -> tuple[np.ndarray, np.ndarray]:
    """The column encoded, float64 (n, width), and where it has holes, bool (n,)."""
    if isinstance(ours, Words):
        known, missing, unseen = _one_hot(ours, theirs)
        return np.column_stack([known, *[UNSEEN * unseen] * ours.unseen]).astype(np.float64), missing
    assert theirs.numbers is not None
    absent = holes(theirs)
    return _arcsinh(np.where(absent, ours.median, theirs.numbers), ours)[:, None], absent


def _arcsinh(numbers: np.ndarray, column: Numbers) -> np.ndarray:
    with np.errstate(over="ignore"):  # of halves, whose difference is always a float64, and the same but for that
        z = (numbers / 2 - column.mean / 2) / (column.deviation / 2)
    return np.clip(np.arcsinh(z), -FARTHEST, FARTHEST)
