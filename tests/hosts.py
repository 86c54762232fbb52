"""Runs of an experiment in several processes on this machine, each a host with virtual devices of its own."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.runs import LONG, ROOT

LIMIT = 300  # seconds for all that is waited for here


@dataclasses.dataclass
class Host:
    process: subprocess.Popen
    out: Path
    err: Path

    @property
    def said(self) -> str:
        """What it wrote to stderr so far."""
        return self.err.read_text(errors="replace")

    def wait(self, timeout: float = LIMIT) -> int:
        """Its exit code. A process that does not end is killed, and the wait fails with what it said."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise AssertionError(f"no end in {timeout} s: {self.said}") from None

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


def free_port() -> int:
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"  # the last one counts
    quick = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not LONG))}
    # As the tests of one process run: nothing is left in flight on a machine of few cores.
    return os.environ | quick | {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "0", "PYTHONPATH": str(ROOT)} | more


def start_host(
    workdir: Any,
    index: int,
    count: int,
    port: int,
    *argv: str,
    devices: int = 1,
    script: str = "experiments.image",
    cwd: Path = ROOT,
    **more: str,
) -> Host:
    """Host `index` of `count`, of a run to `workdir`; one host alone gets no flags of this. `more`: its environment."""
    cwd.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="host-"))
    joined = (f"--coordinator=127.0.0.1:{port}", f"--num_hosts={count}", f"--host_id={index}")
    command = [sys.executable, "-m", script, f"--workdir={workdir}", *(joined if count > 1 else ()), *argv]
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(devices, **more), stdout=out, stderr=err, stdin=subprocess.DEVNULL
        )
    return Host(process, folder / "out.txt", folder / "err.txt")


def start_hosts(workdir: Any, count: int, *argv: str, devices: int = 1, **more: Any) -> list[Host]:
    """All hosts of a run, started at once."""
    port = free_port()
    return [start_host(workdir, i, count, port, *argv, devices=devices, **more) for i in range(count)]


def finish(hosts: list[Host], timeout: float = LIMIT) -> list[int]:
    """Their exit codes; none of them is left behind."""
    end = time.monotonic() + timeout
    try:
        return [host.wait(max(0.1, end - time.monotonic())) for host in hosts]
    finally:
        end_all(hosts)


def end_all(hosts: list[Host]) -> None:
    for host in hosts:
        host.signal(signal.SIGKILL)
        host.process.wait()


def run_hosts(workdir: Any, count: int, *argv: str, devices: int = 1, **more: Any) -> list[Host]:
    """A run that is to succeed."""
    hosts = start_hosts(workdir, count, *argv, devices=devices, **more)
    codes = finish(hosts)
    assert codes == [0] * count, [(code, host.said) for code, host in zip(codes, hosts, strict=True)]
    return hosts


def until_rows(workdir: Path, rows: int, hosts: list[Host], timeout: float = LIMIT) -> None:
    """Waits for that many rows of metrics; fails where a host ends before."""
    end, path = time.monotonic() + timeout, workdir / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < rows:
        ended = [(i, host.said) for i, host in enumerate(hosts) if host.process.poll() is not None]
        assert not ended, f"a host ended before row {rows}: {ended}"
        assert time.monotonic() < end, f"no row {rows} in {timeout} s: {[host.said for host in hosts]}"
        time.sleep(0.02)
