"""A local step: tokens a second and memory of each mode, beside the loop that one writes by hand.

    by hand       model(**batch).loss, backward, clip, AdamW: logits of all places, as transformers computes them
    Trainer       transformers' Trainer as `[local] trainer` hands it a turn of eight steps: a step of them
    ours          `FirstOrder` on the resident base: logits of learned places alone
    pieces        the same with `[local] micro_batch` = a quarter of the batch
    checkpointed  the same with `[local] checkpointing`
    both          pieces, checkpointed
    autocast      the same with `[local] autocast`: on a CPU without bfloat16 units it is slower
    8 bits        the same with `[model] base_bits = 8`
    4 bits        the same with `[model] base_bits = 4`
    4 bits, both  that in pieces, checkpointed

Llama of random weights, rank 8 on all linear layers; a tenth to a third of each row's tokens are learned, as of answers
behind their prompts. `peak MiB` are the tensors alive at once beside the base and its adapter (`measure.Peak`), of one
step; `base MiB` are those of these two. `tokens/s` are of one thread.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from math import prod
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedft.adapters.lora import LoRA
from fedft.benchmarks.measure import Act, Peak, take_turns
from fedft.benchmarks.results import Result
from fedft.config import Local
from fedft.contract import Turn
from fedft.data import batches
from fedft.data.examples import IGNORED, Example
from fedft.data.micro_batches import InPieces, MicroBatch
from fedft.models import checkpointing, layout, load, quantized_base
from fedft.models.handle import ModelHandle
from fedft.models.packed_linear import Bits
from fedft.training import trainer_turns
from fedft.training.first_order import differentiate
from fedft.training.optimizers import optimizer_of
from fedft.update import Plan, Shape

RATE = 1e-3
STEPS = 8  # of a Trainer's turn, which has to be prepared
WAYS = ("by hand", "Trainer", "ours", "pieces", "checkpointed", "both", "autocast", "8 bits", "4 bits", "4 bits, both")
BITS: dict[str, Bits] = {"8 bits": 8, "4 bits": 4, "4 bits, both": 4}


def place_of(way: str, hidden: int, layers: int, vocabulary: int, kind: LoRA | None = None) -> ModelHandle:
    """A model of random weights, the same ones for every way, with an adapter of rank 8 in it; None: both factors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=8,
                num_key_value_heads=8, vocab_size=vocabulary,
            )
        )  # fmt: skip
    base = load.Base(net, None, "causal-lm", "made up", "")
    if way in BITS:
        base = quantized_base.packed(base, BITS[way])
    handle = ModelHandle(net, layout.layout_of(base, "all-linear"), kind or LoRA(), autocast=way == "autocast")
    handle.write(handle.kind.initial(handle.layout, Shape(8), 0))
    if way == "checkpointed" or way.endswith("both"):
        checkpointing.switch_on(net, "made up")
    return handle


def rows_of(size: int, tokens: int, vocabulary: int) -> list[Example]:
    """Rows of unlike length, of which the last tenth to third is learned."""
    g = torch.Generator().manual_seed(0)
    found = []
    for k in range(size):
        length = tokens - (tokens // 3) * k // size
        ids = torch.randint(1, vocabulary, (length,), generator=g).tolist()
        given = length - max(1, length // (3 + k % 8))
        found.append(Example(ids, [IGNORED] * given + ids[given:], given))
    return found


def step_of(way: str, handle: ModelHandle, rows: list[Example]) -> Callable[[], object]:
    """One optimiser step on these rows, again and again."""
    trained = [*handle.parameters().values()]
    optimizer = optimizer_of(trained, RATE, Local())
    collate = partial(batches.collate, pad_id=0)

    def by_hand() -> None:
        handle.training(True)
        net: Any = handle.model
        net(**collate(rows), use_cache=False).loss.backward()

    def ours() -> None:
        batch: Any = collate(rows)
        if way == "pieces" or way.endswith("both"):
            batch = InPieces(rows, collate, MicroBatch(max(1, len(rows) // 4)))
        differentiate(handle, batch, trained)

    if way == "Trainer":
        local = Local(batch_size=len(rows), trainer="transformers", learning_rate=RATE)
        turn = Turn(Plan("", 0, 0, steps=STEPS, learning_rate=RATE), {}, "", local, 0, 0)
        return lambda: trainer_turns.descend(
            handle, handle.parameters(), iter([collate(rows)] * STEPS), turn, [], optimizer
        )

    def step() -> None:
        by_hand() if way == "by hand" else ours()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """60 million parameters, four rows of at most 192 tokens."""
    hidden, layers, vocabulary = (64, 2, 500) if quick else (512, 8, 32_000)
    size, tokens = (4, 24) if quick else (4, 192)
    rows = rows_of(size, tokens, vocabulary)
    seen = sum(len(r.input_ids) for r in rows)
    acts: list[Act] = []
    peaks: dict[str, float] = {}
    held: dict[str, float] = {}
    weights = 0
    for way in WAYS:
        handle = place_of(way, hidden, layers, vocabulary)
        weights = sum(map(prod, handle.layout.parameters.values()))
        step = step_of(way, handle, rows)
        step()  # moments of the optimiser are there from now on
        tensors = chain(handle.model.parameters(), handle.model.buffers())
        held[way] = sum({x.data_ptr(): x.nbytes for x in tensors}.values()) / 2**20
        with Peak() as peak:
            step()
        peaks[way] = peak.most / 2**20
        acts.append(Act("step", way, step, 1 / STEPS if way == "Trainer" else 1.0))
    found = take_turns(acts, turns)
    return Result(
        "step",
        "A local step of LoRA in each memory mode, against a loop written by hand and a Trainer",
        {"parameters": weights, "rows": size, "tokens": seen, "learned": sum(r.learned for r in rows)},
        tuple(
            replace(r, facts={"tokens/s": seen / r.seconds, "peak MiB": peaks[r.way], "base MiB": held[r.way]})
            for r in found
        ),
    )
