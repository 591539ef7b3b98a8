"""From nothing to the first round of a simulation, in CPU seconds of a process of its own.

    limit        the libraries: Python, torch, transformers, peft, and the same model loaded by `from_pretrained`
    ready        `fedft.simulate` on the quickstart's base and rows: base, rows and settings are there, nobody was asked
    first loss   that, and one client's first step
    whole run    that of one round of two clients, measured before and behind, with its folder and tables

Beyond the limit there is reading and tokenizing, and what a first step imports by itself (torch's own compiler is
read by its optimisers).
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fedft import quickstart
from fedft.benchmarks.measure import LIMIT, spread
from fedft.benchmarks.results import Result, Row
from fedft.quickstart import base

LIBRARIES = """
import sys, time, json
import peft
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained(sys.argv[1]); AutoTokenizer.from_pretrained(sys.argv[1])
print(json.dumps({"limit": time.process_time()}))
"""
OURS = """
import sys, time, json
import fedft
said = {}
def heard(kind, info):
    if kind == "header":
        said.setdefault("ready", time.process_time())
    if kind == "admitted":
        said.setdefault("first loss", time.process_time())
from fedft import run_file
sets = ["server.rounds=1", "local.steps=1", "data.clients=2", "eval.max_rows=2", "server.loggers=[]"]
fedft.simulate(run_file.load(None, sets), out=sys.argv[1], observe=heard)
print(json.dumps({**said, "whole run": time.process_time()}))
"""
WAYS = (LIMIT, "ready", "first loss", "whole run")


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """The two processes in turns; `quick` is one turn, for there is nothing smaller."""
    model = base.ensure()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1 if quick else turns):
            for code, argument in ((LIBRARIES, str(model)), (OURS, str(Path(folder) / str(turn)))):
                for way, seconds in _told(code, argument).items():
                    found[way].append(seconds)
    middle = {way: statistics.median(values) for way, values in found.items()}
    rows = [
        Row(
            f"start, {quickstart.BASE}",
            way,
            middle[way],
            spread(found[way]),
            middle[LIMIT] / middle[way],
            middle[way] / middle[LIMIT],
        )
        for way in WAYS
    ]
    return Result(
        "start", "CPU seconds until a simulation is so far; limit: the libraries it stands on", {}, tuple(rows)
    )


def _told(code: str, argument: str) -> dict[str, float]:
    """What a fresh Python says of its CPU seconds."""
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return told
