"""LoRA and FFA-LoRA under noise on records, as the FFA-LoRA paper compares them, and FedKSeed beside them; in small.

    tasks     TREC's questions (six classes, accuracy on its test set), cut to 24 tokens; descriptions of restaurants
              from E2E (loss per token on 100 of its test rows), cut to 40. Four sites of equal shares
    model     the Llama of the tests, two layers of 64; rank 8 on all linear layers
    guards    epsilon 6, 3, 1 at delta 1e-5 for each record over the run, and none
    rounds    30 of 5 steps of 16 records, AdamW; FedKSeed (K 1024, in LoRA's space) takes its own steps, as many
    chosen    rate and clip on seed 0 at epsilon 3, four trials each: three rates, then another clip at the best of
              them, measured on training rows that are held back. Figures are of the seeds 1, 2, 3

`python -m fedft.benchmarks.private_ffa OUT.jsonl --data FOLDER` writes one line for each run, and prints the table at
the end; started again it goes on where OUT ends. FOLDER has trec/ and e2e_nlg/ with train.jsonl.gz and test.jsonl.gz.
"""

import argparse
import gzip
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fedft import run_file
from fedft.config import RunConfig
from fedft.quickstart import base, pretraining
from fedft.simulations import run as runs

METHODS = ("fedit", "ffa_lora", "fedkseed")
EPSILONS = (None, 6.0, 3.0, 1.0)
CHOSEN_AT, CHOSEN_ON, SEEDS = 3.0, 0, (1, 2, 3)
DELTA = 1e-5
RATES = {"fedit": (3e-3, 1e-2, 3e-2), "ffa_lora": (3e-3, 1e-2, 3e-2), "fedkseed": (1e-3, 3e-3, 1e-2)}
CLIPS = {"fedit": (1.0, 0.1), "ffa_lora": (1.0, 0.1), "fedkseed": (3.0, 0.5)}
MEASURED = {"trec": 500, "e2e": 100}  # test rows
HELD_BACK = 500  # training rows that rates and clips are chosen on
LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
MADE_UP = ("How many", "Who was", "Where is", "What does")
BETTER: Mapping[str, tuple[str, Callable[..., Any]]] = {"trec": ("accuracy", max), "e2e": ("loss", min)}
"""What a task is measured by, and which of two is better."""


@dataclass(frozen=True)
class Run:
    """One run: what decides its figures."""

    task: str
    method: str
    epsilon: float | None
    rate: float
    clip: float
    seed: int
    choosing: bool = False
    """A trial for rate and clip: measured on rows held back from training, not on the test set."""


@dataclass(frozen=True)
class Place:
    """Where rows lie."""

    folder: Path
    """Of rows, made once."""
    data: Path | None
    """Of trec/ and e2e_nlg/; None: a few rows made up here, and two rounds of one step."""


def found(out: Path) -> list[dict[str, Any]]:
    """The lines of `out`, one for each run that has ended; a last line that was cut off by a kill is left out."""
    if not out.exists():
        return []
    whole, _, cut = out.read_text(encoding="utf-8").rpartition("\n")
    if cut:
        out.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def measure(place: Place, out: Path) -> list[dict[str, Any]]:
    """Do every run that `out` lacks, and append its line; all lines."""
    lines = found(out)
    known = {_key(line): line for line in lines}

    def do(run: Run) -> dict[str, Any]:
        if (key := _key(asdict(run))) not in known:
            known[key] = _ended(run, place)
            lines.append(known[key])
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[key]) + "\n")
        return known[key]

    best = {(task, method): _chosen(task, method, do) for task in BETTER for method in METHODS}
    # what the paper compares comes first, of all seeds
    for seed, (task, method) in sorted(product(SEEDS, best), key=lambda of: of[1][1] == "fedkseed"):
        rate, clip = best[task, method]
        for epsilon in EPSILONS:
            do(Run(task, method, epsilon, rate, clip, seed))
    return lines


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in Run.__dataclass_fields__)


def _chosen(task: str, method: str, do: Callable[[Run], Mapping[str, Any]]) -> tuple[float, float]:
    """Rate and clip of the best of four trials: three rates, then the second clip at the best of them."""
    name, better = BETTER[task]

    def trial(rate: float, clip: float) -> float:
        said = do(Run(task, method, CHOSEN_AT, rate, clip, CHOSEN_ON, choosing=True))[name]
        return said if said is not None else math.inf if better is min else -math.inf

    usual, other = CLIPS[method]
    scores = {(rate, usual): trial(rate, usual) for rate in RATES[method]}
    rate, _ = better(scores, key=scores.__getitem__)
    scores[rate, other] = trial(rate, other)
    return better(scores, key=scores.__getitem__)


def _ended(run: Run, place: Place) -> dict[str, Any]:
    """The run's line: what it was, what it measured (None where that is no number), what it spent, CPU seconds."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        summary = runs.simulate(config_of(run, place), out=Path(folder) / "run").summary
    final = {name: summary["final"][name] for name in ("loss", "accuracy")}
    measured = {name: value if value is not None and math.isfinite(value) else None for name, value in final.items()}
    seconds = round(time.process_time() - began, 1)
    return {**asdict(run), **measured, "spent": summary.get("epsilon"), "seconds": seconds}


def config_of(run: Run, place: Place) -> RunConfig:
    """The run file of one run."""
    train, test = _rows(run.task, place, choosing=run.choosing)
    first_order, (rounds, steps) = run.method != "fedkseed", (30, 5) if place.data else (2, 1)
    tables: dict[str, dict[str, Any]] = {
        "model": {"id": str(base.ensure(settings=pretraining.TINY))},
        "data": {"train": str(train), "test": str(test), "partition": "iid", "clients": 4},
        "strategy": {"name": run.method, **({} if first_order else {"K": 1024, "space": "lora"})},
        "local": {"steps": steps, "batch_size": 16, "learning_rate": run.rate, "threads": 1},
        "server": {"rounds": rounds, "seed": run.seed, "loggers": []},
        "eval": {"every": rounds, "max_rows": 125, "exactness": False},
        "clients": {"rank": 8} if first_order else {},
    }
    if run.task == "trec":
        tables["model"] |= {"task": "sequence-classification", "labels": list(LABELS)}
        tables["data"] |= {"text": "{text}", "label": "label", "max_length": 24}
    else:
        tables["data"] |= {"prompt": "{mr} = ", "response": "{ref}", "max_length": 40, "max_prompt": 16}
    if run.epsilon:
        mode = "example-dp" if first_order else "zo-dp"
        tables["privacy"] = {"mode": mode, "clip": run.clip, "epsilon": run.epsilon, "delta": DELTA}
    elif first_order:
        tables["local"]["max_grad_norm"] = run.clip
    return run_file.from_dict(tables)


def _rows(task: str, place: Place, *, choosing: bool) -> tuple[Path, Path]:
    """Files of training rows and of those to measure on, made once; for `choosing` both are of the training set."""
    named = [place.folder / f"{task}-{'choose' if choosing else 'final'}-{part}.jsonl" for part in ("train", "test")]
    if not all(path.exists() for path in named):
        train, test = list(_read(task, "train", place)), list(_read(task, "test", place))
        if choosing:
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
            held = min(HELD_BACK, len(train) // 4)
            train, test = [train[i] for i in order[held:]], [train[i] for i in order[:held]]
        test = test[: MEASURED[task]]
        for path, rows in zip(named, (train, test), strict=True):
            path.write_text("".join(rows), encoding="utf-8")
    return named[0], named[1]


def _read(task: str, part: str, place: Place) -> Iterator[str]:
    """The lines of a task's file, or some that are made up."""
    if place.data is None:
        for n in range(96 if part == "train" else 12):
            row = {"text": f"{MADE_UP[n % 4]} {n} ?", "label": LABELS[n % 6], "mr": f"name[{n}]", "ref": f"{n} is far."}
            yield json.dumps(row) + "\n"
        return
    folder = place.data / {"trec": "trec", "e2e": "e2e_nlg"}[task]
    with gzip.open(folder / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from file


def table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Mean and spread (standard deviation over seeds) of each task, method and epsilon that has ended."""
    made = Table("task", "method", "rate, clip", *("none" if e is None else f"epsilon {e:g}" for e in EPSILONS))
    for task, (name, _) in BETTER.items():
        for method in METHODS:
            ended = [x for x in lines if (x["task"], x["method"], x["choosing"]) == (task, method, False)]
            cells = []
            for epsilon in EPSILONS:
                values = [x[name] for x in ended if x["epsilon"] == epsilon and x[name] is not None]
                cells.append(f"{fmean(values):.3f} ± {pstdev(values):.3f}" if values else "–")
            chosen = f"{ended[0]['rate']:g}, {ended[0]['clip']:g}" if ended else "–"
            made.add_row(f"{task}, {name}", method, chosen, *cells)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what `OUT` lacks, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m fedft.benchmarks.private_ffa", description=__doc__)
    parser.add_argument("out", type=Path, help="file of lines, one for each run")
    parser.add_argument("--data", type=Path, help="folder of trec/ and e2e_nlg/")
    parser.add_argument("--tiny", action="store_true", help="made-up rows and two rounds of one step, for tests")
    told = parser.parse_args(arguments)
    if told.tiny == (told.data is not None):
        parser.error("wanted one of --data FOLDER and --tiny")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), told.data)
        Console().print(table(measure(place, told.out)))


if __name__ == "__main__":
    main()
