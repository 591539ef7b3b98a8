"""Client-steps per CPU second of a simulation on one machine: the base reloaded for each client, resident, shared.

    python benchmarks/clients.py --json clients.json
    python benchmarks/clients.py --model /path/to/a/llama --targets all-linear --tokens 256

    reload     for each client: from_pretrained, get_peft_model, its tensors in, steps with torch's AdamW, tensors out
    resident   one base for all; each client's tensors in, `FirstOrder`, out, as in a round
    together   all clients in one forward and backward pass per step (`[server] together`)

Everything of a client's turn counts but messages and codec; the loss is on all tokens without --prompt. Rows are of at
most 64 tokens. One thread; the ways take turns, so that a busy machine slows all; medians of CPU time. Without --model,
a Llama of random weights. The last column is the share of `resident` that is not forward and backward of the base with
its adapters: what a turn costs beside them.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from transformers.utils import logging

from fedft import batched, model
from fedft.config import Local
from fedft.data import IGNORED
from fedft.handle import ModelHandle
from fedft.recipe import Batch, FirstOrder, LoRA, Turn
from fedft.update import Plan

LONGEST = 64  # tokens of a row
SPACE, STEP, RATE = LoRA(), FirstOrder(), 1e-3
Batches = list[Batch]


def made_up(folder: Path, hidden: int, layers: int, vocabulary: int) -> Path:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, hidden // 32)
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 11 * hidden // 4}
    config = LlamaConfig(vocab_size=vocabulary, num_attention_heads=heads, num_key_value_heads=heads, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def batch_of(tokens: int, vocabulary: int, seed: int, prompt: float) -> Batch:
    """Rows of random tokens, the first so large a part of which is given."""
    rows = max(1, tokens // LONGEST)
    ids = torch.randint(vocabulary, (rows, tokens // rows), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, : int(prompt * ids.shape[1])] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def cpu(act: Callable[[], object]) -> float:
    """CPU seconds."""
    started = time.process_time()
    act()
    return time.process_time() - started


def measured(acts: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Medians of CPU seconds; the first turn does not count."""
    spent: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(turns + 1):
        for name, act in acts.items():
            spent[name].append(cpu(act))
    return {name: statistics.median(s[1:]) for name, s in spent.items()}


class Bench:
    """One resident base and its clients."""

    def __init__(self, folder: Path, targets: str | list[str], rank: int, clients: int, steps: int) -> None:
        from transformers import AutoModelForCausalLM

        self.folder, self.targets, self.rank, self.clients, self.steps = folder, targets, rank, clients, steps
        net: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.vocabulary = net.config.vocab_size
        self.layout = model.layout_of(model.Base(net, None, "causal-lm", "", ""), targets)
        self.handle = ModelHandle(net, self.layout, SPACE)
        self.held = SPACE.initial(self.layout, rank, 0)

    def turn(self, client: int) -> Turn:
        """Of one client."""
        plan = Plan("", 0, 0, rank=self.rank, steps=self.steps, learning_rate=RATE)
        return Turn(plan, self.held, "", Local(), 0, client)

    def start(self) -> None:
        """The model stands at the state."""
        self.handle.write(self.held)

    def resident(self, batches: Batches) -> None:
        """One after the other."""
        for k, batch in enumerate(batches):
            self.start()
            STEP(self.handle, repeat(batch), self.turn(k))

    def together(self, batches: Batches) -> None:
        """In shared passes."""
        seats, base = [], batched.common(self.handle)
        for k, batch in enumerate(batches):
            self.start()
            seats.append(batched.seat(self.handle, STEP, self.turn(k), repeat(batch), base))
        batched.train(self.handle, STEP, seats, 0)

    def bare(self, batches: Batches) -> None:
        """Forward and backward, and nothing else."""
        self.start()
        for batch in batches:
            for _ in range(self.steps):
                self.handle.loss(batch).backward()
                for p in self.handle.parameters().values():
                    p.grad = None

    def reload(self, batches: Batches) -> None:
        """The plain way: every client begins with a model from the disk."""
        from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
        from transformers import AutoModelForCausalLM

        config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=self.targets)
        start = {f"base_model.model.{n}.weight": x for n, x in self.held.items()}
        for batch in batches:
            wrapped: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(self.folder), config)
            set_peft_model_state_dict(wrapped, start)
            trained = [p for p in wrapped.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
            wrapped.train()
            for _ in range(self.steps):
                wrapped(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            {n: x.clone() for n, x in get_peft_model_state_dict(wrapped).items()}

    def ways(self, tokens: int, prompt: float = 0.0) -> dict[str, Callable[[], object]]:
        """What is measured, with so many tokens per client and step."""
        batches = [batch_of(tokens, self.vocabulary, k, prompt) for k in range(self.clients)]
        ways = {"reload": self.reload, "resident": self.resident, "together": self.together, "pass": self.bare}
        return {name: partial(way, batches) for name, way in ways.items()}


def main(
    tokens: Annotated[list[int], typer.Option(help="Per client and step; may be given again.")] = [16, 64, 256],  # noqa: B006
    clients: Annotated[int, typer.Option(help="Number of clients.")] = 8,
    steps: Annotated[int, typer.Option(help="Local steps.")] = 5,
    rank: Annotated[int, typer.Option(help="Of all adapters.")] = 8,
    targets: Annotated[str, typer.Option(help="all-linear, or endings with commas between.")] = "q_proj,v_proj",
    prompt: Annotated[float, typer.Option(help="Part of each row that is given, not learned.")] = 0.0,
    folder: Annotated[Path | None, typer.Option("--model", help="Folder of a causal language model.")] = None,
    hidden: Annotated[int, typer.Option(help="Width of the model made up.")] = 256,
    layers: Annotated[int, typer.Option(help="Layers of the model made up.")] = 6,
    vocabulary: Annotated[int, typer.Option(help="Tokens of the model made up.")] = 1024,
    turns: Annotated[int, typer.Option(help="Of which the median is taken.")] = 7,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
) -> None:
    """Measure, and print a table."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    which: str | list[str] = targets if targets == "all-linear" else targets.split(",")
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as here:
        bench = Bench(folder or made_up(Path(here), hidden, layers, vocabulary), which, rank, clients, steps)
        typer.echo(
            f"{clients} clients x {steps} steps, rank {rank} on {targets}, one thread; client-steps per CPU second"
        )
        typer.echo(f"{'tokens':>6}{'reload':>10}{'resident':>18}{'together':>18}{'beside the pass':>18}")
        for n in tokens:
            s = measured(bench.ways(n, prompt), turns)
            speeds = {way: clients * steps / seconds for way, seconds in s.items()}
            ratios = {way: s["reload"] / seconds for way, seconds in s.items()}
            rows.append({"tokens": n, "per_s": speeds, "ratio": ratios, "beside": 1 - s["pass"] / s["resident"]})
            typer.echo(
                f"{n:6}{speeds['reload']:10.1f}"
                + "".join(f"{speeds[w]:10.1f} ({ratios[w]:4.2f}x)" for w in ("resident", "together"))
                + f"{100 * rows[-1]['beside']:16.1f} %"
            )
    if json_:
        said = {"clients": clients, "steps": steps, "rank": rank, "targets": targets, "prompt": prompt, "rows": rows}
        json_.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
