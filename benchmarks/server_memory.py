"""Memory of a server as `fedft plan` foresees it, and as a process that does a server's work is measured to take.

    measured   peak of resident memory over a run of three rounds: plans, answers that come as messages, admission,
               journal, sums, aggregation_error, states; less what the process had after the same on a tiny model
    forecast   `fedft.server.memory_need` of the same run file, less what it takes for a process and for the base

Clients are none: whoever is asked answers at once with random numbers of the shapes that are wanted. The base is of
random weights and is not used. malloc maps each large block by itself. Linux only. By itself:
`python -m fedft.benchmarks.server_memory`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from fedft import strategies
from fedft.benchmarks import peak_memory
from fedft.carriers.interface import Kind
from fedft.carriers.local import LocalPost
from fedft.config import RunConfig
from fedft.models import layout, load
from fedft.models.handle import ModelHandle
from fedft.models.resident import Resident
from fedft.recipe import Recipe
from fedft.run_file import from_dict
from fedft.server import memory_need, open_run
from fedft.update import Update
from fedft.wire import messages

ROUNDS = 3


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    strategy: str
    clients: int = 8
    rank: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    rule: str = ""
    """Of `[robust]`; "": none."""
    exactness: bool = True
    """Whether aggregation_error is measured."""
    hidden: int = 1024
    layers: int = 2

    def config(self) -> RunConfig:
        """Its run file."""
        tables: dict[str, Any] = {
            "strategy": {"name": self.strategy, **self.options}, "model": {"dtype": "float32"},
            "local": {"steps": 1, "learning_rate": 1e-4}, "data": {"max_length": 64},
            "server": {"rounds": ROUNDS, "deadline_s": 3600.0},
            "eval": {"exactness": self.exactness, "every": ROUNDS + 1},
        }  # fmt: skip
        tables |= {"clients": {"rank": self.rank}} if self.rank else {}
        tables |= {"robust": {"rule": self.rule}} if self.rule else {}
        return from_dict(tables)


SETTINGS: Sequence[Setting] = (
    Setting("fedit"),
    Setting("fedit", exactness=False),
    Setting("flora"),
    Setting("flexlora"),
    Setting("fedex_lora"),
    Setting("fedavg", clients=4, rank=0),
    Setting("fedit", rule="multi_krum"),
    Setting("flexlora", rule="geometric_median", exactness=False),
    Setting("ffa_lora", rule="trimmed_mean"),
)


def resident_of(setting: Setting, recipe: Recipe) -> Resident:
    """A Llama of random weights with the recipe's handle on it."""
    h = setting.hidden
    shape = transformers.LlamaConfig(
        hidden_size=h, intermediate_size=h, num_hidden_layers=setting.layers, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=100, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: Any = transformers.LlamaForCausalLM(shape)
    base = load.Base(net, None, "causal-lm", "made up", "d" * 64)
    found = layout.layout_of(base, [] if recipe.space.of_base else "all-linear")
    return Resident(base, found, ModelHandle(net, found, recipe.space))


class Clients:
    """A process that answers every plan with numbers drawn anew, as a message; both go through files."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._plan, self._answer = folder / "plan", folder / "answer"
        ours, theirs = get_context("spawn").Pipe()
        self._pipe = ours
        self._process = get_context("spawn").Process(
            target=answer_all, args=(setting, theirs, str(self._plan), str(self._answer)), daemon=True
        )
        self._process.start()

    def __call__(self, kind: Kind, payload: bytes) -> bytes:
        """What a client says to the job, or to a plan."""
        self._plan.write_bytes(payload)
        self._pipe.send(kind)
        self._pipe.recv()
        return self._answer.read_bytes()

    def end(self) -> None:
        """End the process."""
        self._pipe.send("end")
        self._process.join()


def answer_all(setting: Setting, pipe: Any, plan_file: str, answer_file: str) -> None:
    """The clients' side: until it is told to end."""
    config = open_run.resolved(setting.config())
    recipe = strategies.of(config)
    here, draws, run = resident_of(setting, recipe), torch.Generator().manual_seed(0), ""
    while (kind := pipe.recv()) != "end":
        payload = Path(plan_file).read_bytes()
        if kind == "query":
            run = messages.decode_job(payload).run
            said, codec = Update({}, 10, run=run), "fp32"
        else:
            plan = messages.decode_plan(payload, max_bytes=len(payload))
            spec = recipe.spec(here.layout, plan)
            delta = {n: torch.empty(t.shape).normal_(0.0, 1e-3, generator=draws) for n, t in spec.items()}
            said, codec = Update(delta, 10, plan.round, run, plan.attempt, metrics={"loss": 1.0}), config.codec.up
        Path(answer_file).write_bytes(messages.encode_update(said, codec))
        pipe.send("done")


def serve(setting: Setting, recipe: Recipe, here: Resident, clients: Clients) -> None:
    """Do what a server does in a run."""
    names = [f"client-{k}" for k in range(setting.clients)]
    with TemporaryDirectory() as out:
        run = open_run.fresh(open_run.resolved(setting.config()), recipe, here, Path(out), [b""])
        run.loop(LocalPost(dict.fromkeys(names, clients))).run(names)


def peak_of(setting: Setting) -> dict[str, Any]:
    """Bytes measured and foreseen; called in a process of its own."""
    peak_memory.begin()
    small = Setting(**{**asdict(setting), "hidden": 32, "layers": 1, "rank": min(4, setting.rank)})
    with TemporaryDirectory() as folder:
        for one in (small, setting):
            recipe, clients = strategies.of(one.config()), Clients(one, Path(folder))
            here = resident_of(one, recipe)
            _, beside = peak_memory.beside(partial(serve, one, recipe, here, clients))
            clients.end()
    found = memory_need.foreseen(setting.config(), recipe, here.layout, setting.clients)
    return {"measured_mb": beside / 1e6, "forecast_mb": found.beside / 1e6, **found.to_dict()}


def compare(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """A row for each setting, each in a process of its own."""
    said = ((s, peak_memory.in_process("fedft.benchmarks.server_memory", json.dumps(asdict(s)))) for s in settings)
    return [{**asdict(setting), **found} for setting, found in said]


def main() -> None:
    """Print, as JSON, what is measured and foreseen of each setting, or of the one that is named."""
    if len(sys.argv) > 1:
        print(json.dumps(peak_of(Setting(**json.loads(sys.argv[1])))))  # noqa: T201
    else:
        for setting in SETTINGS:
            print(json.dumps(compare([setting])[0]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
