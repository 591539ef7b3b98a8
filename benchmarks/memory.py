"""Copies of the weights that a whole simulated run holds at its peak, by method, each in a process of its own.

    copies    peak of resident memory, less what the process had after the same run on a tiny model (libraries and
              compiled kernels), over the bytes of the weights; the base model that is trained is one of them

Two clients of two steps of 16 tokens, two rounds, on a Llama of random weights in float32; the files that a run leaves
are written as ever. Evaluation is off. malloc maps each large block by itself, as it does those of real models. Linux
only: elsewhere nobody says what a process had at its peak. By itself: `python -m fedft.benchmarks.memory`.
"""

import json
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from fedft import strategies
from fedft.benchmarks import peak_memory
from fedft.benchmarks.clients import LONGEST, RANK, RATE, TARGETS, VOCABULARY, made_up
from fedft.benchmarks.measure import backends, with_kernels
from fedft.client.received_state import CohortCache, Memory
from fedft.client.train import Client
from fedft.data.examples import Example
from fedft.models import layout, load, stored_weights
from fedft.models.handle import ModelHandle
from fedft.models.parameters import digest_of
from fedft.models.resident import Resident
from fedft.run_file import from_dict
from fedft.server import open_run
from fedft.simulations import workplace as runs

METHODS = ("fedit", "mezo", "fedkseed", "ferret", "fedavg")
SIZE = 512, 9  # hidden, layers: 30 million parameters
TOKENS, CLIENTS, STEPS, ROUNDS = 16, 2, 2, 2


def run(strategy: str, folder: Path) -> int:
    """A whole run on the model in `folder`; bytes of its weights."""
    tables: dict[str, Any] = {
        "model": {"id": str(folder), "targets": TARGETS},
        "data": {"max_length": LONGEST},
        "strategy": {"name": strategy},
        "local": {"steps": STEPS, "batch_size": 1, "learning_rate": RATE},
        "server": {"rounds": ROUNDS},
        "eval": {"exactness": False, "every": ROUNDS + 1},
    }
    config = open_run.resolved(from_dict(tables))
    recipe, cache = strategies.of(config), CohortCache()
    config = from_dict({**tables, "clients": {"rank": RANK}}) if not recipe.space.rank_free else config
    net: Any = AutoModelForCausalLM.from_pretrained(folder)
    base = load.Base(net, None, "causal-lm", str(folder), digest_of(net))
    stored = stored_weights.in_files(stored_weights.files_of(str(folder)))
    handle = ModelHandle(net, layout.layout_of(base, TARGETS), recipe.space, stored=stored)
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (CLIENTS, TOKENS), generator=rng).tolist()
    clients = {
        str(k): Client(str(k), [Example(row, row, 0)] * STEPS, [], base, handle, recipe, config, Memory(cache))
        for k, row in enumerate(ids)
    }
    cache.members += [c.memory for c in clients.values()]
    with TemporaryDirectory() as out:
        opened = open_run.fresh(config, recipe, Resident(base, handle.layout, handle), Path(out), runs.whose(clients))
        opened.finish(opened.loop(runs.local_post(clients)).run(clients), CLIENTS)
    return sum(p.nbytes for p in net.parameters())


def peak_of(strategy: str, hidden: int, layers: int) -> dict[str, float]:
    """What a run of this strategy takes; called in a process of its own."""
    peak_memory.begin()
    with TemporaryDirectory() as small, TemporaryDirectory() as large:
        made_up(Path(large), hidden, layers)
        with_kernels(backends()[-1], partial(run, strategy, made_up(Path(small), 32, 1)))()
        weights, beside = peak_memory.beside(partial(run, strategy, Path(large)))
    return {"copies": beside / weights, "peak_mb": beside / 1e6, "weights_mb": weights / 1e6}


def main() -> None:
    """Print, as JSON, what a run of each method takes, or of the one that is named with a width and layers."""
    if len(sys.argv) > 1:
        said: dict[str, Any] = peak_of(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        said = {name: peak_memory.in_process("fedft.benchmarks.memory", name, *map(str, SIZE)) for name in METHODS}
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main()
