"""The state of a block as bytes for a file, and back: of a site with its secrets, or of the server.

    u32 length of the JSON, little endian | {"form", "version", "fields"} | the byte strings, one behind the other

In the JSON a byte string is {"at": [offset, length]}, a mapping {"of": [[key, value] ...]}, and a tuple a list. Not
for what a peer sends: whoever reads has found the file's digest to be right.
"""

import json
from collections.abc import Mapping
from typing import Any

from fedft.errors import OtherVersion

VERSION = 1


def written(form: str, fields: Mapping[str, Any]) -> bytes:
    """The fields of a state as bytes.

    Args:
        form: which kind of state.
        fields: by name: integers, texts, byte strings, tuples and mappings of them.
    """
    blob = bytearray()

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            blob.extend(value)
            return {"at": [len(blob) - len(value), len(value)]}
        if isinstance(value, Mapping):
            return {"of": [[k, plain(v)] for k, v in value.items()]}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    said = {"form": form, "version": VERSION, "fields": {k: plain(v) for k, v in fields.items()}}
    head = json.dumps(said, separators=(",", ":")).encode()
    return len(head).to_bytes(4, "little") + head + bytes(blob)


def read(form: str, data: bytes) -> dict[str, Any]:
    """The fields that `written` was given. Raises OtherVersion where another version of fedft wrote them."""
    start = 4 + int.from_bytes(data[:4], "little")
    said = json.loads(data[4:start])
    if (said["form"], said["version"]) != (form, VERSION):
        wanted = f"wanted {form} of version {VERSION}"
        raise OtherVersion(f"a secure sum's state is {said['form']} of version {said['version']}, {wanted}")

    def back(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(back, value))
        if not isinstance(value, dict):
            return value
        if "at" in value:
            at, size = value["at"]
            return data[start + at : start + at + size]
        return {k: back(v) for k, v in value["of"]}

    return {k: back(v) for k, v in said["fields"].items()}
