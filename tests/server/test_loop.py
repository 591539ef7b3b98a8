"""The round engine on the toy model: letters and answers in one process, no language model."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedft import registry, run_file, strategies, testing
from fedft.carriers.interface import Kind, Refused, Reply
from fedft.carriers.local import LocalPost, Serve
from fedft.contract import State
from fedft.errors import ClientFailed, ConfigError, RunPaused
from fedft.recipe import Recipe
from fedft.reports.metric_log import MetricsFile
from fedft.server.checkpoint import Store
from fedft.server.federation import Federation
from fedft.server.loop import Loop
from fedft.update import Job, Plan, Update
from fedft.wire import messages

NAMES = ("anna", "bert", "carl")
OPTIONS: dict[str, dict[str, Any]] = {"fedkseed": {"K": 64}, "ferret": {"K": 64}}
Twist = Callable[[str, Plan, Update], Update | bytes | Refused | None]


class Site:
    """A client on the toy model: what `fedft.client` does, without data or tokenizer."""

    def __init__(self, toy: testing.Toy, index: int, twist: Twist) -> None:
        self.toy, self.index, self.twist = toy, index, twist
        self.held: State | None = None
        self.asked: list[Plan] = []

    def barred_after(self, rounds: int) -> bool:
        """Whether it was asked to train in so many rounds and never again."""
        return {p.round for p in self.asked if not p.evaluate} == set(range(rounds))

    def answer(self, name: str, kind: Kind, payload: bytes) -> bytes | Refused:
        if kind == "query":
            return messages.encode_update(Update({}, 1, metrics={"held_out": 1.0}), "fp32")
        plan = messages.decode_plan(payload, max_bytes=2**31)
        self.asked.append(plan)
        if plan.have is not None and (self.held is None or self.held.version != plan.have):
            return Refused("behind", str(self.held.version if self.held else "none"))
        turn = self.toy.turn(plan, self.index, self.held)
        if self.toy.recipe.is_held(plan):
            self.held = State(plan.version, turn.held)
        if plan.evaluate:
            metrics = {"loss": float(self.toy.handle.loss(testing.data_of(self.index)).detach()), "accuracy": 0.0}
            update = Update({}, 1, plan.round, plan.run, plan.attempt, metrics=metrics)
        else:
            recipe, handle = self.toy.recipe, self.toy.handle
            trained = recipe.local(handle, testing.Ready(testing.data_of(self.index)), turn)
            delta, metrics, kept = recipe.sent(trained, turn, handle)
            self.toy.kept[self.index, plan.round] = kept
            n = 10 * (self.index + 1)
            update = Update(delta, n, plan.round, plan.run, plan.attempt, metrics=metrics)
        sent = self.twist(name, plan, update)
        if sent is None:
            raise RuntimeError("this client crashed")
        return sent if isinstance(sent, bytes | Refused) else messages.encode_update(sent, "fp32")


def honest(name: str, plan: Plan, update: Update) -> Update:
    return update


class Run:
    """One run in a folder; making another one in the same folder is a restart after a crash."""

    def __init__(
        self, folder: Path, name: str = "fedit", twist: Twist = honest, *, deployed: bool = True, **server: Any
    ) -> None:
        self.recipe: Recipe = strategies.make(name, OPTIONS.get(name, {}))
        toy = testing.toy(self.recipe)
        tables: dict[str, Any] = {
            "strategy": {"name": name, **OPTIONS.get(name, {})},
            "local": {"steps": 3, "learning_rate": 0.05},
            "server": {"rounds": 4, "seed": testing.SEED, **server},
            "clients": {"rank": list(toy.ranks)},
        }
        self.config = run_file.from_dict(tables)
        self.sites = {n: Site(toy, i, twist) for i, n in enumerate(NAMES)}
        store = Store(folder / "state")
        found = store.latest()
        self.metrics = MetricsFile(folder / "metrics.jsonl", found[0].version if found else -1)
        job = Job(testing.RUN, testing.SEED, "d" * 64, {"strategy": {"name": name}})
        self.post = LocalPost({name: partial(site.answer, name) for name, site in self.sites.items()})
        federation = Federation(self.post, self.recipe, toy.layout, self.config, job, store, deployed=deployed)
        self.loop = Loop(federation, self.metrics)

    def digest(self) -> str:
        return self.loop.run(NAMES).digest


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_strategy_goes_through_the_same_engine_and_lowers_the_loss(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path, name)
    run.digest()
    lines = run.metrics.lines
    assert [line["version"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["refused"] == [] for line in lines[1:])
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[2])["participants"] == [
        "anna",
        "bert",
        "carl",
    ]


class Killed(BaseException):
    """What SIGKILL is to a test: nothing catches it."""


@pytest.mark.parametrize("name", ["flora", "fedkseed"])
@pytest.mark.parametrize("when", range(1, 24, 3))
def test_a_run_killed_at_any_commit_and_resumed_ends_with_the_same_bytes(
    tmp_path: Path, name: str, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Run(tmp_path / "a", name)
    wanted = undisturbed.digest()
    import fedft.durable as durable

    real, calls = durable.commit, []

    def dying(path: Path, *parts: Any, **how: Any) -> None:
        calls.append(path)
        if len(calls) == when:
            if when % 2:  # before the write, or just behind it
                real(path, *parts, **how)
            raise Killed
        real(path, *parts, **how)

    monkeypatch.setattr(durable, "commit", dying)
    with pytest.raises(Killed):
        Run(tmp_path / "b", name).digest()
    monkeypatch.undo()
    resumed = Run(tmp_path / "b", name)
    assert resumed.digest() == wanted
    assert [line["version"] for line in resumed.metrics.lines] == [0, 1, 2, 3, 4]
    losses = [[line["loss"] for line in r.metrics.lines] for r in (undisturbed, resumed)]
    assert losses[0] == losses[1]


def test_an_admitted_update_is_not_asked_for_again_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedft.durable as durable

    real, calls = durable.commit, []

    def dying(path: Path, *parts: Any, **how: Any) -> None:
        real(path, *parts, **how)
        calls.append(path)
        if len(calls) == 5:  # generation 0, the plans, the attempt's number, then two updates of round 0
            raise Killed

    monkeypatch.setattr(durable, "commit", dying)
    with pytest.raises(Killed):
        Run(tmp_path).digest()
    monkeypatch.undo()
    again = Run(tmp_path)
    again.digest()
    trained = {n: sum(p.round == 0 and not p.evaluate for p in s.asked) for n, s in again.sites.items()}
    assert trained == {"anna": 0, "bert": 0, "carl": 1}


def bad(kind: str) -> Twist:
    def twist(name: str, plan: Plan, update: Update) -> Update | bytes | Refused | None:
        if name != "bert" or plan.evaluate:
            return update
        first = sorted(update.delta)[0]
        return {
            "garbage": b"FDFT" + bytes(40),
            "nan": codec_of(replace(update, delta={n: x * float("nan") for n, x in update.delta.items()})),
            "missing": replace(update, delta={n: x for n, x in update.delta.items() if n != first}),
            "shape": replace(update, delta={**update.delta, first: torch.zeros(1, 1)}),
            "late": replace(update, round=update.round - 1) if plan.round else b"late",
            "run": replace(update, run="f" * 16),
            "huge": replace(update, delta={n: x * 1e6 + 9000 for n, x in update.delta.items()}),
            "weight": replace(update, num_examples=10**9),
            "crash": Refused("crashed", "RuntimeError"),
        }[kind]

    return twist


def codec_of(update: Update) -> bytes:
    """The bytes of a client that does not look at its numbers."""
    clean = messages.encode_update(
        replace(update, delta={n: torch.ones_like(x) for n, x in update.delta.items()}), "fp32"
    )
    return clean.replace(torch.ones(1).numpy().tobytes(), torch.full((1,), float("nan")).numpy().tobytes())


@pytest.mark.parametrize("kind", ["garbage", "nan", "missing", "shape", "late", "run", "huge", "weight", "crash"])
def test_a_bad_client_costs_only_itself(tmp_path: Path, kind: str) -> None:
    """The run equals the one in which the bad client takes part but is never admitted."""
    run, without = Run(tmp_path / "a", twist=bad(kind)), Run(tmp_path / "b", twist=bad("garbage"))
    assert run.digest() == without.digest()
    refused = [r for line in run.metrics.lines[1:] for r in line["refused"]]
    assert {r["client"] for r in refused} == {"bert"}
    assert len(refused) >= 3
    assert all(line["participants"] == ["anna", "carl"] for line in run.metrics.lines[1:])


@pytest.mark.parametrize("code", ["nonfinite", "out_of_bounds", "client_error"])
def test_a_simulation_ends_at_the_first_client_that_would_fail_again(tmp_path: Path, code: str) -> None:
    """It goes on from what is committed, to the same end. A site of a deployment costs only itself, as above."""

    def fails(name: str, plan: Plan, update: Update) -> Any:
        if name != "bert" or plan.round != 2 or plan.evaluate:
            return update
        return None if code == "client_error" else Refused(code, "it went wild")

    run = Run(tmp_path / "a", twist=fails, deployed=False)
    with pytest.raises(ClientFailed, match="round 2: client 'bert' failed: ") as e:
        run.digest()
    assert ("[local] learning_rate = 0.05" in str(e.value)) == (code != "client_error")
    assert [len([p for p in s.asked if p.round == 2 and not p.evaluate]) for s in run.sites.values()] == [1, 1, 0]
    assert Run(tmp_path / "a", deployed=False).digest() == Run(tmp_path / "b").digest()


def test_a_simulation_does_not_ask_a_second_time_what_a_limit_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, twist=bad("weight"), deployed=False, quorum=1.0)
    with pytest.raises(RunPaused, match="2 of 3 updates admitted, quorum is 3; bert was refused: num_examples ") as e:
        run.digest()
    assert "again" not in str(e.value)
    assert sum(not p.evaluate for p in run.sites["bert"].asked) == 1


def heavy(name: str, plan: Plan, update: Update) -> Update:
    """carl has 280 rows beside 10 and 20."""
    return update if plan.evaluate or name != "carl" else replace(update, num_examples=280)


def test_only_a_deployment_cuts_the_weight_of_who_has_more_than_half_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """FLoRA is exact, so what is left of the error is the cut: 280 of 310 become 30 of 60."""
    simulated = Run(tmp_path / "a", "flora", heavy, deployed=False)
    published = simulated.digest()
    assert not caplog.messages
    assert all("cut_weights" not in line for line in simulated.metrics.lines)
    assert simulated.metrics.lines[1]["weights"] == {"anna": 10, "bert": 20, "carl": 280}
    deployed = Run(tmp_path / "b", "flora", heavy)
    assert deployed.digest() != published
    assert [m for m in caplog.messages if "carl" in m] == [
        "round 0: client carl's weight cut from 90 % to 50 % ([limits] max_share)"
    ]
    for line, exact in zip(deployed.metrics.lines[1:], simulated.metrics.lines[1:], strict=True):
        assert line["weights"] == {"anna": 10, "bert": 20, "carl": 30}
        assert line["cut_weights"] == {"carl": [pytest.approx(280 / 310), 0.5]}
        assert exact["aggregation_error"] < 1e-6 < 1e-2 < line["aggregation_error"]


def test_a_deployment_that_says_the_simulation_s_largest_share_ends_with_its_bytes(tmp_path: Path) -> None:
    digests = []
    for deployed in (False, True):
        run = Run(tmp_path / str(deployed), "fedit", heavy, deployed=deployed)
        config = replace(run.config, limits=replace(run.config.limits, max_share=1.0))
        run.loop.federation.config = config
        digests.append(run.digest())
    assert digests[0] == digests[1]


def test_a_site_that_is_away_when_the_server_starts_again_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has held-out rows is kept with the state: the panel of a run does not depend on who enrolled in time."""
    first = Run(tmp_path / "a", rounds=2)
    first.digest()
    assert {*first.metrics.lines[-1]["evaluation"]} == {*NAMES}
    answer, panels = Site.answer, []

    def late(self: Site, name: str, kind: Kind, payload: bytes) -> bytes | Refused:
        if kind == "query" and name == "bert" and not panels:  # not yet there in the round that comes next
            return Refused("offline", "not yet")
        return answer(self, name, kind, payload)

    monkeypatch.setattr(Site, "answer", late)
    again = Run(tmp_path / "a", rounds=3)
    again.loop.federation.observe = lambda kind, info: panels.append(info["asked"]) if kind == "evaluating" else None
    again.loop.run(NAMES)
    assert again.metrics.lines[-1]["participants"] == ["anna", "carl"]
    assert panels == [[*NAMES]]
    assert {*again.metrics.lines[-1]["evaluation"]} == {*NAMES}


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (
            (1.0, 1.4, 9.0, 8.0, 20.0),
            "held-out loss rose from 1 to 9: the learning rate is probably too high: [local] ",
        ),
        ((1.0, 1.4, 1.3, 1.4, 1.5), ""),
        ((0.01, 0.3, 0.2, 0.5, 0.4), ""),  # of few rows, or more of the same
    ],
)
def test_a_loss_that_explodes_and_stays_finite_names_the_learning_rate_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, losses: tuple[float, ...], told: str
) -> None:
    def measured(name: str, plan: Plan, update: Update) -> Update:
        return replace(update, metrics={"loss": losses[plan.round]}) if plan.evaluate else update

    Run(tmp_path, twist=measured).digest()
    said = [m for m in caplog.messages if "rose" in m]
    assert len(said) == bool(told)
    assert not told or said[0].startswith(told)


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_run_of_one_client_learns_whatever_the_strategy(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path, name, deployed=False)
    run.loop.run(["bert"])
    lines = run.metrics.lines
    assert all(line["participants"] == ["bert"] for line in lines[1:])
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_more_clients_a_round_than_there_are_is_all_of_them(tmp_path: Path) -> None:
    digests = []
    for most in (None, 3, 7):
        run = Run(tmp_path / str(most), deployed=False)
        config = run.loop.federation.config
        run.loop.federation.config = replace(config, clients=replace(config.clients, per_round=most))
        digests.append(run.digest())
        assert run.metrics.lines[1]["participants"] == [*NAMES]
    assert len({*digests}) == 1


def test_a_client_refused_three_times_is_quarantined(tmp_path: Path) -> None:
    run = Run(tmp_path, twist=bad("garbage"), quorum=0.5)
    run.digest()
    asked = [p.round for p in run.sites["bert"].asked if not p.evaluate]
    assert asked == [0, 1, 2]


def test_below_quorum_the_round_is_tried_again_and_then_the_run_pauses(tmp_path: Path) -> None:
    def all_bad(name: str, plan: Plan, update: Update) -> Update | bytes:
        return update if plan.evaluate else b"no"

    run = Run(tmp_path, twist=all_bad, attempts=2)
    with pytest.raises(RunPaused, match="quorum is 2"):
        run.digest()
    assert [p.attempt for p in run.sites["anna"].asked if not p.evaluate] == [0, 1]
    assert Run(tmp_path).digest() == Run(tmp_path / "clean").digest()


def test_a_client_that_lost_its_memory_is_caught_up(tmp_path: Path) -> None:
    forgot: set[int] = set()

    def forget(name: str, plan: Plan, update: Update) -> Update:
        if name == "carl" and plan.round == 1 and not plan.evaluate and 1 not in forgot:
            forgot.add(1)
            run.sites["carl"].held = None
        return update

    run = Run(tmp_path / "a", "flora", twist=forget)
    assert run.digest() == Run(tmp_path / "b", "flora").digest()
    assert all(line["refused"] == [] for line in run.metrics.lines[1:])


def test_a_veteran_is_sent_nothing_it_has(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.digest()
    trains = [p for p in run.sites["anna"].asked if not p.evaluate]
    assert all(p.have == p.version and not p.tensors for p in trains), "the evaluation had brought it there"


def test_measured_bytes_are_the_bytes_of_the_messages(tmp_path: Path) -> None:
    sent: dict[str, int] = {"up": 0, "down": 0}
    run = Run(tmp_path)

    def counted(real: Serve) -> Serve:
        def answer(kind: Kind, payload: bytes) -> bytes | Refused:
            said = real(kind, payload)
            assert isinstance(said, bytes)
            sent["down"] += len(payload) * (kind != "query")
            sent["up"] += len(said) * (kind != "query")
            return said

        return answer

    run.post._clients = {name: counted(real) for name, real in run.post._clients.items()}
    run.digest()
    totals = {way: sum(line[f"bytes_{way}"] for line in run.metrics.lines) for way in ("up", "down")}
    assert totals == sent


@pytest.mark.parametrize("metrics", [{}, {"seconds": 1.0, "version": 7.0}, {"loss": 1.0, "seconds": 9.0, "round": 3.0}])
def test_no_evaluation_can_stop_the_run_or_write_over_its_facts(tmp_path: Path, metrics: dict[str, float]) -> None:
    def odd(name: str, plan: Plan, update: Update) -> Update:
        return replace(update, metrics=metrics) if plan.evaluate and name == "bert" else update

    run = Run(tmp_path / "a", twist=odd)
    assert run.digest() == Run(tmp_path / "b").digest()
    assert [line["version"] for line in run.metrics.lines] == [0, 1, 2, 3, 4]
    assert all(isinstance(line["seconds"], dict) for line in run.metrics.lines)
    if "loss" not in metrics:
        assert {r["client"] for line in run.metrics.lines for r in line["refused"]} == {"bert"}


@pytest.mark.parametrize("name", ["hetlora", "flexlora"])
def test_a_site_that_may_not_hold_the_whole_state_reports_its_own_loss_only(tmp_path: Path, name: str) -> None:
    """Ranks are 1, 2 and 3: anna and bert hold a part; the loss is the mean over those who measure the whole."""

    def below_three(name: str, plan: Plan, update: Update) -> Any:
        return Refused("policy_rank", "rank 3, at most 1") if name == "anna" and plan.rank == 3 else update

    run, free = Run(tmp_path / "a", name, twist=below_three), Run(tmp_path / "b", name)
    assert run.digest() == free.digest()
    assert {r["code"] for line in run.metrics.lines for r in line["refused"]} == {"policy_rank"}
    anna, bert, carl = run.metrics.lines[-1]["evaluation"].values()
    assert anna.keys() == {"own_loss", "own_accuracy"}
    assert carl["own_loss"] == carl["loss"]
    assert run.metrics.lines[-1]["loss"] == pytest.approx((bert["loss"] + carl["loss"]) / 2)
    ours, theirs = (r.metrics.lines[-1]["own_loss"] for r in (run, free))
    assert ours == pytest.approx(theirs)
    assert run.sites["bert"].held is not None
    ranks = {x.shape[0] for n, x in run.sites["bert"].held.tensors.items() if n.endswith("lora_A")}
    assert ranks == {2}, "what it holds is its part"


def test_a_metric_that_nobody_declared_is_averaged_over_those_who_report_it(tmp_path: Path) -> None:
    def says(name: str, plan: Plan, update: Update) -> Update:
        more = {"anna": 1.0, "bert": 4.0}
        told = {"odd.one": more[name]} if name in more else {}
        return replace(update, metrics={**update.metrics, **told}) if plan.evaluate else update

    run = Run(tmp_path, twist=says)
    run.digest()
    assert [line["odd.one"] for line in run.metrics.lines] == [2.5] * 5


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("behind", "9" * 5000),
        ("behind", "-1"),
        ("behind", "3"),
        ("deadline", ""),
        ("\x1b[31m", "x"),
        ("no", "y" * 10**6),
    ],
)
def test_a_refusal_is_bounded_and_costs_only_who_refuses(tmp_path: Path, code: str, reason: str) -> None:
    def refusing(name: str, plan: Plan, update: Update) -> Any:
        return Refused(code, reason) if name == "bert" and not plan.evaluate else update

    run = Run(tmp_path / "a", twist=refusing)
    assert run.digest() == Run(tmp_path / "b", twist=bad("garbage")).digest()
    refused = [r for line in run.metrics.lines for r in line["refused"]]
    assert {r["client"] for r in refused} == {"bert"}
    assert all(len(r["code"]) <= 32 and len(r["reason"]) <= 300 and r["code"].isascii() for r in refused)
    own = code == "no"  # a client may refuse what it is asked, as often as it likes
    assert run.sites["bert"].barred_after(4 if own else 3), "whatever else it says, it is to blame"


def test_a_resumed_round_has_the_norms_and_upload_bytes_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedft.durable as durable

    whole = Run(tmp_path / "a")
    whole.digest()
    real, calls = durable.commit, []

    def dying(path: Path, *parts: Any, **how: Any) -> None:
        real(path, *parts, **how)
        calls.append(path)
        if len(calls) == 6:  # generation 0, the plans, the attempt's number and all three updates of round 0
            raise Killed

    monkeypatch.setattr(durable, "commit", dying)
    with pytest.raises(Killed):
        Run(tmp_path / "b").digest()
    monkeypatch.undo()
    Run(tmp_path / "b").digest()
    found, wanted = (Store(tmp_path / x / "state").latest() for x in "ba")
    assert found is not None
    assert wanted is not None
    assert found[1]["norms"] == wanted[1]["norms"]
    assert Run(tmp_path / "b").metrics.lines[1]["bytes"]["anna"]["up"] == whole.metrics.lines[1]["bytes"]["anna"]["up"]


def test_state_of_another_run_is_not_continued(tmp_path: Path) -> None:
    Run(tmp_path).digest()
    other = Run(tmp_path, rounds=5)
    other.loop.federation.job = replace(other.loop.federation.job, run="f" * 16)
    with pytest.raises(ConfigError, match="the state found is of run 0123456789abcdef"):
        other.digest()


def test_an_update_journalled_by_another_run_is_not_counted(tmp_path: Path) -> None:
    toy = testing.toy(strategies.make("fedit", {}))
    foreign = replace(toy.update(toy.state(), 0), run="f" * 16)
    Store(tmp_path / "a" / "state").journal(0, "anna", messages.encode_update(foreign, "fp32"))
    assert Run(tmp_path / "a").digest() == Run(tmp_path / "b").digest()


def test_a_deadline_closes_the_round_with_those_who_answered(tmp_path: Path) -> None:
    class Slow(LocalPost):
        def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
            asked = {t: self._waiting[t][1] for t in tickets if t in self._waiting}
            return super().pull([t for t, a in asked.items() if a.kind != "train" or a.client != "bert"])

    run = Run(tmp_path, deadline_s=5.0, grace_s=0.0, quorum=0.6)
    run.post.__class__ = Slow
    run.digest()
    assert all(line["participants"] == ["anna", "carl"] for line in run.metrics.lines[1:])
    assert {r["code"] for line in run.metrics.lines[1:] for r in line["refused"]} == {"deadline"}


def test_a_state_that_no_client_could_decode_is_not_committed(tmp_path: Path) -> None:
    """A pair whose B is zero is small by its product; FedEx-LoRA sends the difference of two clients' A."""

    def far(name: str, plan: Plan, update: Update) -> Update:
        if name != "bert" or plan.evaluate:
            return update
        return replace(update, delta={n: torch.full_like(x, -1e4) for n, x in update.delta.items()})

    run = Run(tmp_path, "fedex_lora", far, attempts=1)
    why = r"nothing is committed: first.lora_BA would go beyond 10000 or is no number; the largest .* bert's"
    with pytest.raises(RunPaused, match=why):
        run.digest()
    found = Run(tmp_path, "fedex_lora").loop.federation.store.latest()
    assert found is not None
    assert found[0].version == 0
    assert len(Run(tmp_path, "fedex_lora").digest()) == 64  # with bert as he should be it goes on


def test_a_pair_of_factors_that_are_averaged_counts_by_the_factors(tmp_path: Path) -> None:
    """B = 0 makes the product nothing, and a mean of A all the same."""

    def huge(name: str, plan: Plan, update: Update) -> Update:
        if name != "bert" or plan.evaluate or plan.round < 1:
            return update
        factors = {n: torch.full_like(x, -9e3) if n.endswith("A") else 0 * x for n, x in update.delta.items()}
        return replace(update, delta=factors)

    for name in ("hetlora", "lora_fair", "fedex_lora"):
        run = Run(tmp_path / name, name, lambda *a: hetlora_rank(huge(*a), a[1]))
        run.digest()
        refused = [r["code"] for line in run.metrics.lines for r in line["refused"]]
        assert refused, name
        assert set(refused) == {"norm"}, name


def hetlora_rank(update: Update, plan: Plan) -> Update:
    """The rank that a client of HetLoRA says is no factor."""
    if "rank" not in update.delta:
        return update
    return replace(update, delta={**update.delta, "rank": torch.tensor([plan.rank], dtype=torch.int32)})


def test_a_sampled_cohort_is_the_same_after_a_restart(tmp_path: Path) -> None:
    from fedft.server import cohort

    names = [f"client-{i}" for i in range(20)]
    assert cohort.cohort(names, 5, 3, 7) == cohort.cohort(names[::-1], 5, 3, 7)
    assert cohort.cohort(names, 5, 3, 7) != cohort.cohort(names, 5, 3, 8)
    assert cohort.cohort(names, 50, 3, 7) == sorted(names)
