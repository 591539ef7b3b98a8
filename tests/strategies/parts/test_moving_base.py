"""A sum of low-rank steps: what it amounts to, what of it travels, and that everybody holds the same bits."""

from dataclasses import replace

import pytest
import torch

from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import to_names
from fedft.contract import Layout, State
from fedft.strategies.parts import moving_base
from fedft.update import Plan

OUT, IN = 6, 8
LAYOUT = Layout(modules={"m": (OUT, IN)})


def step(seed: int, rank: int) -> dict[str, torch.Tensor]:
    """One round's pairs, and a value that it replaces."""
    rng = torch.Generator().manual_seed(seed)
    d = LowRank(torch.randn(rank, IN, generator=rng), torch.randn(OUT, rank, generator=rng))
    return to_names({"m": d}) | {"value": torch.full((2,), float(seed))}


def run(ranks) -> list[State]:
    found = [State(0, moving_base.nothing_yet(LAYOUT) | {"value": torch.zeros(2)})]
    for t, rank in enumerate(ranks):
        found.append(State(t + 1, moving_base.merge(found[-1], step(t, rank))))
    return found


def dense(x) -> torch.Tensor:
    return x["m.lora_B"].double() @ x["m.lora_A"].double()


def plan(state: State, have: int | None) -> Plan:
    bare = Plan("", state.version, state.version, have)
    return replace(bare, tensors=moving_base.since(state, have, bare))


@pytest.mark.parametrize("ranks", [[1, 1, 1], [2, 0, 3], [6, 6], [9], [0], [1] * 12], ids=str)
def test_the_state_is_the_sum_of_the_steps_at_most_as_long_as_the_matrix_and_the_newest_value(ranks):
    last = run(ranks)[-1].tensors
    exact = sum(dense(step(t, rank)) for t, rank in enumerate(ranks))
    assert (dense(last) - exact).norm() <= 1e-5 * (1 + exact.norm())
    assert last["m.lora_A"].shape[0] <= min(OUT, IN)
    assert torch.equal(last["value"], torch.full((2,), float(len(ranks) - 1)))


@pytest.mark.parametrize("ranks", [[1, 1, 1, 1, 1, 1, 1, 1], [3, 0, 2, 4, 1, 0, 5, 2]], ids=str)
def test_from_whatever_version_a_client_comes_it_holds_the_newcomer_s_bits(ranks):
    states = run(ranks)
    newcomers = [moving_base.catch_up(None, plan(s, None)) for s in states]
    for have, old in enumerate(newcomers):
        for state in states:
            held = moving_base.catch_up(State(have, old), plan(state, have))
            assert tensors.digest(held) == tensors.digest(newcomers[state.version])


def test_no_step_stays_with_a_client_and_few_with_the_server():
    states = run([1] * 12)
    assert all(not n.startswith(moving_base.STEP) for n in moving_base.catch_up(None, plan(states[-1], None)))
    assert max(sum(x.numel() for x in s.tensors.values()) for s in states) <= 2 * (min(OUT, IN) * (OUT + IN) + 2)


def test_what_comes_down_is_the_shorter_of_steps_and_sum():
    """After four rounds of rank 1: one step is 14 numbers and the value, the sum is 56."""
    state = run([1] * 4)[-1]
    sizes = [sum(x.numel() for x in plan(state, have).tensors.values()) for have in (4, 3, 2, None)]
    assert sizes == [0, 14 + 2, 28 + 2, 56 + 2]
    assert all(sum(x.numel() for x in plan(state, have).tensors.values()) <= 58 for have in range(5))
