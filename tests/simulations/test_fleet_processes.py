"""Simulations whose workers are real processes, or actors of Ray: ended in any way, and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm_processes

from fedft import run_file
from fedft.simulations import run as runs

pytestmark = pytest.mark.slow


def sets(base: Path) -> list[str]:
    """A run of three rounds, in which every client keeps a factor of its own."""
    small = ["local.steps=8", "local.batch_size=2", "data.max_length=48", "eval.max_rows=4", "server.rounds=3"]
    return [f"model.id='{base}'", "strategy.name=fedsa_lora", "clients.rank=4", "server.loggers=[]", *small]


@pytest.fixture(scope="session")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of the run of `command` in one process."""
    config = run_file.load(runs.QUICKSTART, sets(tiny_base))
    return runs.simulate(config, out=tmp_path_factory.mktemp("whole") / "run").summary


@pytest.fixture
def command(tiny_base: Path, tmp_path: Path) -> list[str]:
    words = [word for one in (*sets(tiny_base), "server.workers=2") for word in ("--set", one)]
    return ["-m", "fedft", "simulate", *words, "--out", str(tmp_path / "run")]


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def at_work(process: warm_processes.Process, folder: Path) -> Iterator[int]:
    """The workers of a run, once it is in its second round."""
    until = time.monotonic() + 180
    while not any(folder.glob("state/gen-00000001*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is None, (folder.parent / "said").read_text()
    yield from children(process.pid)


@pytest.mark.parametrize("how", ["SIGINT to all", "SIGKILL to the run", "SIGKILL to a worker"])
def test_a_run_with_workers_that_is_ended_leaves_none_behind_and_goes_on_to_the_same_bytes(
    command: list[str], whole: dict[str, Any], tiny_base: Path, tmp_path: Path, how: str
) -> None:
    with open(tmp_path / "said", "wb") as said:
        process = warm_processes.start(command, said, said)
    workers = list(at_work(process, tmp_path / "run"))
    assert len(workers) == 2
    if how == "SIGINT to all":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid if how == "SIGKILL to the run" else workers[1], signal.SIGKILL)
    code = {"SIGINT to all": 130, "SIGKILL to the run": -9, "SIGKILL to a worker": 75}[how]
    assert process.wait(120) == code, (tmp_path / "said").read_text()
    if code == 75:
        last = (tmp_path / "said").read_text().splitlines()[-1]
        assert "(cpu) was killed (SIGKILL: as the system does where memory runs out)" in last
    until = time.monotonic() + 60
    while (left := [w for w in workers if Path(f"/proc/{w}").exists()]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left
    if how == "SIGKILL to a worker":
        done = warm_processes.run([*command, "--resume", "--json"], timeout=300)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
    else:  # without workers, which need none of what they had
        config = run_file.load(runs.QUICKSTART, sets(tiny_base))
        summary = runs.simulate(config, out=tmp_path / "run", resume=True).summary
    assert summary["state_digest"] == whole["state_digest"]


def test_actors_of_ray_give_the_bytes_of_one_process(command: list[str], whole: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    done = warm_processes.run([*command, "--set", "server.ray=local", "--json"], timeout=300)
    assert done.returncode == 0, done.stderr
    same = ("state_digest", "final", "initial", "bytes_up", "bytes_down")
    assert {k: json.loads(done.stdout)[k] for k in same} == {k: whole[k] for k in same}


NODES = """
import sys
from ray.cluster_utils import Cluster
own = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**own, "include_dashboard": False})
cluster.add_node(**own)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes of one CPU each, so that two workers have a node each."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    command = [sys.executable, "-W", "ignore", "-c", NODES]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()  # its end of file ends the nodes


def test_a_cluster_of_two_nodes_gives_the_bytes_of_one_process(
    command: list[str], whole: dict[str, Any], two_nodes: str, tmp_path: Path
) -> None:
    joined = [*command, "--set", f"server.ray='{two_nodes}'"]
    done = warm_processes.run([*joined, "--json"], timeout=300)
    assert done.returncode == 0, done.stderr
    same = ("state_digest", "final", "initial", "bytes_up", "bytes_down")
    assert {k: json.loads(done.stdout)[k] for k in same} == {k: whole[k] for k in same}
    more = warm_processes.run([*joined, "--set", "server.workers=3", "--out", str(tmp_path / "more")], timeout=300)
    assert more.returncode == 2
    assert more.stderr.splitlines()[-1].endswith("3 CPUs and 0 GPUs are wanted, Ray's cluster has 2 and 0")
