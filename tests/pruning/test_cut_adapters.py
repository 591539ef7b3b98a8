"""Adapters in coordinates of what is left: the same product there, zero elsewhere, and the bytes of the formula."""

import torch
from prunable_models import every_prunable, layout, prunable, some
from small_models import factors

from fedft.adapters.lora import LoRA
from fedft.arithmetic.named_pairs import split
from fedft.contract import Layout
from fedft.pruning.cut_adapters import cut, cut_shapes, scattered
from fedft.pruning.groups import Groups, Part, Structure, groups_of
from fedft.pruning.kept import Kept, everything
from fedft.pruning.masks import zero_pruned
from fedft.update import Shape


@every_prunable
def test_cut_and_scattered_is_the_adapter_with_zeros_where_it_is_pruned(name: str) -> None:
    model = prunable(name)
    whole = factors(layout(model), 4)
    kept = some(groups_of(model), 6)
    sent = cut(whole, kept)
    zero_pruned(whole, kept)
    back = scattered(sent, kept)
    assert back.keys() == whole.keys()
    assert all(torch.equal(back[n], x) for n, x in whole.items())
    assert all(torch.equal(x, sent[n]) for n, x in cut(back, kept).items())
    assert {n: tuple(x.shape) for n, x in sent.items()} == cut_shapes(
        {n: tuple(x.shape) for n, x in whole.items()}, kept
    )


@every_prunable
def test_a_pair_takes_rank_times_kept_rows_and_inputs_or_outputs_and_kept_columns(name: str) -> None:
    model = prunable(name)
    kept = some(groups_of(model), 7)
    modules = layout(model).modules
    pairs, _ = split(cut(factors(layout(model), 4), kept))
    for m in kept.groups.parts:
        (o, i), part, left = modules[m], kept.groups.parts[m][0], len(kept.places(m))
        numbers = pairs[m].A.numel() + pairs[m].B.numel()
        assert numbers == (4 * (left + i) if part.side == "rows" else 4 * (o + left)), m


def test_nothing_pruned_leaves_every_number() -> None:
    model = prunable("gpt2")
    whole = factors(layout(model), 2)
    sent = cut(whole, everything(groups_of(model)))
    assert all(torch.equal(x, sent[n]) for n, x in whole.items())


def test_the_large_model_at_30_percent_takes_0_81_of_its_bytes() -> None:
    """24 layers of hidden width 2048, 16 heads of 128 and 5504 channels, rank 8, all linear layers: 7 495 680 numbers.

    In half precision 14 991 360 bytes. 0.7 of the pruned side of each matrix is left, r (kept_o + i) or r (o + kept_i).
    """
    h, f, found = 2048, 5504, []
    for n in range(24):
        attention = (*(Part(f"{n}.{m}", "rows", 128) for m in "qkv"), Part(f"{n}.o", "columns", 128))
        channels = (Part(f"{n}.gate", "rows", 1), Part(f"{n}.up", "rows", 1), Part(f"{n}.down", "columns", 1))
        found += [Structure(f"{n}.a", 16, attention, (), 4 * h * 128), Structure(f"{n}.f", f, channels, (), 3 * h)]
    groups = Groups(tuple(found))
    modules = {f"{n}.{m}": (h, h) for n in range(24) for m in "qkvo"}
    modules |= {f"{n}.{m}": s for n in range(24) for m, s in (("gate", (f, h)), ("up", (f, h)), ("down", (h, f)))}
    shapes = LoRA().trained(Layout(modules), Shape(8))
    bits = torch.ones(groups.size, dtype=torch.bool)
    for s, place in groups.each():
        bits[place.start : place.start + round(0.3 * s.size)] = False
    numbers = sum(a * b for a, b in shapes.values())
    left = sum(a * b for a, b in cut_shapes(dict(shapes), Kept(groups, bits)).values())
    assert 2 * numbers == 14_991_360
    assert round(left / numbers, 2) == 0.81
