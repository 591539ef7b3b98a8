"""Built-in planners: the contract, what each promises by itself, and runs that name them."""

import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from fedft import registry, run_file, strategies
from fedft.arithmetic.lowrank import LowRank
from fedft.contract import Forecast, Member, Roster, Seen, State, Work
from fedft.errors import ConfigError
from fedft.server.planners.flops_budget import flops_budget
from fedft.server.planners.halves import halves
from fedft.server.planners.important_layers import important_layers
from fedft.server.planners.rank_budget import LADDER, RANKED_IN, rank_budget, ranks_within
from fedft.suites.planners import planner_contract
from fedft.update import Shape
from tests.server.test_planned_rounds import run_of

LAYERS = 6
MODULES = [f"model.layers.{k}.{part}" for k in range(LAYERS) for part in ("attn.q_proj", "mlp.up_proj")]


def state_of(moves: dict[str, float], rank: int = 16) -> State:
    """A state whose pairs have moved by these Frobenius norms; those of up_proj have twice the rows."""
    found = {}
    for m in MODULES:
        out = 16 if m.endswith("up_proj") else 8
        d = LowRank(torch.eye(rank, 8), torch.zeros(out, rank))
        d.B[0, 0] = moves.get(m, 0.0)
        found |= {m + ".lora_A": d.A, m + ".lora_B": d.B}
    return State(3, found)


def roster_of(clients: int = 4, rank: int = 16, **more: Any) -> Roster:
    members = {f"c{k}": Member(rank) for k in range(clients)}
    return Roster(members, 3, 11, tuple(members), **more)


GROWING = {m: 1.0 + k for k, m in enumerate(MODULES)}


@pytest.mark.parametrize("name", ["flops_budget", "halves", "important_layers", "rank_budget"])
def test_it_keeps_the_contract(name: str) -> None:
    assert not any(planner_contract(registry.planners.make(name, {})).values())


def test_halves_are_other_ones_for_every_client_and_round_and_of_the_size_said() -> None:
    planner, state = halves(share=0.25), state_of(GROWING)
    first = {c: w.shape.chosen for c, w in planner(state, roster_of()).items()}
    assert {len(chosen) for chosen in first.values()} == {3}
    assert len(set(first.values())) > 1
    later = planner(state, Roster(roster_of().members, 4, 11))
    assert {c: w.shape.chosen for c, w in later.items()} != first
    alike = halves(share=0.25, alike=True)(state, roster_of())
    assert len({w.shape.chosen for w in alike.values()}) == 1


def test_over_many_rounds_every_module_learns_about_as_often() -> None:
    counts = dict.fromkeys(MODULES, 0)
    for round in range(200):
        (work,) = halves()(state_of(GROWING), Roster({"a": Member(4)}, round, 5)).values()
        for m in work.shape.chosen:
            counts[m] += 1
    assert min(counts.values()) > 70
    assert max(counts.values()) < 130


def test_the_layers_that_moved_furthest_learn_and_one_by_lot() -> None:
    state = state_of({m: 10.0 for m in MODULES if "layers.1." in m or "layers.4." in m})
    works = important_layers(most=3, drawn=1)(state, roster_of(20))
    for work in works.values():
        assert set(work.shape.chosen[:2]) == {"model.layers.1", "model.layers.4"}
        assert len(set(work.shape.chosen)) == 3
    assert len({work.shape.chosen[2] for work in works.values()}) > 1
    assert important_layers(most=LAYERS)(state, roster_of()) == {}


def test_ranks_are_of_the_ladder_within_the_budget_and_near_the_best_there_are() -> None:
    """Random scores and shapes of four modules against every assignment of ranks."""
    draw, shares = random.Random(3), []
    for _ in range(40):
        sizes = {f"m{k}": (draw.choice([8, 16, 64]), draw.choice([8, 32])) for k in range(4)}
        pairs = {m: LowRank(torch.zeros(1, i), torch.zeros(o, 1)) for m, (o, i) in sizes.items()}
        scores, budget = {m: draw.random() for m in sizes}, draw.choice([0.2, 0.5, 0.8])
        ranks = ranks_within(pairs, scores, 16, budget)
        most = budget * 16 * sum(o + i for o, i in sizes.values())

        def cost(found: dict[str, int], sizes: dict[str, tuple[int, int]] = sizes) -> int:
            return sum(r * sum(sizes[m]) for m, r in found.items())

        def value(found: dict[str, int], scores: dict[str, float] = scores) -> float:
            return sum(scores[m] * (1 - 2 ** (-r / 4)) for m, r in found.items())

        assert set(ranks.values()) <= set(LADDER)
        assert cost(ranks) <= most
        every = (dict(zip(sizes, rs, strict=True)) for rs in itertools.product((0, 4, 8, 16), repeat=4))
        shares.append(value(ranks) / max(value(found) for found in every if cost(found) <= most))
    assert min(shares) > 0.75
    assert sum(shares) / len(shares) > 0.97


def test_ranks_stay_for_so_many_rounds() -> None:
    planner, state = rank_budget(every=5), state_of(GROWING)
    shape = Shape(16, dict.fromkeys(MODULES, 4))
    for since, stays in ((0, True), (-2, False)):
        seen = (Seen(2, 16, 4, extra={RANKED_IN: since}, shape=shape),)
        work = planner(state, Roster({"a": Member(16, {}, seen)}, 3, 1))["a"]
        assert (work.shape == shape) == stays
        assert work.extra == {RANKED_IN: since if stays else 3}


def test_where_nothing_has_moved_ranks_are_the_run_files() -> None:
    assert rank_budget()(state_of({}), roster_of()) == {}


def made_up(work: Work) -> Forecast:
    """Operations above the lowest layer that learns, and a little for every module."""
    shape = work.shape or Shape(16)
    learning = [m for m in MODULES if shape.learns(m)]
    lowest = min((int(m.split(".")[2]) for m in learning), default=LAYERS)
    return Forecast(0.0, 100.0 + 50 * (LAYERS - lowest) + 5 * len(learning), 0, 0)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_a_round_costs_no_more_operations_than_the_share(share: float) -> None:
    works = flops_budget(share=share)(state_of(GROWING), roster_of(forecast=made_up))
    whole = made_up(Work()).flops
    if share == 1.0:
        assert works == {}
        return
    for work in works.values():
        cost, learn = made_up(work).flops, [m for m in MODULES if work.shape.learns(m)]
        assert cost <= share * whole or len(learn) == 1
        assert learn


def test_what_moved_far_in_a_low_layer_is_worth_going_deep_for() -> None:
    low = state_of({m: 100.0 if "layers.1." in m else 0.1 for m in MODULES})
    high = state_of({m: 100.0 if "layers.5." in m else 0.1 for m in MODULES})
    for state, layer in ((low, "layers.1."), (high, "layers.5.")):
        (work, *_) = flops_budget(share=0.9)(state, roster_of(forecast=made_up)).values()
        assert any(layer in m for m in work.shape.chosen)


def test_shares_and_counts_out_of_range_are_refused() -> None:
    for make, said in (
        (lambda: halves(share=0.0), "share"),
        (lambda: rank_budget(budget=1.5), "budget"),
        (lambda: rank_budget(score="eva"), "score"),
        (lambda: important_layers(most=0), "most"),
        (lambda: important_layers(most=2, drawn=3), "drawn"),
        (lambda: flops_budget(share=math.nan), "share"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


RUNS = {
    "rank_budget, flexlora": ("flexlora", {"name": "rank_budget", "budget": 0.5, "every": 1}, 4),
    "rank_budget by sensitivity, flexlora": (
        "flexlora",
        {"name": "rank_budget", "budget": 0.5, "every": 1, "score": "sensitivity"},
        4,
    ),
    "rank_budget, flora": ("flora", {"name": "rank_budget", "budget": 0.5, "every": 1}, 4),
    "halves, flora": ("flora", {"name": "halves"}, 2),
    "halves, flexlora": ("flexlora", {"name": "halves"}, 2),
    "important_layers, fedit": ("fedit", {"name": "important_layers", "most": 1}, 2),
    "flops_budget, fedit": ("fedit", {"name": "flops_budget", "share": 0.5}, 2),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_file_that_names_it_runs(name: str, tmp_path: Path, tiny_base: Path) -> None:
    strategy, plan, rank = RUNS[name]
    clients = {"plan": plan, "rank": rank}
    run = run_of(tmp_path, tiny_base, plan, strategy={"name": strategy}, clients=clients)
    assert run.summary["rounds"] == 3
    assert run.summary["refused"] == 0
    if plan["name"] == "rank_budget":
        ranks = run.lines[-1]["plans"]["a"]["ranks"]
        assert set(ranks.values()) == {0, 4}
        assert run.lines[-1]["bytes"]["a"]["up"] < run.lines[1]["bytes"]["a"]["up"]
    if plan["name"] == "important_layers":
        assert len(run.lines[1]["plans"]["a"]["chosen"]) == 1


@pytest.mark.parametrize("name", registry.PLANNERS)
def test_a_strategy_that_cannot_mix_what_a_planner_gives_is_refused_before_anything_begins(name: str) -> None:
    """rank_budget gives ranks from the first round on in which something has moved: too late to find out."""
    able = {"rank_budget": "flora"}.get(name, "fedit")
    strategies.of(run_file.from_dict({"clients": {"plan": name}, "strategy": {"name": able}}))
    with pytest.raises(ConfigError, match=rf"\[clients\] plan = '{name}' .*, which rolora cannot mix"):
        strategies.of(run_file.from_dict({"clients": {"plan": name}, "strategy": {"name": "rolora"}}))
