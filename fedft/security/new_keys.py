"""New keys and certificates for a server and for sites."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft import check
from fedft.errors import ConfigError
from fedft.security import certificates
from fedft.security.certificates import CA_DAYS, Certificate
from fedft.security.key_files import PRIVATE, PUBLIC, check_absent, read_text, write_new
from fedft.security.private_keys import load_ecdsa, node_bytes, private_bytes
from fedft.security.roster_text import ROSTER
from fedft.security.sealed import site_name
from fedft.security.site_table import card_text

DAYS = 365  # that a server's certificate is valid


def make_site(folder: Path, name: str) -> Path:
    """Make a site's signing key, node key and card in `folder`; returns the path of the card, `<name>.card.toml`.

    Raises ConfigError for a name that no site may have, or if any of the three files is there already.
    """
    card = folder / f"{_named(name)}.card.toml"
    check_absent(folder, ("signing.key", "node.key", card.name), "a site's keys are made once")
    signing, node = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())
    write_new(folder / "signing.key", private_bytes(signing), PRIVATE)
    write_new(folder / "node.key", private_bytes(node), PRIVATE)
    write_new(card, card_text(name, signing.public_key(), node_bytes(node.public_key())).encode(), PUBLIC)
    return card


def make_server(folder: Path, hosts: Sequence[str], days: int = DAYS) -> None:
    """Make a server's keys, certificates and empty roster in `folder`: the seven files of `fedft.security`.

    Args:
        hosts: DNS names (`*.` in front stands for one label) and IP addresses under which the sites reach the server.
        days: from now, that the server's certificate is valid; ends with its authority's ten years at the latest.
    Raises:
        ConfigError: a host or number of days that cannot be, or one of the files is there already.
    """
    names = certificates.subjects(hosts)
    files = ("ca.key", "ca.pem", "server.key", "server.pem", "signing.key", "server.pub", "roster.toml")
    _checked_days(days)
    check_absent(folder, files, "`fedft keys renew` makes a new certificate and keeps the keys")
    ca_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    signing = Ed25519PrivateKey.generate()
    ca = certificates.authority(ca_key)
    for file, private in (("ca.key", ca_key), ("server.key", key), ("signing.key", signing)):
        write_new(folder / file, private_bytes(private), PRIVATE)
    public = signing.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    write_new(folder / "server.pub", public, PUBLIC)
    write_new(folder / "ca.pem", ca.public_bytes(pem.Encoding.PEM), PUBLIC)
    write_new(folder / "server.pem", certificates.issue(ca, ca_key, key, names, days), PUBLIC)
    write_new(folder / "roster.toml", ROSTER.encode(), PUBLIC)


def renew(folder: Path, hosts: Sequence[str] = (), days: int = DAYS) -> None:
    """Replace server.pem in a server's folder by a new certificate of the same authority and key.

    Sites trust the authority, so no site has to do anything. `hosts` and `days` as for `make_server`; without hosts,
    the names of the certificate that is replaced. Raises ConfigError if a file is missing or not what it should be, or
    if the authority itself has expired.
    """
    _checked_days(days)
    names = certificates.subjects(hosts or certificate_facts(folder / "server.pem").names)
    ca, ca_key = authorities(folder / "ca.pem")[0], load_ecdsa(folder / "ca.key")
    if ca.public_key() != ca_key.public_key():
        raise ConfigError(f"{folder / 'ca.pem'}: not the certificate of ca.key beside it; both come from one backup")
    if ca.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(f"{folder / 'ca.pem'}: the authority expired; `fedft keys server` makes a new one elsewhere")
    write_new(
        folder / "server.pem", certificates.issue(ca, ca_key, load_ecdsa(folder / "server.key"), names, days), PUBLIC
    )


def _named(name: str) -> str:
    try:
        return site_name(name)
    except ValueError as e:
        raise ConfigError(str(e)) from e


def _checked_days(days: int) -> None:
    try:
        check.between(1, CA_DAYS, days=days)
    except ValueError as e:
        raise ConfigError(str(e)) from e


def certificate_facts(path: Path) -> Certificate:
    """The facts of the certificate file `path`, a `server.pem` with its `ca.pem` beside it.

    Raises ConfigError if one of the two is absent or no certificate in PEM.
    """
    return certificates.facts(path, authorities(path)[0], authorities(path.with_name("ca.pem")))


def authorities(path: Path) -> list[x509.Certificate]:
    """The certificates in the file `path`, a `ca.pem`: one, or the present authority and the next one.

    Raises ConfigError if the file is absent, or holds no certificate in PEM.
    """
    try:
        return x509.load_pem_x509_certificates(read_text(path, "`fedft keys server` makes one").encode())
    except (ValueError, x509.InvalidVersion) as e:
        raise ConfigError(f"{path}: not a certificate in PEM; `fedft keys server` makes one") from e
