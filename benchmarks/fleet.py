"""A simulated round with workers: what the process tree takes, one process, one worker, two workers.

    one process   clients train where the server's loop is
    2 workers     `[server] workers = 2`: processes, each with a base of its own and half of the clients
    limit         `[server] workers = 1`: the same messages between processes, and one base; wanted is at most 1.1 of it

CPU seconds of this process and all that it has started, once the workers are there; what they took to begin, all of
them together, is `seconds to begin`. Rows are of at most 64 tokens, all learned; Llama of random weights, rank 8 on q
and v; no evaluation and no audit of exactness. Needs Linux, which says what other processes take.
"""

import json
import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from fedft.benchmarks.clients import LONGEST, RANK, RATE, TARGETS, VOCABULARY, made_up
from fedft.benchmarks.measure import LIMIT, alone, spread, tree_seconds
from fedft.benchmarks.results import Result, Row
from fedft.carriers.interface import Post
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.run_file import from_dict
from fedft.server import open_run
from fedft.simulations import fleet, workplace
from fedft.simulations.workplace import Workplace

WAYS: Mapping[str, int | None] = {"one process": None, "2 workers": 2, LIMIT: 1}
"""Number of workers by way."""


def run_of(folder: Path, hidden: int, layers: int, clients: int, steps: int, tokens: int) -> RunConfig:
    """A run on made-up rows of a made-up model, both of which lie in `folder` then."""
    model, rows, size = made_up(folder / "base", hidden, layers), folder / "rows.jsonl", max(1, tokens // LONGEST)
    words = {"<unk>": 0, "</s>": 1} | {f"w{n}": n for n in range(2, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(model)
    g = torch.Generator().manual_seed(0)
    with rows.open("w", encoding="utf-8") as file:
        for k in range(clients * size * steps):
            ids = torch.randint(2, VOCABULARY, (tokens // size,), generator=g).tolist()
            file.write(json.dumps({"client": f"client-{k % clients}", "ids": ids}) + "\n")
    return from_dict(
        {
            "model": {"id": str(model), "targets": TARGETS},
            "data": {"train": str(rows), "tokens": "ids", "max_length": LONGEST, "holdout": 0.0},
            "strategy": {"name": "fedit"},
            "local": {"steps": steps, "batch_size": size, "learning_rate": RATE},
            "clients": {"rank": RANK},
            "server": {"rounds": 1, "loggers": []},
            "eval": {"exactness": False},
        }
    )


def carried_out(place: Workplace, post: Post, folder: Path) -> None:
    """A run of one round, from the first state to the second."""
    whose = workplace.whose(place.clients)
    run = open_run.fresh(place.config, place.recipe, place.here, Path(mkdtemp(dir=folder)), whose)
    run.loop(post).run(place.clients)


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """Eight clients of five steps of 256 tokens on a Llama of six layers, 256 wide."""
    if sys.platform != "linux":
        raise ConfigError("fedft bench fleet reads /proc, which Linux has")
    clients, steps, tokens = (2, 1, 16) if quick else (8, 5, 256)
    hidden, layers = (64, 2) if quick else (256, 6)
    logging.disable_progress_bar()
    begin: dict[str, float] = {}
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as here, ExitStack() as stack, alone():
        folder = Path(here)
        config = run_of(folder, hidden, layers, clients, steps, tokens)
        place, posts = workplace.workplace(config), dict[str, Any]()
        for way, workers in WAYS.items():
            own = replace(place, config=replace(config, server=replace(config.server, workers=workers)))
            began = tree_seconds()
            posts[way] = stack.enter_context(fleet.post(own, folder))
            begin[way] = tree_seconds() - began
        for turn in range(turns + 1):  # the first warms up
            for way in list(WAYS)[turn % 3 :] + list(WAYS)[: turn % 3]:
                began = tree_seconds()
                carried_out(place, posts[way], folder)
                if turn:
                    spent[way].append(tree_seconds() - began)
    seconds = {way: max(statistics.median(found), 1e-3) for way, found in spent.items()}
    return Result(
        "fleet",
        "A round with workers, CPU seconds of all processes; limit: one worker, and at most 1.1 of it is wanted",
        {"clients": clients, "steps": steps, "tokens": tokens, "hidden": hidden, "layers": layers, "rank": RANK},
        tuple(
            Row(
                f"{tokens} tokens x {steps} steps",
                way,
                own,
                spread(spent[way]),
                seconds["one process"] / own,
                own / seconds[LIMIT],
                {"seconds to begin": begin[way]},
            )
            for way, own in seconds.items()
        ),
    )
