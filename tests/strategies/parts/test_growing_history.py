"""Histories: by whatever way a client got its rounds, it holds the same ones, and their sum has the same bits."""

from dataclasses import replace

import pytest
import torch

from fedft.arithmetic import tensors
from fedft.contract import State
from fedft.strategies.parts import growing_history
from fedft.strategies.parts.growing_history import Replay
from fedft.update import Plan

SHAPES = {"a": (2, 3), "b": (4,)}


def plan(version: int, have: int | None = None) -> Plan:
    return Plan("0123456789abcdef", version, version, have)


def brought(version: int, of: str = "") -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([float(version)]), "y": torch.tensor([len(of)])}


def grown(versions: int, start: State | None = None, of: str = "") -> State:
    state = start or State(0, growing_history.nothing_yet(None, 0, 0))
    while state.version < versions:
        state = State(state.version + 1, growing_history.grow(state, brought(state.version, of)))
    return state


def received(state: State, held: State | None) -> State:
    """What a client holds that held something before, by what the server sends."""
    p = plan(state.version, held.version if held else None)
    return State(
        state.version, growing_history.with_news(held, replace(p, tensors=growing_history.since(state, p.have, p)))
    )


def test_a_round_adds_its_tensors_and_leaves_the_old_state_alone():
    before = grown(2)
    names = set(before.tensors)
    after = growing_history.grow(before, brought(2))
    assert set(after) - names == {"2.x", "2.y"}
    assert set(before.tensors) == names == {"0.x", "0.y", "1.x", "1.y"}


@pytest.mark.parametrize("have", [None, 0, 1, 9, 10, 11])
def test_a_client_is_sent_what_it_lacks_and_then_holds_what_a_newcomer_holds(have):
    state = grown(11)
    held = None if have is None else received(grown(have), None)
    sent = growing_history.since(state, have, plan(11, have))
    assert len(sent) == 2 * (11 - (have or 0))
    now = received(state, held)
    assert tensors.digest(now.tensors) == tensors.digest(state.tensors)


def test_a_client_that_lacks_nothing_keeps_the_very_mapping_it_held():
    held = grown(3)
    assert growing_history.with_news(held, plan(3, 3)) is held.tensors


def test_rounds_of_a_state_that_was_taken_back_are_forgotten():
    """The server stands at version 2 of another past than the client's version 5."""
    common, ahead = grown(1), grown(5)
    other = grown(2, common, of="another")
    now = received(other, ahead)
    assert tensors.digest(now.tensors) == tensors.digest(other.tensors)


def test_rounds_come_in_the_order_of_their_numbers_not_of_their_names():
    found = growing_history.rounds(dict(sorted(grown(11).tensors.items())))
    assert [version for version, _ in found] == list(range(11))
    assert all(set(told) == {"x", "y"} and float(told["x"]) == version for version, told in found)


def test_names_of_a_round_may_have_dots():
    state = State(3, growing_history.grow(State(3, {}), {"coordinates.a.b": torch.ones(1)}))
    assert [(v, list(told)) for v, told in growing_history.rounds(state.tensors)] == [(3, ["coordinates.a.b"])]


# -- replay


class Adds:
    """Adds a third of the round's number to every entry, and notes which rounds were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, total, version, told) -> None:
        self.asked.append(version)
        for x in total.values():
            x += float(told["x"]) / 3 + float(told["y"])


def test_the_change_is_the_sum_of_the_rounds():
    change = Replay().change(grown(4).tensors, SHAPES, 7, Adds())
    assert {n: tuple(x.shape) for n, x in change.items()} == SHAPES
    assert all(torch.allclose(x, torch.full_like(x, 6 / 3)) for x in change.values())


def test_no_rounds_are_a_change_of_zero():
    assert not any(x.any() for x in Replay().change({}, SHAPES, 7, Adds()).values())


def test_a_veteran_adds_the_new_rounds_only_and_has_a_newcomers_bits():
    veteran, add = Replay(), Adds()
    for version in range(6):
        change = veteran.change(grown(version).tensors, SHAPES, 7, add)
        newcomer = Replay().change(grown(version).tensors, SHAPES, 7, Adds())
        assert all(torch.equal(change[n], newcomer[n]) for n in SHAPES)
    assert add.asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("then", "shapes", "seed"),
    [
        (grown(2), SHAPES, 7),
        (grown(5, grown(2), of="another"), SHAPES, 7),
        (grown(4), {"a": (3, 2), "b": (4,)}, 7),
        (grown(4), {"a": (2, 3)}, 7),
        (grown(4), SHAPES, 8),
    ],
    ids=["taken back", "another past", "another shape", "fewer tensors", "another run"],
)
def test_a_sum_that_is_of_something_else_is_begun_anew(then, shapes, seed):
    replay, add = Replay(), Adds()
    replay.change(grown(4).tensors, SHAPES, 7, Adds())
    change = replay.change(then.tensors, shapes, seed, add)
    assert add.asked == list(range(then.version))
    fresh = Replay().change(then.tensors, shapes, seed, Adds())
    assert change.keys() == fresh.keys()
    assert all(torch.equal(change[n], fresh[n]) for n in fresh)


def test_a_round_that_was_added_by_half_is_not_built_on():
    """The third round fails after one of two tensors; the next call gives the whole sum."""
    replay = Replay()
    replay.change(grown(2).tensors, SHAPES, 7, Adds())

    def fails(total, version, told) -> None:
        total["a"] += 100
        raise ValueError("a round that does not fit")

    with pytest.raises(ValueError, match="does not fit"):
        replay.change(grown(3).tensors, SHAPES, 7, fails)
    change = replay.change(grown(3).tensors, SHAPES, 7, Adds())
    fresh = Replay().change(grown(3).tensors, SHAPES, 7, Adds())
    assert all(torch.equal(change[n], fresh[n]) for n in SHAPES)
