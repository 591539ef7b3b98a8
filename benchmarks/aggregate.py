"""The server's sums: FedAvg of adapters against Flower's, and FLoRA's step against the dense one.

    FedAvg                published is Flower's `aggregate` (flwr.server.strategy.aggregate: lists of arrays, all in
                          memory); `aggregate_arrayrecords` is what its newer strategies call, with what it is given:
                          arrays as serialised bytes, which it turns into numpy itself. Ours is `weighted_mean` of
                          tensors. The limit reads every update once (torch.sum)
    FedAvg from messages  the same where every way begins with bytes: ours decodes fp32 messages one by one
    FLoRA step            dense sum adds up p_k B_k A_k client by client, as is done where products are formed; FLoRA's
                          own is a stack, and so is ours: the factors with p_k on B. The limit copies the factors
    distances             inner products of all pairs of clients' changes B A, which robust sums go by, from R x R
                          matrices, against those of one pair multiplied out
    FLoRA round           the same of updates that come one by one, as messages: holding all of them and stacking then,
                          against writing each into the stack as it comes; the limit is one copy of the messages

`extra_mb` is the most that a way had in memory beside what it was given, `given_mb` what it must be given at once.
"""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from torch import Tensor

from fedft.aggregation.factor_means import stacked_mean
from fedft.aggregation.gram import of_pairs
from fedft.arithmetic import tensors
from fedft.arithmetic.named_pairs import pairs_and_mean, to_names
from fedft.arithmetic.stacks import stack
from fedft.benchmarks.codec import PLAIN, made_up, message
from fedft.benchmarks.measure import LIMIT, Act, Peak, backends, take_turns, with_kernels
from fedft.benchmarks.results import Result, Row
from fedft.benchmarks.svd import RANKS, clients, dense_sum
from fedft.update import TensorSpec, Update
from fedft.wire import messages as codec

WEIGHT = "num-examples"


def most_mb(run: Callable[[], object]) -> float:
    """The most memory of numpy's arrays, bytes and tensors that `run` made, in MB."""
    with Peak():
        torch.zeros(1)  # imports what counts
    tracemalloc.start()
    try:
        with Peak() as made:
            found = run()
        del found
        return (made.most + tracemalloc.get_traced_memory()[1]) / 1e6
    finally:
        tracemalloc.stop()


def fedavg(size: tuple[int, int, int], count: int, turns: int) -> tuple[Row, ...]:
    """Means of `count` adapters of (modules, rank, width), from tensors and from messages."""
    one = made_up(*size)
    shift = torch.Generator().manual_seed(1)
    updates = [
        ({n: t + 1e-3 * torch.randn(t.shape, generator=shift) for n, t in one.items()}, k + 1) for k in range(count)
    ]
    mb = sum(4 * t.numel() for t in one.values()) / 1e6
    lists = [([t.numpy() for t in x.values()], n) for x, n in updates]
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({name: Array(t.numpy()) for name, t in x.items()}),
                "metrics": MetricRecord({WEIGHT: float(n)}),
            }
        )
        for x, n in updates
    ]
    messages = [(message(x, PLAIN), n) for x, n in updates]
    spec = {name: TensorSpec(tuple(t.shape)) for name, t in one.items()}

    def decoded() -> dict[str, Tensor]:
        return tensors.weighted_mean((codec.decode_update(m, spec, PLAIN).delta, n) for m, n in messages)

    plain = f"FedAvg, {count} adapters of {mb:.1f} MB"
    wire = "FedAvg from messages"
    ways: list[tuple[str, str, Callable[[], object], float]] = [
        (plain, "published", partial(aggregate, lists), count * mb),
        (plain, "aggregate_arrayrecords", partial(aggregate_arrayrecords, records, WEIGHT), count * mb),
        *((plain, f"ours, {b}", with_kernels(b, partial(tensors.weighted_mean, updates)), mb) for b in backends()),
        (plain, LIMIT, lambda: [t.sum() for x, _ in updates for t in x.values()], mb),
        (wire, "published", partial(aggregate_arrayrecords, records, WEIGHT), count * mb),
        *((wire, f"ours, {b}", with_kernels(b, decoded), mb) for b in backends()),
    ]
    rows = take_turns([Act(what, way, run) for what, way, run, _ in ways], turns)
    return tuple(
        replace(r, facts={"extra_mb": most_mb(run), "given_mb": given}) if r.way != LIMIT else r
        for r, (_, _, run, given) in zip(rows, ways, strict=True)
    )


def flora(o: int, i: int, ranks: tuple[int, ...], turns: int) -> tuple[Row, ...]:
    """The server's step for one module."""
    items = clients(o, i, ranks)
    what = f"FLoRA step, {o} x {i}, R = {sum(ranks)}"
    ways: dict[str, Callable[[], object]] = {
        "dense sum": partial(dense_sum, items),
        "ours": partial(stack, items),
        LIMIT: lambda: (torch.cat([d.A for d, _ in items]), torch.cat([d.B for d, _ in items], dim=1)),
    }
    rows = take_turns([Act(what, way, run) for way, run in ways.items()], turns)
    return tuple(replace(r, facts={"extra_mb": most_mb(ways[r.way])}) if r.way != LIMIT else r for r in rows)


def flora_round(size: tuple[int, int, int], count: int, turns: int) -> tuple[Row, ...]:
    """The server's sum of `count` updates of (modules, rank, width), decoded one by one."""
    spec = {name: TensorSpec(tuple(t.shape)) for name, t in made_up(*size).items()}
    messages = [message(made_up(*size), PLAIN) for _ in range(count)]

    def coming() -> Iterator[Update]:
        return (Update(codec.decode_update(m, spec, PLAIN).delta, 1, cohort=count) for m in messages)

    def held() -> dict[str, Tensor]:
        pairs, rest = pairs_and_mean((u.delta, u.num_examples) for u in coming())
        return to_names({m: stack(of_clients) for m, of_clients in pairs.items()}) | rest

    mb = sum(len(m) for m in messages) / 1e6
    what = f"FLoRA round, {count} updates of {mb / count:.1f} MB"
    ways: dict[str, Callable[[], object]] = {
        "all held": held,
        "ours": lambda: stacked_mean(coming()),
        LIMIT: lambda: [bytearray(m) for m in messages],
    }
    rows = take_turns([Act(what, way, run) for way, run in ways.items()], turns)
    facts = {way: {"extra_mb": most_mb(run), "given_mb": mb / count} for way, run in ways.items() if way != LIMIT}
    return tuple(replace(r, facts=facts.get(r.way, {})) for r in rows)


def distances(o: int, i: int, count: int, rank: int, turns: int) -> tuple[Row, ...]:
    """Inner products of one module's changes of `count` clients, each with each, and of two of them as matrices."""
    items = [d for d, _ in clients(o, i, (rank,) * count)]
    first, second = items[0].double(), items[1].double()
    what = f"distances, {o} x {i}, {count} clients of rank {rank}"
    ways: dict[str, Callable[[], object]] = {
        "dense, one pair": lambda: (first.dense() * second.dense()).sum(),
        f"ours, all {count * (count + 1) // 2}": lambda: of_pairs([lambda d=d: d for d in items]),  # type: ignore[misc]
        LIMIT: lambda: [(d.A.double(), d.B.double()) for d in items],
    }
    rows = take_turns([Act(what, way, run) for way, run in ways.items()], turns)
    return tuple(replace(r, facts={"extra_mb": most_mb(ways[r.way])}) if r.way != LIMIT else r for r in rows)


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """Ten adapters of rank 16 on 32 modules of width 2048; one module of 4096 x 4096 and clients of rank 8 to 64."""
    size, count = ((2, 4, 256), 3) if quick else ((32, 16, 2048), 10)
    o, i, ranks = (256, 192, tuple(r // 8 for r in RANKS)) if quick else (4096, 4096, RANKS)
    rows = fedavg(size, count, turns) + flora(o, i, ranks, turns) + flora_round(size, count, turns)
    rows += distances(o, i, *((4, 4) if quick else (20, 16)), turns)
    title = "The server's sums, against Flower's and against dense products; limits: reading, copying once"
    settings = {"adapters": count, "modules": size[0], "rank": size[1], "width": size[2], "o": o, "i": i}
    return Result("aggregate", title, settings | {"ranks": list(ranks), "turns": turns}, rows)
