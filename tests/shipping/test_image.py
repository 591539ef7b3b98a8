"""The image, as far as it can be built without Docker: what goes in is what the package is made of, and it works."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import containers
import pytest

ROOT = containers.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BESIDE = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "release/hashes.py"}
HASHES = {"requirements.build.txt", "requirements.hashed.txt"}
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys, fedft
assert pathlib.Path(fedft.__file__).is_relative_to(sys.argv[1]), fedft.__file__
names = [m.name for m in pkgutil.walk_packages(fedft.__path__, "fedft.") if not m.name.endswith("__main__")]
optional = {"matplotlib", "numba", "triton", "ray", "wandb"}
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] not in optional:
            raise
sys.stdout.write(f"imported {len(names)}\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image's last `pip install` builds, of what the Dockerfile copies and nothing else."""
    folder = tmp_path_factory.mktemp("image")
    containers.copied("build", folder, made=HASHES)
    (install,) = [c for c in containers.runs("build") if c[-1] == "/src"]
    assert install[:2] == ["/opt/fedft/bin/pip", "install"]
    options = [o for o in install[2:-1] if o.startswith("--")]
    assert {"--no-index", "--no-deps", "--no-build-isolation"} == set(options)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", *options]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(folder / "src")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("fedft-*.whl")
    return built


def test_the_wheel_of_an_image_holds_every_file_of_the_package(wheel: Path) -> None:
    """Code, run files, site file, templates, styles: all that git has in the rooms, less what operators copy."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    listed = [f for f in listed if (ROOT / f).exists()]
    rooms = PROJECT["tool"]["setuptools"]["package-dir"]
    wanted = {f"fedft/{f}" for f in listed if f.partition("/")[0] in rooms.values()}
    wanted |= {f for f in listed if f.startswith("fedft/")}
    wanted = {f for f in wanted if not f.endswith((".yaml", ".service", "grafana.json")) and "/deployment/" not in f}
    assert len(wanted) > 200
    names = zipfile.ZipFile(wheel).namelist()
    assert {n for n in names if ".dist-info/" not in n} == wanted
    (record,) = [n for n in names if n.endswith(".dist-info/RECORD")]
    assert len(zipfile.ZipFile(wheel).read(record).splitlines()) == len(names)


def test_docker_is_given_what_the_package_is_made_of_and_nothing_else(wheel: Path) -> None:
    inside = {p.as_posix() for p in containers.let_in()}
    assert inside >= BESIDE
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    there = {n if n.startswith("fedft/") else f"fedft/{n}" for n in inside - BESIDE - HASHES}
    assert there == names


@pytest.mark.slow
def test_what_is_installed_from_it_imports_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Every module, and the command."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-index", "--target", str(site), str(wheel)], check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(site)}
    started = [sys.executable, "-P", "-c", IMPORT_ALL, str(site)]
    done = subprocess.run(started, cwd=empty, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 200
    listed = subprocess.run(
        [sys.executable, "-P", "-m", "fedft", "strategies"],
        cwd=empty,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "flora" in listed.stdout


def test_nothing_is_installed_without_its_hash() -> None:
    """Of all that pip installs, what comes from outside has --require-hashes, and builds fetch nothing either."""
    pips = [c for c in containers.runs("build") if c[0].endswith("/pip") and c[1] == "install"]
    assert len(pips) == 3
    for command in pips:
        assert "--require-hashes" in command or "--no-index" in command
        assert "--no-build-isolation" in command or "--only-binary=:all:" in command
        assert "--no-deps" in command
    assert [c[-1] for c in pips] == ["/src/requirements.build.txt", "/src/requirements.hashed.txt", "/src"]
    assert ["/opt/fedft/bin/pip", "check"] in containers.runs("build")


def test_an_image_runs_as_nobody_special_from_a_pinned_base_without_a_shell() -> None:
    every = containers.instructions()
    assert every[0] == ("ARG", "PYTHON=python:3.12-slim")  # by tag; a digest may stand behind it
    bases = {words.split()[0] for name, words in every if name == "FROM"}
    assert bases == {"${PYTHON}", "scratch"}
    assert not any(words.startswith(("/bin/", "sh ", "bash ")) or "&&" in words for _, words in every)
    assert all(words.startswith("[") for name, words in every if name in ("RUN", "ENTRYPOINT", "CMD"))
    last = dict(containers.stages()[""])
    user, group = last["USER"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert last["ENTRYPOINT"] == '["fedft"]'
    assert [n for n, _ in containers.stages()[""]].count("COPY") == 1  # no sources, no compiler, no pip cache
    assert not any(re.search(r"https?://|--index-url|--extra-index", words) for _, words in every)


def test_an_image_is_offline_and_writes_in_one_place() -> None:
    (env,) = [words for name, words in containers.stages()[""] if name == "ENV"]
    said = dict(word.split("=", 1) for word in env.split())
    assert said["HF_HUB_OFFLINE"] == "1"
    written = [value for key, value in said.items() if value.startswith("/") and key != "PATH"]
    assert written
    assert all(value.startswith("/var/lib/fedft") for value in written)
    assert said["PATH"].startswith("/opt/fedft/bin:")


def test_the_hashes_are_made_where_they_are_used() -> None:
    """In the same base image, by the script that `make hashes` runs."""
    assert containers.runs("resolve") == [["python", "/src/release/hashes.py", "--to", "/src"]]
    written = [words for name, words in containers.stages()["hashes"] if name == "COPY"]
    assert written == ["--from=resolve " + " ".join(f"/src/{n}" for n in sorted(HASHES)) + " /"]
    assert containers.stages()["hashes"][0][1].startswith("scratch")
