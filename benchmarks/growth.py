"""What grows: CPU, memory and disk over hundreds of rounds, and CPU from few clients to ten thousand.

    rounds    a run of two clients and one step each, per strategy: CPU seconds of a round, early (the first tenth,
              without the first five rounds, which warm up) and late (the last tenth). `times` is late over early.
              `state KiB` is all that stands in state/, `round KiB` what the last round wrote there, `grown MiB` the
              resident memory that came between the two
    clients   one round of fedit, a step each: CPU seconds of a client, by stage. `slope` is the exponent of the stage's
              seconds in the number of clients, between this number and the one before: 1 is linear
    engine    the same without the clients' own local steps

Llama of random weights, 32 wide, two layers; fedit and flora of rank 4. Evaluation and the audit of exactness are off.
Stages by what the engine tells its observer: `enrol` up to the first state, `plan` up to the first letter, `turns` up
to the last answer that is admitted, `close` the sum, the next state and its commit.
"""

import gc
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedft import strategies
from fedft.benchmarks.measure import alone, backends, with_kernels
from fedft.benchmarks.results import Result, Row
from fedft.client.received_state import CohortCache, Memory
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.data.examples import Example
from fedft.models import layout, load
from fedft.models.handle import ModelHandle
from fedft.models.parameters import digest_of
from fedft.models.resident import Resident
from fedft.recipe import Data, Handle, Recipe, Trained, Turn
from fedft.run_file import from_dict
from fedft.server import open_run
from fedft.simulations import workplace as runs

STRATEGIES: Mapping[str, Mapping[str, Any]] = {"fedit": {}, "ferret": {"K": 4096}, "mezo": {}, "flora": {}}
STAGES = ("enrol", "plan", "turns", "close")
WIDTH, VOCABULARY, TOKENS, RANK = 32, 64, 8, 4
WARM = 5  # rounds


@dataclass
class Watch:
    """CPU seconds and resident bytes at what the engine tells, and CPU seconds inside the clients' local steps."""

    lines: list[float] = field(default_factory=list)
    """CPU time at each line of metrics.jsonl, version 0 first."""
    resident: list[int] = field(default_factory=list)
    """Bytes of resident memory at the same moments; 0 where the system does not say."""
    at: dict[str, float] = field(default_factory=dict)
    """CPU time at the last event of each kind."""
    local: float = 0.0
    every: int = 1
    """Of so many local steps one is timed, and stands for them: reading the CPU's clock takes half a millisecond."""
    admitted: int = 0
    clients: int = 0
    _turn: int = 0

    def hear(self, kind: str, info: Mapping[str, Any]) -> None:
        """As an observer."""
        self.admitted += kind == "admitted"
        if kind == "admitted" and self.admitted % self.clients:
            return
        self.at[kind] = time.process_time() if kind in ("line", "asking", "admitted") else 0.0
        if kind == "line":
            self.lines.append(self.at[kind])
            self.resident.append(resident_bytes())

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe whose local steps are timed."""

        def timed(handle: Handle, data: Data, turn: Turn) -> Trained:
            self._turn += 1
            if self._turn % self.every:
                return recipe.local(handle, data, turn)
            began = time.process_time()
            trained = recipe.local(handle, data, turn)
            self.local += self.every * (time.process_time() - began)
            return trained

        return replace(recipe, local=timed)

    def stages(self, began: float) -> dict[str, float]:
        """CPU seconds by stage of a run of one round that began at `began`."""
        first, last = self.lines
        ends = [began, first, self.at["asking"], self.at["admitted"], last]
        return {name: max(end - start, 1e-9) for name, start, end in zip(STAGES, ends, ends[1:], strict=False)}


def resident_bytes() -> int:
    """Bytes of this process that are in memory; 0 where there is no /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * 4096 if statm.is_file() else 0


def config_of(strategy: str, rounds: int) -> RunConfig:
    """A run of that many rounds, one step each."""
    return from_dict(
        {
            "model": {"id": "made up", "targets": ["q_proj", "v_proj"]},
            "data": {"max_length": TOKENS},
            "strategy": {"name": strategy, **STRATEGIES[strategy]},
            "local": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3},
            "clients": {"rank": RANK},
            "server": {"rounds": rounds},
            "eval": {"exactness": False},
        }
    )


def base_of(layers: int) -> load.Base:
    """A Llama of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: Any = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=layers, num_attention_heads=2,
                num_key_value_heads=2, vocab_size=VOCABULARY,
            )
        )  # fmt: skip
    return load.Base(net, None, "causal-lm", "made up", digest_of(net))


def carried_out(base: load.Base, config: RunConfig, clients: int, folder: Path) -> tuple[Watch, float]:
    """A whole run in `folder`; (what was watched, CPU time when it began)."""
    watch = Watch(every=max(1, clients // 100), clients=clients)
    recipe, cache = watch.of(strategies.of(config)), CohortCache()
    targets = [] if recipe.space.of_base else config.model.targets
    handle = ModelHandle(base.model, layout.layout_of(base, targets), recipe.space)
    here, g = Resident(base, handle.layout, handle), torch.Generator().manual_seed(0)
    present = {}
    for k in range(clients):
        ids = torch.randint(1, VOCABULARY, (TOKENS,), generator=g).tolist()
        name = f"client-{k:05d}"
        present[name] = Client(name, [Example(ids, ids, 0)], [], base, handle, recipe, config, Memory(cache))
    cache.members += [c.memory for c in present.values()]
    gc.collect()
    began = time.process_time()
    run = open_run.fresh(config, recipe, here, folder, runs.whose(present), watch.hear)
    run.loop(runs.local_post(present)).run(present)
    return watch, began


def over_rounds(strategy: str, layers: int, rounds: int) -> Iterable[Row]:
    """An early and a late row."""
    with TemporaryDirectory() as here:
        folder = Path(here)
        watch, _ = carried_out(base_of(layers), config_of(strategy, rounds), 2, folder)
        state = folder / "state"
        kept = sum(p.stat().st_size for p in state.rglob("*") if p.is_file())
        written = max(state.glob("gen-*.fedft")).stat().st_size
        if (history := state / "history").exists():
            written += history.stat().st_size // rounds
    took = [b - a for a, b in zip(watch.lines, watch.lines[1:], strict=False)]
    part, warm = max(1, rounds // 10), min(WARM, rounds // 3)
    early, late = statistics.mean(took[warm : warm + part]), statistics.mean(took[-part:])
    grown = (watch.resident[-1] - watch.resident[warm + 1]) / 2**20
    facts = {"times": late / early, "state KiB": kept / 1024, "round KiB": written / 1024, "grown MiB": grown}
    what = f"{strategy}, {rounds} rounds"
    yield Row(what, "early", early)
    yield Row(what, "late", late, ratio=early / late, facts=facts)


def over_clients(layers: int, sizes: Iterable[int]) -> Iterable[Row]:
    """A row for each stage and number of clients."""
    before: dict[str, tuple[int, float]] = {}
    with TemporaryDirectory() as here:  # imports and first calls
        carried_out(base_of(layers), config_of("fedit", 1), 2, Path(here))
    for clients in sizes:
        base, resident = base_of(layers), resident_bytes()
        with TemporaryDirectory() as here:
            watch, began = carried_out(base, config_of("fedit", 1), clients, Path(here))
        seconds = watch.stages(began)
        seconds["engine"] = sum(seconds.values()) - watch.local
        for stage, took in seconds.items():
            facts = {"MiB": (watch.resident[-1] - resident) / 2**20} if stage == "engine" else {}
            if stage in before:
                n, earlier = before[stage]
                facts["slope"] = math.log(took / earlier) / math.log(clients / n)
            yield Row(f"{stage} of a client", f"{clients}", took / clients, facts=facts)
            before[stage] = clients, took


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """Three hundred rounds of each strategy, and up to ten thousand clients. What is counted once needs no turns."""
    rounds, layers, sizes = (12, 1, (3, 9)) if quick else (300, 2, (8, 100, 1000, 3000, 10_000))

    def over_all_rounds() -> list[Row]:
        return [row for strategy in STRATEGIES for row in over_rounds(strategy, layers, rounds)]

    with alone():
        rows = with_kernels(backends()[-1], over_all_rounds)()  # compiled from the first round on
        found = list(over_clients(layers, sizes))
    stages = {r.what: i for i, r in reversed([*enumerate(found)])}
    rows += sorted(found, key=lambda r: stages[r.what])
    return Result(
        "growth",
        "A round early and late in a run, and a client among few and many; flat is 1 times, and a slope of 1",
        {"rounds": rounds, "clients": ", ".join(map(str, sizes)), "hidden": WIDTH, "layers": layers, "rank": RANK},
        tuple(rows),
    )
