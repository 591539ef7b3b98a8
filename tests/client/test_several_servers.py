"""A process that serves sites of several servers: one worker, in the order of requests; and one device for several."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from deployed import SERVER_KEY, Deployment, SiteOfRuns, ToyClient
from one_line import one_line

from fedft.client import app, device_lock, site_settings
from fedft.client.one_worker import Worker
from fedft.client.site_settings import SiteConfig
from fedft.contract import Turn
from fedft.errors import ConfigError
from fedft.security import sealed
from fedft.security.sealed import About, Kind
from fedft.update import Plan, Update
from fedft.wire import messages

HOLDS = "from fedft.client import device_lock\nwith device_lock.held({!r}):\n    print('held', flush=True)\n    input()"


def config(name: str, state: str = "", address: str = "127.0.0.1:1") -> SiteConfig:
    return SiteConfig(
        site_settings.Site(name, state or f"/state/{name}{address}"),
        site_settings.SiteServer(address),
        site_settings.SiteModel("/model"),
        site_settings.SiteData("/train.jsonl"),
    )


def test_one_worker_carries_out_the_requests_of_two_sites_one_at_a_time_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is answered with what it says when it is alone."""
    inside, order = [0], list[str]()
    evaluate = ToyClient.evaluate

    def watched(client: ToyClient, turn: Turn) -> Update:
        inside[0] += 1
        assert inside[0] == 1
        order.append(client.name)
        time.sleep(0.01)
        inside[0] -= 1
        return evaluate(client, turn)

    monkeypatch.setattr(ToyClient, "evaluate", watched)
    d = Deployment(tmp_path / "config")
    said: list[tuple[str, Any]] = []
    worker, stop, all_said = Worker(), threading.Event(), threading.Event()

    def letter(site: SiteOfRuns, kind: Kind, payload: bytes, round: int = 0) -> None:
        about = About(d.job.run, round, 0, site.name, sealed.digest(payload))

        def reply(data: bytes) -> None:
            key = site.responder.key.public_key()
            said.append((site.name, sealed.open_sealed(data, lambda _: key).kind))
            if len(said) == 8:
                all_said.set()

        site.responder.take(sealed.seal(kind, about, payload, SERVER_KEY), reply)

    sites = [SiteOfRuns(n, i, tmp_path / n, d.config, {}) for i, n in enumerate(("north", "south"))]
    for site in sites:
        site.responder.requests = worker.requests
    state = d.federation.recipe.first_state(d.federation.layout, 2, 7)
    for site in sites:
        letter(site, Kind.JOB, messages.encode_job(d.job))
    for number in range(3):
        for site in sites:
            plan = Plan(d.job.run, number, 0, rank=2, steps=1, evaluate=True, label=state.label, tensors=state.tensors)
            letter(site, Kind.EVALUATE, messages.encode_plan(plan, "fp32"), number)
    worker.start(stop)
    assert all_said.wait(60)
    stop.set()
    assert said == [(n, Kind.ANSWER) for _ in range(4) for n in ("north", "south")]
    assert order == ["north", "south"] * 3


def test_sites_are_served_together_until_they_are_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    there, stop, workers, served = threading.Barrier(3), threading.Event(), list[Worker | None](), dict[str, str]()

    def attend(site: SiteConfig, stop: threading.Event, file: Path, worker: Worker) -> None:
        workers.append(worker)
        served[site.server.address] = file.name
        there.wait(10)
        stop.wait(10)

    monkeypatch.setattr(app, "attend", attend)
    sites = [config("north"), config("north", address="127.0.0.1:2")]
    files = [Path("a.toml"), Path("b.toml")]
    whole = threading.Thread(target=app.attend_all, args=(sites, stop, "", files))
    whole.start()
    there.wait(10)
    assert workers[0] is workers[1] is not None
    assert served == {sites[0].server.address: "a.toml", "127.0.0.1:2": "b.toml"}, "commands in the log name its own"
    assert whole.is_alive()
    stop.set()
    whole.join(10)
    assert not whole.is_alive()


@pytest.mark.parametrize("bad", [0, 1])
def test_what_is_wrong_with_one_site_ends_all_of_them(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    sites = [config("north"), config("south")]

    def attend(site: SiteConfig, stop: threading.Event, file: Path, worker: Worker) -> None:
        if site is sites[bad]:
            raise ConfigError("no such key")
        assert stop.wait(10)

    monkeypatch.setattr(app, "attend", attend)
    with pytest.raises(ConfigError, match="no such key"):
        app.attend_all(sites, threading.Event())


@pytest.mark.parametrize(
    ("sites", "superlink", "said"),
    [
        ([config("north", "/s"), config("south", "/s")], "", "is in two site files; each needs its own folder"),
        ([config("north", "/s"), config("north", "/t")], "", "site 'north' of server 127.0.0.1:1 is in two site files"),
        ([config("north"), config("south")], "127.0.0.1:9", "--superlink is of one server"),
    ],
)
def test_files_that_are_no_sites_of_several_servers_are_one_line(sites: Any, superlink: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as e:
        app.attend_all(sites, threading.Event(), superlink)
    one_line(e)


def test_of_two_processes_one_has_the_device_until_it_ends(tmp_path: Path) -> None:
    """However it ends."""
    lock = str(tmp_path / "lock")
    device_lock.check(lock)
    other = subprocess.Popen([sys.executable, "-c", HOLDS.format(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        device_lock.check(lock)  # that it is held is no fault
        inside = threading.Event()

        def work() -> None:
            with device_lock.held(lock):
                inside.set()

        threading.Thread(target=work, daemon=True).start()
        assert not inside.wait(0.3)
        other.send_signal(signal.SIGKILL)
        assert inside.wait(30)
    finally:
        other.kill()
        other.communicate()


def test_who_waits_for_the_device_says_that_the_request_is_queued(tmp_path: Path) -> None:
    d = Deployment(tmp_path)
    site = d.sites["anna"].responder
    said: list[bytes] = []
    payload = messages.encode_job(d.job)
    about = About(d.job.run, 0, 0, "anna", sealed.digest(payload))
    free = threading.Lock()
    free.acquire()
    site.device = lambda: free
    site.take(sealed.seal(Kind.JOB, about, payload, SERVER_KEY), said.append)
    working = threading.Thread(target=lambda: site.work(0))
    working.start()
    while site._waiting:
        time.sleep(0.001)
    site.take(sealed.seal(Kind.STATUS, about, b"", SERVER_KEY), said.append)
    assert b'"queued"' in said[0]
    assert len(said) == 1
    free.release()
    working.join(10)
    assert len(said) == 2


def test_a_lock_that_cannot_be_one_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened") as e:
        device_lock.check(str(tmp_path / "none" / "lock"))
    one_line(e)
