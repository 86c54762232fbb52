"""How much memory there is: what cannot fit is refused in one line, before hours of reading and not after."""

import contextlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgan.errors import InputError


def free() -> int:
    """Bytes of main memory that may still be taken; where the system does not say, the machine's, or no limit."""
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):  # Linux
        fields = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        return next(1024 * int(words[1]) for words in fields if words[0] == "MemAvailable:")
    with contextlib.suppress(AttributeError, OSError, ValueError):  # POSIX
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(AttributeError, OSError):
        return _free_on_windows()
    return sys.maxsize


def _free_on_windows() -> int:
    """By GlobalMemoryStatusEx of kernel32. Raises AttributeError elsewhere."""
    import ctypes

    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "free", "total_page", "free_page", "total_virtual")),
            ("free_virtual", ctypes.c_uint64),
            ("extended", ctypes.c_uint64),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        raise OSError("GlobalMemoryStatusEx failed")
    return status.free


def of(devices: Sequence[Any]) -> int:
    """Bytes of all these devices, or of main memory for those that have none of their own."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    return sum(limits) if all(limits) else free()


def check(nbytes: int, what: str, hint: str = "", room: int | None = None) -> None:
    """Raises InputError for more bytes than there is room for, by default in main memory."""
    room = free() if room is None else room
    if nbytes > room:
        raise InputError(f"{what} would take {text(nbytes)}, and {text(room)} of memory are free{hint and '; ' + hint}")


def text(nbytes: int) -> str:
    """`12.3 GB`, of any number of bytes."""
    power = min(int(math.log10(max(nbytes, 1))) // 3, 6)
    return f"{nbytes / 1000**power:,.1f} {('bytes', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[power]}"
