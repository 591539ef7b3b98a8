"""FedPipe: what a probe sends, who adapts what, what the server makes of it; and runs of clients with unlike memory."""

import json
import logging
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fedft
from fedft import allowed_code, run_file
from fedft.arithmetic import tensors
from fedft.contract import Forecast, Layout, Member, Roster, Seen, State, Work
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.server.checkpoint import Store
from fedft.server.planners.modules import modules_of
from fedft.strategies import make
from fedft.strategies.fedpipe import OWNER, fedpipe
from fedft.strategies.parts import works_by_resources
from fedft.strategies.parts.allocation import Search
from fedft.strategies.parts.sensitivity import SCORE
from fedft.testing import RUN, toy
from fedft.update import Plan, Shape, Update

MODULES = {f"layers.{n}.{k}": (6, 5) for n in range(3) for k in "qv"}
LAYOUT = Layout(modules=MODULES, head={"head": (3,)})
A, B = ".lora_A", ".lora_B"


def costs(work: Work, names: Collection[str] = tuple(MODULES)) -> Forecast:
    """A plain forecast: a base, records, and ranks of these weights, those that learn and those that are there."""
    shape, rows = work.shape or Shape(4), work.batch or 4
    learning, there = sum(shape.of(m) for m in names if shape.learns(m)), sum(map(shape.of, names))
    return Forecast(
        1e4 * (work.bits or 32) + 500 * rows + 190 * learning + there,
        1e6 * rows + 1e4 * rows * learning, 40 * learning, 40 * there,
    )  # fmt: skip


def roster(members: dict[str, Member], round: int) -> Roster:
    return Roster(members, round, 7, tuple(sorted(members)), costs)


def state_at(version: int, scores: dict[str, float] | None = None, trained: tuple[str, ...] = ()) -> State:
    """A state of rank 16; `trained`: weights whose first two ranks change something."""
    first = fedpipe().first_state(LAYOUT, 16, 7)
    moved = {m + B: torch.cat([torch.ones(6, 2), torch.zeros(6, 14)], dim=1) for m in trained}
    own = {SCORE + m: torch.tensor([s], dtype=torch.float64) for m, s in (scores or {}).items()}
    return State(version, {**first.tensors, **moved}, {OWNER: own})


SCORES = {m: 1.0 + k for k, m in enumerate(MODULES)}


def plans(state: State, members: dict[str, Member], recipe: Recipe | None = None) -> dict[str, Plan]:
    bare = Plan(RUN, state.version, state.version, steps=4, learning_rate=0.1)
    return (recipe or fedpipe()).plans(state, roster(members, state.version), bare, 16)


def adapted(plan: Plan) -> dict[str, int]:
    """Rank by weight of those that learn under a plan."""
    return {m: r for m in MODULES if (r := plan.shape.of(m)) and plan.shape.learns(m)}


def size(plan: Plan) -> tuple[int, int]:
    """How large a work is: its batch, of four if nothing else is said, and the sum of the ranks that learn."""
    return plan.batch or 4, sum(adapted(plan).values())


def seen_of(plan: Plan, seconds: float | None = None) -> Seen:
    return Seen(plan.round, plan.rank, plan.steps, plan.batch, plan.bits, plan.extra, seconds, admitted=True)


def update(sent: dict[str, torch.Tensor], examples: int) -> Update:
    return Update({"head": torch.zeros(3), **sent}, examples)


def pair(module: str, rank: int, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {module + A: torch.randn(rank, 5, generator=rng), module + B: torch.randn(6, rank, generator=rng)}


def dense(x: Any, module: str) -> torch.Tensor:
    return x[module + B].double() @ x[module + A].double()


def test_a_probe_sends_four_numbers_per_weight_and_leaves_the_model_alone():
    """S_m = sum_k p_k sum_j S_mj stays with the server; no pair comes down, and nothing else goes up."""
    t = toy(fedpipe())
    state = t.state()
    plan = t.plan(state, 0)
    assert (plan.rank, plan.extra["probe"], dict(plan.tensors)) == (0, 3, {})
    updates = [t.update(state, k) for k in range(3)]
    assert {n: tuple(x.shape) for n, x in updates[0].delta.items()} == {SCORE + m: (3,) for m in t.layout.modules}
    after = t.step(state, updates)
    assert tensors.digest(after.tensors) == tensors.digest(state.tensors)
    for m in t.layout.modules:
        wanted = sum(u.num_examples / 60 * float(u.delta[SCORE + m].sum()) for u in updates)
        assert float(after.own[OWNER][SCORE + m]) == pytest.approx(wanted, rel=1e-6)
        assert wanted > 0


def test_of_layout_and_plan_a_probe_takes_four_bytes_per_component():
    spec = fedpipe().spec(LAYOUT, plans(state_at(0), {"a": Member(16)})["a"])
    assert {n: s.shape for n, s in spec.items()} == {SCORE + m: (4,) for m in MODULES}


@pytest.mark.parametrize(("said", "rank"), [(2, 2), (4, 4), (10**9, 4), (0, 4), ("x", 4), (1.5, 4)])
def test_whatever_a_plan_says_a_probe_is_of_rank_four_at_most(said, rank):
    spec = fedpipe().spec(LAYOUT, Plan(RUN, 0, 0, extra={"probe": said}))
    assert {s.shape for s in spec.values()} == {(rank,)}


def test_the_scores_decide_what_a_client_without_memory_for_all_adapts():
    """And one of equal resources adapts the same, one with more is no worse off."""
    one = costs(Work(shape=Shape(0, {"layers.2.v": 16}), batch=4)).memory
    members = {c: Member(16, {"memory": m}) for c, m in (("a", one + 900), ("b", one + 900), ("c", 1e9))}
    found = plans(state_at(1, SCORES), members, fedpipe(least=0.0, quantile=1.0))
    assert adapted(found["a"]) == adapted(found["b"])
    assert "layers.2.v" in adapted(found["a"])
    assert "layers.0.q" not in adapted(found["a"])
    assert sum(adapted(found["c"]).values()) > sum(adapted(found["a"]).values())
    backwards = {m: SCORES[n] for m, n in zip(SCORES, reversed(SCORES), strict=True)}
    assert "layers.0.q" in adapted(plans(state_at(1, backwards), members, fedpipe(least=0.0))["a"])


def test_a_weight_is_worth_the_root_of_its_score(monkeypatch):
    """Scores are of the size of a squared loss; what adds up over weights is a loss."""
    seen = []

    def noted(worth: dict[str, float], *more: Any) -> Search:
        seen.append(worth)
        return Search(worth, *more)

    monkeypatch.setattr(works_by_resources, "Search", noted)
    plans(state_at(1, SCORES), {"a": Member(16)})
    assert seen == [{m: pytest.approx(s**0.5) for m, s in SCORES.items()}]


def test_who_is_slower_adapts_less_and_nobody_more_than_the_round_has_time_for():
    members = {c: Member(16, {"flops": f}) for c, f in (("slow", 8e5), ("usual", 1e6), ("fast", 4e6))}
    found = plans(state_at(1, SCORES), members)
    assert size(found["slow"]) < size(found["usual"]) < size(found["fast"])
    longest = costs(Work(shape=Shape(4))).flops / 1e6
    assert all(0 < float(p.extra["predicted_s"]) <= longest * (1 + 1e-9) for p in found.values())


def test_weights_that_a_client_does_not_adapt_are_there_as_the_state_has_them():
    """Trained ones at the rank in use, frozen; those that nobody has trained are not there, and do not come down."""
    state = state_at(4, SCORES, trained=("layers.0.q", "layers.1.v"))
    one = costs(Work(shape=Shape(0, {"layers.2.v": 16}))).memory
    plan = plans(state, {"a": Member(16, {"memory": one - 1500})}, fedpipe(least=0.0))["a"]
    assert "layers.2.v" in adapted(plan)
    others = MODULES.keys() - adapted(plan).keys()
    assert {m: plan.shape.of(m) for m in others if plan.shape.of(m)} == {"layers.0.q": 2, "layers.1.v": 2}
    recipe = fedpipe()
    down = recipe.downlink(state, None, plan)
    assert down["layers.0.q" + A].shape == (2, 5)
    assert {n.rpartition(".")[0] for n in down if n != "head"} == {*adapted(plan), "layers.0.q", "layers.1.v"}
    up = recipe.spec(LAYOUT, plan)
    assert {n for n in up if n.startswith(SCORE)} == {SCORE + m for m in adapted(plan)}
    assert {n.removesuffix(A) for n in up if n.endswith(A)} == adapted(plan).keys()


def test_precision_falls_only_where_it_must_and_stays_as_it_was_chosen():
    memory = {"rich": 1e9, "poor": 1.5e5, "poorer": 6e4}
    members = {c: Member(16, {"memory": m}) for c, m in memory.items()}
    recipe = fedpipe(bits=[4, 8, 16])
    found = plans(state_at(1, SCORES), members, recipe)
    assert {c: p.bits for c, p in found.items()} == {"rich": 0, "poor": 8, "poorer": 4}
    later = {c: replace(m, profile={}, seen=(seen_of(found[c]),)) for c, m in members.items()}
    again = plans(state_at(1 + 5, SCORES), later, recipe)
    assert {c: p.bits for c, p in again.items()} == {"rich": 0, "poor": 8, "poorer": 4}


def test_a_work_stands_until_the_next_of_every_five_rounds():
    """Other scores, as each round brings them, change nothing until then."""
    other = dict(zip(SCORES, reversed(SCORES.values()), strict=True))
    members, recipe = {"a": Member(16, {"memory": 3.3e5 + 1500}), "b": Member(16)}, fedpipe(least=0.0)
    first = plans(state_at(1, SCORES), members, recipe)
    told = {c: replace(m, seen=(seen_of(first[c]),)) for c, m in members.items()}
    for version in range(2, 6):
        assert {c: adapted(p) for c, p in plans(state_at(version, other), told, recipe).items()} == {
            c: adapted(p) for c, p in first.items()
        }
    assert adapted(plans(state_at(6, other), told, recipe)["a"]) != adapted(first["a"])


@pytest.mark.parametrize(("times", "stands"), [(1.0, True), (1.2, True), (0.85, True), (1.5, False), (0.5, False)])
def test_a_work_is_chosen_anew_where_three_rounds_took_other_than_predicted(times, stands):
    members = {c: Member(16, {"flops": 1e6}) for c in "abc"}
    first = plans(state_at(1, SCORES), members)
    seconds = times * float(first["a"].extra["predicted_s"])
    now = {c: replace(m, seen=tuple(seen_of(first[c], seconds if c == "a" else None) for _ in range(3)))
           for c, m in members.items()}  # fmt: skip
    again = plans(state_at(2, SCORES), now)
    assert adapted(again["b"]) == adapted(first["b"])
    assert (adapted(again["a"]) == adapted(first["a"])) is stands
    assert float(again["a"].extra["slowness"]) == pytest.approx(times)
    if times > 1.25:
        assert size(again["a"]) < size(first["a"])
    two = {c: replace(m, seen=m.seen[:2]) for c, m in now.items()}
    assert adapted(plans(state_at(2, SCORES), two)["a"]) == adapted(first["a"]), "two rounds are too few"


def test_who_says_no_speed_is_known_by_the_time_that_a_probe_took():
    members = {c: Member(16) for c in "abc"}
    probe = plans(state_at(0), members)
    seconds = {"a": 0.2, "b": 0.1, "c": 0.1}
    now = {c: replace(m, seen=(seen_of(probe[c], seconds[c]),)) for c, m in members.items()}
    found = plans(state_at(1, SCORES), now)
    assert size(found["a"]) < size(found["b"])
    assert adapted(found["b"]) == adapted(found["c"])
    assert all(float(p.extra["predicted_s"]) <= 0.1 * (1 + 1e-9) for p in found.values())


def test_who_can_do_nothing_is_asked_for_the_least_and_a_warning_says_so(caplog):
    """The others' works are what they would be without it: a wrong profile harms its own client only."""
    honest = {c: Member(16, {"memory": 1e9}) for c in "bc"}
    with caplog.at_level(logging.WARNING):
        found = plans(state_at(1, SCORES), {"a": Member(16, {"memory": 1.0}), **honest})
    assert len(adapted(found["a"])) == 1
    assert found["a"].batch == 1
    assert [r.getMessage() for r in caplog.records if "a: layers" in r.getMessage()]
    assert {c: found[c] for c in honest} == plans(state_at(1, SCORES), honest)


def test_of_every_weight_the_mean_is_over_those_who_sent_it():
    """p over 10 and 30 examples where two sent it; one's own, to the rank; nobody's stays bit for bit."""
    recipe, state = fedpipe(), state_at(1, SCORES, trained=("layers.2.q",))
    first = pair("layers.0.q", 4, 1) | pair("layers.0.v", 4, 2)
    second = pair("layers.0.q", 8, 3)
    after = recipe.next_state(state, recipe.aggregate(iter([update(first, 10), update(second, 30)])))
    wanted = (dense(first, "layers.0.q") + 3 * dense(second, "layers.0.q")) / 4
    assert torch.allclose(dense(after.tensors, "layers.0.q"), wanted, atol=1e-5)
    assert torch.allclose(dense(after.tensors, "layers.0.v"), dense(first, "layers.0.v"), atol=1e-5)
    for n in ("layers.2.q" + A, "layers.2.q" + B, "layers.1.v" + A):
        assert torch.equal(after.tensors[n], state.tensors[n])
    assert {n: x.shape for n, x in after.tensors.items()} == {n: x.shape for n, x in state.tensors.items()}


def test_divided_by_the_whole_cohort_what_few_train_moves_less():
    one, two = update(pair("layers.0.q", 4, 1), 10), update(pair("layers.0.v", 4, 2), 30)
    found = fedpipe(normalise="cohort").aggregate(iter([one, two]))
    assert torch.allclose(dense(found, "layers.0.q"), dense(one.delta, "layers.0.q") / 4, atol=1e-5)
    assert torch.allclose(dense(found, "layers.0.v"), dense(two.delta, "layers.0.v") * 3 / 4, atol=1e-5)


def test_equal_pairs_everywhere_are_the_mean_and_a_smaller_rank_is_its_best_approximation():
    recipe, sent = fedpipe(), pair("layers.0.q", 4, 1)
    after = recipe.next_state(state_at(1, SCORES), recipe.aggregate(iter([update(sent, n) for n in (3, 5)])))
    whole = dense(sent, "layers.0.q")
    assert torch.allclose(dense(after.tensors, "layers.0.q"), whole, atol=1e-5)
    u, s, v = torch.linalg.svd(whole)
    down = recipe.downlink(after, None, Plan(RUN, 2, 2, rank=2))
    assert torch.allclose(dense(down, "layers.0.q"), (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)


def test_scores_are_renewed_behind_the_probe():
    """0.7 S + 0.3 c S' with c (1 + 3) = 1 + 2, of the two weights that have news."""
    recipe, names = fedpipe(), list(MODULES)
    news = {SCORE + names[0]: torch.tensor([1.0]), SCORE + names[1]: torch.tensor([3.0])}
    after = recipe.next_state(state_at(1, SCORES), recipe.aggregate(iter([update(news, 5)])))
    found = {m: float(after.own[OWNER][SCORE + m]) for m in names}
    assert found == pytest.approx({**SCORES, names[0]: 0.7 + 0.3 * 0.75, names[1]: 1.4 + 0.3 * 2.25})


@pytest.mark.parametrize("options", [{"bits": [5]}, {"probe_rounds": 0}, {"least": 2.0}, {"normalise": "all"}])
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises((ConfigError, ValueError)):
        make("fedpipe", options)


def test_a_run_that_ends_with_its_probe_is_refused():
    config = run_file.from_dict({"strategy": {"name": "fedpipe"}, "server": {"rounds": 1}})
    with pytest.raises(ConfigError, match="only measure"):
        fedft.strategies.of(config)


ROWS = [{"client": c, "prompt": f"{c}{k}", "response": "abcd" * (1 + k % 3)} for c in "abc" for k in range(12)]
MEMORY = {"a": 3.25e5, "b": 3.28e5, "c": 1e9}


def with_memory() -> Recipe:
    """FedPipe whose clients a, b and c say how much memory they have, by plain costs."""
    recipe = fedpipe(least=0.0, replan=2)

    def plan(state: State, told: Roster) -> Any:
        members = {c: replace(m, profile={"memory": MEMORY.get(c, 1e9)}) for c, m in told.items()}
        return recipe.plan(state, replace(told, members=members, forecast=partial(costs, names=modules_of(state))))

    return replace(recipe, plan=plan)


def run_of(folder: Path, base: Path, **more: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    allowed_code.allow([name := "tests.strategies.test_fedpipe:with_memory"])
    config = run_file.from_dict({
        "model": {"id": str(base)}, "data": {"train": str(folder / "rows.jsonl"), "max_length": 24},
        "strategy": {"name": name}, "local": {"steps": 4, "batch_size": 4}, "clients": {"rank": 16},
        "server": {"rounds": 4, "loggers": []},
    })  # fmt: skip
    return fedft.simulate(config, out=folder / "run", **more)


def test_clients_of_unlike_memory_train_one_set_of_adapters_and_a_kill_changes_nothing(tmp_path, tiny_base):
    whole = run_of(tmp_path / "whole", tiny_base)
    lines = whole.lines
    assert all(p["extra"]["probe"] == 4 for p in lines[1]["plans"].values())
    digits = {c: sum(map(int, p["extra"]["ranks"])) for c, p in lines[2]["plans"].items()}
    assert 0 < digits["a"] < digits["b"] < digits["c"]
    sent = {c: b["up"] for c, b in lines[2]["bytes"].items()}
    assert sent["a"] < sent["b"] < sent["c"]
    probe, modules = lines[1]["bytes"]["a"]["up"], 14
    assert 16 * modules < probe < 16 * modules + 2500, "four float32 per weight, names beside them"
    assert lines[-1]["train_loss"] < lines[2]["train_loss"]

    class Killed(BaseException):
        pass

    def kill(kind: str, info: dict[str, Any]) -> None:
        if kind == "admitted" and info["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run_of(tmp_path / "killed", tiny_base, observe=kill)
    assert Store(tmp_path / "killed" / "run" / "state").plans(2)
    again = run_of(tmp_path / "killed", tiny_base, resume=True)
    assert [x["state_digest"] for x in again.lines] == [x["state_digest"] for x in lines]
    assert [x.get("plans") for x in again.lines] == [x.get("plans") for x in lines]
