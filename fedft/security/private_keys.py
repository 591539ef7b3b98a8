"""Private and public keys from their files."""

import os
import shlex
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedft.errors import ConfigError, KeyFault
from fedft.security.key_files import MAX_FILE_BYTES, read_text


def load_private(path: Path) -> Ed25519PrivateKey | EllipticCurvePrivateKey:
    """The private key in the file `path`: PEM, unencrypted, Ed25519 or ECDSA.

    Raises KeyFault if the file is absent, holds another thing, or may be opened by anybody but the user of this process
    (mode 0600 is wanted; not checked on Windows). No message shows what the file holds.
    """
    try:
        with open(path, "rb") as f:
            if hasattr(os, "geteuid"):  # where there are no such bits, the folder's own rights must do
                check_private(path, os.fstat(f.fileno()))
            data = f.read(MAX_FILE_BYTES)
    except OSError as e:
        raise KeyFault(f"{path}: cannot be read ({e.strerror}); `fedft keys` makes keys") from e
    try:
        key = pem.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # without the cause: a parser's words may quote what it read
        raise KeyFault(f"{path}: not an unencrypted private key in PEM; `fedft keys` makes them") from None
    if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
        raise KeyFault(f"{path}: wanted an Ed25519 or ECDSA key; `fedft keys` makes them")
    return key


def check_private(path: Path, found: os.stat_result) -> None:
    """Raise KeyFault with the remedy unless `found` is a regular file that only this process's user may open."""
    mode, file = stat.S_IMODE(found.st_mode), shlex.quote(str(path))
    if not stat.S_ISREG(found.st_mode):
        raise KeyFault(f"{path}: not a regular file; a private key is one, of mode 0600")
    if found.st_uid != os.geteuid():
        raise KeyFault(
            f"{path}: mode {mode:04o}, belongs to user {found.st_uid} and this process to user {os.geteuid()}; "
            f"chown {os.geteuid()} {file}, then chmod 600 {file}"
        )
    if mode & 0o077:
        raise KeyFault(f"{path}: mode {mode:04o} opens a private key to others; chmod 600 {file}")


def load_signing(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 private key in the file `path`, a `signing.key`; KeyFault as for `load_private`, or if ECDSA."""
    if isinstance(key := load_private(path), Ed25519PrivateKey):
        return key
    raise KeyFault(f"{path}: an ECDSA key, wanted an Ed25519 one; that is in signing.key")


def load_ecdsa(path: Path) -> EllipticCurvePrivateKey:
    """The ECDSA private key in the file `path`: a `node.key`, `server.key` or `ca.key`.

    Raises KeyFault as `load_private` does, or if the key is an Ed25519 one.
    """
    if isinstance(key := load_private(path), EllipticCurvePrivateKey):
        return key
    raise KeyFault(f"{path}: an Ed25519 key, wanted an ECDSA one; that is in node.key, server.key and ca.key")


def load_public(path: Path) -> Ed25519PublicKey:
    """The Ed25519 public key in the file `path`, a `server.pub` in PEM; ConfigError if there is no such key in it."""
    try:
        key = pem.load_pem_public_key(read_text(path, "copy the one in the server's key folder").encode())
    except (ValueError, UnsupportedAlgorithm) as e:
        raise ConfigError(f"{path}: not a public key in PEM; copy the server's server.pub") from e
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: wanted an Ed25519 public key; copy the server's server.pub")
    return key


def node_bytes(key: EllipticCurvePublicKey) -> bytes:
    """A site's public node key as the transport registers it: SubjectPublicKeyInfo in PEM."""
    return key.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


def private_bytes(key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> bytes:
    """A private key as its file holds it: PKCS #8 in PEM, unencrypted."""
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
