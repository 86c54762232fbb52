"""A flat dataclass <-> absl flags: each field is one flag, a preset is a row of overrides.

    @dataclasses.dataclass(frozen=True)
    class Config:
        steps: int = option(1000, "training steps", resumable=True)
        loss: str = option("hinge", "adversarial loss", choices=("hinge", "logistic"))

    if __name__ == "__main__":
        flags.main(Config, {"quick": dict(steps=10)}, run)

Flags live in their own `absl.flags.FlagValues`, made when a script runs: importing an experiment defines nothing. absl
reads the syntax (`--name=value`, `--name value`, `--noname`, `--flagfile`); every value is then read by `_Kind.read`.
Value types: str, int, float, bool, tuples of these (commas between), and each of them `| None` (written `none`).
"""

import contextlib
import dataclasses
import difflib
import json
import math
import os
import pathlib
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags as absl_flags
from etils import epath

from jaxgan import files, lastwords
from jaxgan.errors import Ending, InputError, Preempted, Unprepared, printable, unknown

Presets = Mapping[str, Mapping[str, Any]]
_EXPECTED = {str: "text", int: "an integer", float: "a number", bool: "true or false"}
LONGEST = 4000  # characters of the one line that says what was wrong
LARGEST, DEEPEST = 2**24, 32  # bytes and levels of a config.json
UNREAD = 128 + 13  # the exit code of a program that SIGPIPE ends: `head` has seen enough
OWN = "pkg.module:name"  # among the choices of an option: or whatever a fork's module has
_HELP = ("help", "helpshort", "helpfull")


class Need(NamedTuple):
    """What a flag needs to be of any use, for the table `needs` of a config class."""

    met: Callable[[Any], object]  # of the config
    why: str  # "--flag=value does nothing ..."
    firm: Callable[[Any], object] = lambda config: False  # whether it is needed in the directory of a run as well


def option(default: Any, help: str, choices: Sequence[str] = (), resumable: bool = False) -> Any:
    """A dataclass field that is a flag. `resumable`: may change when a run is continued (`check_same`)."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "resumable": resumable})


def parse(
    config_class: type, presets: Presets, argv: Sequence[str], doc: str = "", typed: Sequence[str] | None = None
) -> Any:
    """A `config_class` from `argv`, the arguments after the program's name.

    A flag that is given, on the command line or in a `--flagfile`, wins over the preset; the preset over the default.
    Where the class has a table `earlier` of values that presets had before, a run that began with them keeps them.
    With a folder or file of one's own for `--dataset`, a preset's flags for its own data (`OF_DATA`) are left out.
    `--helpshort` (`--help`, `-h`) prints `doc`, the presets and the flags, and leaves by `SystemExit(0)`. Raises
    `InputError` for a flag, value or preset that is wrong, a left-over argument, and a preset that fits no flags.
    typed: those of the arguments that somebody typed, by default all: of these each must be of some use.
    """
    kinds = _kinds(config_class)
    rows = {name: _preset(name, row, kinds) for name, row in presets.items()}
    values = absl_flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow a stray argument, which is then reported
    for name, kind in kinds.items():
        _define(values, name, boolean=kind.base is bool and not kind.many)
    _define(values, "preset", boolean=False)
    for name in _HELP:
        _define(values, name, boolean=True, short_name="h" if name == "help" else None)
    try:
        left = values(["", *argv])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise _unknown_flag(error.flagname, kinds) from None
    except absl_flags.CantOpenFlagFileError as error:
        raise InputError(
            f"cannot read the --flagfile: {str(error).removeprefix('ERROR:: Unable to open flagfile: ')}"
        ) from None
    except (absl_flags.Error, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None
    _check_once(kinds, argv)
    preset = values["preset"].value
    if preset and preset not in rows:
        raise unknown("preset", preset, rows)
    given = {name: kind.read(name, str(values[name].value)) for name, kind in kinds.items() if values[name].present}
    row = _row_of(config_class, preset, rows[preset], given) if preset else {}
    overrides = row | given
    if any(values[name].value == "true" for name in _HELP):
        lastwords.show(_help(config_class, kinds, overrides, rows, doc))
        raise SystemExit(0)
    if left:
        raise InputError(f"unexpected argument {left[0]!r}; flags are written --name=value")
    config = config_class(**overrides)
    _check_needs(config, argv if typed is None else typed)
    object.__setattr__(config, "given", frozenset(overrides))
    return config


def _row_of(config_class: type, preset: str, row: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a preset, for the run in `--workdir` where one has begun.

    Such a run keeps those that it began with, of an earlier version of the preset (`earlier`) too, and goes on without
    what the preset says of flags that are younger than the run.
    """
    fresh, stored = _of_data(row, given), _stored({**row, **given}.get("workdir"))
    if stored is None:
        return fresh
    earlier = getattr(config_class, "earlier", {}).get(preset, {})
    values = {}
    for flag in stored.keys() & (row | earlier).keys():
        versions = [version[flag] for version in (fresh, row, earlier) if flag in version]
        same = [value for value in versions if json.loads(json.dumps(value)) == stored[flag]]
        if same or flag in fresh:
            values[flag] = same[0] if same else fresh[flag]
    return values


def _stored(workdir: str | None) -> dict[str, Any] | None:
    """The config of the run in `workdir`; None for no run, or one that whoever opens it says more of."""
    with contextlib.suppress(OSError, InputError):
        if workdir and (files.reach(workdir) / "config.json").exists():
            return read(files.reach(workdir))["config"]
    return None


OF_DATA = ("split", "test_split", "classes", "normal", "crop", "channels", "skip_bad_images")  # of one data set


def _of_data(row: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a preset, without the flags for its own data set where a folder or file of one's own is given.

    One of the same name is the preset's, in another place.
    """
    dataset = given.get("dataset", "")
    last = pathlib.PurePath(dataset.partition(":")[2]).name
    if ":" not in dataset or last == pathlib.PurePath(row.get("dataset", "").partition(":")[2]).name:
        return dict(row)
    return {flag: value for flag, value in row.items() if flag not in OF_DATA}


def given(config: Any) -> frozenset[str]:
    """The fields that flags, a flag file or a preset set; of a config made in Python those that are not the default."""
    fields = dataclasses.fields(config)
    others = (f.name for f in fields if getattr(config, f.name) != f.default)
    return vars(config).get("given", frozenset(others))


def _check_needs(config: Any, argv: Sequence[str]) -> None:
    """Raises InputError for a flag of the command line that would do nothing: a wish that nobody would fulfil.

    A preset or a flag file may hold one, for a flag beside it to take its use away; so may a run that began with it.
    """
    typed = {argument.lstrip("-").partition("=")[0] for argument in argv if argument.startswith("-")}
    for field in dataclasses.fields(config):
        need, value = getattr(config, "needs", {}).get(field.name), getattr(config, field.name)
        if not need or field.name not in typed or value == field.default or need.met(config):
            continue
        if need.firm(config) or not _begun(config):
            given = f"--{field.name}" if value is True else f"--{field.name}={written(value)}"
            raise InputError(f"{given} does nothing {need.why}")


def _begun(config: Any) -> bool:
    workdir = getattr(config, "workdir", "")
    with contextlib.suppress(OSError):  # a name that no file can have
        return bool(workdir) and (files.reach(workdir) / "config.json").exists()
    return False


def _check_once(kinds: Mapping[str, "_Kind"], argv: Sequence[str]) -> None:
    """Raises InputError for a flag of several values that `argv` itself holds twice: the last alone would count.

    Of a flag of one value the last counts, and what a flag file holds may be given again.
    """
    counted: set[str] = set()
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0] if argument.startswith("-") else ""
        if name in kinds and kinds[name].many:
            if name in counted:
                raise InputError(f"--{name} is given twice; several values are one flag, with commas: --{name}=A,B")
            counted.add(name)


def main(
    config_class: type, presets: Presets, run: Callable[[Any], Any], argv: Sequence[str] | None = None, doc: str = ""
) -> None:
    """`run(parse(...))` as a program: whatever `jaxgan.errors` names is one line on stderr and an exit code of its own.

    Args:
      argv: the arguments after the program's name, by default `sys.argv[1:]`.
      doc: what `--helpshort` says first, by default the docstring of the module that defines `run`.
    """
    doc = doc or getattr(sys.modules.get(run.__module__), "__doc__", None) or ""
    lastwords.open_streams()
    try:
        run(parse(config_class, presets, sys.argv[1:] if argv is None else argv, doc))
        lastwords.show()
    except Unprepared as ending:  # a dry run that has said all it can
        lastwords.show(str(ending))
    except Ending as ending:
        prefix = "" if isinstance(ending, Preempted) else "error: "  # a run that stopped did as it was told
        lastwords.say(prefix + printable(" ".join(str(ending).split()))[:LONGEST], sys.stderr)
        lastwords.leave(ending.code, at_once=ending.at_once and argv is None)
    except KeyboardInterrupt:
        if lastwords.interactive():  # a notebook shows it, and goes on
            raise
        lastwords.say("interrupted", sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if lastwords.unread(stream)]
        if not gone:  # a pipe of something else
            raise
        for stream in gone:
            lastwords.mute(stream)
        raise SystemExit(UNREAD) from None


def write(config: Any, workdir: epath.PathLike, extra: Mapping[str, Any] | None = None) -> None:
    """Writes `config.json` ({"config": fields, **extra}) and `flags.txt` (all flags, for `--flagfile`); both atomic."""
    lines = []
    for name, kind in _kinds(type(config)).items():
        text = written(getattr(config, name))
        if kind.base is bool and not kind.many and text != "none":
            lines.append(f"--{name}" if text == "true" else f"--no{name}")
        else:
            lines.append(f"--{name}={text}")
        kind.read(name, text)  # a config that was made by hand may hold what no flag does
    stored = {"config": dataclasses.asdict(config), **(extra or {})}
    folder = epath.Path(workdir)
    files.write(folder / "flags.txt", "\n".join(lines) + "\n")
    files.write(folder / "config.json", json.dumps(stored, indent=2, allow_nan=False) + "\n")


def read(workdir: epath.PathLike) -> dict[str, Any]:
    """What `write` put into `config.json`. Raises `InputError` where there is none, or none that can be read."""
    path = epath.Path(workdir) / "config.json"
    try:
        if path.exists() and not files.is_plain(path):
            raise ValueError("it is no file")
        if (length := path.stat().length) > LARGEST:
            raise ValueError(f"it has {length:,} bytes; expected at most {LARGEST:,}")
        stored = json.loads(path.read_text(), object_pairs_hook=_object, parse_constant=_constant)
        _check_depth(stored)
    except FileNotFoundError:
        raise InputError(f"{os.fspath(workdir)!r} is not a run: it holds no config.json") from None
    except RecursionError:
        raise InputError(f"cannot read {os.fspath(path)!r}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {os.fspath(path)!r}: {error}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
        raise InputError(f'{os.fspath(path)!r} is not the config of a run: expected an object with a "config" object')
    return stored


def check_same(config: Any, workdir: epath.PathLike, ignore: Iterable[str] = ()) -> bool:
    """Whether `workdir` holds a run. Raises `InputError`, naming each field, where that run has another config.

    Fields in `ignore` and those marked `option(..., resumable=True)` may differ. A field that the stored config lacks
    (the code is newer than the run) counts as its default.
    """
    if not (epath.Path(workdir) / "config.json").exists():
        return False
    run = read(workdir)
    stored = run["config"]
    given = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists, as they did in the file
    free = set(ignore)
    if stored.get("channels") == 0 and given.get("channels") == _channels(run):
        free.add("channels")  # what was read from the images then is said now
    defaults = {}
    kinds = _kinds(type(config))
    for name, kind in kinds.items():  # numbers in a run of before, where names are accepted now (--classes)
        if kind.base is str and kind.many and isinstance(value := stored.get(name), list):
            stored[name] = [str(x) if type(x) is int else x for x in value]
    for field in dataclasses.fields(config):
        free |= {field.name} if field.metadata.get("resumable") else set()
        defaults[field.name] = list(field.default) if isinstance(field.default, tuple) else field.default
    differences = [
        f"{name} is {written(value)!r} there, {written(given[name])!r} here"
        for name in given
        if name not in free and (value := stored.get(name, defaults[name])) != given[name]
    ]
    differences += [
        f"{name} is {written(stored[name])!r} there, no flag here"
        for name in sorted(stored.keys() - given.keys() - free)
    ]
    if differences:
        raise InputError(
            f"{os.fspath(workdir)!r} holds a run of another config: {'; '.join(differences)}; choose another --workdir"
        )
    return True


def _channels(run: Mapping[str, Any]) -> Any:
    """Of the images of a run; None where it does not say."""
    shape = data.get("shape") if isinstance(data := run.get("data"), dict) else None
    return shape[-1] if isinstance(shape, list) and shape else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two entries of one name a reader sees the first and JSON takes the last, so there may not be two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has two entries {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no JSON")


def _check_depth(value: Any, level: int = 0) -> None:
    if level > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, level + 1)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The type of a field: `base`, or a tuple of it, or None beside either."""

    base: type
    many: bool
    optional: bool
    choices: tuple[str, ...]
    help: str

    @property
    def expected(self) -> str:
        what = " | ".join(self.choices) if self.choices else _EXPECTED[self.base]
        if self.many:
            what = f"any of {what}, commas between" if self.choices else f"{what.split()[-1]}s, commas between"
        return what + (", or none" if self.optional else "")

    def read(self, name: str, text: str) -> Any:
        """The value that `--name=text` stands for."""
        text = text.strip()
        if bad := re.search("[\\0\r\n\ud800-\udfff]", text):  # in no file name, on no line, in no UTF-8
            raise InputError(f"--{name}={text[:60]!a} holds the character {bad[0]!a}, which no flag file can")
        if self.optional and text.lower() == "none":
            return None
        if self.many:
            return tuple(self._one(name, part.strip()) for part in text.split(",")) if text else ()
        return self._one(name, text)

    def _one(self, name: str, text: str) -> Any:
        if self.choices and text not in self.choices and not (OWN in self.choices and ":" in text):
            raise unknown(f"--{name}", text, self.choices)
        try:
            if self.base is bool:
                return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
            value = self.base(text)
        except (ValueError, KeyError):
            raise InputError(f"--{name}={text:.80}: expected {self.expected}") from None
        if self.base is float and not math.isfinite(value):
            raise InputError(f"--{name}={text}: expected a finite number")
        return value


def _kinds(config_class: type) -> dict[str, _Kind]:
    name = config_class.__name__
    if not dataclasses.is_dataclass(config_class) or any(
        isinstance(value, dataclasses.Field) for value in vars(config_class).values()
    ):
        raise InputError(f"{name} is no dataclass; write @dataclasses.dataclass(frozen=True) above it")
    hints = typing.get_type_hints(config_class)
    kinds = {}
    for field in dataclasses.fields(config_class):
        hint, optional, many = hints[field.name], False, False
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
            optional = True
        if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,):
            hint, many = typing.get_args(hint)[0], True
        if hint not in _EXPECTED:
            kinds_of = "str, int, float, bool, or a tuple of one of them, such as tuple[int, ...]"
            raise InputError(f"{name}.{field.name}: no flag holds {hints[field.name]}; expected {kinds_of}")
        if field.name in ("preset", *_HELP):
            raise InputError(f"{name}.{field.name}: every script has a flag of this name; choose another")
        meta = field.metadata
        kinds[field.name] = _Kind(hint, many, optional, tuple(meta.get("choices", ())), meta.get("help", ""))
    return kinds


def written(value: Any) -> str:
    """The text that a flag would be given for `value`."""
    if isinstance(value, tuple | list):
        return ",".join(map(written, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _preset(preset: str, row: Mapping[str, Any], kinds: Mapping[str, _Kind]) -> dict[str, Any]:
    """A preset is held to what its flags would accept, so a typing error shows at the start, not on its first use."""
    for name in row.keys() - kinds.keys():
        raise unknown(f"flag in preset {preset!r}:", name, kinds)
    values = {}
    for name, value in row.items():
        if value is None and not kinds[name].optional:
            raise InputError(f"preset {preset!r}: --{name}=none: expected {kinds[name].expected}")
        try:
            values[name] = kinds[name].read(name, written(value))
        except InputError as error:
            raise InputError(f"preset {preset!r}: {error}") from None
    return values


def _define(values: absl_flags.FlagValues, name: str, boolean: bool, short_name: str | None = None) -> None:
    """An absl flag that keeps its text."""
    parser: absl_flags.ArgumentParser = absl_flags.ArgumentParser()
    values[name] = absl_flags.Flag(parser, None, name, None, name, boolean=boolean, short_name=short_name)


def _unknown_flag(name: str, kinds: Mapping[str, _Kind]) -> InputError:
    near = difflib.get_close_matches(name, [*kinds, "preset", "helpshort"], n=1, cutoff=0.5)
    return InputError(
        f"unknown flag --{name}; {f'did you mean --{near[0]}? ' if near else ''}--helpshort lists all flags"
    )


def _help(config_class: type, kinds: Mapping[str, _Kind], overrides: dict[str, Any], rows: Presets, doc: str) -> str:
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))

    def entry(head: str, body: str) -> list[str]:
        return [f"  {head}", *textwrap.wrap(body, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]

    lines = [textwrap.dedent(doc).strip(), ""] if doc else []
    if rows:
        lines += ["--preset=NAME takes the flags of one row; flags that are given win over it:", ""]
        for name, row in rows.items():
            lines += entry(name, " ".join(f"--{flag}={written(value)}" for flag, value in row.items()))
        lines.append("")
    lines += ["Flags, with their values as things stand; --flagfile=FILE reads them from a file, one a line:", ""]
    for field in dataclasses.fields(config_class):
        kind = kinds[field.name]
        value = written(overrides.get(field.name, field.default))
        body = kind.help if kind.base is str and not kind.choices else f"{kind.help} ({kind.expected})"
        lines += entry(f"--{field.name}={value}", body)
    return "\n".join(lines)
