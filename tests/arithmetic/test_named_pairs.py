"""Which named tensors are a low-rank pair, and what is done by name."""

import pytest
import torch

from fedft.arithmetic import lowrank, named_pairs
from fedft.arithmetic.lowrank import LowRank


def pair(seed: int, rank: int) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, 5, generator=rng), torch.randn(7, rank, generator=rng))


def test_split_and_to_names_are_inverse_and_leave_the_rest_alone():
    x = {
        "m.lora_A": torch.ones(2, 5),
        "m.lora_B": torch.ones(7, 2),
        "n.lora_B": torch.ones(3, 2),
        "head": torch.ones(4),
    }
    pairs, rest = named_pairs.split(x)
    assert (set(pairs), set(rest)) == ({"m"}, {"n.lora_B", "head"})
    assert named_pairs.to_names(pairs).keys() | rest.keys() == x.keys()
    assert named_pairs.to_names(pairs)["m.lora_A"] is x["m.lora_A"]


def test_a_cut_undoes_padding():
    d = pair(3, 2)
    grown = named_pairs.cut(named_pairs.to_names({"m": lowrank.pad(d, 6)}), 2)
    assert torch.equal(grown["m.lora_A"], d.A)
    assert torch.equal(grown["m.lora_B"], d.B)


def test_pairs_are_gathered_by_module_and_the_rest_is_averaged():
    items = [(pair(0, 1), 1), (pair(1, 3), 4)]
    given = [
        (named_pairs.to_names({"m": d}) | {"head": torch.full((2,), float(k))}, n) for k, (d, n) in enumerate(items)
    ]
    pairs, rest = named_pairs.pairs_and_mean(iter(given))
    assert [(d.rank, n) for d, n in pairs["m"]] == [(1, 1), (3, 4)]
    assert rest["head"].tolist() == pytest.approx([0.8, 0.8])
    with pytest.raises(ValueError, match="none"):
        named_pairs.pairs_and_mean(iter([]))


def test_values_replace_and_everything_else_stays():
    old = named_pairs.to_names({"m": pair(1, 3), "n": pair(2, 3)}) | {"head": torch.zeros(2), "other": torch.ones(1)}
    new = named_pairs.to_names({"m": pair(3, 2)}) | {"head": torch.ones(2)}
    now = named_pairs.replace_pairs(old, new)
    assert now.keys() == old.keys()
    assert torch.equal(now["m.lora_A"][:2], new["m.lora_A"])
    assert torch.equal(now["m.lora_A"][2], old["m.lora_A"][2])
    assert now["n.lora_A"] is old["n.lora_A"]
    assert now["other"] is old["other"]
    assert torch.equal(now["head"], torch.ones(2))
