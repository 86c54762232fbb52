"""Ends a run on request: SIGTERM, which comes before a machine is taken away, or SIGINT, which is Ctrl-C.

    with Preemption() as preemption:
        ...                                     # until `begin` a signal raises Preempted at once
        preemption.begin()
        while not preemption.asked:             # from here it is noted, and the call at hand finishes
            call()
            preemption.unless_asked(evaluate)   # need not be finished: a signal leaves it

Signals less than a second apart count as one: coreutils' `timeout` sends two, one to its child and one to the group. A
second signal ends the process at once. In a notebook, or any session that somebody types into, the process must live:
an interrupt saves and then raises KeyboardInterrupt, and a second one raises it where the program is.

Python runs handlers between two bytecodes, and a compiled call is one: so a thread listens too, on the socket into
which the interpreter writes every signal when it arrives. (A socket: on Windows no pipe can be told not to block.)
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from jaxgan import lastwords
from jaxgan.errors import Preempted

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
APART = 1.0  # seconds between two signals that count as two
PAIR = 0.1  # seconds in which the other signal of `timeout` has come


class _Interrupt(BaseException):
    """What the handler raises: no `except Exception` on the way takes it for a fault of its own."""


class Preemption:
    """Listens from `with` on; outside of the main thread, where Python has no signals, it hears none."""

    def __init__(self) -> None:
        self._asked: tuple[str, float] | None = None  # the signal's name, and when it came
        self._raises = True
        self._before: dict[signal.Signals, Any] = {}
        self._interactive = lastwords.interactive()
        self._handled: float | None = None  # when the handler ran first, which may be long after the signal came
        self._second = False  # in an interactive session: a second signal came

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

    def ending(self, text: str) -> BaseException:
        """The exception that ends the run: KeyboardInterrupt for an interrupt of a session that lives on."""
        return KeyboardInterrupt(text) if self._interactive and self.name == "SIGINT" else Preempted(text)

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
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        # Raised in a destructor the exception is lost, and would be printed; `begin` raises it again.
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._ignored
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before:
            if kind and 0 < self.seconds < PAIR:
                time.sleep(PAIR - self.seconds)  # or the second of a pair would meet the handlers of before
            sys.unraisablehook = self._unraisable
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._write.close()  # ends the thread
            self._thread.join()
            self._read.close()
        if kind is _Interrupt:
            raise self._early() from None

    def _listen(self) -> None:
        first: float | None = None
        while data := self._read.recv(1):
            if data[0] not in SIGNALS:
                continue
            now = time.monotonic()
            if first is None:
                first = now
                self._note(data[0])
            elif now - first >= APART and self._interactive:
                self._second = True  # for a handler that waits for the end of a call
            elif now - first >= APART:
                _say(b"a second signal: ending at once\n")
                os._exit(128 + data[0])

    def _note(self, number: int) -> None:
        if self._asked is None:
            self._asked = signal.Signals(number).name, time.monotonic()
            second = "a second one raises" if self._interactive else "a second signal ends"
            _say(f"{self.name}: finishing what is under way; {second} at once\n".encode())

    def _handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        self._note(number)
        if self._raises:
            self._raises, self._handled = False, now  # once
            raise _Interrupt
        if self._handled is None and not self._second:
            self._handled = now
        elif self._interactive and (self._second or now - (self._handled or now) >= APART):
            raise KeyboardInterrupt(f"a second {signal.Signals(number).name} before the run had saved")

    def _ignored(self, error: Any) -> None:
        if not isinstance(error.exc_value, _Interrupt):
            self._unraisable(error)

    def _early(self) -> BaseException:
        return self.ending(f"stopped by {self.name} before a new step was made; the same command starts again")


def _say(text: bytes) -> None:
    with contextlib.suppress(OSError):  # Ctrl-C ends what stderr was piped to, too
        os.write(2, text)
