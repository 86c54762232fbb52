"""Classes by name and by number: their order, what `--classes` selects, and short lists of them for messages."""

import difflib
from collections.abc import Iterable, Sequence

from jaxgan.errors import InputError

LISTED = 12  # names in a message; of more, the first ones


def ordered(names: Iterable[str]) -> list[str]:
    """The order of classes: whole numbers by their value (0, 1, 2, 10), so that 0 to n-1 have their own numbers; then
    other names by their text."""
    return sorted(names, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name))


def names_of(names: Sequence[str], count: int) -> tuple[str, ...]:
    """One name for each of `count` classes: its number where the data name none."""
    return tuple(names) or tuple(map(str, range(count)))


def shown(names: Sequence[str], count: int | None = None) -> str:
    """The classes in a message: `0 to 9`, `ant, bee, cat`, or the first ones of many; `no labels` without any."""
    names = names_of(names, len(names) if count is None else count)
    if not names:
        return "no labels"
    if len(names) > 2 and all(name == str(i) for i, name in enumerate(names, int(names[0]) if _plain(names[0]) else 0)):
        return f"{names[0]} to {names[-1]}"
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more:,} more" if more > 0 else "")


def line(names: Sequence[str], count: int) -> str:
    """How many classes, and which, in the order of their numbers; for dry runs and logs."""
    return f"{count:,} class{'' if count == 1 else 'es'}: {shown(names, count)}" if count else "no labels"


def differing(here: Sequence[str], there: Sequence[str]) -> str:
    """What two long lists differ in, for a message that shows the first names of each; "" of short ones."""
    if max(len(here), len(there)) <= LISTED:
        return ""
    new, gone = [x for x in here if x not in set(there)], [x for x in there if x not in set(here)]
    parts = [*([f"only here: {shown(new)}"] if new else []), *([f"only there: {shown(gone)}"] if gone else [])]
    return f" ({'; '.join(parts)})" if parts else ""


def resolve(
    wanted: Sequence[str | int], names: Sequence[str], count: int, source: str, flag: str = "--classes"
) -> tuple[int, ...]:
    """Numbers of the classes that a user selected by name or by number.

    A number that is the name of another class is ambiguous (folders 1 to 9: 3 is a name, and the number of `4`) and is
    refused; `#3` is always a number.

    Args:
      wanted: names and numbers; an `int` is a number.
      names: of all classes, in order; empty where the data name none.
      count: how many classes there are.
      source: what has these classes, for messages.
      flag: the flag that was given, for messages.

    Raises:
      InputError: for a class that is not there, naming the nearest, and for an ambiguous number.
    """
    return tuple(_one(x, names_of(names, count), source, flag) for x in wanted)


def _one(wanted: str | int, names: tuple[str, ...], source: str, flag: str) -> int:
    text = str(wanted)
    explicit = not isinstance(wanted, str)
    if text not in names and text.startswith("#") and _plain(text[1:]):
        text, explicit = text[1:], True
    number = int(text) if _plain(text) and int(text) < len(names) else None
    if explicit and number is not None:
        return number
    named = names.index(text) if text in names and not explicit else None
    if named is None and _plain(text) and not explicit:  # 3 is the class 03, too
        named = next((i for i, name in enumerate(names) if _is_number(name) and int(name) == int(text)), None)
    if named is not None and number is not None and named != number:
        raise InputError(
            f"{flag}={text}: the class {names[named]!r} of {source} has the number {named}, and {number} is the number "
            f"of {names[number]!r}; write #{named} for {names[named]!r} or #{number} for {names[number]!r}; "
            f"the classes are {shown(names)}"
        )
    if named is None and number is None:
        near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
        nearest = f" did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{flag}={text:.80}: no class {text:.80} of {source};{nearest} it has {_all(names)}")
    return named if number is None else number  # type: ignore[return-value]


def _all(names: tuple[str, ...]) -> str:
    return f"the classes {shown(names)}" if names else "no labels"


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 19


def _plain(text: str) -> bool:
    """Whether it is a whole number as it is usually written."""
    return _is_number(text) and str(int(text)) == text
