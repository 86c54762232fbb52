"""What goes wrong on real machines, done to real runs on purpose, many times.

    python -m tests.chaos                      # everything; an hour or so on two cores
    python -m tests.chaos --only=kills --times=20

Each function does one kind of harm `times` times and returns a line for the table; it raises where a promise is broken.
The suite calls the same functions with small numbers.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from tests.chaos_faults import (
    altered_data,
    broken_streams,
    damaged_checkpoints,
    divergence,
    full_disk,
    half_a_line,
    read_only,
    two_at_once,
)
from tests.chaos_hosts import long_run, lost_hosts, malformed_input, many_hosts
from tests.chaos_signals import kills, signals, signals_at_odd_moments

KINDS = {
    "kills": (kills, 200),
    "signals": (signals, 50),
    "odd_signals": (signals_at_odd_moments, 10),
    "full_disk": (full_disk, 10),
    "read_only": (read_only, 10),
    "damaged_checkpoints": (damaged_checkpoints, 10),
    "half_a_line": (half_a_line, 10),
    "altered_data": (altered_data, 10),
    "broken_streams": (broken_streams, 10),
    "divergence": (divergence, 10),
    "two_at_once": (two_at_once, 10),
    "many_hosts": (many_hosts, 1),
    "lost_hosts": (lost_hosts, 10),
    "malformed_input": (malformed_input, 100),
    "long_run": (long_run, 10_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of harm, commas between")
    parser.add_argument("--times", type=int, default=0, help="how often each is done; 0: its own number")
    given = parser.parse_args()
    failed = []
    for name in given.only.split(","):
        function, times = KINDS[name]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                said, mark = function(Path(folder), given.times or times), "ok  "
            except AssertionError as error:
                said, mark = " ".join(str(error).split())[-2000:], "FAIL"
                failed.append(name)
        print(f"{mark} {name:20s} {time.monotonic() - began:6.0f} s  {said}", flush=True)
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
