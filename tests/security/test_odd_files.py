"""Rosters and cards of whatever bytes: read, or refused in one line that names the file; edits harm nobody else."""

import base64
import itertools
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cards import new_card
from cryptography import x509
from cryptography.hazmat.primitives import serialization as pem

from fedft.carriers.stream import tls
from fedft.errors import ConfigError
from fedft.security import kits, new_keys, roster, rotation

ODD: list[Any] = [
    0, -1, 2**63 - 1, 1.5, float("nan"), True, "", "x" * 5000, "a\nb", "\u202e", "ä" * 33, [], [[]], [{}], {},
    {"a": {"b": 1}},
    "AAAA", "=" * 44, "A" * 43 + "=", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
]  # fmt: skip
TEXTS = [
    b"\xef\xbb\xbf", b"\0", b"\xff\xfe", b"site", b"[site]", b"[[site]]", b"[[site]]\nname", b"[[site]]\n[[site]]",
    b"[[site]]\nname = 'a'\nname = 'b'", b"site = 1\n[[site]]", b"x = " + b"[" * 2000, b"a = {" * 500,
    b"d = 2027-13-45",
    b"d = 9999-99-99T99:99:99Z", b"n = " + b"9" * 5000, b"'''", b'"""', b"[[site.x]]", b"\n" * 5000, b"#" * 5000,
    b"[[site]]\nnot_after = 0001-01-01T00:00:00+23:59", b"[[site]]\r\nname = 'a'\r\n",
]  # fmt: skip


def mutants(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(1, 40)]
                case 2:
                    data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(1, 60)]
                case 3:
                    data[at:at] = rng.choice(TEXTS)[:50]
        yield bytes(data)


def outcome(act: Any, path: Path) -> str:
    """ "" where it works, else the line that it ends with, which is one and names the file."""
    try:
        act()
    except ConfigError as e:
        said = str(e)
        return said if said.startswith(str(path)) and "\n" not in said and len(said) < 700 else f"BAD {said!r}"
    return ""


def test_odd_files_are_one_line(server: Path, tmp_path: Path) -> None:
    card = new_card(tmp_path, "north")
    path = server / "roster.toml"
    roster.enrol(path, card)
    whole = {card: card.read_bytes(), path: path.read_bytes()}
    read = {card: lambda: roster.read_card(card), path: lambda: roster.load_roster(path)}
    said: list[str] = []
    for file, data in whole.items():
        (table,) = tomllib.loads(data.decode())["site"]
        keys = [*table, "revoked", "not_before", "not_after", "max_examples", "old_signing", "old_node", "proof", "x"]
        odd = [tomli_w.dumps({"site": [{**table, k: v}]}).encode() for k, v in itertools.product(keys, ODD)]
        for text in (*odd, *TEXTS, *mutants(data, 300, 5)):
            file.write_bytes(text)
            said.append(outcome(read[file], file))
        file.write_bytes(data)
        read[file]()
    assert not [line for line in said if line.startswith("BAD")]
    assert sum(map(bool, said)) > len(said) / 2, "most are refused: the inputs are odd"


@pytest.mark.parametrize("act", ["revoke", "remove", "enrol", "replace"])
def test_an_edit_of_an_odd_roster_does_what_it_says_or_nothing(
    server: Path, tmp_path: Path, card: Path, act: str
) -> None:
    """Whatever the operator wrote around the tables: the others stay as they are."""
    path = server / "roster.toml"
    other, third = new_card(tmp_path, "other"), new_card(tmp_path, "third")
    roster.enrol_all(path, [other, card])
    if act == "replace":
        rotation.rotate_site(card.parent)
    acts = {
        "revoke": lambda: roster.revoke(path, "clinic-1"),
        "remove": lambda: roster.remove(path, ["clinic-1"]),
        "enrol": lambda: roster.enrol(path, third),
        "replace": lambda: roster.enrol(path, card),
    }
    whole, done = path.read_bytes(), 0
    for text in (whole, *mutants(whole, 60, 7)):
        path.write_bytes(text)
        if outcome(lambda: roster.load_roster(path), path):
            continue
        before = roster.load_roster(path).members
        try:
            acts[act]()
        except ConfigError:
            assert path.read_bytes() == text
            continue
        done += 1
        after = roster.load_roster(path).members
        changed = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
        assert changed <= {"third" if act == "enrol" else "clinic-1"}
    assert done > 3


def test_a_certificate_of_an_unknown_version_is_none(server: Path, card: Path) -> None:
    """The library has an exception of its own for it, which is no ValueError; a fuzzer found it in a kit."""
    authority = x509.load_pem_x509_certificate((server / "ca.pem").read_bytes())
    der = authority.public_bytes(pem.Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x72", 1)
    with pytest.raises(x509.InvalidVersion):
        x509.load_der_x509_certificate(der)
    assert tls.key_of(der) is None
    text = "-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der).decode() + "-----END CERTIFICATE-----\n"
    roster.enrol(server / "roster.toml", card)
    kit = tomllib.loads(kits.made(server, "clinic-1").text())["kit"]
    (server / "kit").write_text(tomli_w.dumps({"kit": kit | {"ca": text}}))
    with pytest.raises(ConfigError, match="ca has 0 certificates"):
        kits.read(server / "kit")
    (server / "ca.pem").write_text(text)
    with pytest.raises(ConfigError, match="not a certificate in PEM"):
        new_keys.certificate_facts(server / "server.pem")
