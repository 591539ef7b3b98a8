"""Server and sites of unlike versions in one run: the bytes of an undisturbed one, and each updated on its own."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from deployed import SITES, Deployment, Direct, Killed, Site, kill_at
from next_version import spoken
from virtual_clock import Clock

from fedft.carriers.interface import Refused
from fedft.errors import OtherVersion, RejectedUpdate
from fedft.server.checkpoint import Store
from fedft.wire import frame, versions

OLD, NEW = (2,), (2, 3)


@dataclass
class Mixed(Direct):
    """Sites that speak the versions of `of`, old ones where there is none; they hear what a HELLO would agree on."""

    of: dict[str, tuple[int, ...]] = field(default_factory=dict)
    heard: set[tuple[str, int, int]] = field(default_factory=set)
    """Site, version of the seal and of the payload, of all that was carried either way."""
    lost: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Sites whose next update is lost with their process, and what they speak after they were started again."""

    def speaks(self, node: int) -> int:
        known = self.of.get(list(self.sites)[node], OLD)
        agreed = versions.common(min(known), max(known))
        assert agreed is not None
        return agreed

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        with spoken(*self.of.get(site.name, OLD)):
            said = super().answers(site, payload)
        for data in (payload, *said):
            if data[184:188] == frame.MAGIC:
                self.heard.add((site.name, data[4], frame.version_of(data[184:])))
        return said

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        trained = {name: site.trained for name, site in self.sites.items()}
        for mid, answer in super().pull(ids, max_bytes):
            dead = [n for n in self.lost if self.sites[n].trained > trained[n]]
            if not dead:
                yield mid, answer
                continue
            self.sites[dead[0]].start()
            self.of[dead[0]] = self.lost.pop(dead[0])
            yield mid, Refused("client_error", "the site has started anew")


def federation(folder: Path, name: str, sites: Mapping[str, Site] | None = None, **of: tuple[int, ...]) -> Deployment:
    clock = Clock()
    run = Deployment(folder, name, sites=sites, federation={"clock": clock}, post={"clock": clock})
    run.link = run.post.link = Mixed(run.sites, of=of)
    return run


@pytest.mark.parametrize("name", ["fedit", "scaffold", "fedkseed"])
@pytest.mark.parametrize("server", [OLD, NEW])
def test_a_mixed_federation_ends_with_the_bytes_of_the_simulation(
    tmp_path: Path, name: str, server: tuple[int, ...]
) -> None:
    run = federation(tmp_path / "a", name, anna=OLD, bert=NEW, carl=NEW)
    with spoken(*server):
        digest = run.digest()
    assert digest == Deployment(tmp_path / "b", name).simulated()
    agreed = 3 if server == NEW else 2
    assert run.link.heard == {("anna", 1, 2), ("bert", agreed - 1, agreed), ("carl", agreed - 1, agreed)}
    assert all(line["participants"] == list(SITES) for line in run.metrics.lines[1:])


@pytest.mark.parametrize("name", ["fedit", "scaffold", "fedkseed"])
def test_a_rolling_upgrade_in_the_middle_of_a_run_changes_nothing(tmp_path: Path, name: str) -> None:
    """The server in the middle of round 1, with one update taken and another on its way; then the sites, one by one."""
    run = federation(tmp_path / "a", name)
    kill_at(run, "admitted", 1)
    with spoken(*OLD), pytest.raises(Killed):
        run.run()
    assert {v for _, _, v in run.link.heard} == {2}
    again = federation(tmp_path / "a", name, run.sites)
    heard, waiting = again.federation.observe, list(SITES)

    def upgrade(kind: str, info: Mapping[str, Any]) -> None:
        heard(kind, info)
        if kind == "round" and waiting:
            site = waiting.pop(0)
            again.sites[site].start()
            again.link.of[site] = NEW

    again.federation.observe = upgrade
    with spoken(*NEW):
        assert again.digest() == Deployment(tmp_path / "b", name).simulated()
    assert {(s, v) for s, _, v in run.link.heard | again.link.heard} == {(s, v) for s in SITES for v in (2, 3)}
    assert sum(s.trained for s in run.sites.values()) == 3 * 4, "somebody trained twice for a round"
    assert all(line["refused"] == [] for line in again.metrics.lines)


@pytest.mark.parametrize("name", ["fedit", "scaffold", "fedkseed"])
def test_a_site_that_is_updated_between_its_training_and_its_answer_trains_once(tmp_path: Path, name: str) -> None:
    """It is asked the same once more, in another version, so that the plan has another digest."""
    run = federation(tmp_path / "a", name)
    run.link.lost = dict.fromkeys(SITES, NEW)
    with spoken(*NEW):
        assert run.digest() == Deployment(tmp_path / "b", name).simulated()
    assert {s.trained for s in run.sites.values()} == {4}
    assert {(s, v) for s, _, v in run.link.heard} == {(s, v) for s in SITES for v in (2, 3)}


def test_a_run_goes_back_to_the_version_before(tmp_path: Path) -> None:
    """Where nothing of the newer version is open: its states are those of the older."""
    run = federation(tmp_path / "a", "fedit", anna=NEW, bert=NEW, carl=NEW)
    kill_at(run, "line", 2)
    with spoken(*NEW), pytest.raises(Killed):
        run.run()
    again = federation(tmp_path / "a", "fedit", run.sites, anna=NEW, bert=NEW, carl=NEW)
    with spoken(*OLD):
        assert again.digest() == Deployment(tmp_path / "b").simulated()


def test_the_plans_of_a_newer_version_end_the_run_with_its_name(tmp_path: Path) -> None:
    """In the middle of a round the server that began it has to end it."""
    run = federation(tmp_path / "a", "fedit")
    with spoken(*NEW):
        run.federation.enter(SITES)
        state, _ = run.loop._found(SITES)
        run.federation.durable_plans(state, SITES)
    again = federation(tmp_path / "a", "fedit")
    before = Store(tmp_path / "a" / "state").plans(0)
    with spoken(*OLD), pytest.raises(OtherVersion, match="protocol 3"):
        again.run()
    assert Store(tmp_path / "a" / "state").plans(0) == before
