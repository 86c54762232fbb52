"""Tables of every kind of file, what is wrong with some, and their encoding."""

import csv
import gzip
import json

import jax
import numpy as np
import pytest
from scipy import io

from jaxgan import data, encoding, sources, tables
from jaxgan.errors import InputError

X = np.array([[1.5, 0, 3], [2.5, 0, 1e6], [-1, 0, 2], [0.25, 0, 7]])
Y = np.array([0, 1, 0, 0])


def numbers(table):
    return np.stack([column.numbers for column in table.columns], 1)


def text(path, lines, opened=open):
    with opened(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return str(path)


def rows(delimiter=",", header=()):
    return [delimiter.join(header)] * bool(header) + [
        delimiter.join(map(str, (*x, y))) for x, y in zip(X.tolist(), Y.tolist(), strict=True)
    ]


@pytest.mark.parametrize("kind", ["npz", "NPZ", "npy", "mat", "csv", "tsv", "txt.gz", "data"])
def test_every_kind_of_file_holds_the_same_table(kind, tmp_path):
    path = tmp_path / f"table.{kind}"
    if kind in ("npz", "NPZ"):
        with path.open("wb") as file:
            np.savez(file, X=X, y=Y)
    elif kind == "npy":
        np.save(path, X)
    elif kind == "mat":
        io.savemat(path, {"X": X, "y": Y[:, None]})
    else:
        delimiter = {"csv": ",", "tsv": "\t", "txt.gz": ";", "data": ","}[kind]
        text(path, rows(delimiter), gzip.open if kind.endswith("gz") else open)
    labelled = kind in ("npz", "NPZ", "mat", "npy")
    table = tables.read(str(path), label="" if labelled else "-1")
    np.testing.assert_array_equal(numbers(table), X)
    assert not table.header and [c.name for c in table.columns] == ["0", "1", "2"]
    if kind != "npy":
        np.testing.assert_array_equal(table.anomalous, Y == 1)


def test_columns_by_name_and_number(tmp_path):
    path = text(tmp_path / "t.csv", rows(header=("a", "b", "c", "what")))
    table = tables.read(path, label="what", drop=["b", "0"])
    assert [c.name for c in table.columns] == ["c"] and table.header
    np.testing.assert_array_equal(table.anomalous, Y == 1)
    # A number is that of the file, whatever is dropped.
    assert [c.name for c in tables.read(path, drop=["1", "-1"]).columns] == ["a", "c"]
    assert tables.read(path, drop=["1"]).place("2", "--x") == 1
    with pytest.raises(InputError, match=r"did you mean 'what'\?"):
        tables.read(path, label="whta")
    with pytest.raises(InputError, match="a number from 0 to 3"):
        tables.read(text(tmp_path / "u.csv", rows()), label="4")


def test_labels_of_any_kind(tmp_path):
    lines = ["1,normal", "2,attack", "3,normal", "4,other"]
    path = text(tmp_path / "t.csv", lines)
    np.testing.assert_array_equal(tables.read(path, label="1", normal="normal").anomalous, [0, 1, 0, 1])
    with pytest.raises(InputError, match="labels normal, attack, other; --normal=VALUE"):
        tables.read(path, label="1")
    with pytest.raises(InputError, match="did you mean 'normal'"):
        tables.read(path, label="1", normal="norml")
    # Numbers are themselves, however they are written.
    np.testing.assert_array_equal(tables.anomalies(tables.words(np.array([1.0, 2.0, 1.0])), "1.0", "t"), [0, 1, 0])
    with pytest.raises(InputError, match="no labels are known"):
        tables.read(path, normal="1")
    with pytest.raises(InputError, match="row 1 has no label"):
        tables.read(text(tmp_path / "u.csv", ["1,0", "2,?"]), label="1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"\n\n", "is empty"),
        ("t.csv", b"a,b\n", "a header and no rows"),
        ("t.csv", b"1,2\n3\n", "line 2 has 1 cells, the first 2"),
        ("t.csv", b"a,a\n1,2\n", "two columns 'a'"),
        ("t.csv", b"\x89PNG\0\0", "is no text"),
        ("t.csv", b"\xff\xfe1", "no csv table"),
        ("t.txt.gz", b"1,2\n", "no txt table"),
        ("t.npz", b"1,2\n", "no npz table"),
        ("t.mat", b"1,2\n", "no mat table"),
        ("t.npy", b"1,2\n", "no npy table"),
        ("t.png", b"1,2\n", "a file that ends in npz"),
        ("t.npz.gz", b"1,2\n", "a file that ends in npz"),
        ("none.csv", None, "no file"),
    ],
)
def test_what_is_no_table(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        tables.read(str(tmp_path / name))


def test_arrays_that_are_no_table(tmp_path):
    for arrays, message in (
        ({"X": np.zeros((2, 2, 2))}, "expected numbers"),
        ({"X": np.array([["a"]])}, "expected numbers"),
        ({"X": X, "y": Y[:2]}, "a label for each of 4 rows"),
        ({"one": X, "two": X}, "expected X and y, or one array"),
        ({"X": np.array([[None]], object)}, "no npz table"),
    ):
        np.savez(tmp_path / "t.npz", **arrays)
        with pytest.raises(InputError, match=message):
            tables.read(str(tmp_path / "t.npz"))


def table(tmp_path, lines, **options):
    return tables.read(text(tmp_path / "t.csv", lines), **options)


@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_decimal_commas(delimiter, tmp_path):
    """Also where the commas cut as evenly, without a header, and beside numbers that have none."""
    for header in ((), ("a", "b")):
        lines = [delimiter.join(row) for row in (*([header] if header else []), ("1,5", "2,3"), ("-0,25", "4,1E3"))]
        found = table(tmp_path, lines)
        np.testing.assert_array_equal(numbers(found), [[1.5, 2.3], [-0.25, 4100]])
        assert found.header == bool(header)
    found = table(tmp_path, [delimiter.join(row) for row in (("7", "x, y", "1,234"), ("", "z", "0,5"))])
    np.testing.assert_array_equal(found.columns[2].numbers, [1.234, 0.5])
    assert found.columns[1].words.tolist() == ["x, y", "z"] and np.isnan(found.columns[0].numbers[1])


@pytest.mark.parametrize(
    "lines", [["1,234;5", "2,345;6"], ["1,5;2.5", "2;3"], ["1.234,5;2", "2;3"], ['"1,234",2', "2,3"]]
)
def test_commas_that_may_stand_for_something_else(lines, tmp_path):
    """They are no numbers, and no header."""
    found = table(tmp_path, lines)
    assert (found.rows, found.width) == (2, 2)
    message = r"row 0, .* holds '1.*', no number.*; expected 1234.5 for 1.234,5 or 1,234.5; correct the cell"
    for categorical in ((), ("auto",)):
        with pytest.raises(InputError, match=message) as error:
            encoding.fit(found, categorical)
        assert "--categorical" not in str(error.value)


def test_commas_between_thousands_are_read_where_nothing_else_fits(tmp_path):
    found = table(tmp_path, ['"1,234.5",a', "999,b", '"-12,000",a', "-,b"])
    known = encoding.fit(found, ["auto"], "median")
    typed = encoding.typed(found, ["auto"]).columns
    np.testing.assert_array_equal(typed[0].numbers, [1234.5, 999, -12000, np.nan])
    assert known.columns[0].median == 999 and known.names[1:3] == ("1=a", "1=b")
    # Beside a decimal comma they are not, nor alone where one may be meant.
    for lines in (['"1,234.5"', '"1,5"'], ['"1,234"', "2"]):
        with pytest.raises(InputError, match=r"expected 1234.5 for 1.234,5 or 1,234.5"):
            encoding.fit(table(tmp_path, lines), ["auto"])


NUMBERS = [f"{i}.5,{'red' if i % 2 else 'blue'}" for i in range(99)]


@pytest.mark.parametrize("cell", ["N/A", "#N/A", "NaN", "null", "None", "-", ".", "?", "", "<NA>"])
def test_usual_marks_of_missing_values(cell, tmp_path):
    """In a column of numbers and of categories, in fitting and after, also with --categorical=auto."""
    found = table(tmp_path, ["a,b", f"{cell},red", f"1,{cell}", *NUMBERS])
    shown = rf" \('{cell}'\)" if cell in ("#N/A", "<NA>", "-", ".") else ""
    with pytest.raises(
        InputError, match=f"row 0, column 'a' is missing{shown}, the first of 1 there; .*--missing=drop"
    ):
        encoding.fit(found, ["auto"])
    known = encoding.fit(found, ["auto"], "median")
    assert known.names == ("a", "b=blue", "b=red", "b (unseen)") and known.columns[0].median == 49
    x, _ = known.encode(found)
    np.testing.assert_array_equal(x[:2], [[known.usual[0], 0, 1, 0], [x[1, 0], 0, 0, 0]])
    known = encoding.fit(table(tmp_path, ["a,b", *NUMBERS]), ["auto"], "drop")
    assert known.encode(found)[1].tolist() == list(range(2, 101))


def test_a_stray_cell_is_named_and_makes_no_categories(tmp_path):
    found = table(tmp_path, ["a,b", *NUMBERS, "oops,red"])
    for categorical in (["auto"], ["b"]):
        with pytest.raises(InputError) as error:
            encoding.fit(found, categorical)
        assert str(error.value).endswith(
            "row 99, column 'a' holds 'oops', no number (1 of 100 cells are none); expected a number; correct the "
            "cell, or leave it empty with --missing=drop (the row) or --missing=median (of the column), or --drop=a"
        )
    known = encoding.fit(table(tmp_path, ["a,b", *NUMBERS]), ["auto"])
    with pytest.raises(
        InputError, match=r"row 99, column 'a' holds 'oops', no number .*; expected a number, as in fitting"
    ):
        known.encode(found)
    # Of few values, which may be codes, it is asked; one that is named is taken for categories.
    codes = table(tmp_path, ["1,2", "1,3", "2,4", "x,5"])
    with pytest.raises(InputError, match=r"; if its values are categories, --categorical=0$"):
        encoding.fit(codes, ["auto"])
    assert encoding.fit(codes, ["0"]).names[:3] == ("0=1", "0=2", "0=x")


def test_columns_of_identifiers_are_left_out_unless_they_are_named(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["who,town,x"] + [f"u{i},t{i % 30},{v:.3f}" for i, v in enumerate(rng.normal(size=200))]
    found = table(tmp_path, lines)
    known = encoding.fit(found, ["auto"])
    assert [type(c).__name__ for c in known.columns] == ["LeftOut", "Words", "Numbers"]
    assert known.width == 32 and known.names[0] == "town=t0" and known.names[-2:] == ("town (unseen)", "x")
    assert encoding.from_json(json.loads(json.dumps(known.to_json()))) == known
    assert encoding.fit(found, ["auto", "who"]).width == 233
    # The same rows, with the column or without it, and with holes in it.
    x, _ = known.encode(found)
    bare = table(tmp_path, [line.partition(",")[2] for line in lines])
    np.testing.assert_array_equal(known.encode(bare)[0], x)
    holes = table(tmp_path, [lines[0], *("," + line.partition(",")[2] for line in lines[1:])])
    np.testing.assert_array_equal(known.encode(holes)[0], x)
    many = tables.of({"c": np.array([f"c{i % 1001}" for i in range(5000)]), "x": np.arange(5000.0)})
    assert encoding.fit(many, ["auto"]).width == 1
    with pytest.raises(InputError, match="each column has too many values"):
        encoding.fit(table(tmp_path, [f"u{i}" for i in range(50)]), ["auto"])


def test_unseen_categories_have_a_column_and_are_counted(tmp_path):
    known = encoding.fit(table(tmp_path, ["c,x", "a,1", "b,2", "a,4"]), ["auto"])
    new = table(tmp_path, ["c,x", "A,1", "b,2", "zz,4"])
    x, _ = known.encode(new)
    np.testing.assert_array_equal(x[:, :3], [[0, 0, 1], [0, 1, 0], [0, 0, 1]])
    assert {name: where.tolist() for name, where in known.unseen(new).items()} == {"c": [True, False, True]}
    assert known.unseen(table(tmp_path, ["c,x", "b,1"])) == {}
    # A run of before encodes as it did, to the bit, but counts them too; what it took for a category is no hole.
    kept = known.to_json()
    kept["columns"] = [{"name": "c", "categories": ["-", "b"]}, kept["columns"][1]]
    before = encoding.from_json(kept)
    x, _ = before.encode(table(tmp_path, ["c,x", "A,1", "b,2", "-,4"]))
    np.testing.assert_array_equal(x[:, :2], [[0, 0], [0, 1], [1, 0]])
    assert before.width == 3 and before.unseen(new)["c"].tolist() == [True, False, True]
    assert encoding.fit(table(tmp_path, ["c,x", "a,1", "b,2"]), ["auto"], before=True).names == ("c=a", "c=b", "x")


def test_tables_of_python():
    class Frame:  # of pandas, as far as it is needed
        def __init__(self, **columns):
            self.columns = columns

        def keys(self):
            return self.columns.keys()

        def __getitem__(self, name):
            return self.columns[name]

    found = tables.of(Frame(x=np.array([1, 2]), c=np.array(["a", None], object)))
    assert [c.name for c in found.columns] == ["x", "c"] and found.header and found.rows == 2
    assert found.columns[1].words.tolist() == ["a", ""] and found.columns[0].numbers.dtype == np.float64
    assert tables.of(found) is found
    np.testing.assert_array_equal(numbers(tables.of(X)), X)
    with pytest.raises(InputError, match=r"columns x \(2,\), y \(3,\); expected arrays"):
        tables.of({"x": np.zeros(2), "y": np.zeros(3)})


def test_delimiters_in_quotes_do_not_count(tmp_path):
    found = table(tmp_path, ['"a,b,c";1', '"d,e,f";2'])
    assert found.columns[0].words.tolist() == ["a,b,c", "d,e,f"]


def test_a_row_may_be_longer_than_a_cell(tmp_path):
    found = table(tmp_path, [",".join(["1.2345678"] * 20_000)] * 2)
    assert (found.rows, found.width) == (2, 20_000)


def test_a_cell_may_have_lines(tmp_path):
    lines = ["what,size", '"x\ny",1', "", '"x\n\ny ",2', "  ", "xy,3"]
    assert table(tmp_path, lines).columns[0].words.tolist() == ["x\ny", "x\n\ny", "xy"]
    (tmp_path / "dos.csv").write_bytes(b'"x\r\ny",1\r\n\r\nxy,3\r\n')
    assert tables.read(str(tmp_path / "dos.csv")).columns[0].words.tolist() == ["x\r\ny", "xy"]
    # One that is empty is a missing value, a line that is blank nothing.
    np.testing.assert_array_equal(numbers(table(tmp_path, ["1", '""', "", "3"])), [[1], [np.nan], [3]])
    with pytest.raises(InputError, match="line 5 has 1 cells, the first 2"):
        table(tmp_path, ['"x\ny",1', "", "y,2", "z"])


def test_encoding_by_hand(tmp_path):
    found = table(tmp_path, ["size,kind,code,flat", "1,b,1,5", "3,a,2.0,5", "8,b,2,5"])
    known = encoding.fit(found, ["auto", "code"])
    assert known.names[:5] == ("size", "kind=a", "kind=b", "kind (unseen)", "code=1")
    assert known.names[5:] == ("code=2", "code (unseen)", "flat")
    x, places = known.encode(found)
    z = (np.array([1, 3, 8]) - 4) / np.sqrt(26 / 3)
    none = [0, 0, 0]
    expected = np.stack([np.arcsinh(z), [0, 1, 0], [1, 0, 1], none, [1, 0, 0], [0, 1, 1], none, none], 1)
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    assert x.dtype == np.float32 and places.tolist() == [0, 1, 2]
    np.testing.assert_allclose(known.decode(x)[:, [0, 7]], [[1, 5], [3, 5], [8, 5]], rtol=1e-5)
    np.testing.assert_allclose(known.standard(x)[:, 0], z, rtol=1e-6)
    np.testing.assert_allclose(known.usual, [np.arcsinh(-1 / np.sqrt(26 / 3)), 0, 1, 0, 0, 1, 0, 0], rtol=1e-6)
    assert [known.names[span][0] for span in known.spans] == ["size", "kind=a", "code=1", "flat"]
    # As the run keeps it; a category that was not there is one not seen, another value of a constant column far out.
    again = encoding.from_json(json.loads(json.dumps(known.to_json())))
    assert again == known
    new, _ = again.encode(table(tmp_path, ["size,kind,code,flat", "4,c,1,9"]))
    np.testing.assert_allclose(new, [[0, 0, 0, 1, 1, 0, 0, np.arcsinh(4)]], atol=1e-7)


def test_a_number_is_the_same_category_beside_a_word(tmp_path):
    """Whether a word stands in the rows that are fitted to, in those that come later, in both or in none."""
    plain, mixed = ["0.0", "1.0", "2.0"], ["1.0", "2.0", "1e0", "x"]
    known = encoding.fit(table(tmp_path, plain), ["0"])
    assert known.names == ("0=0", "0=1", "0=2", "0 (unseen)")
    expected = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(known.encode(table(tmp_path, mixed))[0], expected)
    known = encoding.fit(table(tmp_path, mixed), ["0"])
    assert known.names == ("0=1", "0=2", "0=x", "0 (unseen)")
    expected = [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    np.testing.assert_array_equal(known.encode(table(tmp_path, plain))[0], expected)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
    np.testing.assert_array_equal(known.encode(table(tmp_path, mixed))[0], expected)
    labels = tables.read(text(tmp_path / "l.csv", ["1,0.0", "2,odd", "3,0"]), label="1", normal="0")
    np.testing.assert_array_equal(labels.anomalous, [0, 1, 0])


def test_categories_that_a_run_keeps_as_they_were_written(tmp_path):
    kept = {"columns": [{"name": "0", "categories": ["1", "1.0", "2.0", "x"]}], "missing": "error", "header": False}
    known = encoding.from_json(kept)
    words = table(tmp_path, ["1", "1.0", "2.0", "x", "y"])
    np.testing.assert_array_equal(known.encode(words)[0], np.eye(5, 4))
    numbers = table(tmp_path, ["1.0", "2.0"])  # of which nobody knows any longer how they were written
    np.testing.assert_array_equal(known.encode(numbers)[0], [[1, 0, 0, 0], [0, 0, 1, 0]])


def test_a_number_with_underscores_is_a_word(tmp_path):
    with pytest.raises(InputError, match="column '0' holds '1_0', no number"):
        encoding.fit(table(tmp_path, ["2", "1_0"]))


def test_rows_that_are_fitted_to(tmp_path):
    """Others have no part in it, but a hole among them is one all the same, under its own number."""
    found = table(tmp_path, ["1", "100", "3", "8"])
    assert encoding.fit(found, rows=np.array([3, 0, 2])) == encoding.fit(found.take(np.array([0, 2, 3])))
    with pytest.raises(InputError, match="row 2, column '0' is missing"):
        encoding.fit(table(tmp_path, ["1", "2", "?", "4"]), rows=np.array([3, 0]))


def test_tails_keep_their_order():
    """Where a clipped score would make one of all."""
    rng = np.random.default_rng(0)
    column = rng.standard_t(2, 1000)
    found = tables.Table("t", (tables.Column("0", 0, column),), 1000, 1)
    known = encoding.fit(found)
    x, _ = known.encode(found)
    np.testing.assert_array_equal(np.argsort(x[:, 0]), np.argsort(column))
    np.testing.assert_allclose(known.decode(x)[:, 0], column, rtol=1e-4, atol=1e-5)


def of(*columns):
    return tables.Table("t", tuple(tables.Column(str(i), i, c) for i, c in enumerate(columns)), len(columns[0]), 0)


def test_numbers_of_any_size_are_encoded_in_their_order():
    """Also those from which a standard score, or the mean of all, would be no float64."""
    most = np.finfo(np.float64).max
    known = encoding.fit(of(np.array([-1e-3, 1e-3] * 10)))
    x, _ = known.encode(of(np.array([0, 1e30, 1e200, most, -most])))
    np.testing.assert_allclose(x[:4, 0], [0, np.arcsinh(1e33), np.arcsinh(1e203), encoding.FARTHEST], rtol=1e-6)
    assert x[4] == -x[3] and np.isfinite(known.standard(x)).all()

    columns = np.array([[1e200, 1, 2, 3], [most, -most, most, -most], [most, most, most, most], [5e-324, 0, 0, 0]])
    known = encoding.fit(of(*columns))
    json.dumps(known.to_json(), allow_nan=False)
    for column, kept in zip(columns, known.columns, strict=True):
        scale = np.abs(column).max() if column.max() > 1 else 1.0
        assert kept.mean == pytest.approx(scale * np.mean(column / scale), abs=0)
        assert kept.deviation == pytest.approx(scale * np.std(column / scale) or 1, rel=1e-12)
        assert kept.median == pytest.approx(scale * np.median(column / scale), rel=1e-9)
    np.testing.assert_allclose(known.encode(of(*columns))[0][:, 1], np.arcsinh([1, -1, 1, -1]), rtol=1e-6)


def test_moments_of_usual_numbers_are_numpy_s_own():
    found = tables.read("breast_cancer")
    for column, kept in zip(found.columns, encoding.fit(found).columns, strict=True):
        x = column.numbers
        assert (kept.mean, kept.deviation, kept.median) == (x.mean(), x.std(), np.median(x))


def test_missing_values(tmp_path):
    lines = ["a,b", "1,x", "?,y", "9,", "inf,x", "2,y"]
    found = table(tmp_path, lines)
    with pytest.raises(InputError, match="row 1, column 'a' is missing, the first of 2 there"):
        encoding.fit(found, ["b"])
    known = encoding.fit(found, ["b"], "drop")
    x, places = known.encode(found)
    assert places.tolist() == [0, 4]
    np.testing.assert_allclose(x, np.stack([np.arcsinh([-1, 1]), [1, 0], [0, 1], [0, 0]], 1), rtol=1e-6)
    known = encoding.fit(found, ["b"], "median")
    x, places = known.encode(found)
    assert places.tolist() == [0, 1, 2, 3, 4] and known.columns[0].median == 2
    np.testing.assert_allclose(x[1, 0], x[4, 0])
    np.testing.assert_allclose(x[2], [np.arcsinh((9 - 4) / known.columns[0].deviation), 0, 0, 0], rtol=1e-6)
    with pytest.raises(InputError, match="each of 2 rows lacks a value"):
        encoding.fit(table(tmp_path, ["1,", ",2"]), (), "drop")
    with pytest.raises(InputError, match="column '1' has no value; --drop=1"):
        encoding.fit(table(tmp_path, ["1,", "2,"]), (), "median")
    with pytest.raises(InputError, match="column '1' has no value in the 1 rows to fit to; --drop=1"):
        encoding.fit(table(tmp_path, ["1,", "2,3"]), (), "median", np.array([0]))
    with pytest.raises(InputError, match="each row to fit to lacks a value; expected --missing=median"):
        encoding.fit(table(tmp_path, ["1,", "2,3"]), (), "drop", np.array([0]))


def test_columns_that_do_not_fit(tmp_path):
    known = encoding.fit(table(tmp_path, ["a,b", "1,2", "3,4"]))
    for lines, message in (
        (["a", "1"], "has 1 columns to be seen; expected 2"),
        (["b,a", "1,2"], "a column 'b' where 'a' was"),
        (["a,b", "1,two"], "column 'b' holds 'two', no number; expected a number, as in fitting"),
    ):
        with pytest.raises(InputError, match=message):
            known.encode(table(tmp_path, lines))
    with pytest.raises(InputError, match=r"column 'a' holds 'x', no number; expected --categorical=auto"):
        encoding.fit(table(tmp_path, ["a,b", "x,2"]), ["b"])
    good = known.to_json()
    for bad in (None, {}, good | {"missing": "no"}, good | {"columns": [{"name": "a", "mean": 0, "deviation": 0}]}):
        with pytest.raises(InputError, match="keeps no encoding of a table"):
            encoding.from_json(bad)


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_rows_reach_the_device_as_they_are(placement):
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32) * 1e3
    feed = data.place(sources.of_rows("t", x), batch_size=4, devices=jax.devices()[:1], placement=placement)
    (call,) = feed.calls(0, 5, 5)
    batch = jax.vmap(feed.draw, (None, 0))(feed.resident, jax.tree.map(lambda a: a[0], call))
    assert batch["image"].shape == (5, 1, 4, 3) and batch["image"].dtype == np.float32
    seen = np.asarray(batch["image"]).reshape(2, 10, 3)  # two epochs, each a permutation
    for epoch in seen:
        np.testing.assert_array_equal(epoch[np.argsort(epoch[:, 0])], x[np.argsort(x[:, 0])])
    with pytest.raises(InputError, match="finite float32"):
        sources.of_rows("t", np.full((1, 1), np.nan, np.float32))


def test_the_literature_s_tables(test_data):
    home = test_data / "anomaly"
    for name, shape, anomalous in (("arrhythmia.mat", (452, 274), 66), ("adbench/38_thyroid.npz", (3772, 6), 93)):
        found = tables.read(str(home / name))
        assert numbers(found).shape == shape and found.anomalous.sum() == anomalous
    path = home / "nsl_kdd" / "KDDTest+.txt.gz"
    found = tables.read(str(path), label="-2", normal="normal", drop=["-1"])
    assert found.rows == 22544 and len(found.columns) == 41 and found.anomalous.sum() == 12833
    known = encoding.fit(found, ["1", "2", "3"])
    x, _ = known.encode(found)
    with gzip.open(path, "rt") as file:
        words = [row[1] for row in csv.reader(file)]
    tcp = known.names.index("1=tcp")
    np.testing.assert_array_equal(x[:, tcp], [word == "tcp" for word in words])
