"""A zeroth-order step on all parameters of a small Llama, against the published code.

    published  four passes w = w + s z in place, z drawn anew by torch.normal: to + eps, - eps, back, and the update
    ours       two forward passes that see w +- eps z, a module's copy at a time, and w += distance z in place
    limit      two forward passes

In bfloat16 ours never writes the weights: forward passes see round(w0 + sum_j a_j z_j +- eps z), an update is a number
in a, and w0 is the base bit for bit; the sum over all K = 4096 directions is made anew for every module of every pass.
The published code adds in bfloat16, where most of an update is lost. `peak` is the largest number of bytes of tensors
alive at once, weights included, in units of one forward pass; `passes` of how many times weights are read to move.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch

from fedft.adapters.full import Full
from fedft.benchmarks.measure import LIMIT, Act, Peak, backends, take_turns, with_kernels
from fedft.benchmarks.results import Result
from fedft.contract import Batch, Layout
from fedft.models.handle import ModelHandle
from fedft.models.parameters import parameters_of
from fedft.randomness import directions, families
from fedft.training import directional_derivatives

RATE, EPSILON, K = 1e-6, 1e-3, 4096
SHAPE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 4}
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def peak(handle: ModelHandle, run: Callable[[], object]) -> int:
    """Bytes at the peak of `run`, parameters included."""
    with Peak(handle.model.parameters()) as seen:
        run()
    return seen.most


def llama(shape: dict[str, Any], dtype: torch.dtype) -> ModelHandle:
    """A Llama of random weights, all of them trained by forward passes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape, vocab_size=1024, max_position_embeddings=512, tie_word_embeddings=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    model.to(dtype).eval()
    shapes = {n: tuple(p.shape) for n, p in parameters_of(model).items()}
    return ModelHandle(model, Layout(parameters=shapes), Full(along_directions=dtype != torch.float32))


def tokens(number: int) -> Batch:
    """One row of so many."""
    ids = torch.arange(number)[None] * 7919 % 1024
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def published(handle: ModelHandle, batch: Batch, seeds: Iterator[int]) -> None:
    """One step of the published code."""
    seed, parameters = next(seeds), list(handle.parameters().values())

    def move(scale: float) -> None:
        torch.manual_seed(seed)
        for p in parameters:
            z = torch.normal(mean=0, std=1, size=p.data.size(), dtype=p.data.dtype)
            p.data = p.data + scale * z

    move(EPSILON)
    above = directional_derivatives.loss(handle, batch)
    move(-2 * EPSILON)
    below = directional_derivatives.loss(handle, batch)
    move(EPSILON)
    move(-RATE * (above - below) / (2 * EPSILON))


def ours(handle: ModelHandle, batch: Batch, z: directions.Directions, seeds: Iterator[int]) -> None:
    """One step of `zeroth_order.walk` by the plain rule."""
    index = next(seeds) % K
    slope, _ = directional_derivatives.two_point(handle, batch, z, index, EPSILON)
    directional_derivatives.step(handle, z, index, -RATE * slope)


def two_passes(handle: ModelHandle, batch: Batch) -> None:
    """What a step cannot do without."""
    directional_derivatives.loss(handle, batch)
    directional_derivatives.loss(handle, batch)


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """CPU seconds and bytes of a step."""
    shape, numbers = (SMALL, (16, 8)) if quick else (SHAPE, (256, 64))
    acts: list[Act] = []
    facts: list[dict[str, float]] = []
    for dtype in (torch.float32, torch.bfloat16):
        theirs, mine, plain = (llama(shape, dtype) for _ in range(3))
        z, seeds = families.make("hadamard", 7, K), count()
        for n in numbers:
            batch, what = tokens(n), f"{n} tokens" + ", bfloat16" * (dtype != torch.float32)
            ways: list[tuple[str, ModelHandle, Callable[[], object], int]]
            ways = [("published", theirs, partial(published, theirs, batch, seeds), 4)]
            step, passes = partial(ours, mine, batch, z, seeds), 3 if dtype == torch.float32 else 2
            ways += [(f"ours, {b}", mine, with_kernels(b, step), passes) for b in backends()]
            ways += [(LIMIT, plain, partial(two_passes, plain, batch), 0)]
            inference = peak(plain, ways[-1][2])
            for way, handle, run, passes in ways:
                run()  # once before memory is counted: what is kept between steps is there
                acts.append(Act(what, way, run))
                facts.append({"peak": peak(handle, run) / inference, "passes": float(passes)})
    rows = take_turns(acts, turns)
    size = sum(p.numel() for p in plain.parameters().values())
    return Result(
        "zo-step",
        "a full-parameter zeroth-order step: the published code, and ours; limit: two forward passes",
        {"parameters": size, "directions": K, "turns": turns},
        tuple(replace(row, facts=fact) for row, fact in zip(rows, facts, strict=True)),
    )
