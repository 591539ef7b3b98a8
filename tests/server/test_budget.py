"""When a run ends: what counts as spent, what an evaluation brings, and that a run ends where its budget says."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedft import run_file as configs
from fedft.config import Local, RunConfig, Server, budget_of
from fedft.errors import ConfigError
from fedft.server import budget
from fedft.simulations import run as runs


def line(version: int, *, up: int = 0, down: int = 0, seconds: float = 0.0, evaluated: int | None = None) -> Any:
    """The line of a state, of one client `a`; `evaluated`: bytes down of its evaluation."""
    found: dict[str, Any] = {"version": version, "seconds": {"train": seconds, "aggregate": 0.25, "evaluate": 1e9}}
    if version:
        found |= {"round": version - 1, "bytes": {"a": {"up": up, "down": down}}}
    if evaluated is not None:
        found["evaluation_bytes"] = {"up": {"a": 1_000_000}, "down": {"a": evaluated}}
    return found


def ended_at(text: str | None, lines: list[Any], rounds: int = 10) -> int:
    config = RunConfig(server=Server(rounds=rounds, budget=text), local=Local(steps=40))
    return next(n for n in range(len(lines)) if budget.over(config, lines[: n + 1]))


LINES = [line(v, up=60, down=40, seconds=0.75) for v in range(11)]


@pytest.mark.parametrize(
    ("text", "rounds"),
    [
        (None, 10),
        ("bytes=1e9", 10),
        ("bytes=300", 3),  # exactly three rounds of a hundred fit
        ("bytes=399", 3),
        ("bytes=1", 1),  # one round at least
        ("steps=160", 4),
        ("steps=199", 4),
        ("steps=1", 1),
        ("seconds=5", 5),
        ("seconds=4.9", 4),
        ("seconds=0.001", 1),
    ],
)
def test_a_run_ends_at_the_last_round_that_fits(text: str | None, rounds: int) -> None:
    assert ended_at(text, LINES) == rounds


def test_the_next_round_is_taken_to_cost_what_the_last_one_did() -> None:
    growing = [line(v, up=100 * v) for v in range(11)]
    assert ended_at("bytes=899", growing) == 3  # 100 + 200 + 300 are spent, and another 300 would be too much
    assert ended_at("bytes=900", growing) == 4  # that it takes 400 was not to be foreseen


def test_a_run_with_more_budget_goes_on_where_it_ended() -> None:
    config = RunConfig(server=Server(rounds=10, budget="bytes=300"))
    assert budget.over(config, LINES[:4])
    assert not budget.over(replace(config, server=replace(config.server, budget="bytes=400")), LINES[:4])
    assert budget.over(replace(config, server=Server(rounds=3)), LINES[:4])


def test_what_an_evaluation_brought_counts_for_the_round_that_uses_it() -> None:
    """1000 bytes of state, messages of 20 without: evaluated before or not, the round's training takes 1020 down."""
    whole, empty = line(2, up=7, down=1020), line(2, up=7, down=20)
    for adds in (False, True):
        assert budget.training_bytes(whole, [line(0), line(1)], adds) == {"up": 7, "down": 1020}
        assert budget.training_bytes(empty, [line(0), line(1, evaluated=1020)], adds) == {"up": 7, "down": 1020}


def test_evaluations_of_rounds_slept_through_count_only_where_clients_add_up() -> None:
    absent = {"version": 2, "round": 1, "bytes": {"b": {"up": 1, "down": 1}}, "evaluation_bytes": {"down": {"a": 520}}}
    earlier = [line(0, evaluated=9020), line(1, down=20, evaluated=520), absent]
    assert budget.training_bytes(line(3, down=20), earlier, True)["down"] == 1020
    assert budget.training_bytes(line(3, down=20), earlier, False)["down"] == 520


def test_a_client_that_had_to_be_sent_the_state_again_is_not_counted_twice() -> None:
    evaluated = line(1, evaluated=9000)
    evaluated["evaluation_bytes"]["needed"] = {"a": 520}  # the rest was sent to a process that had forgotten it
    assert budget.training_bytes(line(2, down=20), [line(0), evaluated], True)["down"] == 520
    assert budget.training_bytes(line(2, down=1020), [line(0), line(1, evaluated=1020)], False)["down"] == 1020


@pytest.mark.parametrize(
    "text", ["", "bytes", "bytes=", "bytes=many", "bytes=0", "bytes=-1", "bytes=inf", "bytes=nan", "rounds=3", "2e7"]
)
def test_a_bad_budget_is_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"budget is .*, wanted bytes=NUMBER, steps=NUMBER or seconds=NUMBER") as e:
        configs.from_dict({"server": {"budget": text}})
    assert "\n" not in str(e.value)


def test_a_budget_is_a_kind_and_a_number() -> None:
    assert budget_of("bytes=2e7") == ("bytes", 2e7)
    assert configs.from_dict({"server": {"budget": "steps=400"}}).to_dict()["server"]["budget"] == "steps=400"


@pytest.fixture(scope="module")
def overrides(tiny_base: Path) -> list[str]:
    small = ["local.steps=1", "local.batch_size=2", "data.clients=3", "eval.max_rows=1", "clients.rank=2"]
    return [f"model.id='{tiny_base}'", *small]


def run(out: Path, overrides: list[str], *more: str, **how: Any) -> runs.Run:
    return runs.simulate(configs.load(runs.QUICKSTART, [*overrides, *more]), out=out, **how)


@pytest.mark.parametrize("strategy", ["flora", "fedit"])
def test_how_often_is_evaluated_hardly_changes_what_training_costs(
    overrides: list[str], tmp_path: Path, strategy: str
) -> None:
    of = [f"strategy.name={strategy}", "server.rounds=4", "clients.per_round=2"]
    often, seldom = (run(tmp_path / str(e), overrides, *of, f"eval.every={e}").lines for e in (1, 4))
    for a, b in zip(often[1:], seldom[1:], strict=True):
        assert a["training_bytes"]["up"] == b["training_bytes"]["up"]
        assert a["training_bytes"]["down"] == pytest.approx(b["training_bytes"]["down"], rel=0.03)
    assert sum(x["down"] for x in often[2]["bytes"].values()) < often[2]["training_bytes"]["down"] / 10


def test_a_run_ends_at_its_budget_killed_or_not_and_is_measured_there(overrides: list[str], tmp_path: Path) -> None:
    of = ["strategy.name=fedit", "server.rounds=9", "eval.every=4"]
    per_round = sum(run(tmp_path / "one", overrides, *of, "server.budget=bytes=1").lines[1]["training_bytes"].values())
    of.append(f"server.budget=bytes={3.5 * per_round}")
    whole = run(tmp_path / "whole", overrides, *of)
    assert (whole.summary["rounds"], whole.summary["ended"]) == (3, "budget")
    assert "evaluation" in whole.lines[-1]
    assert 'budget = "bytes=' in (whole.folder / "config.toml").read_text()

    def killed(kind: str, info: Any) -> None:
        if kind == "admitted" and info["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", overrides, *of, observe=killed)
    resumed = run(tmp_path / "killed", overrides, *of, resume=True)
    assert resumed.summary["state_digest"] == whole.summary["state_digest"]
    assert (resumed.summary["rounds"], resumed.summary["ended"]) == (3, "budget")
    assert run(tmp_path / "whole", overrides, *of, resume=True).lines == whole.lines
    of[-1] = f"server.budget=bytes={5.5 * per_round}"
    longer = run(tmp_path / "whole", overrides, *of, resume=True)
    assert (longer.summary["rounds"], longer.lines[:4]) == (5, whole.lines)


class Stop(BaseException):
    """What SIGKILL is to a test."""


@pytest.mark.parametrize(
    ("strategy", "when"), [("mezo", ("line", 3)), ("mezo", ("admitted", 5)), ("flora", ("line", 3))]
)
def test_a_budget_of_bytes_ends_a_run_where_it_would_have_ended_however_often_it_was_killed(
    overrides: list[str], tmp_path: Path, strategy: str, when: tuple[str, int]
) -> None:
    """Histories and stacks that are sent again to clients that have forgotten them are nobody's training."""
    of = [f"strategy.name={strategy}", "server.rounds=30", "clients.per_round=2", "local.steps=2", "eval.every=30"]
    whole = run(tmp_path / "whole", overrides, *of, "server.rounds=5")
    budget = sum(sum(line["training_bytes"].values()) for line in whole.lines[1:]) + 10
    seen = 0

    def stop(kind: str, info: Mapping[str, Any]) -> None:
        nonlocal seen
        seen += kind == when[0]
        if seen == when[1]:
            seen += 1
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "b", overrides, *of, f"server.budget='bytes={budget}'", observe=stop)
    again = run(tmp_path / "b", overrides, *of, f"server.budget='bytes={budget}'", resume=True)
    assert (again.summary["state_digest"], again.summary["rounds"]) == (whole.summary["state_digest"], 5)
    for x, y in zip(again.lines[1:], whole.lines[1:], strict=True):  # numbers of attempts have more or fewer digits
        assert x["training_bytes"] == pytest.approx(y["training_bytes"], abs=4)


def test_a_run_that_ended_at_its_rounds_says_so(overrides: list[str], tmp_path: Path) -> None:
    done = run(tmp_path / "a", overrides, "strategy.name=fedit", "server.rounds=2", "server.budget=steps=2")
    assert (done.summary["rounds"], done.summary["ended"]) == (2, "rounds")
    assert json.loads((done.folder / "summary.json").read_text())["ended"] == "rounds"


def test_a_client_that_is_at_work_from_an_earlier_round_is_paid_for_once() -> None:
    """Its state was paid for when it was sent; what evaluations bring meanwhile counts with its next plan."""
    at_work = {"a": {"up": 0, "down": 0, "needed": 0}}
    sent = line(1, up=60, down=40, evaluated=30)
    goes_on = line(2, evaluated=50) | {"bytes": at_work}
    came = line(3, up=60) | {"bytes": {"a": {"up": 60, "down": 0, "needed": 0}}}
    assert budget.training_bytes(goes_on, [sent], adds=True) == {"up": 0, "down": 0}
    assert budget.training_bytes(came, [sent, goes_on], adds=True) == {"up": 60, "down": 0}
    again = line(4, up=60, down=10)
    assert budget.training_bytes(again, [sent, goes_on, came], adds=True) == {"up": 60, "down": 10 + 50 + 30}
