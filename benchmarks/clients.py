"""Simulated clients that train on one machine: the base reloaded for each of them, resident, or one pass for all.

    plain      for each client: from_pretrained, get_peft_model, its tensors in, steps with torch's AdamW, tensors out
    resident   one base for all; each client's tensors in, its steps, out, as in a round
    shared     all clients in one forward and backward pass per step (`[server] together`)
    limit      forward, backward and optimiser on the same tokens as one plain batch with one adapter

Everything of a client's turn counts but messages and codec. Rows are of at most 64 tokens, all of them learned; Llama
of random weights, rank 8 on q and v. `error` is the largest difference of a client's update from the one that it gets
alone, relative to that update.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from fedft.adapters.lora import LoRA
from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.benchmarks.measure import LIMIT, Act, take_turns
from fedft.benchmarks.results import Result, Row
from fedft.config import Local
from fedft.contract import Batch, Trained, Turn
from fedft.models import layout, load
from fedft.models.handle import ModelHandle
from fedft.testing import Ready
from fedft.training import batched_clients
from fedft.training.first_order import FirstOrder, optimizer_of
from fedft.update import Plan

LONGEST = 64  # tokens of a row
SPACE, STEP, RATE, RANK, TARGETS, VOCABULARY = LoRA(), FirstOrder(), 1e-3, 8, ["q_proj", "v_proj"], 1024
Batches = list[Batch]


def made_up(folder: Path, hidden: int, layers: int) -> Path:
    """A Llama of random weights."""
    heads = max(1, hidden // 32)
    sizes: dict[str, Any] = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 11 * hidden // 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=heads, num_key_value_heads=heads, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def batch_of(tokens: int, seed: int) -> Batch:
    """Rows of random tokens."""
    rows = max(1, tokens // LONGEST)
    ids = torch.randint(VOCABULARY, (rows, tokens // rows), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def in_peft(factors: Tensors) -> dict[str, Tensor]:
    """Factors by the names that peft gives them."""
    return {f"base_model.model.{n}.weight": x for n, x in factors.items()}


def trained_anew(folder: Path, start: Tensors, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The adapter of a client that begins with a model from the disk, a step for each batch; names are peft's."""
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS)
    wrapped: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora)
    set_peft_model_state_dict(wrapped, dict(start))
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    wrapped.train()
    for batch in batches:
        wrapped(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    found: dict[str, Tensor] = get_peft_model_state_dict(wrapped)
    return found


class Place:
    """One resident base and its clients."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        net: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.layout = layout.layout_of(load.Base(net, None, "causal-lm", "", ""), TARGETS)
        self.handle = ModelHandle(net, self.layout, SPACE)
        self.held = SPACE.initial(self.layout, RANK, 0)

    def turn(self, client: int) -> Turn:
        """Of one client."""
        plan = Plan("", 0, 0, rank=RANK, steps=self.steps, learning_rate=RATE)
        return Turn(plan, self.held, "", Local(), 0, client)

    def plain(self, batches: Batches) -> None:
        """Every client begins with a model from the disk."""
        for batch in batches:
            found = trained_anew(self.folder, in_peft(self.held), repeat(batch, self.steps))
            {n: x.clone() for n, x in found.items()}

    def resident(self, batches: Batches) -> list[Trained]:
        """One after the other."""
        found = []
        for k, batch in enumerate(batches):
            self.handle.write(self.held)
            found.append(STEP(self.handle, Ready(batch), self.turn(k)))
        return found

    def shared(self, batches: Batches) -> list[Trained]:
        """In shared passes."""
        seats, base = [], batched_clients.common(self.handle)
        for k, batch in enumerate(batches):
            self.handle.write(self.held)
            seats.append(batched_clients.seat(self.handle, STEP, self.turn(k), repeat(batch), base))
        return [x for x in batched_clients.train(self.handle, STEP, seats, 0) if isinstance(x, Trained)]

    def limit(self, batches: Batches) -> None:
        """One adapter for the tokens of all."""
        self.handle.write(self.held)
        whole = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
        trained = list(self.handle.parameters().values())
        optimizer = optimizer_of(trained, RATE, Local())
        for _ in range(self.steps):
            self.handle.loss(whole).backward()
            optimizer.step()
            optimizer.zero_grad()


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """Eight clients of five steps on a Llama of six layers, 256 wide."""
    clients, steps = (3, 2) if quick else (8, 5)
    hidden, layers = (64, 2) if quick else (256, 6)
    many = (16, 32) if quick else (16, 128, 256)
    logging.disable_progress_bar()
    with TemporaryDirectory() as here:
        place = Place(made_up(Path(here), hidden, layers), steps)
        acts, errors = [], {}
        for tokens in many:
            what, batches = f"{tokens} tokens x {steps} steps", [batch_of(tokens, k) for k in range(clients)]
            ways: dict[str, Callable[[Batches], object]] = {
                "plain": place.plain,
                "resident": place.resident,
                "shared": place.shared,
                LIMIT: place.limit,
            }
            acts += [Act(what, name, partial(way, batches)) for name, way in ways.items()]
            errors[what] = max(map(_apart, place.shared(batches), place.resident(batches)))
        rows = tuple(_with_facts(r, clients * steps, errors) for r in take_turns(acts, turns))
    return Result(
        "clients",
        "Clients of one machine: the base reloaded for each, against a resident base and one pass for all; limit: one "
        "plain batch of the same tokens",
        {"clients": clients, "steps": steps, "hidden": hidden, "layers": layers, "rank": RANK, "targets": TARGETS},
        rows,
    )


def _apart(x: Trained, y: Trained) -> float:
    """Distance of two updates, relative."""
    return tensors.norm(tensors.sub(x.delta, y.delta)) / tensors.norm(y.delta)


def _with_facts(r: Row, client_steps: int, errors: dict[str, float]) -> Row:
    facts = {"client steps per s": client_steps / r.seconds}
    return replace(r, facts=facts | ({"error": errors[r.what]} if r.way == "shared" else {}))
