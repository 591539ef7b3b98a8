"""What is left of a model: a bit for each group, as bytes and back."""

import pytest
import torch
from prunable_models import every_prunable, prunable, some

from fedft.pruning.groups import Groups, Structure, groups_of
from fedft.pruning.kept import Kept, everything, from_words


@every_prunable
def test_words_come_back(name: str) -> None:
    groups = groups_of(prunable(name))
    for seed in range(5):
        kept = some(groups, seed)
        assert from_words(groups, kept.words()) == kept
        assert len(kept.packed()) == -(-groups.size // 8)
        assert kept.words().shape == (-(-groups.size // 16),)


def test_the_first_group_is_the_highest_bit() -> None:
    groups = Groups((Structure("a", 10, (), (), 1), Structure("b", 2, (), (), 5)))
    kept = Kept(groups, torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1], dtype=torch.bool))
    assert kept.packed().hex() == "81d0"
    assert kept.words().tolist() == [0x81D0]
    assert kept.counts() == {"a": 4, "b": 1}


def test_a_mask_of_the_large_model_takes_a_bit_for_each_group() -> None:
    """24 layers of 16 heads and 5504 channels: 132 480 bits, 16 560 bytes."""
    layer = (("attention", 16), ("feed_forward", 5504))
    groups = Groups(tuple(Structure(f"{n}.{kind}", c, (), (), 1) for n in range(24) for kind, c in layer))
    assert len(everything(groups).packed()) == 16_560


def test_the_ratio_is_of_weights() -> None:
    groups = Groups((Structure("a", 2, (), (), 100), Structure("b", 100, (), (), 2)))
    bits = torch.ones(102, dtype=torch.bool)
    assert everything(groups).ratio == 0
    bits[0] = False
    assert Kept(groups, bits).ratio == 0.25
    bits[50:] = False
    assert Kept(groups, bits).ratio == pytest.approx((100 + 52 * 2) / 400)


def test_what_both_keep_is_a_part_of_either() -> None:
    groups = groups_of(prunable("gpt2"))
    one, other = some(groups, 1), some(groups, 2)
    assert (one & other) <= one <= everything(groups)
    assert (one & other) <= other
    assert not one <= other
    assert hash(one & other) == hash(other & one)
    assert (one & other) == (other & one) != one


def test_words_that_fit_nothing_are_read_and_refuse_nobody() -> None:
    groups = Groups((Structure("a", 16, (), (), 1), Structure("b", 2, (), (), 5)))
    assert from_words(groups, torch.tensor([0xFFFF], dtype=torch.uint16)).counts() == {"a": 16, "b": 0}
    assert from_words(groups, torch.tensor([], dtype=torch.uint16)).counts() == {"a": 0, "b": 0}
    assert from_words(groups, torch.tensor([0, 0xFFFF, 7], dtype=torch.uint16)).counts() == {"a": 0, "b": 2}
