"""What a simulation of one process reads as it starts: none of the libraries that it does not use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# not scipy, which transformers reads where it is installed: the accountant's library and the tests' oracle bring it
UNUSED = {
    "flwr",
    "flwr_datasets",
    "datasets",
    "seaborn",
    "pandas",
    "matplotlib",
    "sklearn",
    "grpc",
    "ray",
    "trl",
}
CODE = """
import json, sys
import fedft
from fedft import run_file
sets = ["server.rounds=1", "local.steps=1", "data.clients=2", "eval.max_rows=2", "server.loggers=[]", "eval.rouge=true"]
fedft.simulate(run_file.load(None, [*sets, *sys.argv[2:]]), out=sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.slow  # a process that imports for seconds
@pytest.mark.parametrize("more", [[], ["data.partition=iid", "strategy.name=fedkseed", "local.learning_rate=1e-4"]])
def test_a_simulation_reads_no_library_that_it_does_not_use(tmp_path: Path, more: list[str], tiny_base: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path / "run"), f"model.id={tiny_base}", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    read = set(json.loads(done.stdout.strip().splitlines()[-1]))
    assert {"torch", "transformers", "fedft"} <= read
    assert not read & UNUSED
