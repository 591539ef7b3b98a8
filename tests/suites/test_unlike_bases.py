"""What a strategy promises that lets sites have the base in unlike precision, and that breaking it is found."""

from dataclasses import replace

import pytest
import torch

from fedft import strategies
from fedft.arithmetic.lowrank import LowRank
from fedft.recipe import Full, Handle, LoRA, Recipe, Turn, write_all
from fedft.registry import BUILT_IN
from fedft.suites.unlike_bases import tolerated

SAME = {"fedkseed", "ferret", "mezo", "fedavg"}


def test_methods_that_move_the_base_itself_say_that_it_must_be_the_same() -> None:
    assert {n for n in BUILT_IN if strategies.make(n, {}).bases == "same"} == SAME
    assert strategies.make("fedavg", {"space": "lora"}).bases == "any"
    assert strategies.make("zo_fedavg", {"space": "full"}).bases == "same"
    assert strategies.make("fedopt", {"on": "fedavg"}).bases == "same"


def test_who_trains_the_base_cannot_take_any() -> None:
    tolerated(Recipe("full", Full()))
    with pytest.raises(AssertionError, match="trains the base's own parameters"):
        tolerated(Recipe("full", Full(), bases="any"))


def test_a_change_that_is_made_of_the_base_is_found() -> None:
    def start(handle: Handle, turn: Turn) -> None:
        write_all(handle, turn)
        row = handle.base()["first.weight"].detach()[:1].clone()
        handle.set_base_change({"first": LowRank(row, torch.ones(6, 1))}, "x")

    recipe = Recipe("halving", LoRA(), bases="any")
    tolerated(recipe)
    with pytest.raises(AssertionError, match="changes two bases in unlike ways"):
        tolerated(replace(recipe, start=start))
