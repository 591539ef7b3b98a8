"""What an audit finds against what a run spends: secrets and membership under plain training and under example-dp.

Each way trains FFA-LoRA on the quickstart's rows with canaries among them, and is audited as `fedft audit` does:

    base         the model as it was before
    none         without a guard
    epsilon 8    `[privacy] mode = "example-dp"` at that epsilon and delta 1e-3, the same steps and rates
    epsilon 1    likewise

`bits, 16 times` is the mean exposure of secrets that stand there so often, of 8 bits at most; `at least` is the lower
bound on epsilon, under example-dp of canaries that stand there once; `spent` the epsilon that the run reports. All are
means over seeds. Seconds are the CPU's for the runs, evaluation and all.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedft import quickstart, run_file
from fedft.benchmarks.results import Result, Row
from fedft.privacy.audit.contrasts import Wanted
from fedft.quickstart import base, pretraining
from fedft.simulations import audited_run
from fedft.simulations import run as runs

REPEATS = (1, 4, 16)
DELTA = 1e-3
WAYS: Mapping[str, float | None] = {"none": None, "epsilon 8": 8.0, "epsilon 1": 1.0}


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """Each way with as many seeds as `turns`, three at most; `quick` is two steps of one client with few canaries."""
    seeds = 1 if quick else min(turns, 3)
    model = str(base.ensure(settings=pretraining.TINY)) if quick else quickstart.BASE
    sizes = {"model.id": f"'{model}'", "data.clients": 1 if quick else 4, "audit.canaries": 6 if quick else 48}
    sizes |= {"server.rounds": 1 if quick else 3, "local.steps": 2 if quick else 40}
    found = {way: [_audited(epsilon, seed, sizes) for seed in range(seeds)] for way, epsilon in WAYS.items()}
    seconds: dict[str, float] = {}
    rows = [Row("canaries", "base", facts=_facts(found["none"], "base_exposure"))]
    for way, audits in found.items():
        facts = {**_facts(audits, "exposure"), **_means(audits)}
        seconds[way] = fmean(a["seconds"] for a in audits)
        rows.append(Row("canaries", way, seconds[way], ratio=seconds["none"] / seconds[way], facts=facts))
    settings = {**{key.partition(".")[2]: value for key, value in sizes.items() if key != "model.id"}, "seeds": seeds}
    return Result("audit-curve", "secrets and membership that an audit finds, against epsilon", settings, tuple(rows))


def _audited(epsilon: float | None, seed: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """What `audit.json` has of one run of these `sizes`, with its CPU `seconds` and last held-out `loss`."""
    private = {"mode": "example-dp", "clip": 1.0, "epsilon": epsilon, "delta": DELTA} if epsilon else {}
    private = {f"privacy.{key}": value for key, value in private.items()}
    overrides = [
        "strategy.name=ffa_lora", "clients.rank=8", f"server.seed={seed}", "server.loggers=[]", "local.batch_size=8",
        "data.max_length=64", "eval.max_rows=16", f"audit.repeats={list(REPEATS)}", f"audit.seed={seed}",
        *(f"{key}={value}" for key, value in (sizes | private).items()),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        run = runs.simulate(run_file.load(runs.QUICKSTART, overrides), out=Path(folder) / "run")
        seconds = time.process_time() - began
        said = audited_run.audit_run(run.folder, Wanted(samples=0)).said
    return {**said, "seconds": seconds, "loss": run.summary["final"]["loss"]}


def _facts(audits: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Mean exposure by how often a secret stands there, as `key` of the groups says it."""
    groups = [g for audit in audits for g in audit["canaries"]["groups"] if key in g]
    of = {n: [g[key] for g in groups if g["repeats"] == n] for n in REPEATS}
    return {f"bits, {n} times" if n > 1 else "bits, once": fmean(bits) for n, bits in of.items() if bits}


def _means(audits: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    outside = [g["left_out_exposure"] for a in audits for g in a["canaries"]["groups"] if "left_out_exposure" in g]
    found = {
        "bits, left out": outside,
        "AUC": [a["membership"]["calibrated"]["auc"] for a in audits],
        "at least": [a["epsilon_lower"]["epsilon"] for a in audits if "epsilon_lower" in a],
        "spent": [a["run"]["epsilon"] for a in audits if a["run"]["epsilon"] is not None],
        "loss": [a["loss"] for a in audits],
    }
    return {name: fmean(values) for name, values in found.items() if values}
