"""The roster: sites enrol by a card, are revoked by name, and every mistake is one line."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from one_line import one_line
from typer.testing import CliRunner

from fedft.cli.keys import app
from fedft.errors import ConfigError, RejectedUpdate
from fedft.security import new_keys, private_keys
from fedft.security import roster as keys
from fedft.security.site_table import Site


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


def test_the_command_leads_from_keys_to_an_enrolled_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> str:
        done = CliRunner().invoke(app, list(args), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    said = run("server", "srv")
    assert "localhost, 127.0.0.1" in said
    assert "hand each a kit, `fedft keys kit srv SITE`" in said
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
