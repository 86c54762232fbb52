"""Tables of numbers and words, as they lie in files; `encoding` makes numbers of them that a network can see.

    npz, mat    X (n, d) and, if there, y (n,), or one array of any name; MATLAB's up to version 7.2
    npy         one array
    csv, tsv, txt, data, each with .gz or without
                commas, tabs or semicolons; a first row without a number is a header; beside tabs and semicolons
                numbers may have a decimal comma

A name of `BUNDLED` is a table inside the installation. In Python a table is also made of arrays and columns (`of`).
"""

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxgan import archives, files, memory
from jaxgan.errors import InputError, printable, unknown
from jaxgan.sources import first_line

TEXT, ARRAYS = (".csv", ".tsv", ".txt", ".data"), (".npz", ".npy", ".mat")
BUNDLED = ("breast_cancer",)
MISSING = ("", "?", "na", "n/a", "nan", "null", "none")
MARKS = (*MISSING, "#n/a", "<na>", "-", ".")  # of a missing value in a column that is to be encoded; a label may be `-`
DELIMITERS = ",\t;"
SNIFFED = 20  # rows of which each has as many delimiters
DECIMAL = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # may be either
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")  # commas between thousands
SURELY_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(,\d{3}|\.\d*)")  # which no decimal comma can be
SWOLLEN = 40  # times its length a text takes while it is read: a cell is a Python string


class Column(NamedTuple):
    """`numbers` (n,) float64, NaN where missing; or `words` (n,), where a cell is neither a number nor of `MISSING`."""

    name: str
    place: int  # its number in the file
    numbers: np.ndarray | None
    words: np.ndarray | None = None  # text; "" where missing
    marks: np.ndarray | None = None  # (n,) the cells of `words` that became `numbers`, for messages
    left_out: bool | None = None  # of words: not to be encoded, or to be categories; None before that is decided

    @property
    def texts(self) -> np.ndarray:
        """(n,) text, the same of numbers that are: `1`, `1.0` and `1e0`, also beside words; "" where missing."""
        if self.words is not None:
            return alike(self.words)
        assert self.numbers is not None
        return words(self.numbers)

    def take(self, which: np.ndarray) -> "Column":
        numbers, words, marks = (x if x is None else x[which] for x in (self.numbers, self.words, self.marks))
        return self._replace(numbers=numbers, words=words, marks=marks)


class Reading(NamedTuple):
    """What the cells of a column are as numbers.

    numbers: (n,) float64, NaN where the cell is missing or stray. stray: (n,) bool, neither a number nor missing.
    grouped: commas are read as thousands separators.
    """

    numbers: np.ndarray
    stray: np.ndarray
    grouped: bool


def as_numbers(column: Column) -> Reading:
    """Reads a column as numbers.

    Commas are thousands separators where one of the cells cannot be read otherwise (`1,234.5`, `1,234,567`) and all
    cells with a comma can be read so. Cells of `MARKS` are missing.
    """
    if column.numbers is not None:
        return Reading(column.numbers, np.zeros(len(column.numbers), bool), False)
    assert column.words is not None
    cells, places = np.unique(column.words, return_inverse=True)
    commas = [cell for cell in cells.tolist() if "," in cell and not cell.isspace()]
    grouped = any(map(SURELY_GROUPED.fullmatch, commas)) and all(map(GROUPED.fullmatch, commas))
    values, stray = np.full(len(cells), math.nan), np.zeros(len(cells), bool)
    for i, cell in enumerate(cells.tolist()):
        plain = cell.replace(",", "") if grouped else cell
        if is_number(plain):
            values[i] = float(plain)
        else:
            stray[i] = cell.lower() not in MARKS
    return Reading(values[places], stray[places], grouped)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows in columns, and which of them are anomalous, if that is known."""

    name: str
    columns: tuple[Column, ...]
    rows: int
    width: int  # columns in the file
    anomalous: np.ndarray | None = None  # bool (rows,)
    header: bool = False  # the names of the columns are the file's own, not their numbers

    def take(self, which: np.ndarray) -> "Table":
        """The rows at these places (m,)."""
        which = np.asarray(which)
        columns = tuple(column.take(which) for column in self.columns)
        anomalous = None if self.anomalous is None else self.anomalous[which]
        return dataclasses.replace(self, columns=columns, rows=len(which), anomalous=anomalous)

    def place(self, column: str, flag: str) -> int:
        """Where among `columns` one is: by its name, or by its number in the file, from 0, or from -1 backwards."""
        names, n = [c.name for c in self.columns], self.width
        if column in names:
            return names.index(column)
        with contextlib.suppress(ValueError):
            places = [c.place for c in self.columns]
            if -n <= (number := int(column)) < n and number % n in places:
                return places.index(number % n)
        hint = f"a number from 0 to {n - 1}, or from -1 backwards"
        if self.header:
            raise unknown(f"column in {flag}:", column, names, f"or {hint}")
        raise InputError(f"{flag}={column}: {self.name} has no such column; expected {hint}")


class File(NamedTuple):
    """A table as it stands in a file, from which `select` takes what is asked for."""

    table: Table
    labels: np.ndarray | None  # (n,) text: y of npz and mat
    cells: Sequence[Sequence[str]] | None = None  # of text: the columns as they are written

    def texts(self, column: str, flag: str) -> np.ndarray:
        """(n,) the cells of a column as they are written; of arrays, as `words` writes them."""
        place = self.table.place(column, flag)
        return self.table.columns[place].texts if self.cells is None else np.array(self.cells[place], np.str_)

    def select(self, *, label: str = "", normal: str = "", drop: Sequence[str] = (), id: str = "") -> Table:
        """The table without the columns `label`, `drop` and `id`. Arguments and errors as of `read`."""
        table, labels = self.table, self.labels
        gone = {table.place(column, "--drop") for column in drop} | {table.place(x, "--id") for x in (id,) if x}
        if label:
            at = table.place(label, "--label")
            labels = table.columns[at].texts
            gone.add(at)
        path = table.name
        if labels is None and normal:
            raise InputError(
                f"--normal={normal}, but no labels are known in {path}; --label=COLUMN says where they are"
            )
        columns = tuple(c for i, c in enumerate(table.columns) if i not in gone)
        if not columns:
            flags = "--drop, --id and --label"
            raise InputError(f"{path}: no column is left of {len(table.columns)} without {len(gone)}, {flags}")
        anomalous = None if labels is None else anomalies(labels, normal, path)
        return dataclasses.replace(table, columns=columns, anomalous=anomalous)


def read(path: str, *, label: str = "", normal: str = "", drop: Sequence[str] = (), header: str = "auto") -> Table:
    """The table of a file, or a bundled one, without the columns `drop`.

    label: the column that says what a row is; y of npz and mat needs no asking for. It is no column of the result.
    normal: its value for normal rows, every other being an anomaly; if none is given, 0 of labels 0 and 1.
    header: whether text begins with the names of its columns: auto, yes or no.
    Columns are given by name or number, in the file as it stands. Raises InputError for whatever is missing, no table,
    or does not fit.
    """
    return load(path, header).select(label=label, normal=normal, drop=drop)


def of(rows: Any, name: str = "the table") -> Table:
    """A table of what Python has: a Table, the name of a file, numbers (n, d), or columns by name.

    Columns by name are a mapping of arrays (n,), such as a dict or a data frame of pandas.
    """
    if isinstance(rows, Table):
        return rows
    if isinstance(rows, str | os.PathLike):
        return read(os.fspath(rows))
    if isinstance(rows, Mapping) or hasattr(rows, "keys"):
        found = {str(key): np.asarray(rows[key]) for key in rows.keys()}  # noqa: SIM118 (a data frame iterates so too)
        sizes = {x.shape for x in found.values()}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1 or not next(iter(sizes))[0]:
            shapes = ", ".join(f"{key} {x.shape}" for key, x in found.items()) or "none"
            raise InputError(f"{name} has the columns {shapes[:300]}; expected arrays (n,) of one length")
        columns = tuple(
            Column(key, i, x.astype(np.float64)) if x.dtype.kind in "fiub" else _column(key, i, [str(c) for c in x])
            for i, (key, x) in enumerate(found.items())
        )
        return Table(name, columns, len(columns[0].texts), len(columns), header=True)
    return _table(name, np.asarray(rows))


def words(numbers: np.ndarray) -> np.ndarray:
    """Numbers (n,) as text, `1` for 1.0 and "" for NaN."""
    return np.array(["" if math.isnan(x) else repr(x).removesuffix(".0") for x in numbers.tolist()], np.str_)


def alike(cells: np.ndarray) -> np.ndarray:
    """Text (n,), each cell that is a number as `words` writes it."""
    values, places = np.unique(cells, return_inverse=True)
    known = [str(words(np.array([float(cell)]))[0]) if is_number(cell) else cell for cell in values.tolist()]
    return np.array(known, np.str_)[places]


def anomalies(labels: np.ndarray, normal: str, name: str) -> np.ndarray:
    """Labels (n,) as text -> whether each is another than `normal` (n,); "" stands for 0 where all are 0 or 1."""
    if (labels == "").any():
        raise InputError(f"{name}: row {np.argmax(labels == '')} has no label; expected one in each row, or no --label")
    values, counts = np.unique(labels, return_counts=True)
    common = [str(value) for value in values[np.argsort(-counts, kind="stable")]]
    if not normal and not set(common) <= {"0", "1"}:
        shown = ", ".join(common[:6]) + (" ..." if len(common) > 6 else "")
        raise InputError(f"{name} has the labels {printable(shown)[:200]}; --normal=VALUE says which one is normal")
    normal = normal or "0"
    with contextlib.suppress(ValueError):
        normal = normal if normal in common else str(words(np.array([float(normal)]))[0])
    if normal not in common:
        raise unknown(f"label of {name} in --normal:", normal, common[:20])
    return labels != normal


# --- files


def load(path: str, header: str = "auto") -> File:
    """The table of a file, or a bundled one, as it stands. Arguments and errors as of `read`."""
    if path in BUNDLED:
        from sklearn.datasets import load_breast_cancer  # takes a second to import

        found = load_breast_cancer()
        # Its classes are 0 malignant, 1 benign: the healthy are the normal ones here.
        labels = np.where(found.target == 1, "0", "1")
        return File(_table(path, found.data, [str(name) for name in found.feature_names]), labels)
    name = path.lower().removesuffix(".gz")
    ending = next((end for end in (*TEXT, *ARRAYS) if name.endswith(end)), "")
    if not ending or (ending in ARRAYS and path.lower().endswith(".gz")):
        raise InputError(
            f"--table={path}: expected a file that ends in {', '.join(x[1:] for x in ARRAYS)}, or in "
            f"{', '.join(x[1:] for x in TEXT)} with .gz or without, or one of: {', '.join(BUNDLED)}"
        )
    files.check_remote(path)
    file = epath.Path(path).expanduser()
    if not files.is_plain(file):
        raise InputError(f"no file {path!r} for --table; expected a table, or one of: {', '.join(BUNDLED)}")
    if not file.stat().length:
        raise InputError(f"{path} is empty; expected a table")
    try:
        if ending in TEXT:
            return _text(path, _characters(file, path), header)
        x, y = _matrices(file, ending, path)
    except InputError:
        raise
    except Exception as error:  # damage shows as any error at all, of each format others
        raise InputError(f"{path} is no {ending[1:]} table ({first_line(error)[:160]})") from None
    table = _table(path, x)
    return File(table, None if y is None else _labels(y, table))


def _table(name: str, x: np.ndarray, names: Sequence[str] = ()) -> Table:
    if x.ndim != 2 or not x.size or x.dtype.kind not in "fiub":
        raise InputError(f"{name} holds {x.dtype} {x.shape}; expected numbers (rows, columns), at least one of each")
    numbers = x.astype(np.float64).T
    labels = names or [str(i) for i in range(len(numbers))]
    columns = tuple(Column(label, i, column) for i, (label, column) in enumerate(zip(labels, numbers, strict=True)))
    return Table(name, columns, len(x), len(columns), header=bool(names))


def _labels(y: np.ndarray, table: Table) -> np.ndarray:
    if y.size != table.rows or y.dtype.kind not in "fiubU":
        raise InputError(f"{table.name}: y is {y.dtype} {y.shape}; expected a label for each of {table.rows} rows")
    return y.ravel() if y.dtype.kind == "U" else words(y.ravel().astype(np.float64))


def _matrices(file: epath.Path, ending: str, path: str) -> tuple[np.ndarray, np.ndarray | None]:
    with file.open("rb") as opened:
        if ending == ".npy":
            memory.check(file.stat().length, path)
            return np.load(opened, allow_pickle=False), None
        if ending == ".mat":
            from scipy import io as scipy_io

            sizes = {name: math.prod(shape) for name, shape, _ in scipy_io.whosmat(opened)}
            wanted = _chosen(list(sizes), path)
            memory.check(8 * sum(sizes[name] for name in wanted), f"the arrays of {path}")
            opened.seek(0)
            found = scipy_io.loadmat(opened, variable_names=wanted)
        else:
            with zipfile.ZipFile(opened) as archive:
                entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
                wanted = _chosen(list(entries), path)
                found = {name: archives.array(archive, entries[name], path) for name in wanted}
    x, *y = (found[name] for name in wanted)
    return x, y[0] if y else None


def _chosen(names: list[str], path: str) -> list[str]:
    """The names of X and, where there is one, y; or of the one array."""
    lower = {name.lower(): name for name in names}
    if "x" in lower:
        return [lower[name] for name in ("x", "y") if name in lower]
    if len(names) == 1:
        return names
    raise InputError(f"{path} holds {', '.join(names)[:200] or 'nothing'}; expected X and y, or one array")


def _characters(file: epath.Path, path: str) -> str:
    room = memory.free() // SWOLLEN
    with file.open("rb") as opened, contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(gzip.open(opened)) if path.lower().endswith(".gz") else opened
        data = stream.read(room + 1)
    memory.check(SWOLLEN * len(data), f"{path} as text")
    if b"\0" in data:
        raise InputError(f"{path} is no text; expected rows of cells, or a name that ends in its own kind")
    return data.decode("utf-8-sig")


def _text(name: str, text: str, header: str) -> File:
    if not text.strip():
        raise InputError(f"{name} is empty; expected a table")
    delimiter = _delimiter(text)
    cells: list[list[str]] = []
    for line, row in _rows(text, delimiter):
        cells.append(row)
        if len(row) != len(cells[0]):
            counted = f"line {line} has {len(row)} cells, the first {len(cells[0])}"
            raise InputError(f"{name}: {counted}; expected as many in each")
    if delimiter != "," and "," in text:
        cells = _with_points(cells)
    width = len(cells[0])
    known = [cell for cell in cells[0] if cell.lower() not in MARKS]
    number = any(is_number(cell) or DECIMAL.fullmatch(cell) or GROUPED.fullmatch(cell) for cell in known)
    named = header == "yes" or (header == "auto" and bool(known) and not number)
    names = cells.pop(0) if named else [str(i) for i in range(width)]
    if not cells:
        raise InputError(f"{name} has a header and no rows; expected some, or --header=no")
    if len(set(names)) < width:
        twice = next(x for x in names if names.count(x) > 1)
        raise InputError(f"{name} has two columns {twice!r}; expected names of their own, or --header=no")
    written = list(zip(*cells, strict=True))
    columns = tuple(_column(names[i], i, column) for i, column in enumerate(written))
    return File(Table(name, columns, len(cells), width, header=named), None, written)


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number of its (last) line, from 1, and the cells of each row that is not blank; a cell may have lines."""
    blank = True

    def lines() -> Iterator[str]:
        nonlocal blank
        for line in io.StringIO(text, newline=""):
            blank = blank and line.isspace()
            yield line

    read = csv.reader(lines(), delimiter=delimiter)
    for row in read:
        if not blank:
            yield read.line_num, [cell.strip() for cell in row]
        blank = True


def _delimiter(text: str) -> str:
    heads = {}
    for d in DELIMITERS:
        with contextlib.suppress(csv.Error):  # a row that it does not cut may be longer than a cell can be
            heads[d] = [row for _, row in itertools.islice(_rows(text, d), SNIFFED)]
    even = {d: len(rows[0]) > 1 and len({len(row) for row in rows}) == 1 for d, rows in heads.items()}
    # Where all commas are those of numbers, they cut as evenly as what stands between the numbers.
    for d in (d for d in even if even[d] and d != ","):
        commas = [cell for row in heads[d] for cell in row if "," in cell]
        if commas and all(map(DECIMAL.fullmatch, commas)):
            return d
    # One that cuts these rows into as many cells each; else the most of the first, and the line that differs is named.
    return max(heads, key=lambda d: (even[d], len(heads[d][0])), default=",")


def _with_points(rows: list[list[str]]) -> list[list[str]]:
    """With a point for the decimal comma, unless a number has a point, or each comma may be one between thousands.

    What then has a comma stays a word, of which `as_numbers` reads what can be read in one way only.
    """
    commas = [cell for row in rows for cell in row if DECIMAL.fullmatch(cell)]
    pointed = any("." in c and (is_number(c) or GROUPED.fullmatch(c)) for row in rows for c in row)
    if pointed or all(map(THOUSANDS.fullmatch, commas)):
        return rows
    return [[cell.replace(",", ".") if DECIMAL.fullmatch(cell) else cell for cell in row] for row in rows]


def is_number(cell: str) -> bool:
    """Whether a cell is read as one; `1_000`, which Python reads, is none."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _column(name: str, place: int, cells: Sequence[str]) -> Column:
    known = ["" if cell.lower() in MISSING else cell for cell in cells]
    if all(is_number(cell) for cell in known if cell):
        return Column(name, place, np.array([float(cell) if cell else math.nan for cell in known]))
    return Column(name, place, None, np.array(known, np.str_))
