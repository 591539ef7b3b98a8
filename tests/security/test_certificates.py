"""Certificates: for the server's names only, renewed without the sites, each fault with its remedy."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from one_line import one_line

from fedft.errors import ConfigError
from fedft.security import new_keys


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


def test_sites_accept_the_server_under_its_names_only(server: Path, hosts: list[str], tmp_path: Path) -> None:
    for host in ("localhost", "127.0.0.1", "::1", "site.fl.example.org"):
        handshake(server, host, server / "ca.pem")
        assert not new_keys.certificate_facts(server / "server.pem").faults(host)
    for host in ("127.0.0.2", "example.org", "a.b.fl.example.org", "fl.example.org"):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(server, host, server / "ca.pem")
        (fault,) = new_keys.certificate_facts(server / "server.pem").faults(host)
        assert f"not {host}; `fedft keys renew" in fault
    new_keys.make_server(tmp_path / "other", hosts)
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


def test_a_renewed_certificate_needs_nothing_of_the_sites(server: Path, hosts: list[str]) -> None:
    before = {p.name: p.read_bytes() for p in server.iterdir()}
    new_keys.renew(server, days=400)
    after = {p.name: p.read_bytes() for p in server.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"server.pem"}
    assert new_keys.certificate_facts(server / "server.pem").names == tuple(hosts)
    new_keys.renew(server, ["new.example"])
    handshake(server, "new.example", server / "ca.pem")
    handshake(server, "localhost", server / "ca.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, "a.fl.example.org", server / "ca.pem")


def test_no_certificate_outlives_its_authority(server: Path) -> None:
    new_keys.renew(server, days=3650)
    ca = x509.load_pem_x509_certificate((server / "ca.pem").read_bytes())
    assert new_keys.certificate_facts(server / "server.pem").not_after == ca.not_valid_after_utc


def test_each_fault_of_a_certificate_comes_with_its_remedy(server: Path, hosts: list[str], tmp_path: Path) -> None:
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
    new_keys.make_server(tmp_path / "other", hosts)
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
