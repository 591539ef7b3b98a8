"""A local step of a pruned model: what masks and slices save of the whole one's time and memory.

    whole       `FirstOrder`'s step on the resident base, as `step` measures it
    masks       the same with a share of heads and channels switched off: what they would have computed is still there
    slices      the same with them cut away

Llama of random weights, rank 8 on all linear layers, the given share of each layer's heads and channels pruned. `base
MiB` are base and adapter; `peak MiB` the tensors alive at once beside them, of one step. Embeddings and output are
never pruned.
"""

from dataclasses import replace
from itertools import chain

import torch

from fedft.benchmarks.measure import Act, Peak, take_turns
from fedft.benchmarks.results import Result
from fedft.benchmarks.step import place_of, rows_of, step_of
from fedft.models.handle import ModelHandle
from fedft.pruning.groups import Groups, groups_of
from fedft.pruning.kept import Kept
from fedft.pruning.masks import Masks
from fedft.pruning.slices import slice_for_good

SHARES = (0.25, 0.5)


def without(groups: Groups, share: float) -> Kept:
    """What is kept without the first groups, this share of them, of each structure."""
    bits = torch.ones(groups.size, dtype=torch.bool)
    for s, place in groups.each():
        bits[place.start : place.start + round(share * s.size)] = False
    return Kept(groups, bits)


def pruned(how: str, share: float, hidden: int, layers: int, vocabulary: int) -> ModelHandle:
    """A model of random weights, of which this share is switched off ("masks"), cut away ("slices"), or nothing."""
    handle = place_of("ours", hidden, layers, vocabulary)
    kept = without(groups_of(handle.model), share)
    if how == "masks":
        Masks(handle.model, kept)
    if how == "slices":
        slice_for_good(handle.model, kept)
    return handle


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """27 million parameters in layers of width 512, 4 million in embeddings, four rows of at most 192 tokens."""
    hidden, layers, vocabulary = (64, 2, 100) if quick else (512, 8, 4000)
    rows = rows_of(4, 24 if quick else 192, vocabulary)
    acts, held, peaks, weights = list[Act](), dict[tuple[str, str], float](), dict[tuple[str, str], float](), 0
    for what in (f"{share:.0%} pruned" for share in SHARES):
        for way in ("whole", "masks", "slices"):
            handle = pruned(way, float(what.partition("%")[0]) / 100, hidden, layers, vocabulary)
            step = step_of("ours", handle, rows)
            step()  # moments of the optimiser are there from now on
            tensors = chain(handle.model.parameters(), handle.model.buffers())
            held[what, way] = sum({x.data_ptr(): x.nbytes for x in tensors}.values()) / 2**20
            with Peak() as peak:
                step()
            peaks[what, way] = peak.most / 2**20
            acts.append(Act(what, way, step))
            weights = sum(p.numel() for p in handle.base().values()) if way == "whole" else weights
    found = take_turns(acts, turns)
    return Result(
        "slices",
        "A local step of LoRA on a pruned model, under masks and cut, against the whole model",
        {"parameters": weights, "rows": len(rows), "tokens": sum(len(r.input_ids) for r in rows)},
        tuple(replace(r, facts={"peak MiB": peaks[r.what, r.way], "base MiB": held[r.what, r.way]}) for r in found),
    )
