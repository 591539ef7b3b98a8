"""Several runs on one server as they are used: processes of `fedft queue` and `fedft client` on loopback."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Deployment, Service

from fedft import run_file
from fedft.board.run_folders import FolderReader
from fedft.simulations import run as runs

pytestmark = pytest.mark.slow  # processes that import for seconds; without them: tests/server/test_queue_*.py
SITES = ["asyncio", "email"]
METHODS = {
    "pairs": ["strategy.name=flora", "clients.rank=[2, 4]", "model.lora_dropout=0.1"],
    "controls": ["strategy.name=scaffold", "clients.rank=4", "server.seed=5"],
}


def digest(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["state_digest"])


def lines(folder: Path) -> int:
    """How many states the run in a folder has reported."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait(until: Callable[[], object], service: Service, seconds: float = 180) -> None:
    """Until it is true, while the service runs."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, service.said()
        assert service.code() is None, service.said()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def queue(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, list[str]]]:
    """Two sites that serve, and the words of a queue of two runs, whose simulations have ended."""
    folder = tmp_path_factory.mktemp("queue")
    small = ["local.steps=4", "local.batch_size=4", "data.max_length=64", "data.clients=2", "eval.max_rows=4"]
    common = [f"model.id='{tiny_base}'", "server.rounds=4", *small]
    with Deployment(folder, runs.QUICKSTART, [*common, *METHODS["pairs"]]) as d:
        assert d.rehearse() == SITES
        for name in SITES:
            site = d.site(name) / "site.toml"
            allowed = site.read_text().replace('"flora",', '"flora", "scaffold",')
            site.write_text(allowed.replace("max_learning_rate = 0.01", "max_learning_rate = 0.3"))
        files = []
        for name, own in METHODS.items():
            config = run_file.load(d.run, [*common, *own])
            runs.simulate(config, out=folder / "simulated" / name)
            files.append(folder / f"{name}.toml")
            files[-1].write_text(
                (folder / "simulated" / name / "config.toml").read_text().replace("max_share = 1.0", "")
            )
        yield d, [*map(str, files), "--keys", str(d.keys), "--listen", f"127.0.0.1:{d.port}"]


def start(d: Deployment, words: list[str], *more: str) -> Service:
    return d._service("queue", "queue", *words, *more)


def test_two_runs_side_by_side_end_with_the_bytes_of_their_simulations_after_every_kill(
    queue: tuple[Deployment, list[str]], tmp_path: Path
) -> None:
    d, words = queue
    more = ("--out", str(tmp_path), "--together", "2")
    clients = [d.client(name) for name in SITES]
    server = start(d, words, *more)
    wait(lambda: all(lines(tmp_path / name) >= 2 for name in METHODS), server)
    server.send(signal.SIGKILL)
    server.ended()
    server = start(d, words, *more)
    clients[0].kill()
    clients[0] = d.client(SITES[0])
    wait(lambda: sum(lines(tmp_path / name) for name in METHODS) >= 6, server)
    assert server.stop() == 130
    assert "Traceback" not in server.said()
    said = server.said()
    for name in METHODS:
        assert f"{name}: round " in said
    server = start(d, words, *more)
    assert server.ended(240) == 0, server.said()
    for name in METHODS:
        assert digest(tmp_path / name) == digest(d.folder / "simulated" / name), name
        assert lines(tmp_path / name) == 5
    told = {r["name"]: r["state"] for r in FolderReader(tmp_path).status()["runs"]}
    assert told == dict.fromkeys(METHODS, "finished")
    server = start(d, words, *more)
    assert server.ended(60) == 0
    assert server.said().count("has its results already") == 2
    assert "asking" not in server.said()
    for client in clients:
        assert client.stop() == 0
        assert "Traceback" not in client.said()


def test_runs_one_after_another_go_on_behind_one_that_cannot(
    queue: tuple[Deployment, list[str]], tmp_path: Path
) -> None:
    d, words = queue
    wrong = d.folder / "wrong.toml"
    text = Path(words[0]).read_text()
    wrong.write_text(text.replace(next(line for line in text.splitlines() if line.startswith("id = ")), 'id = "/none"'))
    clients = [d.client(name) for name in SITES]
    server = start(d, [str(wrong), *words], "--out", str(tmp_path))
    assert server.ended(240) == 2, server.said()
    assert "fedft: 1 of 3 runs did not finish" in server.said()
    assert "wrong: [model] id" in server.said()
    for name in METHODS:
        assert digest(tmp_path / name) == digest(d.folder / "simulated" / name), name
    for client in clients:
        assert client.stop() == 0


def test_one_process_of_a_site_serves_two_servers(queue: tuple[Deployment, list[str]], tmp_path: Path) -> None:
    """Each run ends with the bytes of its simulation, also where a site is killed; two processes share a device."""
    d, words = queue
    second = Deployment(tmp_path / "second", d.run, d.overrides)
    with second:
        assert second.rehearse() == SITES
        files: dict[str, list[str]] = {}
        for name in SITES:
            for deployment in (d, second):
                site = deployment.site(name) / "site.toml"
                text = site.read_text().replace("threads = 1", f'threads = 1\ndevice_lock = "{tmp_path / "lock"}"', 1)
                site.write_text(text.replace('"flora",', '"flora", "scaffold",').replace("rate = 0.01", "rate = 0.3"))
                files.setdefault(name, []).append(str(site))
        clients = {name: second._service(name, "client", *files[name]) for name in SITES}
        servers = []
        for deployment, file in ((d, words[0]), (second, words[1])):
            where = ["--keys", str(deployment.keys), "--listen", f"127.0.0.1:{deployment.port}"]
            out = tmp_path / Path(file).stem
            servers.append((out, second._service(out.name, "server", file, *where, "--out", str(out))))
        wait(lambda: all(lines(out) >= 1 for out, _ in servers), servers[0][1])
        clients[SITES[0]].kill()
        clients[SITES[0]] = second._service(SITES[0], "client", *files[SITES[0]])
        for out, server in servers:
            assert server.ended(240) == 0, server.said()
            assert digest(out) == digest(d.folder / "simulated" / out.name), out.name
        for client in clients.values():
            assert client.stop() == 0
            assert "Traceback" not in client.said()
