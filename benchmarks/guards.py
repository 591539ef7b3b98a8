"""What each guard costs: one simulated round with it, beside the same round without any.

    central-dp          clip and noise at the server             local-dp       clip and noise of each whole update
    example-dp, zo-dp   clip and noise in every local step       secagg         masks, and a block's set-up: once in 16
    secagg, central-dp  masks, and a share of the noise each     rules          `[robust] rule`, of single updates

CPU of all clients and the server together, on one resident Llama of random weights; nothing is evaluated. `step ms` is
of one local step, `beside steps` of all else. Bytes are of one client, both directions: letters of the round, and of
secure sums what a round costs with a sixteenth of its block.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.utils import logging

from fedft import run_file, strategies
from fedft.benchmarks.clients import TARGETS, made_up
from fedft.benchmarks.measure import Act, take_turns
from fedft.benchmarks.results import Result, Row
from fedft.benchmarks.round import Place, place_of
from fedft.client.received_state import CohortCache, Memory
from fedft.client.train import Client
from fedft.contract import Trained, Turn
from fedft.models import layout, load
from fedft.models.handle import ModelHandle
from fedft.models.parameters import digest_of
from fedft.models.resident import Resident
from fedft.recipe import LoRA
from fedft.reports.metric_log import Line
from fedft.server import open_run
from fedft.simulations import secure_keys
from fedft.simulations import workplace as runs

CLIENTS = 5
NOISE = {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-4}
SUMS: dict[str, dict[str, Any]] = {
    "none": {},
    "central-dp": {"privacy": {"mode": "central-dp", **NOISE}},
    "secagg": {"privacy": {"secagg": "on"}},
    "secagg, central-dp": {"privacy": {"mode": "central-dp", "secagg": "on", **NOISE}},
}
LOCAL = {"privacy": {"mode": "local-dp", **NOISE}}
RULES = {rule: {"robust": {"rule": rule}} for rule in ("norm_clip", "multi_krum", "geometric_median", "median")}
RECORDS = {mode: {"privacy": {"mode": mode, **NOISE}} for mode in ("example-dp", "zo-dp")}
GUARDS: Mapping[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "ffa_lora": ({}, {**SUMS, "local-dp": LOCAL, "example-dp": RECORDS["example-dp"], **RULES}),
    # scalars with noise of local-dp are beyond the bound that admission has for honest ones
    "fedkseed": ({"K": 1024, "scalar_clip": 50.0}, {**SUMS, "zo-dp": RECORDS["zo-dp"]}),
}
"""Options and guards by strategy."""


@dataclass
class Guarded:
    """One round of a strategy with one guard, as often as it is called."""

    place: Place
    tables: Mapping[str, Any]
    """Of the run file, beside those of the place."""
    line: Line | None = None
    """Of the state that the last round led to."""
    stepped: list[float] = field(default_factory=list)
    """CPU seconds of the local steps of each round."""

    def __call__(self) -> None:
        """A run of one round, from the first state to the second."""
        whole = self.place.config.to_dict() | {k: dict(v) for k, v in self.tables.items()}
        config = run_file.from_dict({t: {k: x for k, x in keys.items() if x is not None} for t, keys in whole.items()})
        recipe, cache, names = strategies.of(config), CohortCache(), self.place.rows
        secure, here = secure_keys.secure_sums(config, recipe, None, names), self.place
        self.stepped.append(0.0)
        stepped = self.stepped

        class Timed(Client):
            def steps(self, turn: Turn) -> Trained:
                began = time.process_time()
                try:
                    return super().steps(turn)
                finally:
                    stepped[-1] += time.process_time() - began

        clients = {
            name: Timed(name, rows, [], here.base, here.handle, recipe, config, Memory(cache), secure=secure.get(name))
            for name, rows in names.items()
        }
        cache.members += [c.memory for c in clients.values()]
        folder = Path(mkdtemp(dir=here.folder))
        run = open_run.fresh(config, recipe, Resident(here.base, here.handle.layout, here.handle), folder,
                             runs.whose(clients))  # fmt: skip
        cards = {name: s.cards[name] for name, s in secure.items()}
        run.loop(runs.local_post(clients), cards=lambda: cards).run(clients)
        self.line = run.metrics.lines[-1]


def bench(*, quick: bool = False, turns: int = 5) -> Result:
    """Five clients of ten steps on a Llama of four layers, 128 wide."""
    steps, hidden, layers, tokens = (1, 64, 2, 32) if quick else (10, 128, 4, 128)
    logging.disable_progress_bar()
    acts: list[Act] = []
    rounds: dict[tuple[str, str], Guarded] = {}
    with TemporaryDirectory() as at:
        net: Any = AutoModelForCausalLM.from_pretrained(made_up(folder := Path(at), hidden, layers))
        base = load.Base(net, None, "causal-lm", str(folder), digest_of(net))
        for name, (options, guards) in GUARDS.items():
            space = LoRA((".lora_B",)) if name == "ffa_lora" else strategies.make(name, options).space
            handle = ModelHandle(net, layout.layout_of(base, TARGETS), space)
            place = place_of(folder, base, handle, tokens, CLIENTS, steps)
            for way, tables in guards.items():
                run = Guarded(place, {**tables, "strategy": {"name": name, **options}})
                rounds[name, way] = run
                acts.append(Act(name, way, run))
        rows = take_turns(acts, turns)
    return Result(
        "guards",
        "A simulated round with each guard, beside the same round without",
        {"clients": CLIENTS, "steps": steps, "hidden": hidden, "layers": layers, "tokens": tokens, "turns": turns},
        tuple(_with_facts(r, rounds[r.what, r.way], steps) for r in rows),
    )


def _with_facts(row: Row, run: Guarded, steps: int) -> Row:
    assert run.line is not None
    stepped = statistics.median(run.stepped[1:] or run.stepped)
    step, beside = stepped / CLIENTS / steps, row.seconds - stepped
    sent = sum(run.line["training_bytes"].values()) / CLIENTS
    return replace(row, facts={"step ms": 1e3 * step, "beside steps ms": 1e3 * beside, "bytes": sent})
