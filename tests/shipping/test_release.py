"""`make release`: the same bytes each time, of what is committed; listed, summed and signed."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = runpy.run_path(str(ROOT / "release" / "build.py"))
RECIPE = (ROOT / "RELEASING.md").read_text(encoding="utf-8")
EPOCH = 1_700_000_000
needs_ssh_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="this machine has no ssh-keygen")


def git(folder: Path, *words: str) -> str:
    said = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *said, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit of this checkout as it lies here, in a repository of its own, which is clean."""
    clone = tmp_path_factory.mktemp("clone")
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").split()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    git(clone, "init", "--quiet")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "all of it")
    return clone


@pytest.fixture(scope="module")
def made(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its release, not signed, with the list of what pytest needs."""
    to = tmp_path_factory.mktemp("release")
    BUILD["release"](clone, to, None, "pytest")
    return to


@pytest.mark.slow
def test_two_builds_have_the_same_bytes_whoever_builds_them(clone: Path, made: Path, tmp_path: Path) -> None:
    """In another folder, and by a user with another umask."""
    epoch = BUILD["committed"](clone)
    before = os.umask(0o077)
    try:
        (tmp_path / "far" / "away").mkdir(parents=True)
        again = BUILD["archives"](clone, tmp_path / "far" / "away", epoch)
    finally:
        os.umask(before)
    for path in again:
        assert path.read_bytes() == (made / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_archives_tell_the_commit_s_time_and_nobody_s_name(clone: Path, made: Path) -> None:
    epoch = BUILD["committed"](clone)
    with tarfile.open(next(made.glob("*.tar.gz"))) as sources:
        members = sources.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(epoch, 0, 0, "", "")}
    assert {m.mode for m in members} == {0o644, 0o755}
    wheel = zipfile.ZipFile(next(made.glob("*.whl")))
    assert len({i.date_time for i in wheel.infolist()}) == 1


@pytest.mark.slow
def test_the_wheel_is_whole_though_built_of_the_source_archive_alone(made: Path) -> None:
    names = set(zipfile.ZipFile(next(made.glob("*.whl"))).namelist())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    rooms = {"fedft", *project["package-dir"].values()}
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").split()
    code = {f for f in listed if f.partition("/")[0] in rooms and f.endswith((".py", ".toml", ".typed"))}
    wanted = {f if f.startswith("fedft/") else f"fedft/{f}" for f in code if "/deployment/" not in f}
    wanted = {f for f in wanted if (ROOT / f).exists() or (ROOT / f.removeprefix("fedft/")).exists()}
    assert len(wanted) > 200
    assert {n for n in names if n.startswith("fedft/")} == wanted


def test_the_line_that_installs_a_wheel_is_the_same_everywhere() -> None:
    page = (ROOT / "docs" / "five-minutes.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if ".whl &&" in line] == [_line()]


def _line() -> str:
    (line,) = [line for line in RECIPE.splitlines() if ".whl &&" in line]
    return line


@pytest.mark.slow
def test_one_line_installs_the_wheel_without_a_clone(made: Path, tmp_path: Path) -> None:
    """With nothing from an index: what the wheel needs is lent by the environment of these tests."""
    shutil.copy(next(made.glob("*.whl")), tmp_path)
    here = {**os.environ, "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    here.pop("PYTHONPATH", None)
    lend = """python -c 'import site; print(site.getsitepackages()[0])'"""
    pth = f'echo "{sysconfig.get_path("purelib")}" > "$({lend})/lent.pth"'
    words = f"{_line().replace('python3', sys.executable, 1)} && {pth} && fedft --version && command -v fedft"
    done = subprocess.run(["sh", "-ec", words], cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["fedft 0.1.0", str(tmp_path / ".venv" / "bin" / "fedft")]


@pytest.mark.slow
def test_sums_are_of_every_file_and_a_change_is_found(made: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"^(sha256sum .*)$", RECIPE, re.MULTILINE)
    shutil.copytree(made, tmp_path / "got")
    listed = [line.split()[1] for line in (made / "SHA256SUMS").read_text().splitlines()]
    assert listed == sorted(p.name for p in made.iterdir() if p.name != "SHA256SUMS")
    assert len(listed) == 3
    subprocess.run(command.split(), cwd=tmp_path / "got", check=True, capture_output=True)
    for name in listed:
        with open(tmp_path / "got" / name, "ab") as file:
            file.write(b"\n")
        done = subprocess.run(command.split(), cwd=tmp_path / "got", check=False, capture_output=True, text=True)
        assert done.returncode != 0
        assert f"{name}: FAILED" in done.stdout


@needs_ssh_keygen
@pytest.mark.slow
def test_a_signature_is_checked_by_the_recipe_s_words(made: Path, tmp_path: Path) -> None:
    """Of this key, this namespace, these sums; with a throw-away key."""
    shutil.copytree(made, tmp_path / "got")
    for name in ("ours", "other"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(tmp_path / name)]
        subprocess.run(key, check=True, capture_output=True)
    BUILD["sign"](tmp_path / "got" / "SHA256SUMS", tmp_path / "ours")
    (command,) = re.findall(r"^(ssh-keygen -Y verify .*) < SHA256SUMS$", RECIPE, re.MULTILINE)
    (known,) = re.findall(r"^ +`(.* ssh-ed25519) AAAA\.\.\.`", RECIPE, re.MULTILINE)

    def verifies(by: str, changed: bytes = b"") -> bool:
        public = (tmp_path / f"{by}.pub").read_text().split()[1]
        (tmp_path / "got" / "allowed_signers").write_text(f"{known} {public}\n")
        sums = (tmp_path / "got" / "SHA256SUMS").read_bytes() + changed
        done = subprocess.run(command.split(), cwd=tmp_path / "got", input=sums, check=False, capture_output=True)
        return done.returncode == 0

    assert verifies("ours")
    assert not verifies("ours", b"\n")
    assert not verifies("other")


def test_what_is_not_committed_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a").touch()
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    assert BUILD["committed"](tmp_path) > EPOCH
    (tmp_path / "b").touch()
    with pytest.raises(BUILD["NotBuilt"], match="1 files differ from the commit, the first is b"):
        BUILD["committed"](tmp_path)
    with pytest.raises(BUILD["NotBuilt"], match="wanted an empty folder"):
        BUILD["release"](tmp_path, tmp_path, None, "fedft")


# -- the list of packages ---------------------------------------------------------------------------------------------


def sbom(tmp_path: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    to = tmp_path / "bill.json"
    command = [sys.executable, str(ROOT / "release" / "sbom.py"), "--to", str(to), *words]
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    return done, json.loads(to.read_text()) if to.exists() else {}


def package(site: Path, name: str, *lines: str) -> None:
    """An installed package, as far as its metadata goes."""
    about = site / f"{name}-1.0+cpu.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("\n".join(("Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0+cpu", *lines)))


def test_the_list_has_what_a_package_needs_here_and_nothing_else(tmp_path: Path) -> None:
    """Extras, and markers of other systems, count where they are asked for."""
    package(tmp_path, "Top_Most", "License-Expression: MIT", "Requires-Dist: mid[more]; python_version > '3'")
    package(tmp_path, "mid", "Requires-Dist: low; extra == 'more'", "Requires-Dist: none; sys_platform == 'plan9'")
    package(tmp_path, "low", "License: BSD", "Requires-Dist: mid")
    package(tmp_path, "apart")
    hashes = tmp_path / "hashes.txt"
    hashes.write_text(f"# of them\nlow==1.0+cpu --hash=sha256:{'a' * 64}\n")
    done, said = sbom(tmp_path, "--of", "top-most", "--hashes", str(hashes))
    assert done.returncode == 0, done.stderr
    reference = {n: f"pkg:pypi/{n}@1.0%2Bcpu" for n in ("top-most", "mid", "low")}
    assert said["metadata"]["component"]["purl"] == reference["top-most"]
    assert said["metadata"]["component"]["licenses"] == [{"expression": "MIT"}]
    assert [c["name"] for c in said["components"]] == ["low", "mid"]
    assert said["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert said["components"][0]["licenses"] == [{"license": {"name": "BSD"}}]
    needs = {d["ref"]: d["dependsOn"] for d in said["dependencies"]}
    assert needs == {
        reference["low"]: [reference["mid"]],
        reference["mid"]: [reference["low"]],
        reference["top-most"]: [reference["mid"]],
    }
    assert sbom(tmp_path, "--of", "top-most", "--hashes", str(hashes))[1] == said


def test_what_is_not_so_is_one_line(tmp_path: Path) -> None:
    package(tmp_path, "top", "Requires-Dist: gone")
    done, said = sbom(tmp_path, "--of", "top")
    assert (done.returncode, said) == (1, {})
    assert done.stderr == "sbom: gone: not installed here, and top needs it\n"
    package(tmp_path, "gone")
    (tmp_path / "hashes.txt").write_text(f"gone==2.0 --hash=sha256:{'a' * 64}\n")
    done, said = sbom(tmp_path, "--of", "top", "--hashes", str(tmp_path / "hashes.txt"))
    assert (done.returncode, said) == (1, {})
    assert done.stderr == "sbom: gone: 1.0+cpu is installed, the hash is of 2.0\n"


@pytest.mark.slow
def test_the_list_of_real_packages_has_the_form_of_cyclonedx(made: Path) -> None:
    """As its schema 1.6 wants it, as far as it is used."""
    said = json.loads(next(made.glob("*.cdx.json")).read_text())
    assert (said["bomFormat"], said["specVersion"], said["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", said["serialNumber"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said["metadata"]["timestamp"])
    every = [said["metadata"]["component"], *said["components"]]
    assert {"pytest", "pluggy", "iniconfig"} <= {c["name"] for c in every}
    for c in every:
        assert set(c) <= {"type", "bom-ref", "name", "version", "purl", "licenses", "hashes"}
        assert c["type"] in ("application", "library")
        assert re.fullmatch(r"pkg:pypi/[a-z0-9.\-]+@[\w.%\-]+", c["purl"])
        for licence in c.get("licenses", ()):
            assert set(licence) in ({"license"}, {"expression"})
    references = [c["bom-ref"] for c in every]
    assert len(set(references)) == len(references)
    assert {d["ref"] for d in said["dependencies"]} == set(references)
    assert {r for d in said["dependencies"] for r in d["dependsOn"]} <= set(references)
