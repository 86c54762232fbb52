"""Many hosts: one process each, all running this program on devices of their own. They meet, agree, and end together.

    initialise(config)                        # before anything touches a device; on one host it does nothing
    workdir = agree(claim, config)            # host 0 does it, all get what it returned, or raise what it raised
    if first(): ...                           # only host 0 writes and prints

Host 0 alone touches the directory of the run and evaluates; the others wait for it in a broadcast, which has no time
limit. A host that is gone, or gives no sign of life, ends the others by one line and exit code 76 (`lastwords`).
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import jax
import numpy as np

from jaxgan import lastwords
from jaxgan.errors import Diverged, Ending, HostLost, InputError, StorageFault

WAIT = 3.0  # seconds for the other hosts, after which it is said that they are waited for
LEAVE = 10  # seconds in which all hosts of a run end, once one has
BLOCKS = (1 << 12, 1 << 24)  # bytes of a broadcast: what is said, and what a state is sent in; a program each
# What XLA says in its own words when a peer closes its connection. What it says when one goes silent, it dies of.
GONE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|socket closed|broken pipe|coordination", re.IGNORECASE)
ERRORS = {error.__name__: error for error in (InputError, Diverged, StorageFault)}


def initialise(config: Any) -> None:
    """Finds the other hosts of the run: those that the flags or the cluster tell of. Without either, it does nothing.

    config: of `Common`. Raises InputError for flags that do not go together, or are not those of host 0, and HostLost
    where not all hosts were there in `config.host_timeout` seconds.
    """
    given = launch(config)
    if given is None and (config.num_hosts or not in_a_cluster()):
        return
    if not hasattr(os, "pread"):  # nor memfd_create, nor file 2 as `lastwords` needs it
        raise InputError("several hosts need Linux or macOS; on Windows start one, with --num_hosts=1, or use WSL")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # by which CPUs reach each other; GPUs have NCCL
    jax.config.update("jax_enable_preemption_service", False)  # its handler of SIGTERM would take the place of ours
    timeouts = {
        "initialization_timeout": config.host_timeout,
        "heartbeat_timeout_seconds": config.host_timeout,
        "shutdown_timeout_seconds": LEAVE,
    }
    late = f"the hosts of this run did not all start in {config.host_timeout} s (--host_timeout); start all hosts again"
    lastwords.prepare(late)
    waiting = f"waiting for the other hosts of this run, at most {config.host_timeout} s (--host_timeout)"
    with lastwords.patience(waiting, after=WAIT, every=30.0):
        if given:
            reach(config, given)
            jax.distributed.initialize(**given, cluster_detection_method="deactivate", **timeouts)
        else:
            jax.distributed.initialize(**timeouts)
    lastwords.expect(f"no sign of life in {config.host_timeout} s, or its connection closed")
    with together():
        same(config)


def launch(config: Any) -> dict[str, Any] | None:
    """What --coordinator, --num_hosts and --host_id say to `jax.distributed.initialize`; None: of one host."""
    if config.host_timeout < 5 or config.call_timeout < 0:
        name, least = ("host_timeout", 5) if config.host_timeout < 5 else ("call_timeout", 0)
        raise InputError(f"--{name}={getattr(config, name)}: expected {least} or more")
    if config.num_hosts == 1 or not (config.coordinator or config.num_hosts or config.host_id >= 0):
        return None
    missing = {
        "--coordinator=HOST:PORT": not config.coordinator,
        "--num_hosts": config.num_hosts < 1,
        "--host_id": config.host_id < 0,
    }
    if any(missing.values()):
        lacks = ", ".join(name for name, lacking in missing.items() if lacking)
        raise InputError(f"several hosts need --coordinator, --num_hosts and --host_id together; {lacks} is missing")
    if config.host_id >= config.num_hosts:
        nearest = config.num_hosts - 1
        raise InputError(f"--host_id={config.host_id}: expected 0 to {nearest} with --num_hosts={config.num_hosts}")
    name, _, port = config.coordinator.rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator={config.coordinator}: expected HOST:PORT of host 0, as in 10.0.0.2:8476")
    return {
        "coordinator_address": config.coordinator,
        "num_processes": config.num_hosts,
        "process_id": config.host_id,
    }


def reach(config: Any, given: Mapping[str, Any]) -> None:
    """Looks for what JAX would abort the process for, or crash: a port that is taken, a host that is not there."""
    name, _, port = config.coordinator.rpartition(":")
    if given["process_id"] == 0:
        try:
            probe = socket.socket(socket.AF_INET6)
        except OSError:  # a kernel without it
            probe = socket.socket(socket.AF_INET)
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                reason = error.strerror or error
                raise InputError(
                    f"--coordinator={config.coordinator}: cannot listen on {port} here: {reason}"
                ) from None
        return
    end = time.monotonic() + config.host_timeout
    while True:
        try:
            socket.create_connection((name.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise HostLost(
                    f"--coordinator={config.coordinator} was not reached in {config.host_timeout} s "
                    f"({error.strerror or error}); expected the address of host 0, and host 0 to be started too"
                ) from None
            time.sleep(0.2)


def in_a_cluster() -> bool:
    """Whether JAX finds other processes by itself: those of srun, of mpirun, of a slice of TPUs."""
    env = os.environ
    if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= env.keys():
        return int(env.get("SLURM_NTASKS", "1")) > 1
    if "OMPI_MCA_orte_hnp_uri" in env:
        return int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    # On a machine of TPUs JAX itself asks for them, unless another platform is asked for.
    platforms = getattr(jax.config, "jax_platforms", None) or ""
    return "tpu" in platforms and tpu_hosts() > 1


def tpu_hosts() -> int:
    """How many machines share the TPUs that are here, as the environment or Google's metadata server tells; else 1."""
    env = os.environ
    workers = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    if not workers and "TPU_SKIP_MDS_QUERY" not in env:
        import urllib.request  # 20 ms

        server = env.get("GCE_METADATA_IP", "metadata.google.internal")
        url = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError), direct.open(request, timeout=5) as answer:
            workers = answer.read().decode()
    return len(workers.split(",")) * int(env.get("MEGASCALE_NUM_SLICES") or 1)


def same(config: Any) -> None:
    """Raises InputError where this host was started with other flags than host 0: it would compile another program."""
    own = json.loads(json.dumps(dataclasses.asdict(alone(config))))
    theirs = agree(lambda: own)
    for name in own.keys() - {"data_dir", "manual_dir"}:
        if own[name] != theirs.get(name):
            index = jax.process_index()
            raise InputError(f"--{name} is {own[name]!r} on host {index}, {theirs.get(name)!r} on host 0; expected one")


def alone(config: Any) -> Any:
    """The config without what tells the hosts apart: what a run directory keeps, so that one host may go on with it."""
    return dataclasses.replace(config, coordinator="", num_hosts=0, host_id=-1)


def several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not several() or jax.process_index() == 0


def tell(text: str, file: IO[str] | None = None) -> None:
    """Prints, on host 0, if it can be (`lastwords.say`)."""
    if first():
        lastwords.say(text, file)


def agree(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns on host 0, which is to be JSON; the other hosts wait for it. An error is one of all."""
    if not several():
        return function(*arguments)
    value, failed, reply = None, None, b""
    if first():
        try:
            value = function(*arguments)
            reply = json.dumps({"value": value}).encode()
        except HostLost:
            raise
        except Exception as error:
            failed = error
            reply = json.dumps({"error": type(error).__name__, "text": str(error)}).encode()
    answer = json.loads(broadcast(reply))
    if failed is not None:
        raise failed
    if "error" in answer:
        kind, text = answer["error"], answer["text"]
        raise ERRORS[kind](text) if kind in ERRORS else HostLost(f"host 0 failed, and tells why: {kind}: {text}"[:300])
    return value if first() else answer["value"]


def anyone(flag: bool) -> bool:
    """Whether the flag is set on any host: one answer on all of them. A few ms."""
    if not several():
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def share(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of host 0, bit by bit, on every host: the file system need not be shared."""
    if not several():
        return dict(arrays)
    kinds = agree(lambda: {name: [str(x.dtype), list(x.shape)] for name, x in arrays.items()})
    data = broadcast(b"".join(x.tobytes() for x in arrays.values()))
    found, start = {}, 0
    for name, (dtype, shape) in kinds.items():
        count = int(np.prod(shape))
        found[name] = np.frombuffer(data, dtype, count, start).reshape(shape).copy()
        start += found[name].nbytes
    return found


def broadcast(data: bytes) -> bytes:
    """The bytes of host 0. They go as whole numbers, whose sum with zeros is exact."""
    from jax.experimental import multihost_utils

    def sent(data: bytes, size: int) -> bytes:
        block = np.frombuffer(data.ljust(size, b"\0"), np.uint32)
        return np.asarray(multihost_utils.broadcast_one_to_all(block)).tobytes()

    small, large = BLOCKS
    head = sent(len(data).to_bytes(8, "little") + data[: small - 8], small)
    count = int.from_bytes(head[:8], "little")
    parts = [head[8:]]
    parts += [sent(data[start : start + large], large) for start in range(small - 8, count, large)]
    return b"".join(parts)[:count]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What XLA raises when another host has gone is HostLost."""
    try:
        yield
    except Ending:
        raise
    except Exception as error:
        if several() and GONE.search(str(error)):
            raise lastwords.lost("its connection closed") from error
        raise
