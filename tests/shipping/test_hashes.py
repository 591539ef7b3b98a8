"""`make hashes`: what it writes installs, and not one byte else does. The index is a folder of small wheels."""

import hashlib
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import small_wheels

ROOT = Path(__file__).resolve().parents[2]
HASHES = ROOT / "release" / "hashes.py"
PROJECT = """
[build-system]
requires = ["Frame_Work>=2"]
[project]
name = "house"
dependencies = ["stem>=1,<3"]
[project.optional-dependencies]
more = ["leaf>=2"]
"""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip as it is without what this machine sets."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A project with constraints, the script, and a folder of wheels."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "hashes.py").write_bytes(HASHES.read_bytes())
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text("stem==1.5\n")
    for name, version, *needs in (
        ("stem", "1.5", "leaf"), ("stem", "2.0"), ("leaf", "1.0"), ("leaf", "2.0"), ("Frame_Work", "2.1"),
    ):  # fmt: skip
        small_wheels.wheel(tmp_path / "wheels", name, version, needs)
    return tmp_path


def run(house: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(house / "release" / "hashes.py"), *words, "--no-index"]
    command += ["--find-links", str(house / "wheels")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def install(house: Path, requirements: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-index", "--require-hashes"]
    command += ["--find-links", str(house / "wheels"), "--no-deps", "--target", str(house / "site")]
    return subprocess.run(
        [*command, "--requirement", str(house / requirements), *words], capture_output=True, text=True, check=False
    )


def lines(file: Path) -> dict[str, str]:
    """The SHA-256 of each pinned package."""
    found = {}
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            pin, digest = line.split(" --hash=sha256:")
            found[pin] = digest
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_each_package_has_the_hash_of_the_file_that_pip_chooses(house: Path) -> None:
    """In the version of the constraints, with what it needs, and with what builds it."""
    done = run(house)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(house / f"requirements.{kind}.txt") for kind in ("build", "hashed")]
    of = {p.name.partition("-py3")[0]: sha256(p) for p in (house / "wheels").iterdir()}
    all_of = {"stem==1.5": of["stem-1.5"], "leaf==2.0": of["leaf-2.0"], "frame-work==2.1": of["Frame_Work-2.1"]}
    assert lines(house / "requirements.hashed.txt") == all_of
    assert lines(house / "requirements.build.txt") == {"frame-work==2.1": of["Frame_Work-2.1"]}


@pytest.mark.slow
def test_what_is_written_installs_and_a_changed_file_does_not(house: Path) -> None:
    assert run(house).returncode == 0
    done = install(house, "requirements.hashed.txt")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (house / "site").glob("*.py")} == {"stem.py", "leaf.py", "Frame_Work.py"}
    with open(house / "wheels" / "leaf-2.0-py3-none-any.whl", "ab") as changed:
        changed.write(b"\0")
    done = install(house, "requirements.hashed.txt", "--ignore-installed")
    assert done.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr


def test_what_cannot_be_had_is_one_line_and_nothing_is_written(house: Path) -> None:
    for path in (house / "wheels").glob("leaf*"):
        path.unlink()
    done = run(house)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("hashes: pip finds no set of packages: ERROR: No matching distribution found for leaf")
    assert not list(house.glob("requirements*"))


def test_an_extra_is_asked_for_by_name(house: Path) -> None:
    small_wheels.wheel(house / "wheels", "leaf", "3.0")
    (house / "constraints.txt").write_text("stem==2.0\n")
    assert run(house, "--extra", "more").returncode == 0
    assert "leaf==3.0" in lines(house / "requirements.hashed.txt")
    done = run(house, "--extra", "less")
    assert (done.returncode, done.stderr) == (
        1,
        f"hashes: {house / 'pyproject.toml'}: no extra 'less'; there are more\n",
    )


@pytest.fixture
def script() -> dict[str, Any]:
    """The names of the script."""
    return runpy.run_path(str(HASHES))


def test_a_file_without_a_hash_is_refused(script: dict[str, Any]) -> None:
    package = {"metadata": {"name": "a", "version": "1"}, "download_info": {"url": "u", "archive_info": {}}}
    with pytest.raises(script["NotHashed"], match="a 1: pip does not tell the SHA-256 of u"):
        script["line"](package)


def test_what_fedft_needs_is_what_its_project_says(script: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs, builders = script["wanted"](ROOT / "pyproject.toml", ["kernels"])
    assert needs == [*project["dependencies"], *project["optional-dependencies"]["kernels"]]
    assert builders == ["setuptools>=77"]
