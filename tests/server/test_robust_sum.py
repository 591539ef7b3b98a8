"""Robust sums of whole rounds on the toy model: dishonest clients, strategies that send in every form, restarts."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deployed import Deployment, Killed, kill_at
from torch import Tensor

from fedft import run_file, strategies, testing
from fedft.aggregation.robust_rules import check_clients, rules_for
from fedft.arithmetic.named_pairs import A_SUFFIX
from fedft.config import RunConfig
from fedft.contract import State
from fedft.errors import ConfigError, RunPaused
from fedft.server import message_sizes
from fedft.server.guard import Guard, Sum, Summed, Unguarded
from fedft.server.robust_sum import RobustSum
from fedft.update import Plan, Update

N, F, ROUNDS = 10, 3, 4
Lie = Callable[[Update, State], Update]
WIDE = ("fedit", "flora", "flexlora", "fedex_lora", "lora_fair", "hetlora", "ffa_lora", "rolora", "fedavg")


def times(factor: float) -> Lie:
    return lambda u, state: replace(
        u, delta={n: factor * x if x.is_floating_point() else x for n, x in u.delta.items()}
    )


def tiny_and_huge(u: Update, state: State) -> Update:
    """B near zero and A huge: their product is as large as an honest one."""
    g = torch.Generator().manual_seed(5)

    def lie(n: str, x: Tensor) -> Tensor:
        value = torch.randn(x.shape, generator=g) * (1e3 if n.endswith(A_SUFFIX) else 1e-4)
        return value - state.tensors[n]

    return replace(u, delta={n: lie(n, x) for n, x in u.delta.items()})


def config(rule: str, **said) -> RunConfig:
    return run_file.from_dict({"robust": {"rule": rule, **said}})


class Federated:
    """Some rounds of the toy, of whose clients the last may lie."""

    def __init__(self, name: str, liars: int = F, **options) -> None:
        self.honest = N - liars
        self.t = testing.toy(strategies.make(name, options), N)
        self.recipe = self.t.recipe

    def round(self, state: State, lie: Lie | None = None, rows: int = 10**6) -> Sum:
        """What is to be summed; the liars claim so many `rows`."""
        plans: dict[str, Plan] = {str(k): replace(self.t.plan(state, k), tensors={}) for k in range(N)}
        updates = [self.t.update(state, k) for k in range(N)]
        if lie:
            updates[self.honest :] = [replace(lie(u, state), num_examples=rows) for u in updates[self.honest :]]
        weights = {str(k): u.num_examples for k, u in enumerate(updates)}
        return Sum(self.recipe, self.t.layout, state, list(plans), weights, plans, lambda: iter(updates))

    def loss(self, guard: Guard, lie: Lie | None = None, rows: int = 10**6) -> float:
        """The honest clients' loss after the rounds."""
        state = self.t.state()
        for _ in range(ROUNDS):
            state = self.recipe.next_state(state, guard.sum(self.round(state, lie, rows)).change)
        self.t.turn(replace(self.t.plan(state, 0, steps=0), evaluate=True), 0)
        with torch.no_grad():
            return sum(float(self.t.handle.loss(testing.data_of(k))) for k in range(self.honest))


@pytest.mark.parametrize("lie", [times(100), times(-6)], ids=["scale", "sign flip"])
@pytest.mark.parametrize("name", WIDE)
def test_three_of_ten_liars_do_not_stop_any_strategy_under_multi_krum(name: str, lie: Lie) -> None:
    run = Federated(name)
    honest, robust = run.loss(RobustSum(config("multi_krum"))), run.loss(RobustSum(config("multi_krum")), lie)
    assert robust <= 1.25 * honest


def test_one_liar_at_a_hundred_times_ruins_a_mean_and_costs_multi_krum_two_percent_at_most() -> None:
    """The promise: up to f dishonest clients cost no more than their own updates. Beside it: nine that are alone."""
    run = Federated("fedit", liars=1)
    alone = run.loss(Alone(), times(100), rows=50)
    assert run.loss(Unguarded(), times(100), rows=50) > 100 * alone
    assert run.loss(RobustSum(config("multi_krum", f=1)), times(100)) == pytest.approx(alone, rel=0.02)


class Alone:
    """The mean of the honest nine, each counted once."""

    def sum(self, of: Sum) -> Summed:
        return Summed(of.recipe.aggregate(replace(u, num_examples=1) for u in [*of.updates()][: N - 1]))


@pytest.mark.parametrize("rule", ["none", "multi_krum", "geometric_median", "median", "trimmed_mean"])
def test_one_factor_alone_stands_with_every_rule(rule: str) -> None:
    run = Federated("ffa_lora")
    said = {"trim": 0.3} if rule == "trimmed_mean" else {}
    loss = run.loss(Unguarded() if rule == "none" else RobustSum(config(rule, **said)), times(100))
    honest = run.loss(Unguarded())
    assert loss > 10 * honest if rule == "none" else loss < 1.2 * honest


def test_tiny_b_and_huge_a_have_an_honest_product_and_yet_do_not_pass() -> None:
    """The mean of A and the mean of B are what fedit takes: the product of the lie alone is small."""
    run = Federated("fedit")
    honest = run.loss(Unguarded())
    assert run.loss(Unguarded(), tiny_and_huge, rows=50) > 100 * honest
    assert run.loss(RobustSum(config("multi_krum")), tiny_and_huge) < 1.2 * honest
    assert run.loss(RobustSum(config("geometric_median")), tiny_and_huge) < 2 * honest


def test_the_line_names_weights_and_scores_and_none_of_a_private_run() -> None:
    run = Federated("fedit")
    of = run.round(run.t.state(), times(100))
    said = RobustSum(config("multi_krum", f=3)).sum(of).record["robust"]
    assert said["rule"] == "multi_krum"
    assert list(said["weights"]) == list(said["scores"]) == [str(k) for k in range(N)]
    assert [c for c, w in said["weights"].items() if not w] == ["7", "8", "9"]
    assert sum(said["weights"].values()) == pytest.approx(1, abs=1e-5)
    hidden = run_file.from_dict(
        {
            "robust": {"rule": "multi_krum"},
            "privacy": {"mode": "local-dp", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3},
        }
    )
    assert "scores" not in RobustSum(hidden).sum(of).record["robust"]


def test_a_clip_s_rest_is_no_change_and_examples_do_not_count() -> None:
    """Ten equal changes but one of twice the length, which claims a million rows: the mean is the equal one."""
    run = Federated("fedit")
    of = run.round(run.t.state())
    one = replace(next(of.updates()), num_examples=1)
    updates = [*[one] * (N - 1), replace(times(2)(one, of.state), num_examples=10**6)]
    found = RobustSum(config("norm_clip")).sum(replace(of, updates=lambda: iter(updates)))
    shares = found.record["robust"]["weights"]
    assert shares["0"] == pytest.approx(0.1, abs=1e-6)
    assert shares["9"] < 0.06  # in both spaces it is more than twice as long at most
    for n, x in found.change.items():
        wanted = one.delta[n] * (0.9 + 2 * shares["9"])
        torch.testing.assert_close(x, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["fedkseed", "ferret"])
def test_numbers_that_all_count_are_clipped_by_their_length(name: str) -> None:
    run = Federated(name, K=64)
    of = run.round(run.t.state(), times(100))
    said = RobustSum(config("norm_clip")).sum(of).record["robust"]
    assert max(said["weights"][c] for c in "789") < 0.01
    assert "median" in rules_for(run.recipe) or name == "ferret"


def test_the_median_of_a_pool_that_hardly_anybody_draws_from_is_said_to_be_zero(caplog) -> None:
    run = Federated("fedkseed", K=4096)
    RobustSum(config("median")).sum(run.round(run.t.state()))
    assert "is zero in every entry" in caplog.text


def test_too_few_updates_pause_the_run_in_one_line() -> None:
    run = Federated("fedit")
    of = run.round(run.t.state())
    with pytest.raises(
        RunPaused,
        match=r"round 0: nothing is committed: 10 updates, and \[robust\] f = 4 needs 11; a higher \[server\] quorum",
    ):
        RobustSum(config("multi_krum", f=4)).sum(of)


def test_too_few_clients_for_f_are_found_before_the_first_round() -> None:
    """However many there are: of a deployment, or of rows that name their owner, that is known once they are read."""
    said = config("multi_krum", f=2)
    check_clients(said, 7)
    with pytest.raises(ConfigError, match=r"f = 2 needs 7 clients in a round, and 6 are asked"):
        check_clients(said, 6)
    run = Federated("fedit")
    with pytest.raises(ConfigError, match=r"f = 2 needs 7 clients"):
        message_sizes.check_sizes(said, run.recipe, run.t.layout, 6)


def test_a_root_s_turn_keeps_a_majority_of_liars_out() -> None:
    """Seven of ten turn their changes round; only who points the way of the server's own turn counts."""
    run = Federated("fedit")
    of = run.round(run.t.state())
    first = [*of.updates()]
    updates = [*first[:3], *(times(-6)(u, of.state) for u in first[3:])]
    rule = RobustSum(config("fltrust", root="a.jsonl"), root=lambda of: (first[0], of.plans["0"]))
    found = rule.sum(replace(of, updates=lambda: iter(updates)))
    said = found.record["robust"]
    assert [c for c, w in said["weights"].items() if w] == ["0", "1", "2"]
    assert said["scores"]["0"] == pytest.approx(1)
    along = sum(float((x * first[0].delta[n]).sum()) for n, x in found.change.items())
    assert along > 0.5 * sum(float(x.square().sum()) for x in first[0].delta.values())
    with pytest.raises(RunPaused, match="no update points the way"):
        rule.sum(replace(of, updates=lambda: iter([times(-1)(u, of.state) for u in first[:1]] * N)))


def test_updates_are_not_changed_and_another_order_of_reading_gives_the_same_bytes() -> None:
    """What a restart relies on: the same updates, from memory or disk, give the same change."""
    run = Federated("flora")
    of = run.round(run.t.state(), times(-6))
    before = copy.deepcopy([u.delta for u in of.updates()])

    def summed(rule: str) -> Summed:
        return RobustSum(config(rule)).sum(of)

    for rule in rules_for(run.recipe)[:3]:
        a, b = summed(rule), summed(rule)
        assert all(torch.equal(x, b.change[n]) for n, x in a.change.items())
        assert a.record == b.record
    for old, new in zip(before, of.updates(), strict=True):
        assert all(torch.equal(x, new.delta[n]) for n, x in old.items())


@pytest.mark.parametrize("at", ["round", "admitted", "line"])
def test_a_server_that_is_killed_ends_with_the_bytes_of_one_that_was_not(tmp_path: Path, at: str) -> None:
    """Updates come from memory in one run and, of the round at work, from the journal in the other."""
    guard = RobustSum(run_file.from_dict({"robust": {"rule": "geometric_median"}, "server": {"seed": testing.SEED}}))
    wanted = Deployment(tmp_path / "whole", federation={"guard": guard}).run().digest
    first = Deployment(tmp_path / "killed", federation={"guard": guard})
    kill_at(first, at, 1)
    with pytest.raises(Killed):
        first.run()
    again = Deployment(tmp_path / "killed", sites=first.sites, federation={"guard": guard})
    assert again.run().digest == wanted
    assert Deployment(tmp_path / "plain").run().digest != wanted
