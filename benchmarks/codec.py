"""Codecs: messages with updates of LoRA, against fp32: bits per parameter, error and speed.

Sizes are of whole messages: frame, names, scales and all. Times are of everything between tensors and bytes; MB/s count
the float32 input. `gap` is bits per parameter above -log2 of the relative error (root mean square over tensors), the
least that any code needs for Gaussian tensors. The limit of either direction is a copy of the float32 tensors.

`int4, numba` has its streams compiled, as a process has that coded enough; the others are by `constriction`.

The update is made up: LoRA pairs of Gaussian entries whose sizes differ by tensor and by row. What a run keeps of its
progress under a codec is a matter for `fedft race --variant 'int4: codec.up=int4'`.

The last rows are one client's round of FedKSeed with K = 4096 and 200 steps: the pool of sums down, the pairs of seed
and scalar up.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedft.benchmarks.measure import LIMIT, Act, backends, take_turns, with_kernels
from fedft.benchmarks.results import Result, Row
from fedft.update import Plan, TensorSpec, Update
from fedft.wire import messages

PLAIN = "fp32"
NAMES = (
    PLAIN, "bf16", "fp16", "int8", "int4", "ternary", "ternary:0.5", "ternary:0.2", "ternary:0.1", "ternary:0.05",
    "topk:0.1|fp16", "topk:0.1|int8", "topk:0.1|int4", "randk:0.1|int8", "fixed:16",
)  # fmt: skip
POOL, STEPS = 4096, 200
RUN = "0123456789abcdef"


def made_up(modules: int, rank: int, width: int) -> dict[str, Tensor]:
    """LoRA pairs of modules of width x width."""
    g = torch.Generator().manual_seed(0)
    out = {}
    for i in range(modules):
        name = f"model.layers.{i // 4}.self_attn.{'qkvo'[i % 4]}_proj"
        rows = 0.01 * 2 ** (torch.randn(rank, generator=g) / 3 + torch.randn(1, generator=g))
        out[f"{name}.lora_A"] = torch.randn(rank, width, generator=g) * rows[:, None]
        out[f"{name}.lora_B"] = torch.randn(width, rank, generator=g) * rows
    return out


def message(delta: dict[str, Tensor], name: str) -> bytes:
    """An update as it travels."""
    return messages.encode_update(Update(delta, 1000, 3, RUN, metrics={"loss": 1.2345678, "steps": 40.0}), name, 1)


def size_and_error(delta: dict[str, Tensor], name: str) -> dict[str, float]:
    """What a codec makes of one update."""
    n, data = sum(t.numel() for t in delta.values()), message(delta, name)
    got = messages.decode_update(data, {k: TensorSpec(tuple(t.shape)) for k, t in delta.items()}, name).delta
    ratios = [float((got[k].double() - t).norm() / t.double().norm()) ** 2 for k, t in delta.items()]
    error = (sum(ratios) / len(ratios)) ** 0.5
    bits = 8 * len(data) / n
    facts = {"bits": bits, "times_smaller": 32 / bits, "error": error}
    return facts | ({"gap": bits + math.log2(error)} if error else {})


def fedkseed() -> tuple[Row, ...]:
    """Bytes of one client's round, plain and in codecs."""
    g = torch.Generator().manual_seed(1)
    drawn = torch.randperm(POOL, generator=g)[:STEPS].sort().values.to(torch.uint16)
    pool, scalar = (1e-3 * torch.randn(n, generator=g) for n in (POOL, STEPS))
    plan = Plan(run=RUN, round=10, version=10, have=9, steps=STEPS, learning_rate=1e-4, tensors={"pool": pool})
    update = Update({"index": drawn, "scalar": scalar}, 1000, 10, RUN, metrics={"loss": 1.23456, "steps": float(STEPS)})

    def sizes(codec_down: str, codec_up: str) -> tuple[int, int]:
        return len(messages.encode_plan(plan, codec_down)), len(messages.encode_update(update, codec_up))

    plain, ours = sizes(PLAIN, PLAIN), sizes("topk:1|fp16", "topk:1|int8")
    return tuple(
        Row(f"FedKSeed, {what}", way, facts={"bytes": own, "times_smaller": first / own})
        for what, first, second, name in (
            ("down", plain[0], ours[0], "topk:1|fp16"),
            ("up", plain[1], ours[1], "topk:1|int8"),
            ("both", sum(plain), sum(ours), "both codecs"),
        )
        for way, own in (("plain", first), (name, second))
    )


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """Sizes, errors and speeds of all codecs on two million parameters."""
    modules, rank, width = (4, 16, 256) if quick else (16, 16, 4096)
    delta = made_up(modules, rank, width)
    n = sum(t.numel() for t in delta.values())
    spec, there = {k: TensorSpec(tuple(t.shape)) for k, t in delta.items()}, torch.empty(n)
    flat = torch.cat([t.view(-1) for t in delta.values()])
    ways = [(name, _way(name), "torch") for name in NAMES]
    ways += [("int4", f"int4, {b}", b) for b in backends() if b != "torch"]
    acts = [Act("encode", way, with_kernels(b, partial(message, delta, name))) for name, way, b in ways]
    acts += [Act("encode", LIMIT, lambda: there.copy_(flat))]
    for name, way, b in ways:
        read = partial(messages.decode_update, message(delta, name), spec, name)
        acts.append(Act("decode", way, with_kernels(b, read)))
    acts += [Act("decode", LIMIT, lambda: there.copy_(flat))]
    facts = {_way(name): size_and_error(delta, name) for name in NAMES}
    rows = []
    for timed in take_turns(acts, turns):
        told = facts.get(timed.way, {}) if timed.what == "encode" else {}
        rows.append(replace(timed, facts={**told, "MB/s": 4e-6 * n / timed.seconds}))
    return Result(
        "codec",
        "messages in fp32, and in each codec; limits: 2^-R for the error of R bits, a copy of the tensors for the time",
        {"parameters": n, "tensors": len(delta), "rank": rank, "turns": turns},
        (*rows, *fedkseed()),
    )


def _way(name: str) -> str:
    return "plain" if name == PLAIN else name
