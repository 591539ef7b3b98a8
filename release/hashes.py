"""Write the two files that `pip install --require-hashes` takes, for this Python on this machine.

    python release/hashes.py --to DIR [--extra kernels ...] [what `pip install` takes, such as --no-index]

requirements.hashed.txt   all that fedft needs, in the versions of constraints.txt, each with the SHA-256 of the one
                          file that pip chooses here, from the index that pip is set up with
requirements.build.txt    likewise what builds it, to be installed first: pip does not check what it fetches for a build

They hold for machines like this one: torch's builds differ by machine, and so do other packages' files. Nothing is
installed. Needs pip 22.2 or later, and no other package.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HASHED, BUILD = "requirements.hashed.txt", "requirements.build.txt"
HEAD = "# {} of fedft for {}, by release/hashes.py; pip install --require-hashes --no-deps -r {}\n"


class NotHashed(Exception):
    """What keeps the files from being written, in a line."""


def wanted(project: Path, extras: list[str]) -> tuple[list[str], list[str]]:
    """What the pyproject.toml `project` needs (with these extras), and what builds it. Raises NotHashed."""
    said = tomllib.loads(project.read_text(encoding="utf-8"))
    optional = said["project"].get("optional-dependencies", {})
    if unknown := sorted(set(extras) - set(optional)):
        raise NotHashed(f"{project}: no extra {unknown[0]!r}; there are {', '.join(sorted(optional))}")
    needs = [*said["project"]["dependencies"], *(one for extra in extras for one in optional[extra])]
    return needs, said["build-system"]["requires"]


def chosen(needs: list[str], constraints: Path, options: list[str]) -> list[dict[str, Any]]:
    """Every package that pip would install for `needs`, as its report has it. Raises NotHashed with pip's reason."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--disable-pip-version-check", "--report", str(report), "--constraint", str(constraints)]
        done = subprocess.run([*command, *options, *needs], capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-500:]]
            raise NotHashed(f"pip finds no set of packages: {errors[-1]}")
        return list(json.loads(report.read_text(encoding="utf-8"))["install"])


def line(package: dict[str, Any]) -> str:
    """The line of one package of a report: its name, version and file's SHA-256. Raises NotHashed if it has none."""
    name, version = package["metadata"]["name"], package["metadata"]["version"]
    digest = package["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", "")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise NotHashed(f"{name} {version}: pip does not tell the SHA-256 of {package['download_info']['url']}")
    return f"{canonical(name)}=={version} --hash=sha256:{digest}\n"


def canonical(name: str) -> str:
    """A package's name as all ways of writing it come to.

    >>> canonical("Rouge_Score")
    'rouge-score'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def write(to: Path, extras: list[str], options: list[str]) -> list[Path]:
    """Write both files into the folder `to`; returns their paths. Raises NotHashed, and then writes none."""
    needs, builders = wanted(ROOT / "pyproject.toml", extras)
    lines = {p["metadata"]["name"]: line(p) for p in chosen([*needs, *builders], ROOT / "constraints.txt", options)}
    first = {canonical(re.split(r"[\[<>=!~; ]", b)[0]) for b in builders}
    of = f"Python {sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"
    building = {name for name in lines if canonical(name) in first}
    texts = {BUILD: [lines[name] for name in building], HASHED: list(lines.values())}
    for name, all_lines in texts.items():
        (to / name).write_text(HEAD.format(name, of, name) + "".join(sorted(all_lines)), encoding="utf-8")
    return [to / name for name in texts]


def main() -> int:
    """The command: 0, or 1 with one line of what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", type=Path, default=ROOT, help="folder to write into (default: the checkout)")
    parser.add_argument("--extra", action="append", default=[], help="an optional extra of fedft; repeatable")
    found, options = parser.parse_known_args()
    try:
        for path in write(found.to, found.extra, options):
            sys.stdout.write(f"{path}\n")
    except (NotHashed, OSError) as e:
        sys.stderr.write(f"hashes: {e}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
