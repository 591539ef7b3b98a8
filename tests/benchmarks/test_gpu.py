"""`benchmarks/gpu.py` runs on the CPU with its smallest sizes, and without what a bare machine lacks."""

import json
import subprocess
import sys

import pytest
import torch

from fedft.benchmarks import gpu
from fedft.benchmarks.gpu_machine import LeftOut, Machine

BARE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"flwr", "flwr_datasets", "datasets", "constriction"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from fedft.benchmarks import gpu
sys.exit(gpu.main(["--tiny", "--out", sys.argv[1]]))
"""


def test_shares_are_of_the_whole_time_and_names_are_different():
    every = gpu.parts()
    assert sum(p.share for p in every) == pytest.approx(1)
    assert len({p.name for p in every}) == len(every) > 5


def test_a_part_that_cannot_run_is_left_out_by_name_and_one_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    def lacking(machine, seconds):
        raise LeftOut("needs a friend")

    def absent(machine, seconds):
        raise ModuleNotFoundError("No module named 'friends'", name="friends")

    def broken(machine, seconds):
        raise RuntimeError("out of memory\nand more")

    found = (("one", lacking), ("two", absent), ("three", broken), ("four", lambda m, s: {"ok": True, "x": 1.5}))
    monkeypatch.setattr(gpu, "parts", lambda: tuple(gpu.Part(n, 0.25, run) for n, run in found))
    assert gpu.main(["--tiny", "--out", str(tmp_path / "to" / "gpu.json")]) == 1
    said = json.loads((tmp_path / "to" / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert said["one"] == {"left out": "needs a friend"}
    assert said["two"] == {"left out": "needs friends"}
    assert said["three"]["failed"] == "RuntimeError: out of memory"
    assert said["four"]["ok"] is True
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["one", "two", "three", "four"]


def test_no_time_left_is_said():
    part = gpu.Part("late", 0.5, lambda m, s: {"ok": True})
    assert "no time" in gpu.measured(part, Machine(torch.device("cpu"), True), 10.0, 100.0)["left out"]


@pytest.mark.slow
def test_it_runs_where_flower_datasets_and_constriction_are_not_installed(tmp_path):
    """In a process that cannot import them; what ran found what it should."""
    file = tmp_path / "gpu.json"
    done = subprocess.run([sys.executable, "-c", BARE, str(file)], capture_output=True, text=True, check=False)
    found = json.loads(file.read_text(encoding="utf-8"))["parts"]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    ran = {name for name, facts in found.items() if "left out" not in facts}
    assert ran >= {"step 1B", "step 8B", "memory 1B", "FLoRA merge 8B", "round of 8 clients 1B"}
    assert all(facts["ok"] for name, facts in found.items() if name in ran), found
