"""New keys in place of those in use: a server's by a succession, a site's by a card that its old key signs.

    server's folder    server.succession    in front of every message, from `rotate_server` to `finish_server`
                       ca.next.key          the next authority's; ca.pem has the present one, then the next
    site's folder      signing.next.key, node.next.key     from `rotate_site` to `finish_site`

Every step can be done again where a crash broke it off: the same call goes on.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft import check
from fedft.errors import ConfigError
from fedft.security import certificates, new_keys, private_keys, successions
from fedft.security.card_proofs import proof_of
from fedft.security.key_files import PRIVATE, PUBLIC, write_new
from fedft.security.private_keys import load_ecdsa, load_signing, node_bytes, private_bytes
from fedft.security.roster import read_card
from fedft.security.site_table import Site, card_text
from fedft.security.successions import Succession

OVERLAP_DAYS = 30
SUCCESSION = "server.succession"
NEXT = {"signing.next.key": "signing.key", "node.next.key": "node.key"}


def succession(folder: Path) -> tuple[bytes, Succession] | None:
    """(bytes, content) of the succession in a server's key folder; None if there is none. Raises ConfigError."""
    path = folder / SUCCESSION
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
        return data, successions.opened(data)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: {e}; restore it from the backup, or give every site a new kit") from e


def rotate_server(folder: Path, days: int = OVERLAP_DAYS) -> Succession:
    """Replace the server's signing key, and prepare its next TLS authority; returns the succession.

    Sites that hear of it within `days` go over by themselves. The TLS certificate stays until `finish_server`. Raises
    ConfigError while another rotation is under way, and KeyFault for keys that cannot be used.
    """
    _checked_days(days)
    signing = load_signing(folder / "signing.key")
    found = succession(folder)
    if found is not None and found[1].new == signing.public_key().public_bytes_raw():
        raise ConfigError(
            f"{folder}: a rotation is under way until {found[1].until:%Y-%m-%d}; "
            f"then `fedft keys rotate {folder} --finish`"
        )
    aside, next_ca = folder / "signing.next.key", folder / "ca.next.key"
    if found is None:
        present, ca_key = new_keys.authorities(folder / "ca.pem")[0], ec.generate_private_key(ec.SECP384R1())
        new, until = Ed25519PrivateKey.generate(), datetime.now(UTC) + timedelta(days=days)
        ca = certificates.authority(ca_key).public_bytes(pem.Encoding.PEM)
        write_new(aside, private_bytes(new), PRIVATE)
        write_new(next_ca, private_bytes(ca_key), PRIVATE)
        write_new(folder / "ca.pem", present.public_bytes(pem.Encoding.PEM) + ca, PUBLIC)
        data = successions.signed(signing, new.public_key(), until, ca)
        write_new(folder / SUCCESSION, data, PUBLIC)
        found = data, successions.opened(data)
    new = load_signing(aside)  # the old one's last act was to sign; it is gone from here on
    public = new.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    write_new(folder / "server.pub", public, PUBLIC)
    write_new(folder / "signing.key", private_bytes(new), PRIVATE)
    aside.unlink()
    return found[1]


def finish_server(folder: Path, *, early: bool = False, now: datetime | None = None) -> None:
    """End the overlap: a new TLS key and certificate by the next authority, which is the only one from then on.

    Raises ConfigError where no rotation is under way, or its date is not reached and `early` is not set.
    """
    found = succession(folder)
    if found is None:
        raise ConfigError(f"{folder}: no rotation is under way; `fedft keys rotate {folder}` begins one")
    if not early and (now or datetime.now(UTC)) < found[1].until:
        raise ConfigError(f"{folder}: sites have until {found[1].until:%Y-%m-%d} to go over; --early ends that now")
    ca = x509.load_pem_x509_certificate(found[1].authority)
    left = folder / "ca.next.key"
    ca_key = load_ecdsa(left if left.exists() else folder / "ca.key")
    if ca_key.public_key() != ca.public_key():
        raise ConfigError(f"{left}: not the key of the authority in {SUCCESSION}; both come from one backup")
    names = certificates.subjects(new_keys.certificate_facts(folder / "server.pem").names)
    key = ec.generate_private_key(ec.SECP384R1())
    write_new(folder / "server.key", private_bytes(key), PRIVATE)
    write_new(folder / "server.pem", certificates.issue(ca, ca_key, key, names, new_keys.DAYS), PUBLIC)
    write_new(folder / "ca.key", private_bytes(ca_key), PRIVATE)
    write_new(folder / "ca.pem", ca.public_bytes(pem.Encoding.PEM), PUBLIC)
    left.unlink(missing_ok=True)
    (folder / SUCCESSION).unlink()


def rotate_site(folder: Path) -> Path:
    """Make a site's next keys beside those in use, and its card anew, signed by the old key; returns the card's path.

    Called again it makes the same card again. Raises ConfigError where there is no card, or several.
    """
    old, card = load_signing(folder / "signing.key"), card_in(folder)
    name = read_card(card).name
    for file, make in (("signing.next.key", Ed25519PrivateKey.generate), ("node.next.key", _node)):
        if not (folder / file).exists():
            write_new(folder / file, private_bytes(make()), PRIVATE)
    signing = load_signing(folder / "signing.next.key").public_key()
    node = node_bytes(load_ecdsa(folder / "node.next.key").public_key())
    proof = proof_of(Site(name, signing, node), old)
    write_new(card, card_text(name, signing, node, proof).encode(), PUBLIC)
    return card


def finish_site(folder: Path) -> Site:
    """Put a site's next keys in the place of those in use; returns the site as its keys are now.

    To be called when the server's operator has enrolled the card: before that, the server knows the old ones only.
    Raises ConfigError where there are no next keys.
    """
    left = [name for name in NEXT if (folder / name).exists()]
    if not left:
        raise ConfigError(f"{folder}: no next keys; `fedft keys rotate {folder}` makes them")
    for name in left:
        private_keys.load_private(folder / name)
    for name in left:
        (folder / name).replace(folder / NEXT[name])
    node = node_bytes(load_ecdsa(folder / "node.key").public_key())
    return Site(read_card(card_in(folder)).name, load_signing(folder / "signing.key").public_key(), node)


def card_in(folder: Path) -> Path:
    """The path of the card in a site's key folder. Raises ConfigError unless there is one."""
    cards = sorted(folder.glob("*.card.toml"))
    if len(cards) != 1:
        raise ConfigError(f"{folder}: {len(cards)} files *.card.toml, wanted the site's one card")
    return cards[0]


def is_server(folder: Path) -> bool:
    """Whether a key folder is a server's and not a site's. Raises ConfigError where it is neither."""
    if (folder / "roster.toml").exists():
        return True
    if (folder / "node.key").exists():
        return False
    raise ConfigError(f"{folder}: neither a server's key folder (roster.toml) nor a site's (node.key)")


def _node() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _checked_days(days: int) -> None:
    try:
        check.between(1, 366, days=days)
    except ValueError as e:
        raise ConfigError(f"--days: {e}") from e
