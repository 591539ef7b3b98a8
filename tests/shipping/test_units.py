"""systemd takes the unit files without a word, and finds little that they leave open."""

import re
import shutil
import subprocess
from pathlib import Path

import containers
import pytest

ROOT = containers.ROOT
NEWER = {"RestartSteps": 254, "RestartMaxDelaySec": 254}  # keys, and the first systemd that knows them
MOST_EXPOSED = 20  # of 100, by `systemd-analyze security`
pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="this machine has no systemd-analyze")


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def placed(role: str, folder: Path) -> Path:
    """A copy that starts a program which is there, without keys that this machine's systemd is too old for."""
    said = analyze("--version").stdout
    version = int(re.findall(r"systemd (\d+)", said)[0])
    program = folder / "fedft"
    program.touch(0o755)
    lines = (ROOT / role / f"fedft-{role}.service").read_text(encoding="utf-8").splitlines()
    known = [line for line in lines if version >= NEWER.get(line.partition("=")[0], 0)]
    unit = folder / f"fedft-{role}.service"
    unit.write_text("\n".join(known).replace("/opt/fedft/bin/fedft", str(program)) + "\n")
    return unit


def verified(unit: Path) -> subprocess.CompletedProcess[str]:
    return analyze("verify", "--man=no", "--recursive-errors=no", str(unit))


@pytest.mark.parametrize("role", containers.ROLES)
def test_systemd_takes_a_unit_as_it_is(role: str, tmp_path: Path) -> None:
    done = verified(placed(role, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("right", "wrong"), [("RestartSec=", "RestartSecs="), ("/fedft server ", "/fedfd server ")])
def test_a_mistake_in_a_unit_is_found(right: str, wrong: str, tmp_path: Path) -> None:
    unit = placed("server", tmp_path)
    unit.write_text(unit.read_text().replace(right, wrong))
    assert wrong in unit.read_text()
    assert verified(unit).returncode != 0


@pytest.mark.parametrize("role", containers.ROLES)
def test_a_unit_leaves_little_open(role: str, tmp_path: Path) -> None:
    done = analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", str(placed(role, tmp_path)))
    if "--offline" in done.stderr:
        pytest.skip("this systemd-analyze looks at loaded units only")
    assert done.returncode == 0, done.stdout
