"""`fedft doctor` finds what is wrong, says what to do about it, and never shows a traceback."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
import typer
from carried import running, wait
from cryptography import x509

from fedft.carriers import connectivity_check
from fedft.carriers.stream.link import StreamLink
from fedft.carriers.stream.site_node import Node
from fedft.cli import checks_deployment, checks_machine
from fedft.cli import doctor as cli_doctor
from fedft.cli.checks_machine import FAIL, OK, WARN, Finding
from fedft.client.server_trust import ServerTrust
from fedft.errors import ConfigError
from fedft.security import certificates, new_keys, private_keys, roster, rotation
from tests.support import encoder_decoders

RUN = "[data]\ntrain = 'rows.jsonl'\n[strategy]\nname = 'flora'\n"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder and an enrolled site's, not to be changed."""
    there = tmp_path_factory.mktemp("made")
    new_keys.make_server(there / "server", ["localhost", "127.0.0.1"])
    roster.enrol(there / "server" / "roster.toml", new_keys.make_site(there / "keys", "north"))
    for name in ("ca.pem", "server.pub"):
        (there / "keys" / name).write_bytes((there / "server" / name).read_bytes())
    return there


class Server:
    """A server's carrier with the keys of a folder, which knows the keys of its roster; without, plain HTTP."""

    def __init__(self, folder: Path | None, *, empty: bool = False) -> None:
        self.folder, self.empty = folder, empty
        if folder is None:
            self.http = ThreadingHTTPServer(("127.0.0.1", 0), Plain)
            self.port = self.http.server_port
        else:
            self.link = StreamLink("127.0.0.1", 0, folder / "server.pem", folder / "server.key", self._nodes, 1)
            self.link.start()
            self.port = self.link.port
        self.address = f"127.0.0.1:{self.port}"

    def _nodes(self) -> dict[str, tuple[bytes, ...]]:
        assert self.folder is not None
        found = {} if self.empty else roster.load_roster(self.folder / "roster.toml").members
        return {name: site.nodes() for name, site in found.items()}

    def __enter__(self) -> "Server":
        if self.folder is None:
            threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is None:
            self.http.shutdown()
            self.http.server_close()
        else:
            self.link.close()


class Plain(BaseHTTPRequestHandler):
    """Says nothing to its own log."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def _one(rows: Iterator[Finding], check: str) -> Finding:
    (row,) = [row for row in rows if row.check == check]
    return row


LOCAL = certificates.subjects(["127.0.0.1"])


def _server(tmp_path: Path, names: Sequence[x509.GeneralName] = LOCAL, days: int = 365) -> Path:
    """A server's folder whose certificate is for exactly these names."""
    folder = tmp_path / "server"
    new_keys.make_server(folder, ["127.0.0.1"])
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    private = private_keys.load_ecdsa(folder / "ca.key"), private_keys.load_ecdsa(folder / "server.key")
    (folder / "server.pem").write_bytes(certificates.issue(ca, *private, names, days))
    return folder


# -- the way to the server -------------------------------------------------------------------------------------------


def test_a_server_that_answers_is_well(made: Path) -> None:
    with Server(made / "server") as server:
        rows = list(checks_deployment.connection(server.address, made / "server" / "ca.pem", made / "keys/node.key"))
    assert [(r.check, r.state) for r in rows] == [("server", OK), ("enrolment", OK)]


def test_a_stranger_s_node_key_is_told(made: Path) -> None:
    with Server(made / "server", empty=True) as server:
        key = made / "keys" / "node.key"
        row = _one(checks_deployment.connection(server.address, made / "server" / "ca.pem", key), "enrolment")
    assert row.state == FAIL
    assert "card.toml" in row.remedy


def test_without_a_node_key_there_is_no_verdict_on_it(made: Path) -> None:
    with Server(made / "server") as server:
        assert connectivity_check.knock(server.address, (made / "server" / "ca.pem").read_bytes()).known is None


def test_a_knock_leaves_the_site_that_is_connected_alone(made: Path) -> None:
    ca, key = (made / "server" / "ca.pem").read_bytes(), made / "keys" / "node.key"
    with Server(made / "server") as server, running(Node(server.address, ca, key), handle=lambda *_: None):
        wait(server.link.nodes)
        before = dict(server.link.nodes())
        assert connectivity_check.knock(server.address, ca, key).known
        assert server.link.nodes() == before


def test_an_expired_certificate_is_told(tmp_path: Path) -> None:
    folder = _server(tmp_path, days=0)
    with Server(folder) as server:
        (row,) = checks_deployment.connection(server.address, folder / "ca.pem")
    assert row.state == FAIL
    assert "expired" in row.found
    assert "keys renew" in row.remedy


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    folder = _server(tmp_path, days=10)
    with Server(folder) as server:
        assert _one(checks_deployment.connection(server.address, folder / "ca.pem"), "server").state == WARN
    assert _one(checks_deployment.certificate(folder), "certificate").state == WARN


def test_a_certificate_for_another_host_is_told(tmp_path: Path) -> None:
    folder = _server(tmp_path, [x509.DNSName("fl.example.org")])
    with Server(folder) as server:
        (row,) = checks_deployment.connection(server.address, folder / "ca.pem")
    assert "for other names" in row.found
    assert "--host 127.0.0.1" in row.remedy


def test_another_authority_is_told(made: Path, tmp_path: Path) -> None:
    folder = _server(tmp_path)
    with Server(folder) as server:
        (row,) = checks_deployment.connection(server.address, made / "server" / "ca.pem")
    assert "of another authority" in row.found
    assert "ca.pem" in row.remedy


def test_plain_text_is_told(made: Path) -> None:
    with Server(None) as server:
        (row,) = checks_deployment.connection(server.address, made / "server" / "ca.pem")
    assert "plain text" in row.found


def test_a_port_where_nothing_listens_is_told(made: Path) -> None:
    with Server(None) as server:
        pass
    (row,) = checks_deployment.connection(server.address, made / "server" / "ca.pem")
    assert row.state == FAIL
    assert "nothing listens" in row.found
    assert "proxy" not in row.remedy


def test_a_proxy_in_the_way_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(None) as proxy:
        pass
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    with Server(made / "server") as server:
        (row,) = checks_deployment.connection(server.address, made / "server" / "ca.pem")
    assert row.state == FAIL
    assert "the proxy is at fault" in row.remedy


def test_a_host_without_an_address_is_told(made: Path) -> None:
    (row,) = checks_deployment.connection("no-such-host.invalid:9443", made / "server" / "ca.pem")
    assert row.state == FAIL
    assert row.remedy


def test_a_ca_file_of_something_else_is_told(made: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"\xff\x00 no certificate")
    (row,) = checks_deployment.connection("127.0.0.1:1", tmp_path / "ca.pem")
    assert "no certificates" in row.found


# -- the server's folder ---------------------------------------------------------------------------------------------


def test_a_port_is_free_taken_or_our_own(made: Path, tmp_path: Path) -> None:
    ca = made / "server" / "ca.pem"
    with Server(made / "server") as ours, Server(None) as other:
        assert _one(checks_deployment.listening("127.0.0.1", ours.port, ca), "listen").state == OK
        taken = _one(checks_deployment.listening("127.0.0.1", other.port, ca), "listen")
    assert (taken.state, f"sport = :{other.port}" in taken.remedy) == (FAIL, True)
    free = _one(checks_deployment.listening("127.0.0.1", other.port, ca), "listen")
    assert (free.state, "only this machine" in free.found) == (OK, True)


def test_a_certificate_is_asked_for_each_host(made: Path) -> None:
    assert _one(checks_deployment.certificate(made / "server", ["localhost"]), "certificate").state == OK
    row = _one(checks_deployment.certificate(made / "server", ["localhost", "fl.example.org"]), "certificate")
    assert row.state == FAIL
    assert "--host fl.example.org" in row.remedy


def test_a_certificate_of_another_key_is_told(tmp_path: Path) -> None:
    folder = _server(tmp_path)
    (folder / "server.key").write_bytes((folder / "ca.key").read_bytes())
    assert _one(checks_deployment.certificate(folder), "certificate").state == FAIL


def test_a_key_that_others_can_read_is_told(tmp_path: Path) -> None:
    folder = _server(tmp_path)
    (folder / "server.key").chmod(0o644)
    found = [row for row in checks_deployment.server_keys(folder) if row.state == FAIL]
    assert len(found) == 1
    assert "chmod 600" in found[0].remedy


def test_a_public_key_of_another_server_is_told(made: Path, tmp_path: Path) -> None:
    folder = _server(tmp_path)
    (folder / "server.pub").write_bytes((made / "server" / "server.pub").read_bytes())
    assert any("not of signing.key" in row.found for row in checks_deployment.server_keys(folder))


def test_the_roster_is_counted(made: Path, tmp_path: Path) -> None:
    folder = _server(tmp_path)
    empty = _one(checks_deployment.roster(folder / "roster.toml"), "roster")
    assert (empty.state, "keys enrol" in empty.remedy) == (FAIL, True)
    for name in ("a", "b", "c"):
        roster.enrol(folder / "roster.toml", new_keys.make_site(tmp_path / name, name))
    assert _one(checks_deployment.roster(folder / "roster.toml", 2 / 3), "roster").found.startswith("3 enrolled")
    roster.revoke(folder / "roster.toml", "a")
    assert _one(checks_deployment.roster(folder / "roster.toml", 2 / 3), "roster").state == OK
    text = (folder / "roster.toml").read_text()
    late = text.replace('name = "b"', 'name = "b"\nnot_after = 2020-01-01T00:00:00Z')
    (folder / "roster.toml").write_text(late)
    assert _one(checks_deployment.roster(folder / "roster.toml"), "roster").state == WARN
    row = _one(checks_deployment.roster(folder / "roster.toml", 1.0), "roster")
    assert (row.state, "1 revoked, 1 expired, 1 enrolled" in row.found) == (FAIL, True)


# -- the machine -----------------------------------------------------------------------------------------------------


def test_a_library_outside_its_range_or_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch>=99", "no-such-thing-here>=1", "x; extra == 'y'"])
    found = [(r.state, r.found, r.remedy) for r in checks_machine.libraries() if r.check == "libraries"][:2]
    assert [state for state, _, _ in found] == [FAIL, FAIL]
    assert found[0][2] == "pip install 'torch>=99'"
    assert found[1][1] == "no-such-thing-here is not installed"


def test_what_is_installed_here_fits() -> None:
    assert {row.state for row in checks_machine.libraries()} == {OK}


def test_more_threads_than_cores_are_a_warning() -> None:
    assert _one(checks_machine.processor(4096), "processor").state == WARN


def test_a_device_that_is_not_there_is_told() -> None:
    assert [row.state for row in checks_machine.devices("cuda:99")][-1] == FAIL


def test_a_gpu_is_said_to_sum_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    there = {
        "is_available": lambda: True, "device_count": lambda: 1, "mem_get_info": lambda i: (2**34, 2**35),
        "get_device_name": lambda i: "made up", "is_bf16_supported": lambda **how: True,
        "device": lambda i: nullcontext(),
    }  # fmt: skip
    for name, find in there.items():
        monkeypatch.setattr(torch.cuda, name, find)
    said = {row.check: row for row in checks_machine.devices("cuda:0")}
    assert "TF32" in said["repeatable"].found
    assert "[local] deterministic = true" in said["repeatable"].remedy
    assert "repeatable" not in {row.check for row in checks_machine.devices("cpu")}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    assert _one(checks_machine.disk("state", tmp_path / "not" / "yet"), "state").state in (OK, WARN)
    (tmp_path / "file").touch()
    assert _one(checks_machine.disk("state", tmp_path / "file" / "below"), "state").state == FAIL


def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
    row = _one(checks_machine.proxies("fl.example.org"), "proxies")
    assert (row.state, "secret" in row.found + row.remedy) == (WARN, False)
    monkeypatch.setenv("NO_PROXY", "fl.example.org")
    assert _one(checks_machine.proxies("fl.example.org"), "proxies").state == OK


def test_whatever_a_check_raises_is_a_row() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("a", OK, "before")
        raise MemoryError("no\nroom")

    def wrong() -> Iterator[Finding]:
        raise ConfigError("a.toml: bad; correct it")

    first, second = checks_machine.findings_of("x", broken)
    assert (first.found, second.state, second.found) == ("before", FAIL, "MemoryError: no")
    assert list(checks_machine.findings_of("x", wrong)) == [Finding("x", FAIL, "a.toml: bad", "correct it")]


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`fedft doctor ...` in this process: its exit code, and what it printed."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli_doctor.doctor)

    def call(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["doctor", *args])
        code = app(standalone_mode=False)
        out, err = capsys.readouterr()
        assert err == ""
        return (code if isinstance(code, int) else 0), out

    return call


def _checks(out: str) -> dict[str, str]:
    """The worst state by check."""
    states: dict[str, str] = {}
    for row in json.loads(out)["checks"]:
        states[row["check"]] = max(states.get(row["check"], ""), row["state"], key=["", OK, WARN, FAIL].index)
        assert row["state"] != FAIL or row["remedy"]
    return states


def test_with_nothing_given_only_the_machine_is_checked(run: Callable[..., tuple[int, str]]) -> None:
    code, out = run("--json")
    assert code == 0
    assert {"python", "libraries", "processor", "memory", "devices", "proxies"} <= _checks(out).keys()


def test_a_site_is_checked(run: Callable[..., tuple[int, str]], made: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1", "response": "2"}\n')
    with Server(made / "server") as server:
        (tmp_path / "site.toml").write_text(
            f"[site]\nname = 'north'\n[server]\naddress = '{server.address}'\nca = '{made}/keys/ca.pem'\n"
            f"key = '{made}/keys/server.pub'\n[keys]\nfolder = '{made}/keys'\n[model]\nid = 'stdlib-base'\n"
            "[data]\ntrain = 'rows.jsonl'\n[policy]\nstrategies = ['flora']\n"
        )
        code, out = run(str(tmp_path / "site.toml"), "--no-model", "--json")
    assert code == 0
    for check in ("site", "keys", "server", "enrolment", "rows", "policy"):
        assert _checks(out)[check] == OK
    code, out = run(str(tmp_path / "site.toml"), "--no-model")
    assert code == 1
    assert "FAIL  server       the connection to" in out
    assert "-> start the server" in out


def test_a_site_that_went_over_to_its_server_s_new_keys_is_well(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Its ca.pem is still of the authority before."""
    server, own, state = tmp_path / "server", tmp_path / "keys", tmp_path / "state"
    new_keys.make_server(server, ["127.0.0.1"])
    roster.enrol(server / "roster.toml", new_keys.make_site(own, "north"))
    for name in ("ca.pem", "server.pub"):
        (own / name).write_bytes((server / name).read_bytes())
    state.mkdir()
    found = rotation.rotate_server(server)
    announced = rotation.succession(server)
    assert announced is not None
    ServerTrust(own / "server.pub", own / "ca.pem", state).message(announced[0], lambda key, ca: None)
    rotation.finish_server(server, now=found.until)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1", "response": "2"}\n')
    with Server(server) as there:
        (tmp_path / "site.toml").write_text(
            f"[site]\nname = 'north'\nstate = 'state'\n[server]\naddress = '{there.address}'\n"
            "[model]\nid = 'stdlib-base'\n[data]\ntrain = 'rows.jsonl'\n[policy]\nstrategies = ['flora']\n"
        )
        found_by = [_checks(run(str(tmp_path / "site.toml"), "--no-model", "--json")[1])["server"]]
        (state / "server.trust").unlink()
        found_by += [_checks(run(str(tmp_path / "site.toml"), "--no-model", "--json")[1])["server"]]
    assert found_by == [OK, FAIL]


def test_a_site_with_conversations_is_checked_as_a_run_would(
    run: Callable[..., tuple[int, str]], made: Path, tmp_path: Path, tiny_base: Path
) -> None:
    talk = [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "2"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"talk": talk}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"talk": talk * 2}) + "\n")
    (tmp_path / "site.toml").write_text(
        f"[site]\nname = 'north'\n[server]\naddress = '127.0.0.1:9'\nca = '{made}/keys/ca.pem'\n"
        f"key = '{made}/keys/server.pub'\n[keys]\nfolder = '{made}/keys'\n[model]\nid = '{tiny_base}'\n"
        "[data]\ntrain = ['a.jsonl', 'b.jsonl']\nmessages = 'talk'\n"
        "chat_template = '{% for m in messages %}{{ m.content + eos_token }}{% endfor %}'\n"
        "[policy]\nstrategies = ['flora']\n"
    )
    _, out = run(str(tmp_path / "site.toml"), "--json")
    found = {check: state for check, state in _checks(out).items() if state != OK}
    assert "conversations" in _checks(out)
    assert found.keys() <= {"server", "memory", "processor", "libraries", "proxies"}
    assert "the first 2 rows have 6 messages; 3 are learned" in out


def test_a_server_is_checked(run: Callable[..., tuple[int, str]], made: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "run.toml").write_text(RUN)
    with Server(None) as server:
        pass
    args = ("--keys", str(made / "server"), str(tmp_path / "run.toml"), "--listen", server.address, "--no-model")
    code, out = run(*args, "--out", str(tmp_path / "run"), "--json")
    assert code == 0
    assert {"run", "certificate", "keys", "roster", "listen", "run folder"} <= _checks(out).keys()


@pytest.mark.parametrize("args", [("none.toml",), ("--keys", "none"), ("--keys", "none", "none.toml")])
def test_with_everything_missing_each_check_still_gives_its_row(
    run: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out = run(*args, "--json")
    assert code == 1
    assert _checks(out)["python"] == OK
    if "--keys" in args:
        assert {c: s for c, s in _checks(out).items() if c in ("certificate", "keys", "roster")} == dict.fromkeys(
            ("certificate", "keys", "roster"), FAIL
        )


@pytest.mark.parametrize("listen", ["nonsense", "no-such-host.invalid:9443", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_a_row(run: Callable[..., tuple[int, str]], made: Path, listen: str) -> None:
    code, out = run("--keys", str(made / "server"), "--listen", listen, "--json")
    assert code == 1
    assert _checks(out)["listen"] == FAIL


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> str:
    return str(tiny_base)


def test_the_base_model_is_loaded_and_its_digest_told(base: str) -> None:
    (model, tokenizer), (own, _) = (
        checks_machine.model(base, "causal-lm"),
        checks_machine.site_model(checks_machine.site_base(base, "cpu")),
    )
    digest = model.found.partition("digest ")[2][:12]
    assert len(digest) == 12
    assert digest in own.found
    half, *_ = checks_machine.model(base, "causal-lm", dtype="bfloat16")
    assert f"digest {digest}, as causal-lm in bfloat16" in half.found
    assert (own.state, tokenizer.check) == (OK, "tokenizer")


def test_a_sites_encoder_decoder_is_found_as_one(tmp_path: Path) -> None:
    folder = str(encoder_decoders.save(tmp_path / "t5", "t5"))
    run = _one(checks_machine.model(folder, "seq2seq-lm"), "model")
    digest = run.found.partition("digest ")[2][:12]
    own = checks_machine.site_base(folder, "cpu")
    assert f"digest {digest}" in _one(checks_machine.site_model(own), "model").found
    assert _one(checks_machine.site_model(own, ["0" * 12]), "model").state == WARN


def test_a_base_model_outside_the_policy_is_a_warning(base: str) -> None:
    digest = _one(checks_machine.model(base, "causal-lm"), "model").found.partition("digest ")[2][:12]
    own = checks_machine.site_base(base, "cpu")
    assert _one(checks_machine.site_model(own, ["0" * 12]), "model").state == WARN
    assert _one(checks_machine.site_model(own, ["0" * 12, digest]), "model").state == OK


def test_a_model_that_is_not_there_is_told() -> None:
    row = _one(checks_machine.findings_of("model", lambda: [checks_machine.site_base("./none", "cpu")]), "model")
    assert row.state == FAIL
