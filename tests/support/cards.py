"""Cards of sites whose private keys nobody needs."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft.security import private_keys
from fedft.security.site_table import card_text


def new_card(folder: Path, name: str) -> Path:
    """A card of fresh keys, `<name>.card.toml` in `folder`."""
    signing, node = Ed25519PrivateKey.generate().public_key(), ec.generate_private_key(ec.SECP384R1()).public_key()
    path = folder / f"{name}.card.toml"
    path.write_text(card_text(name, signing, private_keys.node_bytes(node)), encoding="utf-8")
    return path
