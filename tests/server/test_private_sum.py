"""Rounds with noise at the server, on the toy model: what is summed, what is said, and when the run ends."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from private_runs import NAMES, SAID, Run, Site

from fedft import run_file, testing
from fedft.carriers.interface import Kind, Refused
from fedft.contract import State
from fedft.errors import ConfigError, GateRefused, RunPaused
from fedft.privacy.accountant import Release
from fedft.server import private_checks, private_facts
from fedft.update import Plan, Update
from fedft.wire import messages

QUIET = {"noise_multiplier": 1e-6}
"""As good as no noise."""


def moved(run: Run) -> dict[str, torch.Tensor]:
    """What a run of one round has added to its first state."""
    after = run.loop.run(run.names)
    before = run.federation.recipe.first_state(run.federation.layout, run.federation.rank, testing.SEED)
    return {n: x - before.tensors[n] for n, x in after.tensors.items()}


@pytest.mark.parametrize("name", ["ffa_lora", "fedit", "rolora", "fedavg", "fedkseed"])
def test_a_run_with_noise_is_the_same_in_simulation_and_deployment(tmp_path: Path, name: str) -> None:
    simulated, deployed = (Run(tmp_path / x, name=name, deployed=x == "d") for x in "sd")
    assert simulated.digest() == deployed.digest()
    assert [line["version"] for line in deployed.metrics.lines] == [0, 1, 2, 3]


def test_fresh_noise_is_another_in_each_run(tmp_path: Path) -> None:
    assert (
        Run(tmp_path / "a", {"noise": "os"}, rounds=1).digest()
        != Run(tmp_path / "b", {"noise": "os"}, rounds=1).digest()
    )


def test_everybody_counts_alike_and_none_more_than_the_clip(tmp_path: Path) -> None:
    """A site that sends a thousandfold moves the mean by C / m at most; how many rows it has decides nothing."""

    def thousandfold(name: str, plan: Plan, update: Update) -> Update:
        scale = 1e3 if name == "anna" else 1.0
        return replace(update, delta={n: x * scale for n, x in update.delta.items()})

    def without(name: str, plan: Plan, update: Update) -> Update:
        nothing = {n: torch.zeros_like(x) for n, x in update.delta.items()}
        return replace(update, delta=nothing, num_examples=7) if name == "anna" else update

    found = [moved(Run(tmp_path / str(n), QUIET, twist=t, rounds=1)) for n, t in enumerate((thousandfold, without))]
    apart = sum(float((found[0][n] - found[1][n]).double().square().sum()) for n in found[0]) ** 0.5
    assert apart == pytest.approx(0.1 / len(NAMES), rel=1e-3)


def test_the_divisor_is_who_was_expected_and_never_who_answered(tmp_path: Path) -> None:
    """With a site away the sum of the others is what it was."""

    def same(name: str, plan: Plan, update: Update) -> Update:
        return replace(update, delta={n: torch.full_like(x, 1e-3) for n, x in update.delta.items()})

    def away(name: str, plan: Plan, update: Update) -> Update | Refused:
        return Refused("client_busy", "not now") if name == "anna" else same(name, plan, update)

    all_there, one_away = (
        moved(Run(tmp_path / str(n), QUIET, twist=t, rounds=1, deployed=True)) for n, t in enumerate((same, away))
    )
    for n, x in all_there.items():
        assert torch.allclose(one_away[n], x * 5 / 6, atol=1e-7)


def test_a_cohort_of_coins_is_drawn_once_may_be_empty_and_is_not_published(tmp_path: Path) -> None:
    run = Run(tmp_path, {"cohort": "poisson"}, per_round=1, rounds=8, deployed=True)
    run.digest()
    asked = [sum(r in site.trained for site in run.sites.values()) for r in range(8)]
    assert 0 in asked
    assert max(asked) > 1
    text = (tmp_path / "metrics.jsonl").read_text()
    assert not any(name in text for name in NAMES)
    assert not any(
        name in str(event) for event in run.events if event[0] not in ("enrolling", "enrolled") for name in NAMES
    )
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line["bytes_up"] == 0 and "weights" in line["hidden"] for line in lines[1:])
    assert all({*line["seconds"]} == {"evaluate"} for line in lines), "a round of few is short"
    private = [json.loads(line) for line in (tmp_path / "state" / "private.jsonl").read_text().splitlines()]
    assert all("train" in x["seconds"] for x in private if "seconds" in x)
    assert {c.q for c in run.ledger.charges} == {1 / 6}
    assert all(not c.asked for c in run.ledger.charges)


@pytest.mark.parametrize("deployed", [True, False])
def test_bytes_of_an_evaluation_do_not_tell_whom_the_coins_chose(tmp_path: Path, deployed: bool) -> None:
    """Who has trained holds half of the state already, and is sent the rest, so bytes would say so."""
    tables: dict[str, dict[str, object]] = {"eval": {"every": 2}}
    said = {"cohort": "poisson", "evaluate": "noisy"}
    run = Run(tmp_path, said, "rolora", per_round=2, rounds=4, deployed=deployed, tables=tables)
    run.digest()
    facts = [json.loads(x) for x in (tmp_path / "state" / "private.jsonl").read_text().splitlines()]
    sent = [x["evaluation_bytes"]["down"] for x in facts if "evaluation_bytes" in x]
    assert any(len({*by_client.values()}) > 1 for by_client in sent), "there is something to hide"
    assert all((line["bytes_up"], line["bytes_down"]) == (0, 0) for line in run.metrics.lines)
    assert not any("evaluation_bytes" in line for line in run.metrics.lines)


@pytest.mark.parametrize(("cohort", "heard"), [("poisson", []), ("asked", ["progress"])])
def test_nobody_hears_of_the_work_of_a_site_that_was_asked_in_secret(cohort: str, heard: list[str]) -> None:
    kinds: list[str] = []
    said = run_file.from_dict({"privacy": {**SAID, "cohort": cohort}}).privacy
    quiet = private_facts.quiet(lambda kind, info: kinds.append(kind), said)
    quiet("progress", {"client": "anna", "round": 1, "doing": "training"})
    assert kinds == heard


def test_a_cyclic_cohort_asks_everybody_equally_often(tmp_path: Path) -> None:
    run = Run(tmp_path, {"cohort": "cyclic"}, per_round=2, rounds=6)
    run.digest()
    assert {len(site.trained) for site in run.sites.values()} == {2}


def test_who_is_quarantined_leaves_everybody_elses_part_as_it_was(tmp_path: Path) -> None:
    """Were the others drawn anew without it, one site's updates would decide who is in the sum."""
    runs = [Run(tmp_path / x, per_round=3, rounds=4) for x in "ab"]
    _, notes = runs[1].loop._found(NAMES)
    store = runs[1].federation.store
    state, _ = store.latest() or pytest.fail("no state")
    store.save(state, {**notes, "barred": ["anna"]})
    for run in runs:
        run.digest()
    for name in NAMES[1:]:
        assert runs[1].sites[name].trained == runs[0].sites[name].trained
    assert runs[0].sites["anna"].trained
    assert not runs[1].sites["anna"].trained


def test_nothing_of_a_single_client_is_said(tmp_path: Path) -> None:
    """A loss, a norm, rows: neither in lines nor in events nor in notes, nor why an update was refused."""

    def bad(name: str, plan: Plan, update: Update) -> Update:
        scale = 12345.0 if name == "bert" else 1.0
        return replace(update, delta={n: x * scale for n, x in update.delta.items()}, metrics={"loss": 0.987654})

    run = Run(tmp_path, twist=bad, deployed=True, tables={"limits": {"max_norm": 50.0}})
    run.digest()
    notes = (run.federation.store.latest() or pytest.fail("no state"))[1]
    assert notes["norms"] == [[], [], []]
    said = (tmp_path / "metrics.jsonl").read_text() + str(run.events) + json.dumps(notes["record"])
    for secret in ("0.987654", "train_loss", "aggregation_error", "allowed; see [limits]", 'cut_weights": {'):
        assert secret not in said
    assert [r["code"] for r in run.metrics.lines[1]["refused"]] == ["norm"]
    private = tmp_path / "state" / "private.jsonl"
    assert private.stat().st_mode & 0o777 == 0o600
    assert "at most 50 allowed" in private.read_text()


def test_norms_of_others_decide_about_nobody(tmp_path: Path) -> None:
    """`norm_factor` is off: a site that is far above the usual is clipped and admitted."""

    def grows(name: str, plan: Plan, update: Update) -> Update:
        scale = 1e4 if name == "carl" and plan.round == 2 else 1.0
        return replace(update, delta={n: x * scale for n, x in update.delta.items()})

    run = Run(tmp_path, twist=grows, tables={"limits": {"norm_factor": 2.0}})
    run.digest()
    assert not any(line["refused"] for line in run.metrics.lines)
    assert Run(
        tmp_path / "none", {"mode": "none"}, twist=grows, deployed=True, tables={"limits": {"norm_factor": 2.0}}
    ).digest()


def test_an_evaluation_of_sites_is_none_or_noisy_and_charged(tmp_path: Path) -> None:
    none, noisy = (Run(tmp_path / x, {"evaluate": x}, deployed=True) for x in ("none", "noisy"))
    assert none.digest() == noisy.digest()
    assert not any("loss" in line or "evaluation" in line for line in none.metrics.lines)
    for line in noisy.metrics.lines:
        assert 0 <= line["loss"] <= 10
        assert 0 <= line["accuracy"] <= 1
        assert not {"evaluation", "evaluation_bytes", "outside_epsilon"} & line.keys()
    assert not list((tmp_path / "noisy" / "state").glob("noise-*"))
    charges = [(c.of, c.z) for c in noisy.ledger.charges]
    assert charges.count(("loss", 4.0)) == charges.count(("accuracy", 4.0)) == 4
    assert charges.count(("training", 1.0)) == 3


def test_what_one_site_measures_moves_a_mean_by_its_cut_value_over_all_that_were_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of a million counts as 10, one below 0 as 0, and so does a site that does not answer: of six, 10 + 3."""
    said = {"anna": (1e6, 7.0), "bert": (-5.0, -1.0), "carl": None}
    answer = Site.answer

    def twisted(site: Site, name: str, kind: Kind, payload: bytes) -> bytes | Refused:
        if kind != "evaluate":
            return answer(site, name, kind, payload)
        plan = messages.decode_plan(payload, max_bytes=2**31)
        site.held = State(plan.version, site.toy.turn(plan, site.index, site.held).held)
        if (found := said.get(name, (1.0, 0.5))) is None:
            return Refused("client_busy", "not now")
        metrics = dict(zip(("loss", "accuracy"), found, strict=True))
        return messages.encode_update(Update({}, 1, plan.round, plan.run, plan.attempt, metrics=metrics), "fp32")

    monkeypatch.setattr(Site, "answer", twisted)
    run = Run(tmp_path, {**QUIET, "evaluate": "noisy"}, rounds=1, deployed=True)
    run.digest()
    for line in run.metrics.lines:
        assert line["loss"] == pytest.approx((10 + 0 + 0 + 3 * 1.0) / 6, abs=1e-3)
        assert line["accuracy"] == pytest.approx((1 + 0 + 0 + 3 * 0.5) / 6, abs=1e-3)


def test_a_simulation_is_measured_as_ever_and_says_that_this_is_outside(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.digest()
    assert all(line["outside_epsilon"] == ["evaluation"] and len(line["evaluation"]) == 6 for line in run.metrics.lines)


def test_the_run_ends_before_the_round_that_would_cost_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one unit of epsilon per round; seeded noise spends in the same way, and reports none."""
    monkeypatch.setattr("fedft.privacy.accountant.epsilon", units)
    run = Run(tmp_path, {"max_epsilon": 2.5, "noise": "os"}, rounds=5)
    run.digest()
    lines = run.metrics.lines
    assert [(round(line["epsilon"], 6), line["rounds_left"]) for line in lines] == [(0, 2), (1, 1), (2, 0)]
    assert not list((tmp_path / "state").glob("noise-*"))
    more = Run(tmp_path, {"max_epsilon": 4.1, "noise": "os"}, rounds=5)
    more.digest()
    assert more.metrics.lines[-1]["epsilon"] == pytest.approx(4)
    seeded = Run(tmp_path / "seeded", {"max_epsilon": 2.5}, rounds=5)
    seeded.digest()
    assert [line["epsilon"] for line in seeded.metrics.lines] == [None] * 3


def units(releases: list[Release], delta: float) -> float:
    """An accountant that counts: a release of noise multiplier z costs 1 / z^2."""
    return sum(r.count / r.noise_multiplier**2 for r in releases)


def test_a_release_that_is_made_twice_is_paid_twice_or_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate refuses the noisy state: asked anew, everybody pays again; where that is too much, the run ends."""
    monkeypatch.setattr("fedft.privacy.accountant.epsilon", units)
    run = Run(tmp_path, {"max_epsilon": 1.5, "noise": "os"})

    def refuse(state: object, candidate: object, measured: object) -> object:
        raise GateRefused("not this one")

    run.loop.gates = [refuse]  # type: ignore[list-item]
    with pytest.raises(RunPaused, match="not this one"):
        run.digest()
    again = Run(tmp_path, {"max_epsilon": 1.5, "noise": "os"})
    again.digest()
    assert again.metrics.lines[-1]["version"] == 0
    assert len(again.ledger.charges) == 1


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"server": {"archive": True}}, "archive"),
        ({"server": {"budget": "bytes=1e6"}}, "budget"),
        (
            {"server": {"budget": "seconds=60"}, "privacy": {"cohort": "poisson"}},
            "how many are in a round, are not said",
        ),
        ({"privacy": {"noise_multiplier": None, "epsilon": 2.0, "max_epsilon": 3.0}}, "is what the sites have booked"),
    ],
)
def test_what_cannot_be_had_with_noise_is_refused_by_name(tables: dict[str, dict[str, object]], said: str) -> None:
    privacy = {k: v for k, v in {**SAID, **tables.get("privacy", {})}.items() if v is not None}
    config = run_file.from_dict({**tables, "privacy": privacy})
    with pytest.raises(ConfigError, match=said):
        private_checks.check(config, deployed=True)


def test_a_delta_above_one_in_so_many_clients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"delta = 0.2 is above 1 / 6"):
        Run(tmp_path, {"delta": 0.2}).digest()


def test_balance_needs_pairs_and_keeps_a_round_what_it_is_without_clip(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="balance"):
        Run(tmp_path / "a", {"balance": True}, name="fedavg").digest()
    wide = {**QUIET, "clip": 1e3}
    plain, balanced = (
        moved(Run(tmp_path / str(b), {**wide, "balance": b, "noise_multiplier": 1e-9}, name="fedit", rounds=1))
        for b in (False, True)
    )
    for n, x in plain.items():
        assert torch.allclose(balanced[n], x, atol=1e-5)
