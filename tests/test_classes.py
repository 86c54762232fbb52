"""Classes by name and by number: order, selection, identity."""

import pytest

from jaxgan import classes
from jaxgan.errors import InputError


def test_numeric_names_are_in_numeric_order():
    assert classes.ordered(map(str, range(12))) == [str(i) for i in range(12)]
    assert classes.ordered(["cat", "10", "9", "ant", "02"]) == ["02", "9", "10", "ant", "cat"]


@pytest.mark.parametrize(
    ("wanted", "names", "count", "numbers"),
    [
        (("cat", "0"), ("ant", "bee", "cat"), 3, (2, 0)),
        (("10", "11"), tuple(map(str, range(12))), 12, (10, 11)),
        (("3", 4), (), 5, (3, 4)),
        (("#2", "#0"), tuple("1234"), 4, (2, 0)),
        (("7",), ("00", "07"), 2, (1,)),
        (("01",), ("01", "02", "03"), 3, (0,)),
        ((1,), ("2", "1"), 2, (1,)),  # an integer is a number
    ],
)
def test_classes_are_selected_by_name_or_number(wanted, names, count, numbers):
    assert classes.resolve(wanted, names, count, "photos") == numbers


@pytest.mark.parametrize(
    ("wanted", "names", "count", "message"),
    [
        ("3", tuple("123456789"), 9, r"'3' of photos has the number 2, and 3 is the number of '4'; write #2 .* 1 to 9"),
        (
            "cot",
            ("ant", "bee", "cat"),
            3,
            r"--classes=cot: no class cot of photos; did you mean 'cat'\? .* ant, bee, c",
        ),
        ("5", (), 5, "no class 5 of photos; .* 0 to 4"),
        ("-1", (), 5, "no class -1"),
        ("#9", ("a", "b"), 2, "no class .*9 of photos"),
        ("a", (), 0, "it has no labels"),
    ],
)
def test_a_class_that_is_not_there_or_ambiguous_is_refused(wanted, names, count, message):
    with pytest.raises(InputError, match=message):
        classes.resolve((wanted,), names, count, "photos")


def test_long_lists_are_shortened():
    assert classes.shown((), 10) == "0 to 9" and classes.shown((), 0) == "no labels"
    assert classes.shown(("ant", "bee")) == "ant, bee"
    assert classes.shown([f"n{i:03}" for i in range(1000)]).endswith("n011 and 988 more")
