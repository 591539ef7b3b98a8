"""What the container files say, read as their programs read it, and where the paths that they name lie in a test."""

import json
import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("server", "client")
COMPOSED = {role: ROOT / role / "compose.yaml" for role in ROLES}


def service(role: str) -> dict[str, Any]:
    """The one service of a compose file."""
    services = yaml.safe_load(COMPOSED[role].read_text(encoding="utf-8"))["services"]
    assert list(services) == [role]
    return dict(services[role])


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words) of the Dockerfile, in order; comments and continued lines as Docker takes them."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name; that of the image itself is ""."""
    found: dict[str, list[tuple[str, str]]] = {}
    here: list[tuple[str, str]] = []
    for name, words in instructions():
        if name == "FROM":
            here = found.setdefault(words.split()[2] if " AS " in words else "", [])
        here.append((name, words))
    return found


def runs(stage: str) -> list[list[str]]:
    """The commands that are run while a stage is built, all of them in the form without a shell."""
    return [json.loads(words) for name, words in stages()[stage] if name == "RUN"]


def let_in() -> Iterator[Path]:
    """The files of the checkout that .dockerignore lets into a build, relative to its root.

    Every line is a pattern of a path or of a folder above it; the last one that fits decides, "!" lets in.
    """
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [(line.lstrip("!"), line.startswith("!")) for line in lines if line and not line.startswith("#")]
    tops = {rule.partition("/")[0] for rule, wanted in rules if wanted}
    for top in sorted(p for p in ROOT.iterdir() if p.name in tops):
        for path in sorted([top] if top.is_file() else top.rglob("*")):
            inside = path.relative_to(ROOT)
            fits = [wanted for rule, wanted in rules if _fits(rule, inside)]
            if path.is_file() and fits and fits[-1]:
                yield inside


def _fits(rule: str, path: Path) -> bool:
    pattern = re.escape(rule).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return any(re.fullmatch(pattern, p.as_posix()) for p in (path, *path.parents) if p != Path())


def copied(stage: str, folder: Path, made: Collection[str] = ()) -> None:
    """Copy into `folder` what the COPY lines of a stage bring from the checkout, as far as .dockerignore lets it in.

    `made`: files that are made on the spot and that a clone does not have; they are left out.
    """
    inside = list(let_in())
    for name, words in stages()[stage]:
        if name != "COPY" or words.startswith("--from"):
            continue
        *sources, to = words.split()
        for source in set(sources) - set(made):
            taken = [p for p in inside if p == Path(source) or Path(source) in p.parents]
            assert taken, f"COPY {words}: .dockerignore keeps all of {source} out"
            for path in taken:
                under = path.relative_to(source) if path != Path(source) else Path(path.name)
                at = folder / to.lstrip("/") / under
                at.parent.mkdir(parents=True, exist_ok=True)
                at.write_bytes((ROOT / path).read_bytes())


def placed(words: list[str], places: dict[str, str]) -> list[str]:
    """A command's words with what they name put elsewhere, `places` from what is written to what is meant."""
    found = []
    for word in words:
        for written, meant in places.items():
            word = word.replace(written, meant)
        found.append(word)
    return found


def started(unit: Path) -> list[str]:
    """The command line that a systemd unit starts."""
    (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(line)
