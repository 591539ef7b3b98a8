"""Keys of a simulation's clients for secure sums, each in the client's own folder, and the roster of all of them.

clients/<name>/signing.key      mode 0600, made at first need
clients/roster.toml             names and public keys, as operators of a deployment hand them to each other
"""

from collections.abc import Collection
from pathlib import Path

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft import durable
from fedft.client.secure_sums import SecureSums
from fedft.config import RunConfig
from fedft.privacy.secure_sum.integer_uploads import integers_of
from fedft.recipe import Recipe
from fedft.security import private_keys
from fedft.security.key_files import PRIVATE, PUBLIC
from fedft.security.site_table import encoded


def secure_sums(
    config: RunConfig, recipe: Recipe, folder: Path | None, names: Collection[str]
) -> dict[str, SecureSums]:
    """The part of each client in masked sums, by name; none where the run has none.

    `folder` is that of the clients' own folders; None: keys are in memory.
    """
    integers = integers_of(recipe)
    if integers is None or config.privacy.secagg != "on" or not names:
        return {}
    own = {name: folder and folder / durable.folder_name(name) for name in names}
    keys = {name: _key(at) for name, at in own.items()}
    cards = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    if folder is not None and not (roster := folder / "roster.toml").exists():
        sites = [{"name": name, "signing": encoded(key.public_key())} for name, key in keys.items()]
        durable.write(roster, tomli_w.dumps({"site": sites}).encode(), mode=PUBLIC)
    return {name: SecureSums(name, key, cards, own[name], integers) for name, key in keys.items()}


def _key(folder: Path | None) -> Ed25519PrivateKey:
    """The signing key in a client's folder, which is made if it is missing."""
    if folder is None:
        return Ed25519PrivateKey.generate()
    if not (path := folder / "signing.key").exists():
        durable.write(path, private_keys.private_bytes(Ed25519PrivateKey.generate()), mode=PRIVATE)
    return private_keys.load_signing(path)
