"""What Orbax and TensorStore say when something fails, which is much, and how it is said in one line instead."""

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any


def line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


def root(error: BaseException) -> BaseException:
    """What went wrong first: Orbax wraps it in what it tried next."""
    cause = error.__cause__ or error.__context__
    return root(cause) if cause else error


@functools.cache
def hush() -> None:
    """Reads under way when one fails end later, each with a traceback: the event loop is closed that they report to."""
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Orbax and TensorStore log each thing that fails, with tracebacks, in threads of theirs; our one line says it."""
    loggers = [logging.getLogger("absl"), logging.getLogger("asyncio")]
    levels, hooks = [logger.level for logger in loggers], (sys.excepthook, threading.excepthook)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)

    def shown(*error: Any) -> None:
        # TensorStore reports to an event loop that Orbax has closed after the first failure.
        if threading.current_thread() is threading.main_thread() and "Event loop is closed" not in str(error[1]):
            hooks[0](*error)

    sys.excepthook, threading.excepthook = shown, lambda _: None
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook = hooks
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
