"""Who takes part while a run goes on: who joins is asked from the next round, who leaves is not waited for."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from deployed import SITES, Deployment, Direct, Killed, Site

from fedft import durable, registry
from fedft.errors import RunPaused
from fedft.server.membership import Membership
from fedft.server.round import Round

NAMES = (*SITES, "abel", "zoe")
"""With one whose name comes before all others, and one whose name comes last."""


@dataclass
class Changing:
    """A roll that a test changes; `on` are those who take part."""

    on: set[str] = field(default_factory=lambda: set(SITES))

    def present(self) -> Mapping[str, int]:
        """All of them may claim as much."""
        return dict.fromkeys(self.on, 1_000_000)

    def why_not(self, client: str) -> str:
        """As a roster says it."""
        return "" if client in self.on else "revoked"


class Silent(Direct):
    """A link on which some sites never answer a plan, and something happens when one of them was to."""

    silent: frozenset[str] = frozenset()
    then: Callable[[], None] = staticmethod(lambda: None)

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        """Nothing, of those who are silent."""
        if site.name in self.silent:
            self.then()
            return []
        return super().answers(site, payload)


@dataclass
class Acts:
    """One run in a folder, and what happens at the beginning of its rounds: round -> who takes part from then on."""

    folder: Path
    name: str
    acts: Mapping[int, Collection[str]]
    kill_at: int = 0
    """The commit of the disk in whose middle the server is killed; 0: none."""
    options: dict[str, Any] = field(default_factory=dict)
    roll: Changing = field(default_factory=Changing)

    def run(self, monkeypatch: pytest.MonkeyPatch) -> Deployment:
        """Carry it to its end, started again after the kill; the last start of the server."""
        real, begin, calls = durable.commit, Round._begin, []
        sites: dict[str, Site] = {}

        def acting(round: Round) -> list[str]:
            self.roll.on = set(self.acts.get(round.state.version, self.roll.on))
            return begin(round)

        def dying(path: Path, *parts: Any, **how: Any) -> None:
            calls.append(path)
            if len(calls) == self.kill_at:
                if self.kill_at % 2:  # before the write, or just behind it
                    real(path, *parts, **how)
                raise Killed
            real(path, *parts, **how)

        with monkeypatch.context() as patch:
            patch.setattr(Round, "_begin", acting)
            patch.setattr(durable, "commit", dying)
            for _ in range(3):
                d = Deployment(
                    self.folder, self.name, sites=sites or None, names=NAMES, federation={"roll": self.roll},
                    **self.options,
                )  # fmt: skip
                sites = dict(d.sites)
                try:
                    d.loop.run(SITES)
                    return d
                except Killed:
                    continue
        raise AssertionError("killed more than once")


JOIN = {2: [*SITES, "abel"], 3: [*SITES, "abel", "zoe"]}
LEAVE = {1: [*SITES, "abel"], 2: ["anna", "carl", "abel"], 3: ["anna", "carl", "abel", "bert"]}


@pytest.mark.parametrize("name", ["fedit", "hetlora", "scaffold"])
def test_who_joins_is_asked_from_that_round_on_and_shifts_nobody_s_rank(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = Acts(tmp_path, name, JOIN).run(monkeypatch)
    asked = [set(line["bytes"]) for line in d.metrics.lines[1:]]
    assert asked == [set(SITES), set(SITES), {*SITES, "abel"}, {*SITES, "abel", "zoe"}]
    assert [set(line["participants"]) for line in d.metrics.lines[1:]] == asked
    ranks = d.config.ranks()
    dealt = {c: m.rank for c, m in d.federation.members.items()}
    assert dealt == {c: ranks[i % len(ranks)] for i, c in enumerate((*SITES, "abel", "zoe"))}


def test_a_join_changes_nothing_before_its_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, joined = (Acts(tmp_path / x, "hetlora", acts).run(monkeypatch) for x, acts in (("a", {}), ("b", JOIN)))
    digests = [[line["state_digest"] for line in d.metrics.lines] for d in (alone, joined)]
    assert digests[0][:3] == digests[1][:3]
    assert digests[0][3] != digests[1][3]


@pytest.mark.parametrize(("name", "acts"), [("hetlora", JOIN), ("scaffold", LEAVE)], ids=["join", "leave"])
@pytest.mark.parametrize("kill_at", range(6, 30, 5))
def test_a_server_killed_between_joins_and_leaves_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path, name: str, acts: Mapping[int, Collection[str]], kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came while it was down is asked in the round behind the one that was begun."""
    wanted = Acts(tmp_path / "a", name, acts).run(monkeypatch)
    killed = Acts(tmp_path / "b", name, acts, kill_at).run(monkeypatch)
    digests = [[line["state_digest"] for line in d.metrics.lines] for d in (wanted, killed)]
    assert digests[0] == digests[1]
    assert [set(x["bytes"]) for x in killed.metrics.lines[1:]] == [set(x["bytes"]) for x in wanted.metrics.lines[1:]]


def test_a_round_that_was_begun_keeps_its_members_though_others_have_come_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the number of members by which SCAFFOLD divides, and the cohort that was drawn."""

    def digests(folder: Path, on: Collection[str]) -> list[str]:
        """Killed behind the first update of round 1; `on` are there when it is started again."""
        d = Deployment(folder, "scaffold", names=NAMES, federation={"roll": Changing()})
        journal = d.store.journal

        def dying(round: int, client: str, payload: bytes, sha256: str = "") -> None:
            journal(round, client, payload, sha256)
            if round == 1:
                raise Killed

        d.store.journal = dying  # type: ignore[method-assign]
        with pytest.raises(Killed):
            d.loop.run(SITES)
        again = Deployment(folder, "scaffold", names=NAMES, sites=d.sites, federation={"roll": Changing({*on})})
        again.loop.run(SITES)
        return [line["state_digest"] for line in again.metrics.lines]

    same, more = digests(tmp_path / "a", SITES), digests(tmp_path / "b", NAMES)
    assert same[:3] == more[:3]
    assert same[3] != more[3]


def test_who_leaves_an_open_round_is_not_waited_for_and_not_asked_again(tmp_path: Path) -> None:
    """No deadline is set and all must answer, so the round would wait for an hour."""
    roll = Changing()
    d = Deployment(tmp_path, federation={"roll": roll}, quorum=1.0)
    link = Silent(d.sites)
    d.post.link = link

    def leave() -> None:
        roll.on = {"anna", "carl"}
        d.federation._looked = -1e9  # a second has passed

    link.then = leave
    begin = d.federation.observe

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        if kind == "round" and info["round"] == 1:
            link.silent = frozenset({"bert"})
        begin(kind, info)

    d.federation.observe = d.loop.federation.observe = observe
    d.run()
    lines = d.metrics.lines
    assert [line.get("participants") for line in lines[1:]] == [list(SITES), *[["anna", "carl"]] * 3]
    assert [set(line["bytes"]) for line in lines[1:]] == [set(SITES), set(SITES), {"anna", "carl"}, {"anna", "carl"}]
    assert lines[2]["refused"] == [{"client": "bert", "code": "left", "reason": "takes no part any more"}]
    assert [info for kind, info in d.events if kind == "left"] == [{"client": "bert", "why": "revoked"}]
    assert d.metrics.lines[-1]["version"] == 4


def test_an_update_that_was_admitted_counts_though_its_site_leaves_then(tmp_path: Path) -> None:
    """It is durable: the same round ends in the same bytes, whether the server lives or is killed then."""
    roll = Changing()
    d = Deployment(tmp_path, federation={"roll": roll}, rounds=1, quorum=1.0)
    observe = d.federation.observe

    def leaving(kind: str, info: Mapping[str, Any]) -> None:
        if kind == "admitted" and info["client"] == "bert":
            roll.on, d.federation._looked = {"anna", "carl"}, -1e9
        observe(kind, info)

    d.federation.observe = leaving
    d.run()
    assert d.metrics.lines[1]["participants"] == list(SITES)


def test_a_round_whose_cohort_has_left_begins_anew_with_who_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll = Changing()
    d = Deployment(tmp_path, names=NAMES, federation={"roll": roll}, rounds=2)
    link = Silent(d.sites)
    link.silent, d.post.link = frozenset(SITES), link

    def swap() -> None:
        roll.on, d.federation._looked = {"abel"}, -1e9

    link.then = lambda: None
    enrolled = d.federation.observe

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        if kind == "asking":
            link.then = swap
        enrolled(kind, info)

    d.federation.observe = observe
    link.silent = frozenset()
    begin = Round._begin

    def begun(round: Round) -> list[str]:
        asked = begin(round)
        link.silent = frozenset(SITES)
        return asked

    monkeypatch.setattr(Round, "_begin", begun)
    d.loop.run(SITES)
    assert [line["participants"] for line in d.metrics.lines[1:]] == [["abel"], ["abel"]]


def test_a_run_that_nobody_takes_part_in_any_more_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunPaused, match="round 2: nobody is left to ask; run again"):
        Acts(tmp_path, "fedit", {2: []}).run(monkeypatch)
    assert [set(x["bytes"]) for x in Acts(tmp_path, "fedit", {}).run(monkeypatch).metrics.lines[1:]] == [set(SITES)] * 4


@pytest.mark.parametrize("name", ["hetlora", "fedit"])
def test_a_state_folder_of_before_goes_on_as_it_was(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its notes have no places: they are dealt in order of name, as ever, and kept from then on."""
    whole = Acts(tmp_path / "a", name, {}).run(monkeypatch)
    half = Acts(tmp_path / "b", name, {}, options={"rounds": 2}).run(monkeypatch)
    found = half.store.latest()
    assert found is not None
    del found[1]["members"]
    half.store.save(*found)
    again = Acts(tmp_path / "b", name, {}).run(monkeypatch)
    assert [x["state_digest"] for x in again.metrics.lines] == [x["state_digest"] for x in whole.metrics.lines]
    kept = again.store.latest()
    assert kept is not None
    assert kept[1]["members"]["places"] == {"anna": 0, "bert": 1, "carl": 2}


def test_places_are_dealt_once_and_no_newcomer_is_above_the_state_s_rank() -> None:
    members = Membership.founded([2, 4], ["bert"])
    assert (members.rank("bert"), members.largest) == (2, 2)
    assert members.seat(["zoe", "anna", "bert"]) == (["anna", "zoe"], [])
    assert members.places == {"bert": 0, "anna": 1, "zoe": 2}
    assert members.rank("anna") == 2, "its place is of rank 4, the state has 2"
    assert members.seat(["anna"]) == ([], ["bert", "zoe"])
    again = Membership.of([2, 4], json.loads(json.dumps(members.to_dict())))
    assert again == members
    again.seat(["bert", "anna"])
    assert again.places["bert"] == 0
    assert [again.is_founder(c) for c in ("bert", "anna")] == [True, False]


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_strategy_takes_somebody_in_and_lets_somebody_go(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = Acts(tmp_path, name, LEAVE).run(monkeypatch)
    asked = [set(SITES), {*SITES, "abel"}, {"anna", "carl", "abel"}, {*SITES, "abel"}]
    assert [set(line["participants"]) for line in d.metrics.lines[1:]] == asked
    assert len({line["state_digest"] for line in d.metrics.lines}) == 5
