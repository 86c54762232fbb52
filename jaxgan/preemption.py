"""Ends a run on request: SIGTERM, which comes before a machine is taken away, or SIGINT, which is Ctrl-C.

    with Preemption() as preemption:
        ...                                     # until `begin` a signal raises Preempted at once
        preemption.begin()
        while not preemption.asked:             # from here it is noted, and the call at hand finishes
            call()
            preemption.unless_asked(evaluate)   # need not be finished: a signal leaves it

A second signal ends the process at once. Python runs handlers between two bytecodes, and a compiled call is one: so a
thread listens too, on the pipe into which the interpreter writes every signal when it arrives.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from jaxgan.errors import Preempted

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Interrupt(BaseException):
    """What the handler raises: no `except Exception` on the way takes it for a fault of its own."""


class Preemption:
    """Listens from `with` on; outside of the main thread, where Python has no signals, it hears none."""

    def __init__(self) -> None:
        self._asked: tuple[str, float] | None = None  # the signal's name, and when it came
        self._raises = True
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        return self._asked is not None

    @property
    def name(self) -> str:
        """SIGTERM or SIGINT."""
        return self._asked[0] if self._asked else ""

    @property
    def seconds(self) -> float:
        """Since the signal came."""
        return time.monotonic() - self._asked[1] if self._asked else 0.0

    def begin(self) -> None:
        """Training begins: a signal no longer raises."""
        self._raises = False
        if self.asked:
            raise self._early()

    def unless_asked(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """`function(*arguments)`, for what need not be finished; None where a signal came before its end."""
        try:
            try:
                self._raises = True
                return None if self.asked else function(*arguments)
            finally:
                self._raises = False
        except _Interrupt:
            return None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        # Raised in a destructor the exception is lost, and would be printed; `begin` raises it again.
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._ignored
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before:
            sys.unraisablehook = self._unraisable
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            os.close(self._write)  # ends the thread
            self._thread.join()
            os.close(self._read)
        if kind is _Interrupt:
            raise self._early() from None

    def _listen(self) -> None:
        heard = 0
        while data := os.read(self._read, 1):
            if data[0] not in SIGNALS:
                continue
            heard += 1
            if heard == 2:
                _say(b"a second signal: ending at once\n")
                os._exit(128 + data[0])
            self._note(data[0])

    def _note(self, number: int) -> None:
        if self._asked is None:
            self._asked = signal.Signals(number).name, time.monotonic()
            _say(f"{self.name}: finishing what is under way; a second signal ends at once\n".encode())

    def _handle(self, number: int, frame: Any) -> None:
        self._note(number)
        if self._raises:
            self._raises = False  # once
            raise _Interrupt

    def _ignored(self, error: Any) -> None:
        if not isinstance(error.exc_value, _Interrupt):
            self._unraisable(error)

    def _early(self) -> Preempted:
        return Preempted(f"stopped by {self.name} before a new step was made; the same command starts again")


def _say(text: bytes) -> None:
    with contextlib.suppress(OSError):  # Ctrl-C ends what stderr was piped to, too
        os.write(2, text)
