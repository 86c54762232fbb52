"""How much memory there is: what cannot fit is refused in one line, before hours of reading and not after."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgan.errors import InputError


def free() -> int:
    """Bytes of main memory that may still be taken; where the system does not say, those of the machine."""
    try:
        fields = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        return next(1024 * int(words[1]) for words in fields if words[0] == "MemAvailable:")
    except (OSError, StopIteration, ValueError, IndexError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
