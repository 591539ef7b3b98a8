"""Rounds whose clients do unlike work: what travels, what stays, what is seen; and that a kill changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fedft
from fedft import allowed_code, run_file, strategies
from fedft.contract import Member, Roster, Seen, Work
from fedft.server import planner_view
from fedft.server.checkpoint import Store
from fedft.server.traffic import Traffic
from fedft.update import Plan, Shape
from fedft.wire import messages

ROWS = [{"client": c, "prompt": f"{c}{k}", "response": "abcd" * (1 + k % 3)} for c in "abc" for k in range(12)]


def run_of(folder: Path, base: Path, plan: Any, **tables: dict[str, Any]) -> Any:
    """A simulated run of three clients, planned by `plan`."""
    folder.mkdir(exist_ok=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config: dict[str, Any] = {
        "model": {"id": str(base)}, "data": {"train": str(rows), "max_length": 24}, "strategy": {"name": "fedit"},
        "local": {"steps": 2, "batch_size": 4}, "server": {"rounds": 3, "loggers": []},
        "clients": {"rank": 2, "plan": plan},
    }  # fmt: skip
    for name, keys in tables.items():
        config[name] = {**config.get(name, {}), **keys}
    return fedft.simulate(run_file.from_dict(config), out=folder / "run")


def state_of(run: Any, version: int) -> Any:
    """The run's state of a version whose generation is still there."""
    found = Store(run.folder / "state")._read(version)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("strategy", ["fedit", "ffa_lora"])
def test_halves_send_what_learned_and_leave_the_rest(strategy: str, tmp_path: Path, tiny_base: Path) -> None:
    """All draw one half: half of the modules' factors change in a round, and nothing else, bit for bit."""
    plan = {"name": "halves", "alike": True}
    run = run_of(tmp_path, tiny_base, plan, strategy={"name": strategy}, server={"rounds": 1, "loggers": []})
    plans = run.lines[1]["plans"]
    chosen = {tuple(p["chosen"]) for p in plans.values()}
    assert len(chosen) == 1
    before, after = state_of(run, 0).tensors, state_of(run, 1).tensors
    moved = {n.rpartition(".")[0] for n in after if not torch.equal(before[n], after[n])}
    assert moved == set(next(iter(chosen)))
    assert len(moved) == -(-len({n.rpartition(".")[0] for n in after}) // 2)
    whole = run_of(tmp_path / "whole", tiny_base, None, strategy={"name": strategy})
    assert run.lines[1]["bytes"]["a"]["up"] < 0.75 * whole.lines[1]["bytes"]["a"]["up"]


def test_a_mean_is_by_name_over_those_who_sent_it(tmp_path: Path, tiny_base: Path) -> None:
    """Every client draws its own half; what nobody drew stays, what one drew is that client's own change."""
    run = run_of(tmp_path, tiny_base, {"name": "halves", "share": 0.2}, server={"rounds": 1, "loggers": []})
    sent = [m for p in run.lines[1]["plans"].values() for m in p["chosen"]]
    assert len(set(sent)) > len(run.lines[1]["plans"]["a"]["chosen"])
    before, after = state_of(run, 0).tensors, state_of(run, 1).tensors
    assert {n.rpartition(".")[0] for n in after if not torch.equal(before[n], after[n])} == set(sent)


def test_a_strategy_that_cannot_mix_modules_refuses_the_plan(tmp_path: Path, tiny_base: Path) -> None:
    from fedft.errors import ConfigError

    with pytest.raises(ConfigError, match=r"\[clients\] plan = 'halves' chooses which modules learn, which fedex_lora"):
        run_of(tmp_path, tiny_base, "halves", strategy={"name": "fedex_lora"})


def without_a_module() -> Any:
    """A planner: b's adapter has none in the first module, and c's batches are of two records."""

    def plan(state: Any, roster: Roster) -> dict[str, Work]:
        first = min(n.rpartition(".")[0] for n in state.tensors)
        return {"b": Work(Shape(2, {first: 0})), "c": Work(batch=2, extra={"predicted_s": 1.5})}

    return plan


def test_a_module_of_rank_0_has_no_adapter(tmp_path: Path, tiny_base: Path) -> None:
    """b sends less than c; the others' factors of the module are averaged without b; plans stand in the lines."""
    allowed_code.allow([name := "tests.server.test_planned_rounds:without_a_module"])
    run = run_of(tmp_path, tiny_base, name, strategy={"name": "fedit", "padding": "zero"})
    sent = {c: b["up"] for c, b in run.lines[1]["bytes"].items()}
    assert sent["b"] < 0.99 * min(sent["a"], sent["c"])
    assert run.lines[2]["plans"]["c"] == {"rank": 2, "steps": 2, "batch": 2, "extra": {"predicted_s": 1.5}}
    assert list(run.lines[2]["plans"]["b"]["ranks"].values()) == [0]


def test_a_planned_run_that_is_killed_ends_with_the_same_bytes(tmp_path: Path, tiny_base: Path) -> None:
    whole = run_of(tmp_path / "whole", tiny_base, "halves")

    class Killed(BaseException):
        pass

    def kill(kind: str, info: dict[str, Any]) -> None:
        if kind == "admitted" and info["round"] == 1:
            raise Killed

    folder = tmp_path / "killed"
    folder.mkdir()
    config = run_file.load(whole.folder / "config.toml")
    with pytest.raises(Killed):
        fedft.simulate(config, out=folder / "run", observe=kill)
    first = Store(folder / "run" / "state").plans(1)
    again = fedft.simulate(config, out=folder / "run", resume=True)
    assert first
    assert [x["state_digest"] for x in again.lines] == [x["state_digest"] for x in whole.lines]
    assert [x.get("plans") for x in again.lines] == [x.get("plans") for x in whole.lines]
    assert _bytes_seen(again) == _bytes_seen(whole)  # of what was admitted before the kill, too


def _bytes_seen(run: Any) -> dict[str, list[int]]:
    """Bytes of each client's answers, as planners are shown them."""
    found = Store(run.folder / "state").latest(recover=False)
    assert found is not None
    return {c: [s.up for s in seen] for c, seen in planner_view.from_json(found[1]["seen"]).items()}


def test_what_was_seen_is_bounded_and_survives_as_json() -> None:
    seen: dict[str, tuple[Seen, ...]] = {}
    for round in range(5):
        plan = Plan("", round, round, rank=4, steps=2, extra={"ratio": 0.5})
        traffic = Traffic(up={"a": 10}, down={"a": 20, "b": 20}, seconds={"a": 1.5})
        said = {"a": {"loss": 2.0, "memory.peak": 7.0, "steps": 2.0}}
        plans = {"a": plan, "b": plan}
        seen = planner_view.seen_after(seen, plans, traffic, {"a": 0.1}, said, timed=True, most=3)
    assert [s.round for s in seen["a"]] == [2, 3, 4]
    last = seen["a"][-1]
    assert (last.seconds, last.loss, last.norm, last.admitted) == (1.5, 2.0, 0.1, True)
    assert dict(last.metrics) == {"memory.peak": 7.0}
    assert (seen["b"][-1].admitted, seen["b"][-1].seconds, seen["b"][-1].loss) == (False, None, None)
    assert planner_view.from_json(json.loads(json.dumps(planner_view.to_json(seen)))) == seen


def test_without_a_clock_of_its_own_no_seconds_are_noted() -> None:
    plan, traffic = Plan("", 0, 0, rank=4, steps=2), Traffic(seconds={"a": 1.5})
    seen = planner_view.seen_after({}, {"a": plan}, traffic, {}, {"a": {}}, timed=False, most=None)
    assert seen["a"][0].seconds is None


def test_of_two_who_claim_something_a_lie_of_one_does_not_move_the_other() -> None:
    """Nobody is usual among two: 1e12 would be shown as 7.8e27 beside 1e30."""
    members = {"a": Member(2, {"flops": 1e12}), "b": Member(2, {"flops": 1e30}), "c": Member(2, {"rows": 3.0})}
    assert planner_view.shown(members, {}) == members


def test_a_lie_of_a_profile_stays_within_bounds_of_the_others() -> None:
    """Ten honest clients and a liar: every honest one is shown as it is, the liar at most 64 times the median."""
    honest = {f"h{k}": Member(2, {"flops": 1e12 + k, "memory": 8e9, "rows": 5.0}) for k in range(10)}
    told = planner_view.shown({**honest, "liar": Member(2, {"flops": 1e30, "memory": float("nan"), "rows": 9.0})}, {})
    assert all(told[c].profile == m.profile for c, m in honest.items())
    assert told["liar"].profile["flops"] == 64 * (1e12 + 5)
    assert "memory" not in told["liar"].profile
    assert told["liar"].profile["rows"] == 9.0


def test_new_fields_of_a_plan_travel_and_are_left_out_at_their_defaults() -> None:
    plan = Plan("0" * 16, 1, 1, rank=4, chosen=("layers.0", "q_proj"), batch=3, bits=4, ranks={"m": 0})
    assert messages.decode_plan(messages.encode_plan(plan, "fp32"), max_bytes=4096) == plan
    bare = Plan("0" * 16, 1, 1, rank=4)
    for key in (b'"o"', b'"b"', b'"i"'):
        assert key not in messages.encode_plan(bare, "fp32")
        assert key in messages.encode_plan(plan, "fp32")


def by_memory() -> Any:
    """A planner: who says that it has little memory takes one step."""

    def plan(state: Any, roster: Roster) -> dict[str, Work]:
        return {c: Work(steps=1) for c, m in roster.items() if m.profile.get("memory", 1e9) < 1e8}

    return plan


def test_a_profile_reaches_the_planner_and_what_clients_measure_is_seen(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedft.simulations import run, workplace

    made = workplace.workplace

    def place(*args: Any, **how: Any) -> Any:
        found = made(*args, **how)
        for name, client in found.clients.items():
            client.profile, client.tells = {"memory": 5e7 if name == "b" else 4e8}, name == "c"
        return found

    monkeypatch.setattr(run, "workplace", place)
    allowed_code.allow([name := "tests.server.test_planned_rounds:by_memory"])
    done = run_of(tmp_path, tiny_base, name)
    assert {c: p["steps"] for c, p in done.lines[1]["plans"].items()} == {"a": 2, "b": 1, "c": 2}
    found = Store(done.folder / "state").latest(recover=False)
    assert found is not None
    seen = planner_view.from_json(found[1]["seen"])
    assert {n for c in "ab" for s in seen[c] for n in s.metrics} == set()
    assert all(s.metrics.keys() == {"seconds.train", "memory.peak"} for s in seen["c"])
    assert [s.steps for s in seen["b"]] == [1, 1, 1]


def test_a_planner_beside_a_strategy_that_plans_is_said_to_count_for_little(caplog: pytest.LogCaptureFixture) -> None:
    for name, said in (("fedit", False), ("fedspine", True)):
        caplog.clear()
        strategies.of(run_file.from_dict({"strategy": {"name": name}, "clients": {"plan": "halves"}}))
        assert ("counts only for clients and rounds of which fedspine plans nothing" in caplog.text) == said
