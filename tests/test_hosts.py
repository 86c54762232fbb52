"""Processes of one run, as hosts: they train as one machine does, leave one record, and end together."""

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest

from jaxgan import checkpoint, hosts
from jaxgan.config import Common
from jaxgan.errors import InputError
from tests.hosts import end_all, finish, free_port, run_hosts, start_host, start_hosts, until_rows
from tests.runs import ROOT, TINY, leaves, rows

STEPS = 20
# One step a call, so that every loss is written; β1 = 0 keeps the last gradient as Adam's first moment.
EACH = (*TINY, "--steps_per_call=1", f"--steps={STEPS}", "--checkpoint_every=1", f"--keep={STEPS}", "--beta1=0")
LONG_RUN = (*TINY, "--steps=1000000", "--host_timeout=8")


def losses(workdir):
    return {name: [float(row[name]) for row in rows(workdir)] for name in ("disc/loss", "gen/loss")}


def assert_same_losses(one, other):
    one, other = losses(one), losses(other)
    assert len(one["gen/loss"]) == len(other["gen/loss"]) == STEPS
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)


def gradients(workdir):
    """Adam's first moments after the first step: with β1 = 0 the gradients themselves."""
    state = dict(leaves(checkpoint.read(workdir / "checkpoints", 1)))
    return {name: x for name, x in state.items() if "/mu/" in name}


def assert_same_gradients(one, other):
    one, other = gradients(one), gradients(other)
    assert one.keys() == other.keys() and max(np.abs(x).max() for x in one.values()) > 1e-3
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-6, err_msg=name)


def half(run, folder):
    """The run as it was after half of its steps."""
    shutil.copytree(run, folder)
    for step in range(STEPS // 2 + 1, STEPS + 1):
        shutil.rmtree(folder / "checkpoints" / str(step))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def one(place):
    """One process with two devices."""
    run_hosts(place / "one", 1, *EACH, devices=2)
    return place / "one"


@pytest.fixture(scope="module")
def two(place):
    """Two processes with one each."""
    run_hosts(place / "two", 2, *EACH)
    return place / "two"


def test_two_hosts_train_as_one(one, two):
    assert_same_gradients(one, two)
    assert_same_losses(one, two)


def test_a_run_directory_tells_nothing_of_its_hosts(one, two):
    """So any number of them may go on with it."""
    configs = [json.loads((run / "config.json").read_text()) for run in (one, two)]
    assert all(config["config"].pop("workdir") for config in configs) and configs[0] == configs[1]
    names = [sorted(path.name for path in run.iterdir()) for run in (one, two)]
    assert names[0] == names[1] and [row["step"] for row in rows(two)] == [str(i + 1) for i in range(STEPS)]


def test_another_number_of_hosts_goes_on(two, tmp_path):
    run = half(two, tmp_path / "run")
    (said,) = run_hosts(run, 1, *EACH, devices=2)
    assert f"resuming {run} at step {STEPS // 2}" in said.said
    assert_same_losses(run, two)


@pytest.mark.slow
def test_only_the_first_host_writes_and_evaluates(one, tmp_path):
    """The directory of the other is its own, and stays away: it learns what it must from the first."""
    port, argv = free_port(), (*EACH, "--placement=stream", f"--sample_every={STEPS}", f"--eval_every={STEPS}")
    argv += ("--features=pixels", "--metrics=fid", "--eval_samples=64", "--checkpoint_every=10")
    started = [start_host("run", i, 2, port, *argv, cwd=tmp_path / str(i)) for i in range(2)]
    assert finish(started) == [0, 0], [host.said for host in started]
    names = {path.name for path in (tmp_path / "0" / "run").iterdir()}
    assert {"config.json", "flags.txt", "metrics.jsonl", "samples", "checkpoints"} <= names
    assert float(rows(tmp_path / "0" / "run")[-1]["eval/frechet"]) > 0
    assert list((tmp_path / "1").iterdir()) == []
    assert_same_losses(tmp_path / "0" / "run", one)
    assert f"trained {STEPS} steps" in started[0].out.read_text() and "trained" not in started[1].out.read_text()
    assert started[1].said == ""


def one_line(host, code):
    (line,) = host.said.splitlines()[-1:]
    assert host.wait(1) == code and line.startswith("error: ") and host.said.count("error:") == 1, host.said
    assert not re.search(r"Traceback|Check failure|coordination_service", host.said), host.said
    return line


@pytest.mark.parametrize(
    ("number", "lost"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    ],
)
def test_a_lost_host_ends_the_others(number, lost, tmp_path):
    running = start_hosts(tmp_path / "run", 2, *LONG_RUN)
    try:
        until_rows(tmp_path / "run", 6, running)  # the checkpoint of step 10 is known to be whole
        running[lost].signal(number)
        started = time.monotonic()
        running[1 - lost].wait(60)
        assert time.monotonic() - started < 30  # of which 8 are --host_timeout
        line = one_line(running[1 - lost], 76)
        assert "a host of this run is gone or hangs" in line and "start all hosts again" in line
        step = int(re.search(r"the checkpoint of step (\d+) stands", line)[1])
    finally:
        end_all(running)
    assert step in checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").steps


@pytest.mark.slow
@pytest.mark.parametrize("asked", [1, 0])
def test_a_signal_to_one_host_ends_all(asked, tmp_path):
    """All save the same step."""
    run = tmp_path / "run"
    running = start_hosts(run, 2, *LONG_RUN)
    until_rows(run, 3, running)
    running[asked].signal(signal.SIGTERM)
    assert finish(running, 60) == [75, 75], [host.said for host in running]
    steps = [int(re.search(r"stopped by .* at step (\d+), saved", host.said)[1]) for host in running]
    last = checkpoint.Checkpoints(run / "checkpoints").steps[-1]
    assert steps == [last, last] and int(rows(run)[-1]["step"]) == last
    assert "SIGTERM" in running[asked].said and "another host" in running[1 - asked].said
    assert not any(re.search("Traceback|Check failure|error:", host.said) for host in running)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_all(tmp_path):
    """The first host says so; the others, that it is gone, or the same."""
    run = tmp_path / "run"
    running = start_hosts(run, 2, *LONG_RUN)
    until_rows(run, 6, running)
    resource.prlimit(running[0].process.pid, resource.RLIMIT_FSIZE, (8000, 8000))
    codes = finish(running, 60)
    assert codes[0] == 74 and codes[1] in (74, 76), [host.said for host in running]
    assert all(host.said.count("error:") == 1 and "Check failure" not in host.said for host in running)


@pytest.mark.slow
def test_a_host_of_other_flags_is_refused(tmp_path):
    port = free_port()
    started = [start_host(tmp_path / "run", i, 2, port, *TINY, f"--seed={i}", "--host_timeout=20") for i in range(2)]
    finish(started)
    assert "--seed is 1 on host 1, 0 on host 0" in one_line(started[1], 2)
    assert "a host of this run is gone" in one_line(started[0], 76)
    assert not (tmp_path / "run").exists()


def test_hosts_that_do_not_come(tmp_path):
    """Neither the first nor the others wait for ever."""
    argv = (*TINY, "--host_timeout=5")
    alone = [start_host(tmp_path / "run", i, 2, free_port(), *argv) for i in range(2)]
    finish(alone, 60)
    assert "did not all start in 5 s" in one_line(alone[0], 76)
    assert "was not reached in 5 s" in one_line(alone[1], 76)


def config(**fields):
    return Common(**fields)


REFUSED = {
    "id beyond": ({"coordinator": "a:1", "num_hosts": 2, "host_id": 2}, "--host_id=2: expected 0 to 1"),
    "no id": ({"coordinator": "a:1", "num_hosts": 2}, "--host_id is missing"),
    "no number": ({"coordinator": "a:1", "host_id": 0}, "--num_hosts is missing"),
    "no coordinator": ({"num_hosts": 2, "host_id": 0}, "--coordinator=HOST:PORT is missing"),
    "no port": ({"coordinator": "a", "num_hosts": 2, "host_id": 0}, "--coordinator=a: expected HOST:PORT"),
    "no such port": ({"coordinator": "a:99999", "num_hosts": 2, "host_id": 0}, "--coordinator=a:99999"),
    "no time": ({"host_timeout": 1}, "--host_timeout=1: expected 5 or more"),
    "less than no time": ({"call_timeout": -1.0}, "--call_timeout=-1.0: expected 0 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_flags_that_do_not_go_together(case):
    fields, words = REFUSED[case]
    with pytest.raises(InputError, match=re.escape(words)):
        hosts.initialise(config(**fields))


def test_a_port_in_use():
    with HTTPServer(("", 0), BaseHTTPRequestHandler) as server:
        given = config(coordinator=f"127.0.0.1:{server.server_port}", num_hosts=2, host_id=0)
        with pytest.raises(InputError, match="cannot listen on"):
            hosts.reach(given, hosts.launch(given))


def test_one_host_starts_nothing():
    hosts.initialise(config())
    hosts.initialise(config(num_hosts=1))
    assert not hosts.several() and hosts.first() and hosts.agree(lambda x: x + 1, 1) == 2 and hosts.anyone(True)


HANGS = """
import sys, time
from jaxgan import lastwords
lastwords.stands(7)
with lastwords.Watch(0.2) as watch:
    for seconds in (1, 0.05, 0.4, 60):
        with watch.call(compiles=seconds == 1):
            time.sleep(seconds)
        print(seconds, flush=True)
"""


def test_a_call_that_hangs_ends_the_process():
    """One that compiles may take longer, and so may one that is no ten times slower than those before."""
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert (done.returncode, done.stdout) == (76, "1\n0.05\n0.4\n")
    assert re.fullmatch(r"error: a device .*no call finished in \d+ s.*; the checkpoint of step 7 .*\n", done.stderr)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM | {"SLURM_NTASKS": "2"}, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),  # inside of a batch script, not of srun
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"}, False),
    ],
)
def test_a_cluster_is_one_of_several_processes(environment, several, monkeypatch):
    for name in (*SLURM, "SLURM_NTASKS", "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.in_a_cluster() == several


class Metadata(BaseHTTPRequestHandler):
    """Google's, of a slice of two machines."""

    def do_GET(self):
        known = self.path.endswith("/worker-network-endpoints") and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(b"unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2")

    def log_message(self, *_):
        pass


def test_machines_of_a_tpu_slice(monkeypatch):
    names = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES", "TPU_SKIP_MDS_QUERY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        assert hosts.tpu_hosts() == 2
        monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
        assert hosts.tpu_hosts() == 1
        server.shutdown()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert hosts.tpu_hosts() == 1
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    assert hosts.tpu_hosts() == 4
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    assert hosts.tpu_hosts() == 8


@pytest.mark.slow
def test_four_hosts_train_as_one(two, place):
    """Four of one device as one of four; and four go on with what two have written."""
    run_hosts(place / "one of four", 1, *EACH, devices=4)
    run_hosts(place / "four", 4, *EACH)
    assert_same_gradients(place / "one of four", place / "four")
    assert_same_losses(place / "one of four", place / "four")
    run_hosts(half(two, place / "two, then four"), 4, *EACH)
    assert_same_losses(place / "two, then four", two)
