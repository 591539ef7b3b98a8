"""Steps with noise that hide single records, beside steps without: what clipping every record by itself costs.

    plain         `FirstOrder`'s step: one gradient of the batch
    example-dp    `PrivateFirstOrder`'s: gradients of single records in one pass, clipped, summed, with noise
    row by row    the same with a pass for each record
    zo            the two passes of a zeroth-order step
    zo-dp         the same with the slope of each record, clipped, summed, with noise

Llama of random weights, rank 8 on all linear layers, of rows of unlike length; "ffa" trains one factor of each pair.
`peak MiB` are the tensors alive at once beside the base and its adapter, of one step.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedft.adapters.lora import LoRA
from fedft.benchmarks.measure import Act, Peak, take_turns
from fedft.benchmarks.results import Result
from fedft.benchmarks.step import RATE, place_of, rows_of
from fedft.config import Local
from fedft.contract import Private, Turn
from fedft.data import batches
from fedft.data.examples import Example
from fedft.models.handle import ModelHandle
from fedft.privacy.keyed_stream import KEY_BYTES, Stream
from fedft.randomness import families
from fedft.training import directional_derivatives, private_steps, row_slopes
from fedft.training.first_order import differentiate
from fedft.training.optimizers import optimizer_of
from fedft.training.per_example import clipped_sum
from fedft.training.zeroth_rules import Walk
from fedft.update import Plan

STEPS = 4  # of a turn with noise, whose hooks are put on once
PRIVATE = Private(1.0, 1.0, Stream(bytes(KEY_BYTES), bytes(32)))  # a key that everybody knows: there is nothing to hide
KINDS = {"lora": LoRA(), "ffa": LoRA((".lora_B",))}


def ways_of(handle: ModelHandle, rows: list[Example]) -> dict[str, tuple[Callable[[], object], int]]:
    """{way: (one turn of it on these rows, steps in that)}."""
    live, batch = dict(handle.parameters()), batches.collate(rows, 0)
    optimizer = optimizer_of([*live.values()], RATE, Local())
    turn = Turn(Plan("", 0, 0, steps=STEPS, learning_rate=RATE), {}, "", Local(batch_size=len(rows)), 0, 0,
                private=PRIVATE)  # fmt: skip
    z, how = families.make("hadamard", 7, 1), Walk()

    def step(gradients: Mapping[str, Tensor] | None = None) -> None:
        for n, g in (gradients or {}).items():
            live[n].grad = g
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def plain() -> None:
        differentiate(handle, batch, [*live.values()])
        torch.nn.utils.clip_grad_norm_(live.values(), 1.0)
        step()

    def row_by_row() -> None:
        total = {n: torch.zeros_like(p, requires_grad=False) for n, p in live.items()}
        for row in rows:
            loss = handle.losses(batches.collate([row], 0)).sum()
            own = dict(zip(live, torch.autograd.grad(loss, [*live.values()]), strict=True))
            for n, g in clipped_sum({n: g[None] for n, g in own.items()}, PRIVATE.clip).items():
                total[n] += g
        noise = {n: PRIVATE.noise_of_step(f"0/{n}", p.numel()).view(p.shape) for n, p in live.items()}
        step({n: (noise[n] + x).div_(len(rows)).float() for n, x in total.items()})

    def hidden() -> None:
        private_steps.descend(handle, live, iter([batch] * STEPS), turn, [], optimizer)

    return {
        "plain": (plain, 1),
        "example-dp": (hidden, STEPS),
        "row by row": (row_by_row, 1),
        "zo": (partial(directional_derivatives.two_point, handle, batch, z, 0, how.epsilon), 1),
        "zo-dp": (partial(row_slopes.estimate, handle, batch, how, z, [0], [None], PRIVATE, 0, len(rows)), 1),
    }


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """8 million parameters, eight rows of at most 64 tokens."""
    hidden, layers, vocabulary = (64, 2, 500) if quick else (256, 8, 1024)
    size, tokens = (4, 24) if quick else (8, 64)
    rows, acts, peaks = rows_of(size, tokens, vocabulary), list[Act](), list[float]()
    for what, kind in KINDS.items():
        handle = place_of("ours", hidden, layers, vocabulary, kind)
        for way, (run, steps) in ways_of(handle, rows).items():
            run()  # moments of the optimiser are there from now on
            with Peak() as peak:
                run()
            peaks.append(peak.most / 2**20)
            acts.append(Act(what if "zo" not in way else f"{what}, slopes", way, run, 1 / steps))
    found = take_turns(acts, turns)
    return Result(
        "private-step",
        "A local step that hides single records, by gradients and by slopes, against one that hides nothing",
        {"rows": size, "tokens": tokens, "hidden": hidden, "layers": layers, "turns": turns},
        tuple(replace(row, facts={"peak MiB": peak}) for row, peak in zip(found, peaks, strict=True)),
    )
