"""One simulated round: what an ordinary Flower app for fine-tuning does, against the real loop on a resident base.

    plain         each client loads the model from its folder, get_peft_model, set_peft_model_state_dict, the steps, its
                  adapter as an ArrayRecord; the server: aggregate_arrayrecords. Nothing travels or is written down
    ours          the round engine of `fedft simulate` with FedIT: messages and codec, admission, journal, state on disk
    ours, shared  the same with `[server] together` = all clients
    limit         forward, backward and optimiser steps of all clients alone, on the resident base

Evaluation and the audit of exactness are off. Rows are of at most 64 tokens, all learned; Llama of random weights,
rank 8 on q and v. `outside` is the share of the CPU time that is neither forward nor backward (the optimiser is),
`seconds outside` what is beside the limit; below 0 where shared passes beat it.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from unittest.mock import patch

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from fedft import strategies
from fedft.benchmarks.clients import LONGEST, RANK, RATE, SPACE, TARGETS, VOCABULARY, in_peft, made_up, trained_anew
from fedft.benchmarks.measure import LIMIT, Act, alone, take_turns
from fedft.benchmarks.results import Result, Row
from fedft.client.received_state import CohortCache, Memory
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.data import batches
from fedft.data.examples import Example
from fedft.models import layout, load
from fedft.models.handle import ModelHandle
from fedft.models.parameters import digest_of
from fedft.models.resident import Resident
from fedft.run_file import from_dict
from fedft.server import open_run
from fedft.simulations import workplace as runs
from fedft.training.first_order import optimizer_of

WEIGHT = "num-examples"


@dataclass(frozen=True)
class Place:
    """One resident base, the rows of its clients, and a folder for what runs write."""

    folder: Path
    base: load.Base
    handle: ModelHandle
    rows: Mapping[str, list[Example]]
    config: RunConfig
    start: ArrayRecord
    """The adapter that an app's clients are given."""

    def plain(self) -> ArrayRecord:
        """As an app does it that is given an adapter and gives one back."""
        replies = []
        for seed, rows in enumerate(self.rows.values()):
            found = trained_anew(self.folder, self.start.to_torch_state_dict(), self.batches(rows, seed))
            replies.append(RecordDict({"arrays": ArrayRecord(found), "metrics": MetricRecord({WEIGHT: len(rows)})}))
        return aggregate_arrayrecords(replies, WEIGHT)

    def ours(self, together: int) -> None:
        """A run of one round, from the first state to the second."""
        config = replace(self.config, server=replace(self.config.server, together=together))
        recipe, cache = strategies.of(config), CohortCache()
        clients = {
            name: Client(name, rows, [], self.base, self.handle, recipe, config, Memory(cache))
            for name, rows in self.rows.items()
        }
        cache.members += [c.memory for c in clients.values()]
        here, folder = Resident(self.base, self.handle.layout, self.handle), Path(mkdtemp(dir=self.folder))
        run = open_run.fresh(config, recipe, here, folder, runs.whose(clients))
        run.loop(runs.local_post(clients)).run(clients)

    def limit(self) -> None:
        """Nothing but the steps."""
        for seed, rows in enumerate(self.rows.values()):
            trained = list(self.handle.parameters().values())
            optimizer = optimizer_of(trained, RATE, self.config.local)
            for batch in self.batches(rows, seed):
                self.handle.loss(batch).backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()

    def batches(self, rows: list[Example], seed: int) -> Any:
        """Of one client."""
        size, steps = self.config.local.batch_size, self.config.local.steps
        return batches.batches(rows, batch_size=size, steps=steps, seed=seed, pad_id=0)


def place_of(folder: Path, base: load.Base, handle: ModelHandle, tokens: int, clients: int, steps: int) -> Place:
    """Clients with batches of so many tokens."""
    g = torch.Generator().manual_seed(0)
    size = max(1, tokens // LONGEST)

    def example() -> Example:
        ids = torch.randint(1, VOCABULARY, (tokens // size,), generator=g).tolist()
        return Example(ids, ids, 0)

    rows = {f"client-{k}": [example() for _ in range(size * steps)] for k in range(clients)}
    config = from_dict(
        {
            "model": {"id": str(folder), "targets": TARGETS},
            "data": {"max_length": LONGEST},
            "strategy": {"name": "fedit"},
            "local": {"steps": steps, "batch_size": size, "learning_rate": RATE},
            "clients": {"rank": RANK},
            "server": {"rounds": 1},
            "eval": {"exactness": False},
        }
    )
    start = ArrayRecord(in_peft(SPACE.initial(handle.layout, RANK, 0)))
    return Place(folder, base, handle, rows, config, start)


def share_outside(run: Callable[[], object], net: Any, turns: int) -> float:
    """Median share of CPU time that is neither the model's forward pass nor a backward pass."""
    inside = 0.0

    def timed(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal inside
            began = time.process_time()
            try:
                return f(*args, **more)
            finally:
                inside += time.process_time() - began

        return call

    found = []
    with (
        alone(),
        patch.object(net, "forward", timed(net.forward)),
        patch.object(torch.Tensor, "backward", timed(torch.Tensor.backward)),
        patch.object(torch.autograd, "grad", timed(torch.autograd.grad)),
    ):
        for _ in range(turns):
            inside, began = 0.0, time.process_time()
            run()
            found.append(1 - inside / (time.process_time() - began))
    return statistics.median(found)


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """Eight clients of five steps on a Llama of six layers, 256 wide."""
    clients, steps = (3, 2) if quick else (8, 5)
    hidden, layers = (64, 2) if quick else (256, 6)
    logging.disable_progress_bar()
    acts: list[Act] = []
    outside: dict[tuple[str, str], float] = {}
    with TemporaryDirectory() as here:
        net: Any = AutoModelForCausalLM.from_pretrained(made_up(folder := Path(here), hidden, layers))
        base = load.Base(net, None, "causal-lm", str(folder), digest_of(net))
        handle = ModelHandle(net, layout.layout_of(base, TARGETS), SPACE)
        for tokens in (32,) if quick else (16, 256):
            what, place = f"{tokens} tokens x {steps} steps", place_of(folder, base, handle, tokens, clients, steps)
            ours = {"ours": partial(place.ours, 1), "ours, shared": partial(place.ours, clients)}
            ways: dict[str, Callable[[], object]] = {"plain": place.plain, **ours, LIMIT: place.limit}
            acts += [Act(what, way, run) for way, run in ways.items()]
            outside |= {(what, way): share_outside(run, net, 1 if quick else 3) for way, run in ours.items()}
        rows = take_turns(acts, turns)
    return Result(
        "round",
        "A simulated round: an ordinary Flower app's clients and sums, against ours; limit: the steps alone",
        {"clients": clients, "steps": steps, "hidden": hidden, "layers": layers, "rank": RANK, "targets": TARGETS},
        tuple(_with_facts(r, rows, outside) for r in rows),
    )


def _with_facts(r: Row, rows: tuple[Row, ...], outside: Mapping[tuple[str, str], float]) -> Row:
    limit = next(x.seconds for x in rows if (x.what, x.way) == (r.what, LIMIT))
    share = {"outside": outside[r.what, r.way]} if (r.what, r.way) in outside else {}
    return r if r.way == LIMIT else replace(r, facts={"seconds outside": r.seconds - limit} | share)
