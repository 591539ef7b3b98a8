"""Processes that begin warm are processes: what they are told, write, receive and end with is their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import warm_processes

pytestmark = [
    pytest.mark.slow,  # the first of a session loads for seconds
    pytest.mark.skipif(sys.platform != "linux", reason="cold where there is no /proc"),
]
SCRIPT = """
import atexit, json, os, sys, time
atexit.register(print, "the end")
print(json.dumps([os.getpid(), os.getsid(0), os.getcwd(), sys.argv, os.environ.get("TOLD"), "torch" in sys.modules]))
sys.stdout.flush()
print("on stderr", file=sys.stderr)
if sys.argv[1] == "sleep":
    time.sleep(100)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if os.environ.get("WARM_PROCESSES") == "0":
        monkeypatch.setenv("WARM_PROCESSES", "1")
    (tmp_path / "script.py").write_text(SCRIPT)
    return str(tmp_path / "script.py")


def test_a_script_has_its_words_place_environment_and_exit_code(script: str, tmp_path: Path) -> None:
    done = warm_processes.run([script, "3"], cwd=tmp_path, env={**os.environ, "TOLD": "so"})
    first, *rest = done.stdout.splitlines()
    pid, session, place, words, told, warm = json.loads(first)
    assert (done.returncode, rest, done.stderr) == (3, ["the end"], "on stderr\n")
    assert pid == session != os.getpid()
    assert (place, words, told, warm) == (str(tmp_path), [script, "3"], "so", True)
    with pytest.raises(subprocess.CalledProcessError):
        warm_processes.run([script, "3"], check=True)


def test_a_module_is_run_as_one_and_a_traceback_is_a_code(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("1 / 0")
    done = warm_processes.run(["-m", "odd"], cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_killed_one_is_told_by_its_signal_and_the_others_go_on(script: str, tmp_path: Path) -> None:
    with open(tmp_path / "said", "wb") as said:
        one, two = (warm_processes.start([script, "sleep"], said, said) for _ in range(2))
    with pytest.raises(subprocess.TimeoutExpired):
        one.wait(0.01)
    one.send_signal(signal.SIGKILL)
    assert (one.wait(30), two.poll()) == (-signal.SIGKILL, None)
    two.send_signal(signal.SIGTERM)
    assert two.wait(30) == -signal.SIGTERM
