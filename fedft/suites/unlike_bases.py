"""The promise of strategies that declare `bases="any"`: clients whose bases are of unlike precision stand alike.

One toy has its base in float32, the other the same numbers rounded to bfloat16.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.contract import State
from fedft.recipe import Recipe
from fedft.suites.toy import CLIENTS, Toy, toy

CLOSE = 1e-5  # of changes whose sums with another base were rounded, relative to the largest


def tolerated(recipe: Recipe, clients: int = CLIENTS) -> None:
    """Return None where updates made on either base add up to one state, which changes both bases alike."""
    if recipe.bases != "any":
        return
    assert not recipe.space.of_base, "declares any base, and trains the base's own parameters"
    one = toy(recipe, clients)
    other = replace(toy(recipe, clients, rounded=True), kept=one.kept)
    assert one.state().digest == other.state().digest, "version 0 depends on the base"
    state = one.state()
    for _ in range(2):
        state = one.step(state, [(one, other)[k % 2].update(state, k) for k in range(len(one.ranks))])
    for client in range(len(one.ranks)):
        ours, theirs = _change(one, state, client), _change(other, state, client)
        assert ours.keys() == theirs.keys(), "another part of the model is changed on another base"
        assert all(_close(ours[n], theirs[n]) for n in ours), "one state changes two bases in unlike ways"


def _change(t: Toy, state: State, client: int) -> dict[str, Tensor]:
    """What the state changes in the model of a client, dense, by name."""
    t.turn(t.plan(state, client, steps=0), client)
    changes, whole = t.handle.change()
    return {n: d.dense() if isinstance(d, LowRank) else d for n, d in changes.items()} | whole


def _close(a: Tensor, b: Tensor) -> bool:
    return tensors.norm({"": a - b}) <= CLOSE * max(tensors.norm({"": a}), torch.finfo(torch.float32).tiny)
