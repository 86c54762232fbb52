"""What a user got wrong, in one line: the value, what was expected, and the nearest valid choice."""

import difflib
from collections.abc import Iterable

HOST_LOST = 76  # the exit code of HostLost: EX_PROTOCOL, "the remote system did not keep to the protocol"


class InputError(ValueError):
    """A wrong flag, name, path, shape or file. Scripts print its one line and exit with code 2, without a traceback."""


class Diverged(ArithmeticError):
    """A loss or a weight is not finite. Scripts print its one line and exit with code 3."""


class HostLost(RuntimeError):
    """Another host of the run is gone or hangs. Scripts print its one line and exit with code 76, at once."""


def unknown(kind: str, value: object, choices: Iterable[str], hint: str = "") -> InputError:
    """An error for a name that is none of `choices`: `unknown loss 'hing'; did you mean 'hinge'? choices: ...`."""
    choices = sorted(choices)
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    nearest = f"; did you mean {near[0]!r}?" if near else ";"
    listing = " choices: " + ", ".join(choices) if choices else " there are none"
    return InputError(f"unknown {kind} {value!r}{nearest}{listing}{'; ' + hint if hint else ''}")
