"""A first site file for a site that has none: the example, with the site's own name and its server's address."""

import json
import re
from pathlib import Path

EXAMPLE = Path(__file__).with_name("site.toml")


def suggested(name: str, address: str, keys: str) -> str:
    """The text of a site file of the site `name`, whose key folder, beside the file, is called `keys`.

    Model and rows are the example's, and its policy allows no strategy: what a site allows is its own operator's to
    say, whoever suggests the rest.
    """
    text = EXAMPLE.read_text(encoding="utf-8")
    values = {
        ("site", "name"): name,
        ("server", "address"): address,
        ("server", "ca"): f"{keys}/ca.pem",
        ("server", "key"): f"{keys}/server.pub",
        ("keys", "folder"): keys,
    }
    for (table, key), value in values.items():
        head, found, rest = text.partition(f"[{table}]\n")
        said = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        text = head + found + re.sub(rf'^{key} = "[^"]*"', lambda _, said=said: said, rest, count=1, flags=re.MULTILINE)  # type: ignore[misc]
    return re.sub(r"^strategies = \[[^\]]*\]", "strategies = []", text, count=1, flags=re.MULTILINE)
