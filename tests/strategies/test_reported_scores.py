"""Scores of modules beside what a method sends: what the server makes of them, and that the method is as it was."""

from typing import Any

import pytest
import torch

from fedft import run_file, strategies
from fedft.arithmetic.named_pairs import split
from fedft.contract import Member, Roster
from fedft.errors import ConfigError, RejectedUpdate
from fedft.recipe import Recipe
from fedft.server.planners.rank_budget import OWNER, ranks_within
from fedft.strategies.parts.reported_scores import with_scores
from fedft.strategies.parts.sensitivity import SCORE, said
from fedft.testing import toy
from fedft.update import Update

PLAN = {"name": "rank_budget", "budget": 0.5, "score": "sensitivity"}
UNLIKE = ({"name": "flexlora"}, {"name": "flora"}, {"name": "fedit", "padding": "zero"})


def recipe_of(strategy: dict[str, Any], plan: Any = PLAN, **tables: Any) -> Recipe:
    clients = {"rank": 4} | ({} if plan is None else {"plan": plan})
    return strategies.of(run_file.from_dict({"strategy": strategy, "clients": clients, **tables}))


@pytest.mark.parametrize("strategy", UNLIKE, ids=lambda s: s["name"])
def test_the_server_keeps_the_mean_of_scores_and_the_method_is_as_it_was(strategy: dict[str, Any]) -> None:
    """S = sum_k p_k S_k in the first round; the state is that of the method without scores, bit for bit."""
    t, plain = toy(recipe_of(strategy)), toy(recipe_of(strategy, None))
    state = t.state()
    updates = [t.update(state, k) for k in range(3)]
    after, without = (
        t.step(state, updates),
        plain.step(plain.state(), [plain.update(plain.state(), k) for k in range(3)]),
    )
    assert after.shared_digest == without.shared_digest
    scores, whole = said(after.drawer(OWNER)), sum(u.num_examples for u in updates)
    assert scores.keys() == set(t.layout.modules)
    for m, s in scores.items():
        assert s == pytest.approx(sum(u.num_examples / whole * float(u.delta[SCORE + m]) for u in updates), rel=1e-6)
    assert any(s > 0 for s in scores.values())


def test_later_scores_move_the_known_ones_on_their_own_scale() -> None:
    """0.7 S + 0.3 c S' with c (1 + 3) = the sum of S, of the two modules that have news; a third keeps its own."""
    t = toy(recipe_of(UNLIKE[0]))
    state = t.state()
    state = t.step(state, [t.update(state, k) for k in range(3)])
    before, (a, b, *others) = said(state.drawer(OWNER)), sorted(t.layout.modules)
    sent = t.update(state, 0).delta
    of_two = {n: x for n, x in sent.items() if not n.startswith(SCORE)}
    of_two |= {SCORE + a: torch.tensor([0.5]), SCORE + b: torch.tensor([1.5])}
    now = said(t.step(state, [Update(of_two, 5)]).drawer(OWNER))
    c = (before[a] + before[b]) / 2
    assert now[a] == pytest.approx(0.7 * before[a] + 0.3 * c * 0.5)
    assert now[b] == pytest.approx(0.7 * before[b] + 0.3 * c * 1.5)
    assert [now[m] for m in others] == [before[m] for m in others]


def test_ranks_are_dealt_by_the_scores() -> None:
    t = toy(recipe_of(UNLIKE[0]))
    state = t.state()
    roster = Roster({"a": Member(3)}, 0, 7, ("a",))
    assert t.recipe.plan(state, roster) == {}, "nothing is reported yet"
    state = t.step(state, [t.update(state, k) for k in range(3)])
    pairs, scores = split(state.tensors)[0], said(state.drawer(OWNER))
    assert dict(t.recipe.plan(state, roster)["a"].shape.ranks) == ranks_within(pairs, scores, 3, 0.5)


def test_scores_that_no_client_of_ours_sends_are_refused() -> None:
    t = toy(recipe_of(UNLIKE[0]))
    state = t.state()
    delta = dict(t.update(state, 0).delta)
    name = next(n for n in delta if n.startswith(SCORE))
    with pytest.raises(RejectedUpdate, match="scores from"):
        t.recipe.admit({**delta, name: torch.tensor([1e9])}, t.plan(state, 0))


def test_what_has_no_scores_as_they_are_is_refused() -> None:
    noise = {"mode": "local-dp", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    with pytest.raises(ConfigError, match=r"\[clients\] plan = 'rank_budget': .* \[privacy\] mode changes them"):
        recipe_of({"name": "fedit", "padding": "zero"}, privacy=noise)
    with pytest.raises(ValueError, match="clients of ffa_lora send no such pairs"):
        with_scores(strategies.make("ffa_lora", {}), run_file.from_dict({}), OWNER)
