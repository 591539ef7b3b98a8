"""Keys, certificates and the roster: made once, private from the first byte, and every mistake is one line."""

import base64
import json
import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from fedft import durable
from fedft.cli.keys import app
from fedft.errors import EXIT_KEYS, ConfigError, KeyFault, RejectedUpdate
from fedft.security import new_keys, private_keys
from fedft.security import roster as keys
from fedft.security.site_table import Site

PRIVATE_FILES = ("ca.key", "server.key", "signing.key")
SERVER_FILES = {*PRIVATE_FILES, "ca.pem", "server.pem", "server.pub", "roster.toml"}
HOSTS = ["localhost", "127.0.0.1", "::1", "*.fl.example.org"]

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners and modes of files here")


@pytest.fixture
def server(tmp_path: Path) -> Path:
    new_keys.make_server(tmp_path / "server", HOSTS, 30)
    return tmp_path / "server"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return new_keys.make_site(tmp_path / "clinic-1", "clinic-1")


def one_line(e: pytest.ExceptionInfo[Exception]) -> str:
    text = str(e.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


# -- private keys ----------------------------------------------------------------------------------------------------


@posix
def test_private_files_are_their_owner_s_alone(server: Path, card: Path) -> None:
    for path in (*(server / name for name in PRIVATE_FILES), card.parent / "signing.key", card.parent / "node.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.stat().st_mode) == stat.S_IMODE(card.parent.stat().st_mode) == 0o700
    assert {p.name for p in server.iterdir()} == SERVER_FILES
    assert {p.name for p in card.parent.iterdir()} == {"signing.key", "node.key", "clinic-1.card.toml"}


@posix
def test_a_private_file_is_never_open_to_others_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode at the fsync and the rename, and whether a file that a crash left aside lends it its own mode."""
    seen = []
    before = os.fsync

    def fsync(fd: int) -> None:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            seen.append(stat.S_IMODE(found.st_mode))
        before(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    left = tmp_path / "secret.tmp"
    left.write_bytes(b"left")
    left.chmod(0o666)
    with open(left, "rb") as spy:
        old = os.umask(0)
        try:
            durable.write(tmp_path / "secret", b"s", mode=0o600)
            durable.write(tmp_path / "public", b"p")
        finally:
            os.umask(old)
        assert spy.read() == b"left"
    assert seen == [0o600, 0o666]
    assert (tmp_path / "secret").read_bytes() == b"s"


def test_private_keys_load_as_what_they_are(server: Path, card: Path) -> None:
    signing = private_keys.load_signing(server / "signing.key")
    assert private_keys.load_public(server / "server.pub") == signing.public_key()
    node = private_keys.load_ecdsa(card.parent / "node.key")
    assert isinstance(node.curve, ec.SECP384R1)
    assert keys.read_card(card).node == private_keys.node_bytes(node.public_key())
    assert keys.read_card(card).signing == private_keys.load_signing(card.parent / "signing.key").public_key()
    with pytest.raises(KeyFault, match="ECDSA key, wanted an Ed25519"):
        private_keys.load_signing(card.parent / "node.key")
    with pytest.raises(KeyFault, match="Ed25519 key, wanted an ECDSA"):
        private_keys.load_ecdsa(card.parent / "signing.key")


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_private_key_open_to_others_is_not_used(server: Path, mode: int) -> None:
    path = server / "signing.key"
    path.chmod(mode)
    with pytest.raises(KeyFault) as e:
        private_keys.load_private(path)
    assert one_line(e) == f"{path}: mode {mode:04o} opens a private key to others; chmod 600 {path}"
    assert e.value.exit_code == EXIT_KEYS == 77


@posix
def test_a_private_key_of_another_user_is_not_used(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(KeyFault, match=r"mode 0600, belongs to user \d+ .*chmod 600 "):
        private_keys.load_private(server / "signing.key")


def _encrypted(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"secret"))


def test_a_private_key_that_is_none_is_refused_without_showing_it(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    whole = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    other = rsa.generate_private_key(65537, 1024)
    secret = whole.splitlines()[1]
    files = [
        b"",
        whole[:-30],
        whole.replace(secret, secret[:-8]),
        whole.replace(secret, secret[::-1]),
        _encrypted(key),
        key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo),
        other.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()),
    ]
    path = tmp_path / "signing.key"
    for data in files:
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(KeyFault) as e:
            private_keys.load_private(path)
        assert str(path) in one_line(e)
        assert e.value.__cause__ is None
        assert e.value.__suppress_context__ or e.value.__context__ is None
        for part in data.splitlines()[1:-1]:
            assert part.decode()[:12] not in str(e.value)
    with pytest.raises(KeyFault, match="No such file"):
        private_keys.load_private(tmp_path / "none.key")


def test_keys_are_never_overwritten(server: Path, card: Path) -> None:
    before = {p: p.read_bytes() for folder in (server, card.parent) for p in folder.iterdir()}
    for again in (lambda: new_keys.make_server(server, HOSTS), lambda: new_keys.make_site(card.parent, "clinic-2")):
        with pytest.raises(ConfigError, match="there already, and no key is overwritten") as e:
            again()
        one_line(e)
    assert {p: p.read_bytes() for p in before} == before


def test_nothing_is_made_of_a_mistake(tmp_path: Path) -> None:
    mistakes: list[tuple[Callable[[], object], str]] = [
        (lambda: new_keys.make_site(tmp_path / "x", "../x"), "without slashes"),
        (lambda: new_keys.make_site(tmp_path / "x", ""), "1 to 64 bytes"),
        (lambda: new_keys.make_server(tmp_path / "x", []), "no host"),
        (lambda: new_keys.make_server(tmp_path / "x", ["https://a.example"]), "without a scheme or port"),
        (lambda: new_keys.make_server(tmp_path / "x", ["a.example:8443"]), "without a scheme or port"),
        (lambda: new_keys.make_server(tmp_path / "x", ["999.1.1.1"]), "wanted a DNS name"),
        (lambda: new_keys.make_server(tmp_path / "x", ["zürich.example"]), "wanted a DNS name"),
        (lambda: new_keys.make_server(tmp_path / "x", ["a"], 0), "days"),
        (lambda: new_keys.make_server(tmp_path / "x", ["a"], 4000), "days"),
    ]
    for make, said in mistakes:
        with pytest.raises(ConfigError, match=said) as e:
            make()
        one_line(e)
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        new_keys.make_site(tmp_path / "file", "a")


def test_a_node_s_key_is_written_as_the_transport_writes_it(card: Path) -> None:
    from flwr.supercore.primitives.asymmetric import bytes_to_private_key, public_key_to_bytes

    node = bytes_to_private_key((card.parent / "node.key").read_bytes())
    assert keys.read_card(card).node == public_key_to_bytes(node.public_key())


def test_the_package_imports_without_cryptography(tmp_path: Path) -> None:
    code = "import sys, fedft, fedft.cli.keys; assert not {'cryptography', 'flwr'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    code = "import sys, fedft.security.roster, fedft.security.sealed; assert not {'flwr', 'torch'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


# -- the roster ------------------------------------------------------------------------------------------------------


def table(name: str = "a", **more: Any) -> dict[str, Any]:
    signing = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    node = ec.generate_private_key(ec.SECP384R1()).public_key()
    made = {
        "name": name,
        "signing": base64.b64encode(signing).decode(),
        "node": private_keys.node_bytes(node).decode(),
        **more,
    }
    return {key: value for key, value in made.items() if value is not None}


def roster(path: Path, *tables: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps({"site": list(tables)}, multiline_strings=True), encoding="utf-8")
    return path


def test_a_site_enrols_by_its_card(server: Path, card: Path) -> None:
    path = server / "roster.toml"
    assert not keys.load_roster(path).members
    member = keys.enrol(path, card)
    found = keys.load_roster(path)
    assert list(found.members) == ["clinic-1"]
    assert found.members["clinic-1"].fingerprint() == member.fingerprint() == keys.read_card(card).fingerprint()
    assert found.key_of("clinic-1") == private_keys.load_signing(card.parent / "signing.key").public_key()
    assert found.members["clinic-1"].max_examples == 1_000_000
    before = path.read_bytes()
    keys.enrol(path, card)
    assert path.read_bytes() == before


def test_the_roster_and_the_card_are_for_people_to_read(server: Path, card: Path) -> None:
    keys.enrol(server / "roster.toml", card)
    for text in (card.read_text(encoding="utf-8"), (server / "roster.toml").read_text(encoding="utf-8")):
        assert '\n[[site]]\nname = "clinic-1"\nsigning = "' in "\n" + text
        assert 'node = """\n-----BEGIN PUBLIC KEY-----\n' in text


def test_what_the_operator_wrote_into_the_roster_stays(server: Path, tmp_path: Path) -> None:
    path = server / "roster.toml"
    for name in ("a", "b", "c"):
        keys.enrol(path, new_keys.make_site(tmp_path / name, name))
    text = path.read_text(encoding="utf-8").replace('name = "b"', 'name = "b"  # St Mary, tel. 123\nmax_examples = 7')
    path.write_text(text, encoding="utf-8")
    keys.revoke(path, "b")
    assert path.read_text(encoding="utf-8") == text.replace(
        '[[site]]\nname = "b"', '[[site]]\nrevoked = true\nname = "b"'
    )
    keys.enrol(path, new_keys.make_site(tmp_path / "d", "d"))
    members = keys.load_roster(path).members
    assert [(m.name, m.state(), m.max_examples) for m in members.values()] == [
        ("a", "enrolled", 1_000_000),
        ("b", "revoked", 7),
        ("c", "enrolled", 1_000_000),
        ("d", "enrolled", 1_000_000),
    ]


@pytest.mark.parametrize("more", [{"revoked": False}, {"revoked": False, "max_examples": 3}])
def test_a_site_is_revoked_however_its_table_is_written(tmp_path: Path, more: dict[str, Any]) -> None:
    tables = [table("a"), table("b", **more), table("[[site]]")]
    path = roster(tmp_path / "roster.toml", *tables)
    keys.revoke(path, "b")
    keys.revoke(path, "b")
    found = keys.load_roster(path).members
    assert [m.revoked for m in found.values()] == [False, True, False]
    assert found["b"].max_examples == more.get("max_examples", 1_000_000)
    inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in tables[0].items())
    path.write_text(f"site = [{{{inline}}}]", encoding="utf-8")
    keys.revoke(path, "a")
    assert keys.load_roster(path).members["a"].revoked


def test_a_name_that_is_not_in_the_roster_is_not_revoked(tmp_path: Path) -> None:
    path = roster(tmp_path / "roster.toml", table("clinic-1"))
    with pytest.raises(ConfigError, match=r"no site 'clinic1'; did you mean 'clinic-1'\?"):
        keys.revoke(path, "clinic1")


def test_only_enrolled_sites_have_a_key(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    path = roster(
        tmp_path / "roster.toml",
        table("in", not_before=now - hour, not_after=now + hour),
        table("early", not_before=now + hour),
        table("late", not_after=now - hour),
        table("out", revoked=True),
    )
    found = keys.load_roster(path)
    found.key_of("in")
    for name, code in (("early", "revoked"), ("late", "revoked"), ("out", "revoked"), ("nobody", "unknown_client")):
        with pytest.raises(RejectedUpdate) as e:
            found.key_of(name)
        assert e.value.code == code
    member = found.members["in"]
    assert member.not_before is not None
    assert member.not_after is not None
    assert member.state(member.not_after) == member.state(member.not_before) == "enrolled"
    assert member.state(member.not_after + timedelta(seconds=1)) == "expired"
    assert member.state(member.not_before - timedelta(seconds=1)) == "not yet valid"


ED25519_PEM = (
    Ed25519PrivateKey.generate()
    .public_key()
    .public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    .decode()
)
P256_PEM = private_keys.node_bytes(ec.generate_private_key(ec.SECP256R1()).public_key()).decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None}, "[[site]] 2 needs 'name'"),
        ({"signing": None}, "[[site]] 2 needs 'signing'"),
        ({"node": None}, "[[site]] 2 needs 'node'"),
        ({"max_example": 3}, "[[site]] 2 has no 'max_example'; did you mean 'max_examples'?"),
        ({"name": 3}, "[[site]] 2 name: it is 3, wanted str"),
        ({"name": "a/b"}, "[[site]] 2 name: expected a site's name"),
        ({"name": "first"}, "[[site]] 2 name: a second site 'first'"),
        ({"signing": "AAAA"}, "[[site]] 2 signing: not an Ed25519 public key; wanted base64 of its 32 bytes"),
        ({"signing": "?" * 44}, "[[site]] 2 signing: not an Ed25519 public key"),
        ({"signing": 3}, "[[site]] 2 signing: not an Ed25519 public key"),
        ({"node": "x"}, "[[site]] 2 node: not a public key in PEM"),
        ({"node": ED25519_PEM}, "[[site]] 2 node: not an ECDSA P-384 public key"),
        ({"node": P256_PEM}, "[[site]] 2 node: not an ECDSA P-384 public key"),
        ({"revoked": 1}, "[[site]] 2 revoked: it is 1, wanted bool"),
        ({"max_examples": 0}, "[[site]] 2 max_examples: expected max_examples >= 1, got 0"),
        ({"max_examples": True}, "[[site]] 2 max_examples: it is True, wanted int"),
        ({"not_after": "2027-01-31"}, "[[site]] 2 not_after: 2027-01-31, wanted a date and time with a zone"),
        ({"not_after": datetime(2027, 1, 31)}, "wanted a date and time with a zone, such as 2027-01-31T00:00:00Z"),
        (
            {"not_before": datetime(2027, 1, 31, tzinfo=UTC), "not_after": datetime(2026, 1, 31, tzinfo=UTC)},
            "[[site]] 2 not_after: 2026-01-31 00:00:00+00:00, wanted a time after not_before",
        ),
    ],
)
def test_a_mistake_in_the_roster_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = roster(tmp_path / "roster.toml", table("first"), table(**change))
    with pytest.raises(ConfigError) as e:
        keys.load_roster(path)
    assert one_line(e).startswith(f"{path}: [[site]] 2")
    assert said in str(e.value)


@pytest.mark.parametrize("key", ["signing", "node"])
def test_a_key_is_one_site_s_only(tmp_path: Path, key: str) -> None:
    """Also when it is written in another way."""
    first = table("a")
    same = first[key].replace("\n", "\r\n") if key == "node" else first[key]
    path = roster(tmp_path / "roster.toml", first, table("b", **{key: same}))
    with pytest.raises(ConfigError, match=rf"\[\[site\]\] 2 {key}: the key of 'b' is also that of 'a'"):
        keys.load_roster(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"site = 3", "wanted [[site]]"),
        (b"site = [3]", "wanted [[site]]"),
        (b"[sites]", "no table 'sites' here; did you mean 'site'?"),
        (b"[x]", "no table 'x' here; wanted [[site]]"),
        (b"[[site]", "not valid TOML"),
        (b"x = " + b"[" * 3000, "not valid TOML"),
        (b"\xff", "cannot be read"),
        (b"#" * 2**15, "more than 16384 bytes"),
        (b"", "0 [[site]] tables, wanted one"),
    ],
)
def test_a_card_comes_from_a_stranger(server: Path, tmp_path: Path, text: bytes, said: str) -> None:
    card, path = tmp_path / "x.card.toml", server / "roster.toml"
    card.write_bytes(text)
    before = path.read_bytes()
    with pytest.raises(ConfigError) as e:
        keys.enrol(path, card)
    assert one_line(e).startswith(f"{card}: ")
    assert said in str(e.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "more", [{"max_examples": 10**9}, {"revoked": False}, {"not_after": datetime(2099, 1, 1, tzinfo=UTC)}], ids=repr
)
def test_a_card_grants_its_site_nothing(server: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    card = roster(tmp_path / "x.card.toml", table(**more))
    with pytest.raises(ConfigError, match=rf"\[\[site\]\] has '{next(iter(more))}', which the server's roster says"):
        keys.enrol(server / "roster.toml", card)


def test_a_card_takes_nobody_else_s_place(server: Path, card: Path, tmp_path: Path) -> None:
    path = server / "roster.toml"
    keys.enrol(path, card)
    mine = keys.read_card(card)
    signing = base64.b64encode(mine.signing.public_bytes_raw()).decode()
    servers = base64.b64encode(private_keys.load_public(server / "server.pub").public_bytes_raw()).decode()
    before = path.read_bytes()
    for other, said in (
        (table("clinic-1"), "has a site 'clinic-1' with other keys"),
        (table("clinic-2", signing=signing), "the key of 'clinic-2' is also that of 'clinic-1'"),
        (table("clinic-2", node=mine.node.decode()), "the key of 'clinic-2' is also that of 'clinic-1'"),
        (table("clinic-2", signing=servers), "the server's own key"),
    ):
        with pytest.raises(ConfigError, match=said) as e:
            keys.enrol(path, roster(tmp_path / "other.card.toml", other))
        one_line(e)
    keys.revoke(path, "clinic-1")
    with pytest.raises(ConfigError, match="is revoked; delete `revoked`"):
        keys.enrol(path, card)
    assert path.read_bytes() != before
    assert list(keys.load_roster(path).members) == ["clinic-1"]


def test_a_fingerprint_is_of_name_and_keys() -> None:
    key, other = (Ed25519PrivateKey.generate().public_key() for _ in range(2))
    member = Site("a", key, b"node")
    prints = {replace(member, **c).fingerprint() for c in ({}, {"name": "b"}, {"signing": other}, {"node": b"x"})}  # type: ignore[arg-type]
    assert len(prints) == 4
    assert replace(member, revoked=True, max_examples=1).fingerprint() == member.fingerprint()


# -- certificates ----------------------------------------------------------------------------------------------------


def handshake(server: Path, host: str, ca: Path) -> None:
    """TLS between two objects in memory, with all checks that Python's ssl can make of a certificate."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(server / "server.pem", server / "server.key")
    theirs = ssl.create_default_context(cafile=str(ca))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    a = theirs.wrap_bio(down, up, server_hostname=host)
    b = ours.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for end in (a, b):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    a.write(b"x")
    assert b.read(1) == b"x"


def test_sites_accept_the_server_under_its_names_only(server: Path, tmp_path: Path) -> None:
    for host in ("localhost", "127.0.0.1", "::1", "site.fl.example.org"):
        handshake(server, host, server / "ca.pem")
        assert not new_keys.certificate_facts(server / "server.pem").faults(host)
    for host in ("127.0.0.2", "example.org", "a.b.fl.example.org", "fl.example.org"):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(server, host, server / "ca.pem")
        (fault,) = new_keys.certificate_facts(server / "server.pem").faults(host)
        assert f"not {host}; `fedft keys renew" in fault
    new_keys.make_server(tmp_path / "other", HOSTS)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, "localhost", tmp_path / "other" / "ca.pem")


def test_certificates_say_what_they_are_for(server: Path) -> None:
    ca = x509.load_pem_x509_certificate((server / "ca.pem").read_bytes())
    leaf = x509.load_pem_x509_certificate((server / "server.pem").read_bytes())
    now = datetime.now(UTC)
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert basic.critical
    assert basic.value.ca
    assert usage.critical
    assert usage.value.key_cert_sign
    assert timedelta(days=3649) < ca.not_valid_after_utc - now <= timedelta(days=3650)
    assert timedelta(days=29) < leaf.not_valid_after_utc - now <= timedelta(days=30)
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        x509.ExtendedKeyUsageOID.SERVER_AUTH
    ]
    for certificate in (ca, leaf):
        key = certificate.public_key()
        assert isinstance(key, EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP384R1)


def test_a_renewed_certificate_needs_nothing_of_the_sites(server: Path) -> None:
    before = {p.name: p.read_bytes() for p in server.iterdir()}
    new_keys.renew(server, days=400)
    after = {p.name: p.read_bytes() for p in server.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"server.pem"}
    assert new_keys.certificate_facts(server / "server.pem").names == tuple(HOSTS)
    new_keys.renew(server, ["new.example"])
    handshake(server, "new.example", server / "ca.pem")
    handshake(server, "localhost", server / "ca.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, "a.fl.example.org", server / "ca.pem")


def test_no_certificate_outlives_its_authority(server: Path) -> None:
    new_keys.renew(server, days=3650)
    ca = x509.load_pem_x509_certificate((server / "ca.pem").read_bytes())
    assert new_keys.certificate_facts(server / "server.pem").not_after == ca.not_valid_after_utc


def test_each_fault_of_a_certificate_comes_with_its_remedy(server: Path, tmp_path: Path) -> None:
    path = server / "server.pem"
    facts = new_keys.certificate_facts(path)
    assert facts.signed_by_ca
    assert facts.faults() == facts.faults("LOCALHOST") == facts.faults("0:0::1") == []
    (expired,) = facts.faults(now=facts.not_after + timedelta(days=1))
    assert expired.startswith(f"{path}: expired at ")
    assert expired.endswith(f"`fedft keys renew {server}`")
    (early,) = facts.faults(now=facts.not_before - timedelta(days=1))
    assert early.endswith("set this machine's clock")
    (host,) = facts.faults("new.example")
    kept = " ".join(f"--host {name}" for name in ("localhost", "127.0.0.1", "::1", "'*.fl.example.org'"))
    assert host.endswith(f"`fedft keys renew {server} {kept} --host new.example`")
    new_keys.make_server(tmp_path / "other", HOSTS)
    (server / "ca.pem").write_bytes((tmp_path / "other" / "ca.pem").read_bytes())
    (foreign,) = new_keys.certificate_facts(path).faults()
    assert foreign.startswith(f"{path}: not signed by ca.pem beside it")
    with pytest.raises(ConfigError, match=r"not the certificate of ca\.key beside it"):
        new_keys.renew(server)
    path.write_text("x")
    with pytest.raises(ConfigError, match="not a certificate in PEM"):
        new_keys.certificate_facts(path)
    path.unlink()
    with pytest.raises(ConfigError, match="no such file; `fedft keys server` makes one"):
        new_keys.certificate_facts(path)


def test_a_folder_that_cannot_be_written_is_one_line(server: Path) -> None:
    (server / "server.pem.tmp").mkdir()
    with pytest.raises(ConfigError, match=r"server\.pem: cannot be written \(") as e:
        new_keys.renew(server)
    one_line(e)


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_leads_from_keys_to_an_enrolled_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> str:
        done = CliRunner().invoke(app, list(args), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    said = run("server", "srv")
    assert "localhost, 127.0.0.1" in said
    assert "next: hand srv/ca.pem and srv/server.pub to every site" in said
    assert "next: fedft keys enrol srv CARD" in run("list", "srv")
    assert json.loads(run("list", "srv", "--json")) == []
    said = run("site", "one", "clinic-1")
    assert "next: hand one/clinic-1.card.toml to the server's operator" in said
    fingerprint = said.partition("fingerprint ")[2].partition("\n")[0]
    run("site", "two", "clinic-2")
    assert fingerprint in run("enrol", "srv", "one/clinic-1.card.toml", "two/clinic-2.card.toml")
    assert "revoked clinic-2" in run("revoke", "srv", "clinic-2")
    rows = json.loads(run("list", "srv", "--json"))
    assert [(r["site"], r["state"]) for r in rows] == [("clinic-1", "enrolled"), ("clinic-2", "revoked")]
    assert rows[0]["fingerprint"] == fingerprint
    shown = run("list", "srv")
    assert fingerprint in shown
    assert "not before" not in shown
    assert "for a.example, localhost, 127.0.0.1, ::1, valid until 20" in run(
        "renew", "srv", "--host", "a.example", "--days", "9"
    )
    assert CliRunner().invoke(app, ["server", "srv"]).exit_code != 0
