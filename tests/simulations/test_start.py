"""What a simulation of one process reads as it starts: none of the libraries that it does not use."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

import fedft
from fedft.server.loop import Loop

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
# ours, of what the run does not ask for: noise, secure sums, robust sums, an audit
NOT_ASKED_FOR = {
    "fedft.aggregation.entrywise",
    "fedft.aggregation.robust_weights",
    "fedft.client.secure_sums",
    "fedft.privacy.audit.contrasts",
    "fedft.privacy.audit.findings",
    "fedft.privacy.audit.planted_records",
    "fedft.privacy.audit.verdict",
    "fedft.privacy.secure_sum.collector",
    "fedft.privacy.secure_sum.member",
    "fedft.privacy.site_noise",
    "fedft.privacy.unfit",
    "fedft.security.roster",
    "fedft.server.integer_sum",
    "fedft.server.masked_rounds",
    "fedft.server.noisy_evaluation",
    "fedft.server.private_checks",
    "fedft.server.private_sum",
    "fedft.server.robust_sum",
    "fedft.server.root_update",
    "fedft.simulations.audited_run",
    "fedft.simulations.client_accounts",
    "fedft.simulations.secure_keys",
    "fedft.training.per_example",
    "fedft.training.private_steps",
    "fedft.training.private_walks",
}
CODE = """
import json, sys
import fedft
from fedft import run_file
sets = ["server.rounds=1", "local.steps=1", "data.clients=2", "eval.max_rows=2", "server.loggers=[]", "eval.rouge=true"]
fedft.simulate(run_file.load(None, [*sets, *sys.argv[2:]]), out=sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.slow  # a process that imports for seconds
@pytest.mark.parametrize("more", [[], ["data.partition=iid", "strategy.name=fedkseed", "local.learning_rate=1e-4"]])
def test_a_simulation_reads_no_library_that_it_does_not_use(tmp_path: Path, more: list[str], tiny_base: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path / "run"), f"model.id={tiny_base}", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    read = set(json.loads(done.stdout.strip().splitlines()[-1]))
    assert {"torch", "transformers", "fedft"} <= read
    assert not {name.partition(".")[0] for name in read} & UNUSED
    assert not read & NOT_ASKED_FOR
    assert all(find_spec(name) for name in NOT_ASKED_FOR), "a file has another name now"


GARBAGE = """
import gc
import fedft
often = gc.get_threshold()
with fedft.reading_libraries():
    assert gc.get_threshold()[2] > often[2]
assert gc.get_threshold() == often
with fedft.started():
    assert not gc.get_freeze_count(), "the process is not ours"
fedft.starting()
with fedft.started():
    assert gc.get_freeze_count() > 1000 and gc.get_threshold() == often
    with fedft.started():  # a baseline within the run
        pass
    assert gc.get_freeze_count() > 1000, "the inner run has ended the outer one's rest"
assert not gc.get_freeze_count()
gc.freeze()
kept = gc.get_freeze_count()
fedft.starting()
with fedft.started():
    assert gc.get_threshold() == often
assert gc.get_freeze_count() == kept, "somebody else's"
"""


def test_what_is_there_as_a_run_begins_is_not_looked_through_again() -> None:
    """Of a process whose start was ours; a caller's own process has everything as it was."""
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr


def test_every_run_of_a_command_begins_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's loop is where the rest begins: whatever command opens a run, it comes through there."""
    inside: list[str] = []

    @contextmanager
    def started() -> Iterator[None]:
        inside.append("begins")
        yield
        inside.append("ends")

    monkeypatch.setattr(fedft, "started", started)
    monkeypatch.setattr(Loop, "_run", lambda self, clients: inside.append("runs"))
    Loop.run(Loop.__new__(Loop), [])
    assert inside == ["begins", "runs", "ends"]
