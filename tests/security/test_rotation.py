"""New keys in place of old ones: by a signature of the old, for a time, and whatever breaks off goes on."""

import base64
import random
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from one_line import one_line

from fedft.errors import ConfigError, RejectedUpdate
from fedft.security import key_files, kits, new_keys, private_keys, roster, rotation, sealed, successions
from fedft.security.sealed import About, Kind

ABOUT = About("0" * 16, 1, 2, "clinic-1", bytes(32))
SOON = datetime.now(UTC) + timedelta(days=2)


# -- sites -------------------------------------------------------------------------------------------------------------


def test_a_site_s_new_keys_count_beside_its_old_ones_for_a_time(server: Path, card: Path) -> None:
    path, folder = server / "roster.toml", card.parent
    roster.enrol(path, card)
    path.write_text(path.read_text().replace('name = "clinic-1"', 'name = "clinic-1"  # St Mary\nmax_examples = 7'))
    old = private_keys.load_signing(folder / "signing.key")
    before = roster.load_roster(path).members["clinic-1"]
    assert rotation.rotate_site(folder) == card
    assert card.read_bytes() == rotation.rotate_site(folder).read_bytes(), "again, it is the same"
    assert private_keys.load_signing(folder / "signing.key").public_key() == old.public_key(), (
        "in use until it is ended"
    )
    roster.enrol(path, card)
    site = roster.load_roster(path).members["clinic-1"]
    assert site.max_examples == 7
    assert "# St Mary" in path.read_text()
    found = rotation.finish_site(folder)
    assert found.fingerprint() == site.fingerprint() != before.fingerprint()
    assert not list(folder.glob("*.next.key"))
    new = private_keys.load_signing(folder / "signing.key")
    for key in (old, new):
        sealed.open_sealed(sealed.seal(Kind.ANSWER, ABOUT, b"x", key), roster.load_roster(path).key_of)
    assert site.nodes() == (site.node, before.node)
    assert site.old_until is not None
    later = site.old_until + timedelta(seconds=1)
    assert site.nodes(later) == (site.node,)
    with pytest.raises(InvalidSignature):
        site.key(later).verify(old.sign(b"x"), b"x")
    site.key(later).verify(new.sign(b"x"), b"x")
    assert '"act": "replaced"' in (server / "roster.log").read_text()
    bytes_before = path.read_bytes()
    roster.enrol(path, card)
    assert path.read_bytes() == bytes_before, "a card that is enrolled changes nothing"


def test_a_site_can_rotate_again_and_again(server: Path, card: Path) -> None:
    path, folder = server / "roster.toml", card.parent
    roster.enrol(path, card)
    keys = [private_keys.load_signing(folder / "signing.key")]
    for _ in range(3):
        roster.enrol(path, rotation.rotate_site(folder))
        rotation.finish_site(folder)
        keys.append(private_keys.load_signing(folder / "signing.key"))
    verifier = roster.load_roster(path).key_of("clinic-1")
    for key in keys[-2:]:
        verifier.verify(key.sign(b"x"), b"x")
    with pytest.raises(InvalidSignature):
        verifier.verify(keys[1].sign(b"x"), b"x")


def _other_name(folder: Path) -> None:
    card = rotation.card_in(folder)
    card.write_text(card.read_text().replace('"clinic-1"', '"clinic-2"'))
    card.rename(folder / "clinic-2.card.toml")


def _no_proof(folder: Path) -> None:
    card = rotation.card_in(folder)
    card.write_text("".join(line for line in card.read_text().splitlines(True) if not line.startswith("proof")))


def _another_s_proof(folder: Path) -> None:
    card = rotation.card_in(folder)
    proof = tomllib.loads(card.read_text())["site"][0]["proof"]
    stranger = base64.b64encode(Ed25519PrivateKey.generate().sign(b"x")).decode()
    card.write_text(card.read_text().replace(proof, stranger))


@pytest.mark.parametrize("how", [_no_proof, _another_s_proof])
def test_a_card_that_the_old_key_did_not_sign_replaces_nothing(
    server: Path, card: Path, how: Callable[[Path], None]
) -> None:
    path = server / "roster.toml"
    roster.enrol(path, card)
    before = path.read_bytes()
    how(rotation.rotate_site(card.parent).parent)
    with pytest.raises(ConfigError, match="with other keys; `fedft keys rotate` at the site") as e:
        roster.enrol(path, card)
    one_line(e)
    assert path.read_bytes() == before


def test_a_proof_is_of_its_name_and_a_revoked_site_stays_so(server: Path, card: Path, tmp_path: Path) -> None:
    path = server / "roster.toml"
    roster.enrol(path, card)
    two = new_keys.make_site(tmp_path / "two", "clinic-2")
    roster.enrol(path, two)
    rotation.rotate_site(card.parent)
    _other_name(card.parent)
    with pytest.raises(ConfigError, match="a site 'clinic-2' with other keys"):
        roster.enrol(path, card.parent / "clinic-2.card.toml")
    roster.revoke(path, "clinic-2")
    with pytest.raises(ConfigError, match="is revoked"):
        roster.enrol(path, rotation.rotate_site(two.parent))


def test_two_cards_for_one_site_at_once_are_a_fault(server: Path, card: Path, tmp_path: Path) -> None:
    path = server / "roster.toml"
    roster.enrol(path, card)
    first = tmp_path / "first.card.toml"
    first.write_bytes(rotation.rotate_site(card.parent).read_bytes())
    rotation.finish_site(card.parent)
    with pytest.raises(ConfigError, match="another card is of a site 'clinic-1'"):
        roster.enrol_all(path, [first, rotation.rotate_site(card.parent)])


# -- servers -----------------------------------------------------------------------------------------------------------


def test_a_server_s_next_key_is_signed_by_the_one_before(server: Path, card: Path) -> None:
    old, ca = private_keys.load_public(server / "server.pub"), (server / "ca.pem").read_bytes()
    certificate = (server / "server.pem").read_bytes()
    found = rotation.rotate_server(server, 9)
    new = private_keys.load_signing(server / "signing.key").public_key()
    assert private_keys.load_public(server / "server.pub") == new
    assert (found.old, found.new) == (old.public_bytes_raw(), new.public_bytes_raw())
    assert timedelta(days=8) < found.until - datetime.now(UTC) <= timedelta(days=9)
    assert (server / "ca.pem").read_bytes() == ca + found.authority
    assert (server / "server.pem").read_bytes() == certificate, "sites that have not heard of it still accept it"
    assert not new_keys.certificate_facts(server / "server.pem").faults()
    new_keys.renew(server)
    with pytest.raises(ConfigError, match=r"under way until 20.*--finish") as e:
        rotation.rotate_server(server)
    one_line(e)
    roster.enrol(server / "roster.toml", card)
    assert len(kits.made(server, "clinic-1").authorities) == 2
    with pytest.raises(ConfigError, match="sites have until 20"):
        rotation.finish_server(server)
    rotation.finish_server(server, now=found.until)
    assert (server / "ca.pem").read_bytes() == found.authority
    assert not new_keys.certificate_facts(server / "server.pem").faults("site.fl.example.org")
    new_keys.renew(server)
    left = {p.name for p in server.iterdir()}
    assert not [name for name in left if "next" in name or "succession" in name]
    with pytest.raises(ConfigError, match="no rotation is under way"):
        rotation.finish_server(server, early=True)
    assert rotation.rotate_server(server).old == new.public_bytes_raw()


@pytest.mark.parametrize("at", range(1, 11))
def test_a_rotation_that_was_killed_goes_on_with_the_same_call(
    server: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed before its n-th file, in either half; then the succession is whole and of the old key."""
    old = private_keys.load_public(server / "server.pub")
    count = 0

    class Killed(BaseException):
        pass

    def dying(path: Path, body: bytes, mode: int) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise Killed
        key_files.write_new(path, body, mode)

    monkeypatch.setattr(rotation, "write_new", dying)
    for _ in range(2):
        try:
            found = rotation.rotate_server(server)
            break
        except Killed:
            pass
    assert found.old == old.public_bytes_raw()
    assert private_keys.load_public(server / "server.pub").public_bytes_raw() == found.new
    for _ in range(2):
        try:
            rotation.finish_server(server, early=True)
            break
        except Killed:
            pass
    assert count > 10
    assert (server / "ca.pem").read_bytes() == found.authority
    assert not new_keys.certificate_facts(server / "server.pem").faults()
    new_keys.renew(server)


def test_whatever_bytes_are_a_succession_or_refused(server: Path) -> None:
    key, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate().public_key()
    whole = successions.signed(key, new, SOON, (server / "ca.pem").read_bytes())
    assert successions.apart(whole + b"FDSE...") == (whole, b"FDSE...")
    assert successions.apart(b"FDSE...") == (b"", b"FDSE...")
    assert successions.opened(whole).new == new.public_bytes_raw()
    rng = random.Random(2)
    bad = [whole[:n] for n in (0, 3, 8, 143, 144, len(whole) - 1)] + [whole + b"x"]
    for at in {*range(160), *rng.sample(range(160, len(whole)), 40)}:
        bad.append(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
    for data in bad:
        with pytest.raises(ValueError, match="succession"):
            successions.opened(data)
        first, rest = successions.apart(data)
        assert first + rest == data


def test_a_signature_of_one_kind_is_none_of_another(server: Path, card: Path) -> None:
    """The same key signs messages, successions and cards."""
    key = private_keys.load_signing(server / "signing.key")
    message = sealed.seal(Kind.JOB, ABOUT, b"x", key)
    with pytest.raises(ValueError, match="succession"):
        successions.opened(message)
    whole = successions.signed(key, key.public_key(), SOON, (server / "ca.pem").read_bytes())
    with pytest.raises(RejectedUpdate, match="expected a sealed message"):
        sealed.open_sealed(whole, lambda name: key.public_key())
