"""Workers that are processes: what they are told and say, how they die, and that none is ever left behind."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import echo_worker
import pytest
from fleet_answers import said
from one_line import one_line

from fedft.carriers.fleet.crew import Order
from fedft.carriers.fleet.post import FleetPost
from fedft.carriers.fleet.processes import Processes, Start
from fedft.carriers.fleet.worker import AHEAD
from fedft.carriers.interface import Letter
from fedft.errors import ClientFailed, ConfigError, RunPaused

WORKERS = {"anna": 0, "bert": 1, "carl": 0}


def starts(**more: Any) -> list[Start]:
    names = [[c for c, at in WORKERS.items() if at == n] for n in (0, 1)]
    return [Start(f"worker {n + 1} of 2 (cpu)", {"clients": names[n], **more}, {}) for n in (0, 1)]


@pytest.fixture
def crew() -> Iterator[Processes]:
    with Processes("echo_worker", starts()) as found:
        yield found


@pytest.fixture
def post(crew: Processes) -> FleetPost:
    return FleetPost(crew, WORKERS)


def pids(crew: Processes) -> list[int]:
    return [facts["pid"] for facts in crew.facts]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}").exists() else True


def until_gone(found: list[int], seconds: float = 20) -> list[int]:
    until = time.monotonic() + seconds
    while (left := [pid for pid in found if alive(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def test_clients_answer_in_their_worker_s_process_however_often_they_are_asked(
    crew: Processes, post: FleetPost
) -> None:
    zero, one = pids(crew)
    assert os.getpid() not in (zero, one)
    for payload in ("a", "b" * 1_000_000, "c"):
        found = said(post, *((c, payload) for c in WORKERS))
        assert found == {c: f"{(zero, one)[w]} {c} train {payload}".encode() for c, w in WORKERS.items()}


def test_a_worker_sees_its_own_device_only_and_says_what_it_has(tmp_path: Path) -> None:
    own = [Start(s.name, s.told, {"CUDA_VISIBLE_DEVICES": str(n)}) for n, s in enumerate(starts())]
    with Processes("echo_worker", own) as crew:
        assert [facts["saw"] for facts in crew.facts] == ["0", "1"]


@pytest.mark.parametrize(
    ("payload", "why"),
    [("kill", "was killed (SIGKILL"), ("exit", "ended with exit code 7: CUDA error: the device is gone")],
)
def test_a_worker_that_dies_pauses_the_run_in_one_line_that_says_which_and_why(
    post: FleetPost, payload: str, why: str
) -> None:
    with pytest.raises(RunPaused) as e:
        said(post, ("anna", "a"), ("bert", payload))
    assert one_line(e).startswith(f"worker 2 of 2 (cpu) {why}")
    assert one_line(e).endswith("; --resume goes on")


def test_a_worker_that_dies_while_nobody_asks_is_told_of_at_the_next_letter(crew: Processes, post: FleetPost) -> None:
    os.kill(pids(crew)[0], signal.SIGTERM)
    with pytest.raises(RunPaused, match=r"worker 1 of 2 \(cpu\) was ended by SIGTERM"):
        said(post, ("anna", "a"))


def test_what_a_worker_finds_wrong_as_it_begins_is_one_line_and_ends_them_all() -> None:
    with pytest.raises(ConfigError) as e:
        Processes("echo_worker", starts(wrong=True))
    assert one_line(e) in ("worker 1 of 2 (cpu): no such model", "worker 2 of 2 (cpu): no such model")


def test_a_worker_that_cannot_begin_says_its_last_line() -> None:
    with pytest.raises(RunPaused, match=r"ended with exit code 1: .*No module named no_such_worker"):
        Processes("no_such_worker", starts())


def test_a_bug_in_a_client_has_its_traceback_with_it(post: FleetPost) -> None:
    with pytest.raises(ClientFailed, match="client 'bert' failed: KeyError: 'rank'") as e:
        said(post, ("bert", "bug"))
    assert "echo_worker.py" in str(e.value.__cause__)


def test_what_workers_log_is_logged_here_and_once_where_all_say_it_as_they_begin(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), Processes("echo_worker", starts()) as crew:
        assert caplog.messages == ["slow on this device"]
        said(FleetPost(crew, WORKERS), ("anna", "log x"), ("carl", "log x"), ("anna", "log x"))
    assert sorted(caplog.messages[1:]) == ["anna says x", "anna says x", "carl says x"]


def test_a_worker_goes_on_while_its_answers_wait_and_no_further_than_a_few(tmp_path: Path) -> None:
    """One is being sent, AHEAD wait, one more is ready; the next client is not asked before one of them is taken."""
    names = [f"c{n}" for n in range(AHEAD + 4)]
    payload = f"touch {tmp_path}".encode()
    orders = [Order(c, Letter(c, "train", lambda: payload, max_bytes=2**21), payload) for c in names]

    def asked(wanted: int) -> int:
        until = time.monotonic() + 20
        while len(list(tmp_path.iterdir())) < wanted and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.2)
        return len(list(tmp_path.iterdir()))

    with Processes("echo_worker", [Start("worker 1 of 1 (cpu)", {"clients": names}, {})]) as crew:
        crew.give(0, orders)
        assert asked(AHEAD + 2) == AHEAD + 2
        ((_, (line, answer)),) = crew.hear(20)
        assert (line["ticket"], len(answer)) == ("c0", 2**20)
        assert asked(AHEAD + 3) == AHEAD + 3


def test_leaving_the_block_ends_workers_that_are_at_work(crew: Processes, post: FleetPost) -> None:
    ticket, _ = post.push(Letter("anna", "train", lambda: b"sleep 60"))
    next(post.pull([ticket]), None)
    found = pids(crew)
    assert [alive(pid) for pid in found] == [True, True]
    began = time.monotonic()
    crew.close()
    assert until_gone(found) == []
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_process_that_started_it_however_that_ends(tmp_path: Path, how: signal.Signals) -> None:
    """SIGINT goes to the whole group, as Ctrl-C on a terminal does; all workers are in the middle of something."""
    code = """
from fedft.carriers.fleet.post import FleetPost
from fedft.carriers.fleet.processes import Processes
from fedft.carriers.interface import Letter
from test_processes_starts import WORKERS, starts
with Processes("echo_worker", starts()) as crew:
    post = FleetPost(crew, WORKERS)
    tickets = [post.push(Letter(c, "train", lambda: b"sleep 60"))[0] for c in WORKERS]
    next(post.pull(tickets), None)
    print(*(f["pid"] for f in crew.facts), flush=True)
    while True:
        next(post.pull(tickets), None)
"""
    names = {n: [c for c, at in WORKERS.items() if at == n] for n in (0, 1)}
    (tmp_path / "test_processes_starts.py").write_text(
        f"from fedft.carriers.fleet.processes import Start\nWORKERS = {WORKERS}\n"
        f"def starts():\n    return [Start('w', {{'clients': c}}, {{}}) for c in {list(names.values())}]\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(echo_worker.__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        found = [int(pid) for pid in process.stdout.readline().split()]
    assert len(found) == 2
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    process.wait(20)
    assert until_gone(found) == []
