"""Keys: made once, private from the first byte, and every mistake is one line."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from one_line import one_line

from fedft import durable
from fedft.errors import EXIT_KEYS, ConfigError, KeyFault
from fedft.security import new_keys, private_keys
from fedft.security import roster as keys

PRIVATE_FILES = ("ca.key", "server.key", "signing.key")
SERVER_FILES = {*PRIVATE_FILES, "ca.pem", "server.pem", "server.pub", "roster.toml"}

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners and modes of files here")


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


def test_keys_are_never_overwritten(server: Path, hosts: list[str], card: Path) -> None:
    before = {p: p.read_bytes() for folder in (server, card.parent) for p in folder.iterdir()}
    for again in (lambda: new_keys.make_server(server, hosts), lambda: new_keys.make_site(card.parent, "clinic-2")):
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
