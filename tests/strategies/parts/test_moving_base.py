"""A sum of low-rank steps: what it amounts to, what of it travels, and that everybody holds the same bits."""

from dataclasses import replace

import pytest
import torch

from fedft.arithmetic import tensors, weight_changes
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
    return weight_changes.factored(weight_changes.split(x)[0]["m"]).double().dense()


def moves(x) -> int:
    """How many numbers the sum of the steps has, in whichever form it is."""
    return sum(t.numel() for n, t in x.items() if n.startswith("m."))


def plan(state: State, have: int | None) -> Plan:
    bare = Plan("", state.version, state.version, have)
    return replace(bare, tensors=moving_base.since(state, have, bare))


@pytest.mark.parametrize("ranks", [[1, 1, 1], [2, 0, 3], [6, 6], [9], [0], [1] * 12], ids=str)
def test_the_state_is_the_sum_of_the_steps_never_longer_than_the_matrix_and_the_newest_value(ranks):
    last = run(ranks)[-1].tensors
    exact = sum(dense(step(t, rank)) for t, rank in enumerate(ranks))
    assert (dense(last) - exact).norm() <= 2e-7 * (1 + exact.norm())
    assert moves(last) == min(sum(ranks) * (OUT + IN), OUT * IN)
    assert torch.equal(last["value"], torch.full((2,), float(len(ranks) - 1)))


@pytest.mark.parametrize("rounds", [3, 40])
def test_a_sum_that_has_become_dense_errs_by_a_rounding_a_round(rounds):
    """Each entry of the sum is rounded to 24 bits once a round, where it stands at that time."""
    ranks = [4] * rounds
    exact = sum(dense(step(t, rank)) for t, rank in enumerate(ranks))
    largest = max(float(dense(s.tensors).abs().max()) for s in run(ranks))
    assert float((dense(run(ranks)[-1].tensors) - exact).abs().max()) <= 2 * rounds * 2**-24 * largest


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
    assert max(sum(x.numel() for x in s.tensors.values()) for s in states) <= 2 * (OUT * IN + 2)


def test_what_comes_down_is_the_shorter_of_steps_and_sum():
    """After three rounds of rank 1 the sum is 3 rows of 14 numbers; a fourth would make 56, and the matrix has 48."""
    three, four = run([1] * 3)[-1], run([1] * 4)[-1]

    def sizes(state):
        return [sum(x.numel() for x in plan(state, have).tensors.values()) for have in (3, 2, 1, None)]

    assert sizes(three) == [0, 14 + 2, 28 + 2, 42 + 2]
    assert sizes(four) == [14 + 2, 28 + 2, 42 + 2, 48 + 2]
    assert sum(x.numel() for x in plan(four, 0).tensors.values()) == 48 + 2  # four steps are longer than their sum


def test_a_sum_of_before_that_has_up_to_min_o_i_rows_goes_on():
    """As a run has saved it that began with a version which recompressed: 5 rows of 14 numbers, then dense."""
    old = State(3, to_names({"m": LowRank(torch.randn(5, IN), torch.randn(OUT, 5))}) | {"value": torch.zeros(2)})
    new = State(4, moving_base.merge(old, step(3, 1)))
    assert moves(new.tensors) == OUT * IN
    assert (dense(new.tensors) - dense(old.tensors) - dense(step(3, 1))).norm() <= 1e-5
    held = moving_base.catch_up(State(3, moving_base.catch_up(None, plan(old, None))), plan(new, 3))
    assert tensors.digest(held) == tensors.digest(moving_base.catch_up(None, plan(new, None)))
