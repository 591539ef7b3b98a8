"""One client's part in privacy: what its noise follows from, when it is charged, and what the server is not told."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asked_site import SITE

from fedft import run_file
from fedft.client import own_privacy
from fedft.client.own_privacy import Budget, OwnPrivacy
from fedft.client.privacy_ledger import Ledger
from fedft.client.site_settings import SitePrivacy
from fedft.contract import Private, Turn
from fedft.errors import PlanRefused, StateDamaged
from fedft.privacy.accountant import Release, epsilon
from fedft.privacy.schedule import MEASURE_NOISE
from fedft.server import noisy_evaluation
from fedft.server.job import job_of
from fedft.update import Plan

pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")

ROWS = [f"row {n}" for n in range(47)]
HELD = {"w": torch.zeros(2)}
SAID = {"mode": "example-dp", "clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}


def config_of(server_rounds: int = 4, **said: Any) -> Any:
    tables = {"local": {"steps": 3, "batch_size": 5}, "server": {"rounds": server_rounds}}
    return run_file.from_dict({**tables, "privacy": {k: v for k, v in {**SAID, **said}.items() if v is not None}})


def begun(folder: Path | None, *, rows: int = len(ROWS), name: str = "anna", seed: int = 0, **more: Any) -> OwnPrivacy:
    """A client that has joined the run; `more` are keys of [privacy], and fields of OwnPrivacy."""
    fields = {k: more.pop(k) for k in ("rows_said", "budget", "deployed") if k in more}
    own = OwnPrivacy(Ledger(folder), folder, fields.pop("rows_said", None), **fields)
    config = config_of(**more)
    own.begin(name, replace(job_of(config, "d" * 64, [b"x"]), seed=seed), config, rows)
    return own


def turn_of(**plan: Any) -> Turn:
    said = {"round": 0, "version": 0, "steps": 3, "learning_rate": 0.1, **plan}
    return Turn(Plan("a" * 16, **said), HELD, "held", config_of().local, 0, 7)


def private_of(own: OwnPrivacy, turn: Turn, rows: Any = ROWS) -> Private:
    found = own.guarded(turn, rows).private
    assert found is not None
    return found


def test_a_turn_has_what_its_noise_goes_by(tmp_path: Path) -> None:
    found = private_of(begun(tmp_path), turn_of())
    assert (found.clip, found.noise_multiplier, found.probability) == (1.0, 2.0, 5 / 47)
    assert private_of(begun(None), turn_of(batch=10)).probability == 10 / 47
    assert private_of(begun(None, rows_said=100), turn_of()).probability == 0.05
    assert private_of(begun(None, rows=3), turn_of(), ROWS[:3]).probability == 1.0
    whole = private_of(begun(None, mode="local-dp"), turn_of())
    assert (whole.clip, whole.noise_multiplier, whole.probability) == (1.0, 2.0, 1.0)


def test_there_is_none_without_a_mode_with_one_of_the_server_and_in_an_evaluation() -> None:
    off = {"mode": None, "clip": None, "noise_multiplier": None, "delta": None}
    assert begun(None, **off).guarded(turn_of(), ROWS) == turn_of()
    assert begun(None, mode="central-dp").guarded(turn_of(), ROWS).private is None
    assert begun(None).guarded(turn_of(evaluate=True), ROWS).private is None


def test_the_same_work_has_the_same_noise_at_the_next_start_and_in_another_attempt(tmp_path: Path) -> None:
    one = private_of(begun(tmp_path), turn_of(attempt=1)).stream
    again = private_of(begun(tmp_path), turn_of(attempt=7)).stream
    assert one == again
    assert torch.equal(one.gaussians("step", "0", 9), again.gaussians("step", "0", 9))


def test_whatever_the_result_depends_on_has_noise_of_its_own(tmp_path: Path) -> None:
    """Else the difference of two results would be the data's."""
    own = begun(tmp_path)
    turn = turn_of()
    edited = [*ROWS[:-1], "another"]
    found = [
        private_of(own, turn),
        private_of(own, turn, edited),
        private_of(own, turn, ROWS[:-1]),
        private_of(own, turn, ROWS[::-1]),
        private_of(own, turn_of(round=1)),
        private_of(own, turn_of(steps=4)),
        private_of(own, turn_of(batch=6)),
        private_of(own, turn_of(learning_rate=0.2)),
        private_of(own, turn_of(extra={"clip": 0.5})),
        private_of(own, replace(turn, held_digest="other")),
        private_of(own, replace(turn, kept={"owner": {"w": torch.ones(1)}})),
        private_of(begun(tmp_path, seed=1), turn),
    ]
    own.begin("anna", replace(job_of(config_of(), "e" * 64, [b"x"]), seed=0), config_of(), 47)
    found.append(private_of(own, turn))
    assert len({p.stream.salt for p in found}) == len(found)
    others = [private_of(begun(tmp_path / "other"), turn), private_of(begun(None), turn)]
    assert len({p.stream.key for p in [*found, *others]}) == 3


def test_seeded_noise_is_the_same_on_every_machine(tmp_path: Path) -> None:
    streams = [private_of(begun(at, noise="seeded"), turn_of()).stream for at in (tmp_path, None)]
    assert streams[0] == streams[1]
    assert private_of(begun(None, noise="seeded", name="bert"), turn_of()).stream.key != streams[0].key
    assert not list(tmp_path.glob("*.key"))
    deployed = turn_of()
    deployed = replace(deployed, plan=replace(deployed.plan, run="b" * 16))  # of the same seed, on the same rows
    assert private_of(begun(None, noise="seeded"), deployed).stream == streams[0]


def test_noise_that_everybody_knows_is_booked_as_none(tmp_path: Path) -> None:
    own = begun(tmp_path, noise="seeded", budget=Budget(math.inf, 1e-5), deployed=True)
    own.charge(own.guarded(turn_of(), ROWS))
    assert math.isinf(epsilon(Ledger(tmp_path).read().releases, 1e-5))
    bounded = begun(tmp_path, budget=Budget(1e6, 1e-5), deployed=True, clip=0.5)
    with pytest.raises(PlanRefused, match="is spent"):
        bounded.charge(bounded.guarded(turn_of(round=3), ROWS))


def test_a_site_s_log_says_what_its_rows_have_cost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = replace(SITE, privacy=SitePrivacy(rows=100))
    own = own_privacy.of_site(site, tmp_path, tmp_path / "kept")
    config = config_of()
    own.begin("anna", job_of(config, "d" * 64, [b"x"]), config, len(ROWS))
    with caplog.at_level(logging.INFO):
        own.charge(own.guarded(turn_of(), ROWS))
    cost = epsilon([Release(2.0, 0.05, 3)], 1e-5)
    assert f"round 0: epsilon of all runs at most {cost:.4g} at delta 1e-05" in caplog.text
    limited = replace(site, policy=replace(site.policy, max_epsilon=8.0, delta=1e-7))
    assert own_privacy.of_site(limited, tmp_path, tmp_path).budget == Budget(8.0, 1e-7)


def test_a_turn_is_booked_before_it_is_taken_and_once(tmp_path: Path) -> None:
    own = begun(tmp_path)
    for turn in (turn_of(), turn_of(attempt=3), turn_of(round=1)):
        own.charge(own.guarded(turn, ROWS))
    again = begun(tmp_path)
    again.charge(again.guarded(turn_of(round=1), ROWS))
    assert Ledger(tmp_path).read().releases == [Release(2.0, 5 / 47, 3)] * 2
    own.charge(own.guarded(turn_of(evaluate=True), ROWS))
    assert len(Ledger(tmp_path).read().charges) == 2


def test_a_lost_key_makes_other_noise_which_is_charged_again(tmp_path: Path) -> None:
    own = begun(tmp_path)
    own.charge(own.guarded(turn_of(), ROWS))
    (tmp_path / "privacy.key").unlink()
    own = begun(tmp_path)
    own.charge(own.guarded(turn_of(), ROWS))
    assert len({c.key for c in Ledger(tmp_path).read().charges}) == 2


def test_rows_and_noise_stand_for_the_whole_run(tmp_path: Path) -> None:
    first = private_of(begun(tmp_path), turn_of())
    later = private_of(begun(tmp_path, rows=4000), turn_of(), ROWS * 2)
    assert later.probability == first.probability


@pytest.mark.parametrize("mode", ["example-dp", "local-dp"])
def test_an_epsilon_gives_each_client_the_noise_that_its_rows_need(tmp_path: Path, mode: str) -> None:
    asked = {"mode": mode, "noise_multiplier": None, "epsilon": 6.0}
    own = begun(tmp_path, **asked)
    z = private_of(own, turn_of()).noise_multiplier
    for round in range(4):
        own.charge(own.guarded(turn_of(round=round), ROWS))
    assert 0.95 * 6.0 < epsilon(Ledger(tmp_path).read().releases, 1e-5) <= 6.0
    longer = begun(tmp_path, server_rounds=400, **asked)
    assert private_of(longer, turn_of()).noise_multiplier == z, "a run that goes on keeps its noise"


def test_what_would_cost_more_than_a_site_allows_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    most = epsilon([Release(2.0, 5 / 47, 3)] * 2, 1e-6)
    own = begun(tmp_path, budget=Budget(most * 1.001, 1e-6), deployed=True)
    for round in (0, 1, 1):
        own.charge(own.guarded(turn_of(round=round), ROWS))
    with pytest.raises(PlanRefused, match="what this site allows on its rows in all runs is spent") as e:
        own.charge(own.guarded(turn_of(round=2), ROWS))
    assert e.value.code == "privacy_budget"
    assert not any(c.isdigit() for c in str(e.value)), "the server learns no number from it"
    own.charge(own.guarded(turn_of(round=1), ROWS))  # that is paid for
    other = begun(tmp_path, budget=Budget(most * 1.001, 1e-6), deployed=True, clip=0.5)  # a run of its own
    with pytest.raises(PlanRefused, match="is spent"):
        other.charge(other.guarded(replace(turn_of(), plan=replace(turn_of().plan, run="b" * 16)), ROWS))


def test_a_site_books_what_a_server_promises(tmp_path: Path) -> None:
    """Each round, or where the server alone knows z the whole run as one release of that epsilon."""
    own = begun(tmp_path / "z", mode="central-dp", deployed=True)
    for round in (0, 0, 1):
        own.charge(own.guarded(turn_of(round=round), ROWS))
    book = Ledger(tmp_path / "z").read()
    assert [(c.work, c.key, c.round) for c in book.charges] == [("promised", "", 0), ("promised", "", 1)]
    assert book.releases == [Release(2.0)] * 2
    for _ in range(2):
        own.charge(own.guarded(turn_of(round=1, version=1, evaluate=True), ROWS))
    measured = Ledger(tmp_path / "z").read().releases[2:]
    assert measured == [Release(MEASURE_NOISE * 2.0, 1.0, len(noisy_evaluation.RANGES))]
    own = begun(tmp_path / "e", mode="central-dp", deployed=True, noise_multiplier=None, epsilon=5.0)
    for round in range(3):
        own.charge(own.guarded(turn_of(round=round), ROWS))
        own.charge(own.guarded(turn_of(round=round, evaluate=True), ROWS))
    assert 4.75 < epsilon(Ledger(tmp_path / "e").read().releases, 1e-5) <= 5.0
    own = begun(tmp_path / "simulated", mode="central-dp")
    own.charge(own.guarded(turn_of(), ROWS))
    assert not (tmp_path / "simulated").exists(), "there the server's own ledger is at hand"


def test_the_same_run_on_other_terms_is_refused(tmp_path: Path) -> None:
    def join(**said: Any) -> None:
        config = config_of(**said)
        own = OwnPrivacy(Ledger(tmp_path), tmp_path)
        own.begin("anna", replace(job_of(config, "d" * 64, [b"x"]), run="a" * 16), config, 47)

    join()
    join()
    for other in ({"noise_multiplier": 0.5}, {"delta": 1e-3}, {"mode": "local-dp"}):
        with pytest.raises(PlanRefused, match="was begun here with another") as e:
            join(**other)
        assert e.value.code == "policy_privacy"


def test_a_job_with_another_table_is_not_this_run() -> None:
    with pytest.raises(PlanRefused, match=r"the server's \[privacy\] clip is not ours") as e:
        OwnPrivacy().begin("anna", job_of(config_of(), "d" * 64, []), config_of(clip=2.0), 47)
    assert e.value.code == "job_mismatch"


def test_a_delta_above_one_over_the_rows_is_refused_without_saying_how_many_they_are() -> None:
    with pytest.raises(PlanRefused, match="too large for this site's rows") as e:
        begun(None, delta=0.022)
    assert "47" not in str(e.value)
    begun(None, delta=0.02)
    begun(None, delta=0.022, mode="local-dp")


def test_a_lost_ledger_is_told_when_the_run_is_joined(tmp_path: Path) -> None:
    own = begun(tmp_path)
    own.charge(own.guarded(turn_of(), ROWS))
    (tmp_path / "privacy-ledger.fedft").unlink()
    with pytest.raises(StateDamaged, match="is gone, so nobody knows"):
        begun(tmp_path)


@pytest.mark.parametrize("mode", ["example-dp", "zo-dp", "local-dp"])
def test_a_server_hears_nothing_that_depends_on_single_rows(mode: str) -> None:
    own = begun(None, mode=mode)
    assert own.rows_told(47, 12) == (1, 1)
    assert own.rows_told(47, 0) == (1, 0)
    assert own.told({"loss": 1.5, "steps": 3.0, "norm": 2.0, "seconds.train": 0.1}) == {"steps": 3.0}
    own.check_measures()
    deployed = begun(None, mode=mode, deployed=True)
    assert deployed.rows_told(47, 12) == (1, 0)
    with pytest.raises(PlanRefused, match="nothing is measured here") as e:
        deployed.check_measures()
    assert e.value.code == "privacy_evaluation"


def test_with_noise_of_the_server_or_none_it_hears_all_as_ever() -> None:
    for own in (begun(None, mode="central-dp", deployed=True), OwnPrivacy()):
        assert own.rows_told(47, 12) == (47, 12)
        assert own.told({"loss": 1.5}) == {"loss": 1.5}
        own.check_measures()


def test_noise_that_cannot_be_had_is_said_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_privacy, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"pip install 'fedft\[dp\]'"):
        begun(None)
