"""Why a program ends early, in one line each, and the exit code by which a supervisor tells them apart."""

import difflib
from collections.abc import Iterable


class Ending(Exception):
    """One line for the user, and no traceback.

    code: of the process. at_once: without the interpreter's own end, which waits for every thread.
    """

    code = 1
    at_once = False


class InputError(Ending, ValueError):
    """A wrong flag, name, path, shape or file: the value, what was expected, and the nearest valid choice."""

    code = 2


class Unprepared(Ending):
    """A dry run ends here: what follows depends on data that it would have to prepare. Nothing is wrong."""

    code = 0


class Diverged(Ending, ArithmeticError):
    """A loss or a weight is not finite."""

    code = 3


class StorageFault(Ending):
    """The work directory cannot be written any longer: a full disk, one that has become read-only."""

    code = 74  # EX_IOERR of sysexits.h
    at_once = True  # threads that write would be waited for, and some never end


class Preempted(Ending):
    """A signal asked the run to end. The same command goes on where it stopped."""

    code = 75  # EX_TEMPFAIL of sysexits.h: try again
    at_once = True  # the machine is about to go


class HostLost(Ending):
    """Another host of the run is gone or hangs, or a device does. Started on all hosts again, the run goes on."""

    code = 76  # EX_PROTOCOL of sysexits.h: the other side did not answer as it should
    at_once = True  # the end of JAX waits for every host


def unknown(kind: str, value: object, choices: Iterable[str], hint: str = "") -> InputError:
    """An error for a name that is none of `choices`: `unknown loss 'hing'; did you mean 'hinge'? choices: ...`."""
    choices = sorted(choices)
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    nearest = f"; did you mean {near[0]!r}?" if near else ";"
    listing = " choices: " + ", ".join(choices) if choices else " there are none"
    return InputError(f"unknown {kind} {value!r}{nearest}{listing}{'; ' + hint if hint else ''}")


def printable(text: str) -> str:
    """What a terminal shows as it is; the rest, which names of files may hold to command a terminal, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
