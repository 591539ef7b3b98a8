"""Write a software bill of materials, CycloneDX 1.6 in JSON: what is installed here of all that a package needs.

    python release/sbom.py --to fedft.cdx.json [--of fedft] [--extra kernels ...] [--hashes requirements.hashed.txt]

The packages are found by the metadata of what is installed, beginning with `--of`. `--hashes` adds the SHA-256 of each
one's file, and fails if a version is another. The time is SOURCE_DATE_EPOCH, if that is set; then the same packages
give the same bytes.
"""

import argparse
import json
import os
import re
import sys
import time
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement

LONGEST_LICENCE = 100  # letters of a License field; longer ones are a licence's text


class NotListed(Exception):
    """What keeps the bill from being written, in a line."""


def closure(name: str, extras: set[str]) -> dict[str, tuple[metadata.Distribution, set[str]]]:
    """The package `name` with these extras, and all that it needs here: each with the names of what it needs itself.

    Raises NotListed if one is not installed.
    """
    found: dict[str, tuple[metadata.Distribution, set[str]]] = {}
    todo = [(canonical(name), frozenset(extras))]
    done = set(todo)
    while todo:
        here, wanted = todo.pop()
        try:
            installed = metadata.distribution(here)
        except metadata.PackageNotFoundError:
            raise NotListed(f"{here}: not installed here, and {name} needs it") from None
        _, needs = found.setdefault(here, (installed, set()))
        for required in map(Requirement, installed.requires or ()):
            if any(required.marker is None or required.marker.evaluate({"extra": e}) for e in ("", *wanted)):
                needs.add(canonical(required.name))
                if (more := (canonical(required.name), frozenset(required.extras))) not in done:
                    done.add(more)
                    todo.append(more)
    return found


def canonical(name: str) -> str:
    """A package's name as all ways of writing it come to."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hashes_of(file: Path) -> dict[str, tuple[str, str]]:
    """Version and SHA-256 by name, of a file that release/hashes.py wrote."""
    pins = re.findall(r"^(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: (version, digest) for name, version, digest in pins}


def component(name: str, installed: metadata.Distribution, pins: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """One package as CycloneDX has it. Raises NotListed if its version is not the one that was pinned."""
    reference = f"pkg:pypi/{name}@{quote(installed.version, safe='')}"
    found: dict[str, Any] = {"type": "library", "bom-ref": reference, "name": name, "version": installed.version}
    found["purl"] = reference
    said = installed.metadata
    if expression := said.get("License-Expression"):
        found["licenses"] = [{"expression": expression}]
    else:
        classified = [c.rpartition(" :: ")[2] for c in said.get_all("Classifier") or () if c.startswith("License ::")]
        text = (said.get("License") or "").strip()
        short = [text] if text and text != "UNKNOWN" and "\n" not in text and len(text) <= LONGEST_LICENCE else []
        if names := short or classified:
            found["licenses"] = [{"license": {"name": one}} for one in names]
    if name in pins:
        version, digest = pins[name]
        if version != installed.version:
            raise NotListed(f"{name}: {installed.version} is installed, the hash is of {version}")
        found["hashes"] = [{"alg": "SHA-256", "content": digest}]
    return found


def bill(name: str, extras: set[str], pins: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The whole bill. Raises NotListed."""
    found = closure(name, extras)
    parts = {n: component(n, installed, pins) for n, (installed, _) in sorted(found.items())}
    top = parts.pop(canonical(name)) | {"type": "application"}
    references = {**{n: p["bom-ref"] for n, p in parts.items()}, canonical(name): top["bom-ref"]}
    needs = [
        {"ref": references[n], "dependsOn": sorted(references[m] for m in found[n][1])} for n in sorted(references)
    ]
    now = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([top, parts, now], sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{number}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            "tools": {"components": [{"type": "application", "name": "release/sbom.py"}]},
            "component": top,
        },
        "components": list(parts.values()),
        "dependencies": needs,
    }


def main() -> int:
    """The command: 0, or 1 with one line of what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", type=Path, required=True, help="file to write")
    parser.add_argument("--of", default="fedft", help="the installed package to begin with")
    parser.add_argument("--extra", action="append", default=[], help="an optional extra of it; repeatable")
    parser.add_argument("--hashes", type=Path, help="requirements.hashed.txt of this machine")
    said = parser.parse_args()
    try:
        found = bill(said.of, set(said.extra), hashes_of(said.hashes) if said.hashes else {})
        said.to.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except (NotListed, OSError) as e:
        sys.stderr.write(f"sbom: {e}\n")
        return 1
    sys.stdout.write(f"{said.to}: {len(found['components'])} packages\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
