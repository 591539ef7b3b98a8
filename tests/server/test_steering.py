"""What an operator changes of a run holds from the moment that is said, and over a kill and a restart."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from deployed import SITES, Deployment, Killed
from virtual_clock import Clock

from fedft import run_file
from fedft.config import RunConfig
from fedft.errors import ConfigError, StateDamaged
from fedft.server import open_run, steering
from fedft.server.checkpoint import Store
from fedft.server.round import Round
from fedft.server.steering import Steering


def configured(**tables: Any) -> RunConfig:
    return open_run.resolved(run_file.from_dict({"strategy": {"name": "fedit"}, **tables}))


def steered(folder: Path, config: RunConfig | None = None, **at: Any) -> Steering:
    return Steering(folder / steering.FILE, config or configured(), open_run.resolved, **at)


def run_in(folder: Path, sites: Any = None, **server: Any) -> Deployment:
    """A start of the server, with what was changed of the run before."""
    d = Deployment(folder, sites=sites, **server)
    found = d.store.latest()
    version = found[0].version if found else 0
    d.federation.steering = steered(folder, d.config, version=version, open=bool(d.store.plans(version)))
    d.federation.config = d.federation.steering.config_at(version)
    return d


def at_round(d: Deployment, number: int, act: Callable[[], object], kind: str = "round") -> None:
    """Do this when round `number` has begun, or at another event of it."""
    observe = d.federation.observe

    def observing(what: str, info: Mapping[str, Any]) -> None:
        if what == kind and info.get("round") == number:
            act()
        observe(what, info)

    d.federation.observe = observing


def change(d: Deployment, *texts: str) -> dict[str, list[Any]]:
    s = d.federation.steering
    assert s is not None
    return s.set(s.check(texts), "uid 7")


def test_what_is_changed_stays_changed_and_a_round_has_the_limits_that_held_when_it_began(tmp_path: Path) -> None:
    s = steered(tmp_path, version=3, open=True)
    values = s.check(["server.deadline_s=60", "limits.max_norm=2.5", "eval.max_rows=4", "server.quorum=0.5"])
    changed = s.set(values, "uid 7")
    assert changed["server.deadline_s"] == [None, 60]
    for again in (s, steered(tmp_path, version=3, open=True)):
        now, later = again.config_at(3), again.config_at(4)
        assert (now.server.deadline_s, now.server.quorum, now.eval.max_rows) == (60, 0.5, 4)
        assert (now.limits.max_norm, later.limits.max_norm) == (None, 2.5)
        assert again.config_at(3) is again.config_at(3)
    assert s.set(s.check(["server.deadline_s="]), "uid 7") == {"server.deadline_s": [60, None]}
    assert s.latest().server.deadline_s is None
    assert s.facts()["changed"]["limits.max_norm"] == 2.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server.quorum=2", "set: expected 0 <= [server] quorum <= 1, got 2"),
        ("server.rounds=3", "4 are done or under way, wanted at least as many"),
        ("server.seed=3", "set 'server.seed=3': wanted KEY=VALUE with one of server.deadline_s"),
        ("model.id=x", "wanted KEY=VALUE with one of"),
        ("server.deadline_s", "wanted KEY=VALUE"),
        ("server.deadline_s=soon", "set: [server] deadline_s"),
        ("limits.max_share=0.2", "max_share"),
        ("eval.metrics=['nonesuch']", "nonesuch"),
    ],
)
def test_a_change_that_makes_no_sense_is_one_line_and_changes_nothing(tmp_path: Path, text: str, said: str) -> None:
    s = steered(tmp_path, version=3, open=True)
    with pytest.raises(ConfigError) as e:
        s.check(["server.grace_s=1", text])
    assert said in str(e.value)
    assert "\n" not in str(e.value)
    assert not s.path.exists()
    assert s.latest() == configured()


@pytest.mark.parametrize("text", ["server.patience=2", "eval.best='loss'"])
def test_what_sites_do_not_measure_ends_no_run_and_chooses_no_state(tmp_path: Path, text: str) -> None:
    private = {"mode": "local-dp", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}
    config, store = configured(privacy=private), Store(tmp_path / "state")
    with pytest.raises(ConfigError, match="are not measured"):
        open_run._steering(tmp_path, config, True, store, 0).check([text])
    assert open_run._steering(tmp_path, config, False, store, 0).check([text])


def test_the_run_file_wins_only_where_it_has_been_changed_since(tmp_path: Path) -> None:
    """A key that an act changed stays so at the next start with the same run file; a changed run file is newer."""
    s = steered(tmp_path, configured())
    s.set(s.check(["server.deadline_s=60", "server.grace_s=5"]), "uid 7")
    same = steered(tmp_path, configured())
    assert same.take_run_file(s.latest()) == {}
    assert same.latest().server.deadline_s == 60
    other = configured(server={"deadline_s": 90.0, "attempts": 7}, limits={"quarantine_after": 9})
    newer = steered(tmp_path, other, version=2, open=True)
    changed = newer.take_run_file(s.latest())
    assert changed == {"server.deadline_s": [60, 90.0], "server.attempts": [3, 7], "limits.quarantine_after": [3, 9]}
    assert steered(tmp_path, other, version=2, open=True).take_run_file(s.latest()) == {}, "said once"
    now = newer.config_at(2)
    assert (now.server.deadline_s, now.server.grace_s, now.server.attempts) == (90.0, 5, 7)
    assert (now.limits.quarantine_after, newer.config_at(3).limits.quarantine_after) == (3, 9)


def test_a_file_that_was_altered_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / steering.FILE).write_text('{"form": 1}')
    with pytest.raises(StateDamaged, match=r"steered\.json: cannot be read or was altered"):
        steered(tmp_path)


def test_the_fewest_rounds_are_those_that_any_site_may_have_joined_for(tmp_path: Path) -> None:
    s = steered(tmp_path, configured(server={"rounds": 4}))
    assert s.fewest_rounds() == 4
    s.set(s.check(["server.rounds=9"]), "uid 7")
    assert s.fewest_rounds() == 4
    assert steered(tmp_path, configured(server={"rounds": 4})).fewest_rounds() == 4


def test_fewer_rounds_end_the_run_with_the_open_one_and_more_go_on(tmp_path: Path) -> None:
    fewer, more = (run_in(tmp_path / x) for x in ("a", "b"))
    at_round(fewer, 1, lambda: change(fewer, "server.rounds=2"))
    at_round(more, 3, lambda: change(more, "server.rounds=6"))
    assert fewer.run().version == 2
    assert more.run().version == 6
    assert fewer.metrics.lines[-1]["state_digest"] == more.metrics.lines[2]["state_digest"]


def test_a_finished_run_goes_on_where_the_run_file_has_more_rounds(tmp_path: Path) -> None:
    d = run_in(tmp_path, rounds=2)
    d.run()
    again = run_in(tmp_path, d.sites, rounds=3)
    assert again.federation.steering is not None
    again.federation.steering.take_run_file(d.config)
    assert again.run().version == 3


def test_a_quorum_that_is_lowered_closes_the_open_round(tmp_path: Path) -> None:
    """All were to answer, one never does, and no deadline comes in an hour."""
    d = run_in(tmp_path, rounds=2, quorum=1.0, grace_s=0.0)
    answers = d.link.answers  # type: ignore[attr-defined]
    d.link.answers = lambda site, data: [] if site.name == "bert" and d.metrics.lines else answers(site, data)  # type: ignore[attr-defined]

    def lower() -> None:
        change(d, "server.quorum=0.5")
        d.federation._looked = -1e9  # a second has passed

    at_round(d, 0, lower, "admitted")
    at_round(d, 1, lambda: None)
    d.run()
    assert [line["participants"] for line in d.metrics.lines[1:]] == [["anna", "carl"]] * 2
    terms = [info for kind, info in d.events if kind == "terms"]
    assert terms[0]["need"] == 2


@pytest.mark.parametrize("kill", ["round", "admitted", "line"])
def test_limits_that_change_in_a_round_hold_from_the_next_one_whoever_is_killed_then(tmp_path: Path, kill: str) -> None:
    """A share of half the weight is cut from round 2 on: the same states, killed or not."""

    def states(folder: Path, killed: bool) -> list[str]:
        d = run_in(folder)
        at_round(d, 1, lambda: change(d, "limits.max_share=1.0"))
        if killed:

            def die() -> None:
                raise Killed

            at_round(d, 1, die, kill)
            with pytest.raises(Killed):
                d.run()
            d = run_in(folder, d.sites)
        d.run()
        assert [bool(line.get("cut_weights")) for line in d.metrics.lines] == [False, False, False, False, False]
        return [line["state_digest"] for line in d.metrics.lines]

    assert states(tmp_path / "a", killed=False) == states(tmp_path / "b", killed=True)


def test_a_paused_run_begins_no_round_until_it_is_resumed_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run_in(tmp_path / "a").digest()
    d = run_in(tmp_path / "b")

    def pause() -> None:
        assert d.federation.steering is not None
        d.federation.steering.pause("uid 7")

    at_round(d, 1, pause)

    class Waiting:
        """A clock whose first sleeper dies, as one that waits for ever."""

        def monotonic(self) -> float:
            return 0.0

        def sleep(self, seconds: float) -> None:
            raise Killed

    begun: list[int] = []
    begin = Round._begin
    monkeypatch.setattr(Round, "_begin", lambda r: begun.append(r.state.version) or begin(r))  # type: ignore[func-returns-value]
    for again in (False, True):
        start = run_in(tmp_path / "b", d.sites) if again else d
        start.federation.clock = Waiting()
        with pytest.raises(Killed):
            start.run()
    assert begun == [0, 1], "the open round ends, and no other begins"
    assert "paused before round 2 since " in caplog.text
    last = run_in(tmp_path / "b", d.sites)
    assert last.federation.steering is not None
    last.federation.steering.resume()
    assert last.digest() == whole


def test_a_round_that_was_begun_ends_though_the_run_is_paused_and_restarted(tmp_path: Path) -> None:
    d = run_in(tmp_path, rounds=3)

    def pause_and_die() -> None:
        assert d.federation.steering is not None
        d.federation.steering.pause("uid 7")
        raise Killed

    at_round(d, 2, pause_and_die, "admitted")
    with pytest.raises(Killed):
        d.run()
    again = run_in(tmp_path, d.sites, rounds=3)
    assert again.run().version == 3


@pytest.mark.parametrize("killed", [False, True])
def test_a_quarantine_that_is_lifted_ends_with_the_next_round(tmp_path: Path, killed: bool) -> None:
    d = run_in(tmp_path, rounds=1)
    d.run()
    found = d.store.latest()
    assert found is not None
    d.store.save(found[0], {**found[1], "barred": ["bert"], "refusals": [[0, "bert"]]})
    d = run_in(tmp_path, d.sites)

    def lift() -> None:
        assert d.federation.steering is not None
        assert d.federation.steering.lift("bert", "uid 7") == 2
        if killed:
            raise Killed

    at_round(d, 1, lift)
    if killed:
        with pytest.raises(Killed):
            d.run()
        d = run_in(tmp_path, d.sites)
    d.run()
    assert [line["participants"] for line in d.metrics.lines[2:]] == [["anna", "carl"], list(SITES), list(SITES)]


def test_sites_are_told_of_what_is_theirs_to_know_and_train_on_the_same_bytes(tmp_path: Path) -> None:
    """A changed [eval] is in their job, so each is sent it anew before its next plan."""
    whole, d = run_in(tmp_path / "a"), run_in(tmp_path / "b")
    at_round(d, 1, lambda: change(d, "eval.max_rows=1"))
    assert d.digest() == whole.digest()
    jobs = [
        json.loads(line)["kind"] for line in (tmp_path / "b" / "sites" / "anna" / "sent.jsonl").read_text().splitlines()
    ]
    assert jobs.count("job") >= 1
    assert d.federation.job.tables["eval"]["max_rows"] == 1
    assert d.federation.job.run == whole.federation.job.run


def test_who_is_missing_is_said_once_a_minute_with_what_ends_the_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    d = run_in(tmp_path, rounds=1, quorum=1.0, deadline_s=300.0, attempts=2)
    d.federation.clock = d.post.clock = Clock()
    nodes = d.link.nodes
    d.link.nodes = lambda: {n: i for n, i in nodes().items() if n != "bert" or d.federation.clock.monotonic() < 1}  # type: ignore[method-assign]
    answers = d.link.answers  # type: ignore[attr-defined]
    d.link.answers = lambda site, data: [] if site.name == "bert" and d.metrics.lines else answers(site, data)  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="2 of 3 updates admitted in 2 attempts"):
        d.run()
    said = [m for m in caplog.messages if "answers that are needed" in m]
    assert len(said) == 10, said
    assert said[1] == (
        "round 0: 2 of the 3 answers that are needed, after 2 min; missing: bert (out of reach for 1 min); the wait "
        "ends with 1 more, or in 3 min ([server] deadline_s)"
    )
