"""A deployment as it is used: processes of `fedft server` and `fedft client` on loopback, over TLS, on a small model.

Real processes serve the sites whose life and death is looked at; sites that only have to be refused are served by
threads of this process, with the same function as the command.
"""

import json
import logging
import re
import shutil
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from processes import Deployment, Ended, Service, command_of
from superlink import SuperLink

import fedft
from fedft import run_file
from fedft.client import app, site_file
from fedft.errors import ConfigError
from fedft.security import new_keys, private_keys, roster
from fedft.server import app as server_app
from fedft.simulations import run as runs

pytestmark = pytest.mark.slow  # processes that import for seconds; without them: tests/server/test_sealed_post.py
OWN = {
    "flora": ["clients.rank=[2, 4]"],
    "fedkseed": ["strategy.K=256", "local.learning_rate=1e-3"],
    "scaffold": ["clients.rank=4"],
}
SITES = ["asyncio", "email"]


@pytest.fixture(scope="module")
def overrides(tiny_base: Path) -> Callable[..., list[str]]:
    def of(strategy: str, *more: str) -> list[str]:
        small = ["local.steps=4", "local.batch_size=4", "data.max_length=64", "data.clients=2", "eval.max_rows=4"]
        tables = ["server.rounds=2", *small, *OWN[strategy]]
        return [f"model.id='{tiny_base}'", f"strategy.name={strategy}", *tables, *more]

    return of


def wait(until: Callable[[], Any], seconds: float = 120) -> None:
    """Until it is true. Raises Ended if it does not come true in time."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise Ended(f"not true after {seconds} s")
        time.sleep(0.05)


@contextmanager
def attended(*files: Path) -> Iterator[list[str]]:
    """Serve sites in threads; what they log, as it comes."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    ours, stop = logging.getLogger("fedft"), threading.Event()
    threads = [threading.Thread(target=app.attend, args=(site_file.load(f), stop), name=f.parent.name) for f in files]
    ours.addHandler(handler)
    try:
        for thread in threads:
            thread.start()
        yield said
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        ours.removeHandler(handler)


@dataclass
class House:
    """A deployment whose first run has ended, and whose clients go on."""

    deployment: Deployment
    simulated: runs.Run
    clients: dict[str, Service]
    server_code: int
    servers_children: list[str]
    """Command lines of all that the server had started, in the middle of the run."""
    clients_children: dict[str, list[int]]


def a_run(folder: Path, sets: list[str]) -> tuple[House, Deployment]:
    """A run of two sites, from keys to summary, and its simulation."""
    d = Deployment(folder, runs.QUICKSTART, sets)
    try:
        assert d.rehearse() == SITES
        server = d.server()
        clients = {name: d.client(name) for name in SITES}
        simulated = runs.simulate(run_file.load(d.run, sets), out=folder / "simulated")
        server.wait_for("round 1: asking", 120)
        started = [command_of(pid) for pid in server.children()]
        below = {name: client.children() for name, client in clients.items()}
        return House(d, simulated, clients, server.ended(60), started, below), d
    except BaseException:
        d.__exit__()
        raise


@pytest.fixture(scope="module")
def house(overrides: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house, d = a_run(tmp_path_factory.mktemp("house"), overrides("flora"))
    with d:
        yield house


def test_a_deployment_of_unlike_ranks_ends_with_the_bytes_of_its_simulation(house: House) -> None:
    out, simulated = house.deployment.out, house.simulated
    assert house.server_code == 0
    summary = json.loads((out / "summary.json").read_text())
    same = ("state_digest", "base_digest", "initial", "final", "rounds", "clients", "refused")
    assert {k: summary[k] for k in same} == {k: simulated.summary[k] for k in same}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["state_digest"] for line in lines] == [line["state_digest"] for line in simulated.lines]
    assert (lines[2]["participants"], lines[2]["evaluation"].keys()) == (SITES, set(SITES))
    weights = Path("model") / "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (simulated.folder / weights).read_bytes()
    assert run_file.load(out / "config.toml").strategy.name == "flora"
    assert list((out / "events").glob("*tfevents*"))


def test_one_process_serves_a_site_in_all_rounds_and_one_is_the_server(house: House) -> None:
    """No process comes into being for a round, a message or an evaluation."""
    assert house.servers_children == []
    assert house.clients_children == {name: [] for name in SITES}
    for client in house.clients.values():
        assert client.code() is None
        assert len([line for line in client.lines() if "rows to train on" in line]) == 1


def test_no_code_comes_from_the_network(house: House) -> None:
    """Flower would send a site an app to run: nobody asks for it, nobody may, and none is on disk."""
    root = Path(fedft.__file__).parents[1]
    for file in [*(root / "client").glob("*.py"), *(root / "fedft").glob("*.py")]:
        assert not re.search(r"GetFab|get_fab|load_app|ClientApp\b", file.read_text()), file
    assert not [p for p in house.deployment.folder.rglob("*") if "fab" in p.name.lower()]


@dataclass
class Second:
    """A server that goes on until it is killed, in the house whose clients were waiting for it."""

    house: House
    server: Service
    strangers: dict[str, Path]
    """Site files by what is wrong with them."""


@pytest.fixture(scope="module")
def second(house: House) -> Second:
    d = house.deployment
    folder = d.folder / "strangers"
    strangers = {what: _stranger(d, folder / what) for what in ("unknown", "namesake", "revoked", "wrong-ca")}
    card = new_keys.make_site(folder / "ruth", "ruth")
    roster.enrol(d.keys / "roster.toml", card)
    roster.revoke(d.keys / "roster.toml", "ruth")
    for key in ("signing.key", "node.key"):
        shutil.copy(folder / "ruth" / key, strangers["revoked"].parent / "keys" / key)
    new_keys.make_server(folder / "another", ["127.0.0.1"])
    shutil.copy(folder / "another" / "ca.pem", strangers["wrong-ca"].parent / "keys")
    server = d.server("--set", "server.rounds=1000", out=d.folder / "second")
    server.wait_for("state 1,", 120)
    return Second(house, server, strangers)


def _stranger(d: Deployment, folder: Path) -> Path:
    """A site like `email`, with keys of its own that nobody has enrolled."""
    shutil.copytree(d.site("email"), folder, ignore=shutil.ignore_patterns("fedft-site", "*.key", "*.card.toml"))
    name = "email" if folder.name == "namesake" else folder.name
    made = folder / "made"
    new_keys.make_site(made, name)
    for key in ("signing.key", "node.key"):
        (made / key).rename(folder / "keys" / key)
    file = folder / "site.toml"
    file.write_text(file.read_text().replace('name = "email"', f'name = "{name}"'))
    return file


def test_who_is_not_enrolled_is_refused_in_one_line_that_says_why(second: Second) -> None:
    with attended(*second.strangers.values()) as said:
        wait(lambda: len([line for line in said if "trying again" in line]) >= len(second.strangers))
    refused = [line for line in said if "trying again" in line]
    address = f"127.0.0.1:{second.house.deployment.port}"
    unknown = f"server {address} does not know this site's node key: not enrolled, or revoked; trying again"
    assert refused.count(unknown) == 3
    (ca,) = [line for line in refused if line != unknown]
    assert re.fullmatch(
        rf"TLS: the certificate of {address} is refused: .* \(is ca\.pem that of this server\?\); trying again", ca
    )
    assert not [line for line in said if "connected" in line]


def test_plain_text_on_the_port_gets_nothing_and_disturbs_nobody(second: Second) -> None:
    port = second.house.deployment.port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        try:
            got = plain.recv(100)
        except ConnectionResetError:
            got = b""
    assert not got.startswith(b"HTTP")
    assert second.server.code() is None
    assert "Traceback" not in second.server.said()


def test_a_site_that_is_told_to_stop_ends_with_0_and_one_line(second: Second) -> None:
    client = second.house.clients["email"]
    told = len(client.lines())
    assert client.stop() == 0
    assert client.lines()[told:][-1] == "INFO stopped"
    assert "Traceback" not in client.said()


def test_a_site_waits_for_a_server_that_was_killed(second: Second) -> None:
    second.server.send(signal.SIGKILL)
    assert second.server.ended() == -signal.SIGKILL
    client = second.house.clients["asyncio"]
    client.wait_for("cannot be reached")
    assert client.stop() == 0


def test_the_round_goes_on_without_sites_that_refuse_or_do_not_understand(
    overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    """One site does the work; two refuse it by their policy, one has another server's key, one calls itself as another.

    SIGTERM ends the server with 130 and one line.
    """
    sets = overrides("flora", "data.clients=4", "server.rounds=1000", "server.quorum=0.2", "server.grace_s=1.0")
    with Deployment(tmp_path, runs.QUICKSTART, sets) as d:
        d.rehearse()
        _edit(d.site("email"), r"strategies = .*?\]", 'strategies = ["fedit"]')
        _edit(d.site("logging"), r"max_rank = \d+", "max_rank = 1")
        new_keys.make_server(tmp_path / "another", ["127.0.0.1"])
        shutil.copy(tmp_path / "another" / "server.pub", d.site("unittest") / "keys")
        _stranger(d, d.site("zoe"))
        roster.enrol(d.keys / "roster.toml", next(d.site("zoe").glob("made/*.card.toml")))
        _edit(d.site("zoe"), 'name = "zoe"', 'name = "asyncio"')
        server = d.server()
        d.client("asyncio")
        dropped = "a message that is not from our server, for us, was dropped: "
        with attended(*(d.site(name) / "site.toml" for name in ("email", "logging", "unittest", "zoe"))) as said:
            for text in ("state 1,", "email refused: policy_strategy", "logging refused: policy_rank"):
                server.wait_for(text, 120)
            wait(lambda: len({line for line in said if dropped in line}) >= 2)
        assert server.stop() == 130
    assert "nothing is lost: the same command continues the run" in server.lines()[-1]
    assert "Traceback" not in server.said()
    for text in (
        f"{dropped}bad_signature",
        f"{dropped}unknown_client: it is addressed to 'zoe'",
        "refused what the server asks: policy_strategy: strategy 'flora' is not allowed here; allowed: fedit",
        "refused what the server asks: policy_rank: rank = 2, allowed here: 0 to 1",
    ):
        assert [line for line in said if text in line], text
    first = json.loads((d.out / "metrics.jsonl").read_text().splitlines()[1])
    assert first["participants"] == ["asyncio"]
    audit = [json.loads(line) for line in (d.out / "audit.jsonl").read_text().splitlines()]
    assert {("email", "policy_strategy"), ("logging", "policy_rank")} <= {(a.get("site"), a.get("code")) for a in audit}


def _edit(folder: Path, pattern: str, new: str) -> None:
    file = folder / "site.toml"
    text, count = re.subn(pattern, new, file.read_text(), flags=re.DOTALL)
    assert count == 1
    file.write_text(text)


def test_an_expired_certificate_is_said_on_both_sides(house: House, tmp_path: Path) -> None:
    d = house.deployment
    folder = tmp_path / "keys"
    shutil.copytree(d.keys, folder)
    _expire(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_shake_hands, args=(listener, context), daemon=True).start()
        port = listener.getsockname()[1]
        file = _stranger(d, tmp_path / "anna")
        _edit(file.parent, rf"127\.0\.0\.1:{d.port}", f"127.0.0.1:{port}")
        with attended(file) as said:
            wait(lambda: any("expired" in line for line in said))
        listener.shutdown(socket.SHUT_RDWR)
    (line,) = [line for line in said if "trying again" in line]
    assert line.startswith(f"TLS: the certificate of 127.0.0.1:{port} is refused: certificate has expired")
    with pytest.raises(ConfigError, match=r"server\.pem: expired at .* `fedft keys renew"):
        server_app.serve(
            run_file.load(d.run, d.overrides), server_app.Place(folder, ("127.0.0.1", 0)), tmp_path / "out"
        )


def _expire(folder: Path) -> None:
    """The server's certificate again, as it was a week ago."""
    old = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    now = datetime.now(UTC)
    new = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(old.public_key())
    new = new.serial_number(1).not_valid_before(now - timedelta(days=7)).not_valid_after(now - timedelta(days=1))
    for extension in old.extensions:
        new = new.add_extension(extension.value, extension.critical)
    signed = new.sign(private_keys.load_ecdsa(folder / "ca.key"), hashes.SHA384())
    (folder / "server.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def _shake_hands(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        try:
            context.wrap_socket(peer, server_side=True).close()
        except OSError:
            peer.close()


@pytest.mark.parametrize("name", ["fedkseed", "scaffold"])
def test_a_deployment_of_the_others_ends_with_the_bytes_of_its_simulation_too(
    overrides: Callable[..., list[str]], tmp_path: Path, name: str
) -> None:
    """Of seeds, and of what sites keep. All strategies: tests/server/test_sealed_post.py, without processes."""
    house, d = a_run(tmp_path, overrides(name))
    with d:
        summary = json.loads((d.out / "summary.json").read_text())
        assert house.server_code == 0
        assert summary["state_digest"] == house.simulated.summary["state_digest"]
        assert summary["final"] == house.simulated.summary["final"]


def test_a_deployment_with_noise_on_the_sum_ends_with_the_bytes_of_its_simulation(
    overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    """And says nothing of single sites: neither what they measured nor what they sent."""
    said = {"mode": "central-dp", "clip": "0.1", "noise_multiplier": "0.5", "delta": "0.01", "noise": "seeded"}
    house, d = a_run(tmp_path, overrides("fedkseed", *(f"privacy.{k}={v}" for k, v in said.items())))
    with d:
        assert house.server_code == 0
        summary = json.loads((d.out / "summary.json").read_text())
        assert summary["state_digest"] == house.simulated.summary["state_digest"]
        assert (summary["final"], summary["epsilon"]) == ({}, None)
        public = [(d.out / name).read_text() for name in ("metrics.jsonl", "status.json", "audit.jsonl")]
        assert not any("train_loss" in text or '"loss": ' in text.replace('"loss": null', "") for text in public)
        assert "asyncio" in (d.out / "state" / "private.jsonl").read_text()


def test_a_run_killed_on_every_side_goes_on_to_the_same_bytes(
    overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    sets = overrides("flora", "server.rounds=8", "server.quorum=1.0")
    simulated = runs.simulate(run_file.load(runs.QUICKSTART, sets), out=tmp_path / "simulated")
    with Deployment(tmp_path, runs.QUICKSTART, sets) as d:
        clients = {name: d.client(name) for name in d.rehearse()}
        server = d.server()
        server.wait_for("round 1: asyncio admitted", 120)
        server.send(signal.SIGKILL)
        server.ended()
        server.start().wait_for(r"round [2-7]: asking", 120)
        clients["email"].send(signal.SIGKILL)
        clients["email"].ended()
        clients["email"].start()
        server.wait_for(r"round [4-7]: asking", 120)
        assert server.stop() == 130
        server.start()
        assert server.ended(120) == 0
    summary = json.loads((d.out / "summary.json").read_text())
    assert summary["state_digest"] == simulated.summary["state_digest"]


def test_a_run_over_somebody_s_superlink_ends_with_the_bytes_of_its_simulation(
    overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    sets = overrides("flora")
    with Deployment(tmp_path, runs.QUICKSTART, sets) as d:
        names = d.rehearse()
        superlink = SuperLink(d.keys, d.port)
        try:
            way = ("--superlink", f"127.0.0.1:{d.port}")
            server = d.server(*way)
            clients = [d.client(name, *way) for name in names]
            simulated = runs.simulate(run_file.load(runs.QUICKSTART, sets), out=tmp_path / "simulated")
            assert server.ended(200) == 0
            assert [client.stop() for client in clients] == [0] * len(names)
        finally:
            superlink.kill()
    summary = json.loads((d.out / "summary.json").read_text())
    assert summary["state_digest"] == simulated.summary["state_digest"]
