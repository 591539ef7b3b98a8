"""What the engine does around one client's update: CPU per megabyte, stage by stage, and its share of a run's wall.

    encode      the client's message of its update
    admit       decoding, finite numbers, limits, norm
    journal     hashed and written, as a simulation does it
    add         its part of the mean, in float64
    all         whole rounds by the engine: plan, answers, admission, journal, mean; nobody trains
    commit      the new state hashed, written and durable; once a round, however many the clients
    limit       of `all`: the same bytes copied, hashed and written once

Seconds are of one megabyte (10^6 bytes of float32 LoRA factors), clients' and server's CPU together, threads too.

`outside` is of a simulated run on a Llama of random weights whose updates are as large: the share of its wall time in
which no client takes its local steps. `one at a time` is the same without the thread that admits and writes one
client's update while the next one trains.
"""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedft import strategies
from fedft.benchmarks.measure import LIMIT, Act, take_turns
from fedft.benchmarks.results import Result, Row
from fedft.carriers.interface import Kind
from fedft.carriers.local import LocalPost
from fedft.client.received_state import CohortCache, Memory
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.contract import Handle, Layout, LocalStep, State, Trained, Turn
from fedft.data.examples import Example
from fedft.models import layout as layouts
from fedft.models import load
from fedft.models.handle import ModelHandle
from fedft.models.resident import Resident
from fedft.recipe import LoRA
from fedft.run_file import from_dict
from fedft.server import admission, admitting, open_run
from fedft.server.checkpoint import Store
from fedft.server.exchange import Exchange
from fedft.server.federation import Federation
from fedft.server.job import job_of
from fedft.server.round import Round
from fedft.simulations import workplace as runs
from fedft.update import Plan, Update
from fedft.wire import messages

UP, BASE = "fp32", "d" * 64  # codec; what the base model's weights are said to hash to


def config_of(rank: int, rounds: int, steps: int = 1) -> RunConfig:
    """FedIT, nothing evaluated, nothing audited."""
    local = {"steps": steps, "batch_size": 4, "learning_rate": 1e-4}
    tables = {"strategy": {"name": "fedit"}, "clients": {"rank": rank}, "local": local, "data": {"max_length": 64}}
    server = {"rounds": rounds, "deadline_s": 3600.0}
    return from_dict(tables | {"server": server, "eval": {"exactness": False, "every": rounds + 1}})


class Engine:
    """A federation of clients in one process that answer every plan with the same change, at once."""

    def __init__(self, folder: Path, layout: Layout, config: RunConfig, clients: int) -> None:
        self.recipe, self.layout = strategies.of(config), layout
        self.names = [f"client-{k}" for k in range(clients)]
        first = self.recipe.first_state(layout, config.ranks()[0], 0)
        g = torch.Generator().manual_seed(0)
        change = {n: 1e-3 * torch.randn(x.shape, generator=g) for n, x in first.tensors.items()}
        self.update, self.state = Update(change, 10, metrics={"loss": 1.0}), first
        self.mb = sum(4 * x.numel() for x in change.values()) / 1e6
        self._read: tuple[bytes, Plan] = b"", Plan("", 0, 0)
        post = LocalPost(dict.fromkeys(self.names, self.answer))
        self.store = Store(folder / "state", sync_all=False)
        self.federation = Federation(post, self.recipe, layout, config, job_of(config, BASE, ()), self.store)
        self.federation.enter(self.names)
        self.plan = self.federation.plans(first, self.names)[self.names[0]]
        self.message = messages.encode_update(replace(self.update, run=self.federation.job.run), UP)

    def answer(self, kind: Kind, payload: bytes) -> bytes:
        """What a client says to the job, or to a plan, which is read once for all of them, as a simulation does."""
        if kind == "query":
            return messages.encode_update(Update({}, 10, run=self.federation.job.run), UP)
        if payload is not self._read[0]:
            self._read = payload, messages.decode_plan(payload, max_bytes=len(payload))
        plan = self._read[1]
        return messages.encode_update(replace(self.update, run=plan.run, round=plan.round, attempt=plan.attempt), UP)

    def round(self) -> State:
        """A whole round, but for its commit; that of an empty state is done with the journal of the one before."""
        self.store.save(State(1, {}), {})
        return Round(Exchange(self.federation), self.state, [], []).carry_out().after

    def admit(self) -> object:
        """One message."""
        limits = self.federation.config.limits
        return admission.admit(self.message, "client-0", self.plan, self.recipe, self.layout, UP, limits, [])

    def mean(self) -> object:
        """Of all updates, which are decoded."""
        return self.recipe.aggregate(replace(self.update, client=c) for c in self.names)


def acts_of(engine: Engine, folder: Path) -> list[Act]:
    """Seconds of one megabyte of one update."""
    one, each = 1 / engine.mb, 1 / (engine.mb * len(engine.names))
    data, there, path = engine.message, bytearray(len(engine.message)), folder / "bare"

    def limit() -> None:
        there[:] = data
        hashlib.sha256(there).digest()
        path.write_bytes(there)

    return [
        Act("stages", "encode", lambda: messages.encode_update(engine.update, UP), one),
        Act("stages", "admit", engine.admit, one),
        Act("stages", "journal", lambda: engine.store.journal(0, "client-0", data), one),
        Act("stages", "add", engine.mean, each),
        Act("stages", "commit", lambda: engine.store.save(engine.state, {}), one),
        Act("an update", "all", engine.round, each),
        Act("an update", LIMIT, limit, one),
    ]


# A run that trains


def model_of(hidden: int, layers: int) -> ModelHandle:
    """A Llama of random weights with adapters on all linear layers."""
    shape = LlamaConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=1000,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = LlamaForCausalLM(shape)
    base = load.Base(net, None, "causal-lm", "made up", BASE)
    return ModelHandle(net, layouts.layout_of(base, "all-linear"), LoRA())


def outside(handle: ModelHandle, config: RunConfig, clients: int, folder: Path) -> Mapping[str, float]:
    """Share of a run's wall, from its first round's beginning to its last line, in which nobody takes local steps."""
    base = load.Base(handle.model, None, "causal-lm", "made up", BASE)
    ids = torch.arange(1, 65).tolist()
    rows = [Example(ids, ids, 0)] * 8
    spent, began, ended, sent = 0.0, 0.0, 0.0, 0.0
    recipe, cache = strategies.of(config), CohortCache()
    inner: LocalStep = recipe.local

    def timed(handle: Handle, data: Any, turn: Turn) -> Trained:
        nonlocal spent
        at = time.monotonic()
        try:
            return inner(handle, data, turn)
        finally:
            spent += time.monotonic() - at

    def observe(kind: str, info: Any) -> None:
        nonlocal began, ended, sent
        if kind == "round":
            began = began or time.monotonic()
        elif kind == "line" and began:
            ended, sent = time.monotonic(), info["bytes_up"] / clients / 1e6

    recipe = replace(recipe, local=timed)
    members = {
        f"client-{k}": Client(f"client-{k}", rows, [], base, handle, recipe, config, Memory(cache))
        for k in range(clients)
    }
    cache.members += [c.memory for c in members.values()]
    here = Resident(base, handle.layout, handle)
    run = open_run.fresh(config, recipe, here, Path(mkdtemp(dir=folder)), runs.whose(members), observe)
    run.loop(runs.local_post(members)).run(members)
    return {"outside": 1 - spent / (ended - began), "MB of an update": sent}


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Inside, an update is admitted and written before the next client trains."""
    with patch.object(admitting, "LARGE", 2**62):
        yield


def profile(quick: bool, turns: int) -> Iterator[Row]:
    """Rows of a run as it is, and without the thread: medians of turns."""
    hidden, layers, rank, clients, steps = (64, 1, 4, 2, 1) if quick else (1024, 2, 128, 4, 2)
    handle, config = model_of(hidden, layers), config_of(rank, 1 if quick else 2, steps)
    ways: dict[str, Callable[[], Mapping[str, float]]] = {}
    with TemporaryDirectory() as folder:
        run = partial(outside, handle, config, clients, Path(folder))
        ways["ours"] = run

        def alone() -> Mapping[str, float]:
            with one_at_a_time():
                return run()

        ways["ours, one at a time"] = alone
        found: dict[str, list[Mapping[str, float]]] = {way: [] for way in ways}
        for _ in range(min(turns, 2)):
            for way, act in ways.items():
                found[way].append(act())
    for way, seen in found.items():
        yield Row("a run", way, facts={key: statistics.median(x[key] for x in seen) for key in seen[0]})


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """Four clients of 21 MB."""
    modules, rank, width, clients = (2, 4, 64, 2) if quick else (20, 32, 4096, 4)
    layout = Layout({f"layers.{k}.q_proj": (width, width) for k in range(modules)})
    with TemporaryDirectory() as place:
        engine = Engine(Path(place), layout, config_of(rank, 1), clients)
        rows = take_turns(acts_of(engine, Path(place)), turns)
        settings = {"MB": round(engine.mb, 3), "tensors": len(engine.update.delta), "clients": clients, "turns": turns}
    return Result(
        "server",
        "CPU seconds per megabyte of an update, from the client's message to the mean; limit: copy, hash, write once",
        settings,
        (*rows, *profile(quick, turns)),
    )
