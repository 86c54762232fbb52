"""The end of a process that cannot go on: other hosts are gone, or a device hangs. One line, and exit code 76.

JAX's coordination service ends every process of a run in which one gives no sign of life, by an abort with a stack
trace. There is no way to ask it not to, so the abort itself is met: SIGABRT runs `_aborted`, and what the libraries
have written to stderr in their last moments is left out. Python's own stderr is not touched.
"""

import atexit
import builtins
import contextlib
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn

from jaxgan.errors import HostLost, StorageFault

HOST_LOST = HostLost.code
FATAL = b"JAX distributed service detected fatal errors"
TICK = 0.25  # seconds for which what libraries say is held back
SLOWER = 10  # times as long as the slowest call before: so long that it hangs

_words = ""  # what the line says if the process is aborted now
_stands = ""  # what is left of the run
_code: int | None = None  # of a process that is ending anyway
_held = -1  # a file of what libraries wrote to stderr and nobody has seen yet
_seen = 0  # how much of it is passed on
_callback: Any = None  # the signal handler, which must not be collected


def stands(step: int | None) -> None:
    """Tells which checkpoint is known to be whole."""
    global _stands
    _stands = "" if step is None else f"; the checkpoint of step {step} stands"


def lost(reason: str) -> HostLost:
    return HostLost(f"a host of this run is gone or hangs ({reason}){_stands}: start all hosts again")


def expect(reason: str) -> None:
    """Why JAX would abort from now on."""
    global _words
    _words = reason


def prepare(words: str) -> None:
    """From now on, an abort by the coordination service is a line on stderr. What it says changes with `expect`."""
    global _held, _callback, _words
    _words = words
    if _callback is not None:
        return
    import ctypes  # here, since every start reads this file, and few have other hosts
    import tempfile

    sys.stderr.flush()
    # C and C++ write to file 2, which is a file for as long as the process lives; Python to a copy of what it was.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    if hasattr(os, "memfd_create"):
        _held = os.memfd_create("stderr")  # in memory: a full disk may be what the process dies of
    else:
        with tempfile.TemporaryFile() as file:
            _held = os.dup(file.fileno())
    os.dup2(_held, 2)
    threading.Thread(target=_pass_on, name="stderr", daemon=True).start()
    atexit.register(_ending)
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _callback = handler(_aborted)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, handler], ctypes.c_void_p
    libc.signal(signal.SIGABRT, _callback)


def interactive() -> bool:
    """Whether somebody types into this process, a notebook or an interpreter: it outlives the program it runs."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or hasattr(builtins, "get_ipython")


def open_streams() -> None:
    """Closed standard streams are opened on nothing: the next files would get their numbers, and what they are told.

    A character that stdout's encoding lacks (one of a Windows code page: λ) is written as an escape.
    """
    for name in ("stdin", "stdout", "stderr"):  # 0, 1, 2: each takes the least number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str, stream: IO[str] | None = None) -> None:
    """Prints at once. Where nobody reads any longer, or a disk is full, words are lost, and not what they tell of."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        mute(stream)


@contextlib.contextmanager
def patience(
    text: str, say_it: Callable[[str], object] | None = None, after: float = 5.0, every: float = 60.0
) -> Iterator[None]:
    """Says on stderr what is being waited for, once it has taken `after` seconds, and again `every` so many."""
    over, started = threading.Event(), time.monotonic()

    def watch() -> None:
        pause = after
        while not over.wait(pause):
            line = f"{text}: {time.monotonic() - started:.0f} s so far"
            (say_it or (lambda line: say(line, sys.stderr)))(line)
            pause = every

    thread = threading.Thread(target=watch, name="patience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def show(text: str = "") -> None:
    """Prints what was asked for, and what was printed before. Raises StorageFault for a disk without room for it."""
    try:
        print(text, end="\n" if text else "", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        mute(sys.stdout)
        raise StorageFault(f"cannot write to stdout: {error.strerror or error}") from None


def mute(stream: IO[str]) -> None:
    """What a stream could not write goes nowhere, and all that follows; or the interpreter's end would fail at it."""
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def unread(stream: IO[str]) -> bool:
    """Whether it is a pipe whose reader is gone."""
    if not hasattr(select, "poll"):  # Windows
        try:
            stream.flush()
        except OSError:
            return True
        return False
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))  # told unasked is what is wrong, and nothing else


def leave(code: int, at_once: bool = False) -> NoReturn:
    """Ends a process that has said why: with the others, if it has any, but not with those that it has lost.

    at_once: without the interpreter's own end, which waits for every thread.
    (Not in an interactive session, which lives.)
    """
    global _code
    _code = code
    if code != HOST_LOST and _callback is not None:
        import jax

        jax.distributed.shutdown()  # waits for all hosts, `hosts.LEAVE` seconds at most, and then aborts: `_aborted`
    if (at_once and not interactive()) or (code == HOST_LOST and _callback is not None):
        exit_at_once(code)
    raise SystemExit(code)


class Watch:
    """Ends the process when a call takes `seconds`, and ten times as long as any before. 0: it may take forever.

    A call that has to be compiled is none to compare with. Time in which the whole process stood still does not count.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._slowest: float | None = None
        self._waited: float | None = None  # in the call at hand
        self._over = threading.Event()

    def __enter__(self) -> "Watch":
        if self._seconds:
            threading.Thread(target=self._run, name="watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    @contextlib.contextmanager
    def call(self, compiles: bool = False) -> Iterator[None]:
        started = time.monotonic()
        self._waited = None if compiles else 0.0
        try:
            yield
        finally:
            self._waited = None
        if not compiles:
            self._slowest = max(self._slowest or 0.0, time.monotonic() - started)

    def _run(self) -> None:
        tick = min(1.0, self._seconds / 10)
        while not self._over.wait(tick):
            waited = self._waited
            if waited is None or self._slowest is None:
                continue
            if waited > max(self._seconds, SLOWER * self._slowest):
                say(
                    f"error: a device or a host of this run hangs (no call finished in {waited:.0f} s, --call_timeout)"
                    f"{_stands}: start it again, on all hosts",
                    sys.stderr,
                )
                exit_at_once(HOST_LOST)
            self._waited = waited + tick


def exit_at_once(code: int) -> NoReturn:
    """Past the interpreter's own end, which waits for threads and for other hosts."""
    with contextlib.suppress(Exception):
        if code != HOST_LOST:  # of which libraries have their own account
            _flush()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _aborted(_: int) -> None:
    """In the thread that aborts, whichever it is. Returning lets it."""
    if _code is None and FATAL not in os.pread(_held, 1 << 20, _seen):
        _flush()
        return
    if _code is None:
        line = lost(_words) if _words.startswith("no sign") else _words
        os.write(sys.stderr.fileno(), f"error: {line}\n".encode())
    os._exit(HOST_LOST if _code is None else _code)


def _ending() -> None:
    """Before JAX waits for all hosts to end, which it aborts for if they do not."""
    global _code
    _flush()
    if _code is None:
        _code = int(hasattr(sys, "last_value"))


def _flush() -> None:
    if _held >= 0:
        _pass(os.fstat(_held).st_size)


def _pass(end: int) -> None:
    global _seen
    text = os.pread(_held, end - _seen, _seen)
    _seen += len(text)
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), text)


def _pass_on() -> None:
    """What has been there for a moment: nothing that the process is about to die of."""
    old = 0
    while True:
        if old > _seen:
            _pass(old)
        old = os.fstat(_held).st_size
        time.sleep(TICK)
