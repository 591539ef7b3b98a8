"""Letters over a network that is not trusted: signed, delivered again, answered once."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from deployed import SITES, Deployment, Direct, Killed, Site, kill_at
from virtual_clock import Clock

from fedft import registry
from fedft.carriers.interface import LinkLost, Refused
from fedft.client.disk import SiteDisk
from fedft.errors import RejectedUpdate
from fedft.security import sealed
from fedft.security.sealed import Kind
from fedft.server.sealed_post import PARALLEL_FETCHES
from fedft.wire import messages


@dataclass
class Watched(Direct):
    """A direct link that keeps what passes, and from which sites can be cut."""

    down: list[sealed.Opened] = field(default_factory=list)
    up: list[tuple[str, sealed.Opened]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)

    def nodes(self) -> Mapping[str, int]:
        return {name: i for name, i in super().nodes().items() if name not in self.away}

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        self.down.append(sealed.open_sealed(payload, lambda name: site.responder.server))
        said = super().answers(site, payload)
        self.up += [(site.name, sealed.open_sealed(s, lambda name: site.responder.key.public_key())) for s in said]
        return said

    def kinds(self, site: str, *kinds: Kind) -> list[sealed.Opened]:
        """What the site was sent of these kinds."""
        return [o for o in self.down if o.about.site == site and o.kind in kinds]


def deployed(folder: Path, name: str = "fedit", link: type[Watched] = Watched, **more: Any) -> Deployment:
    """A deployment over a watched link, on a clock of its own."""
    clock = Clock()
    run = Deployment(folder, name, federation={"clock": clock}, post={"clock": clock}, **more)
    run.link = run.post.link = link(run.sites)
    return run


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_deployment_ends_with_the_bytes_of_the_simulation(tmp_path: Path, name: str) -> None:
    run = deployed(tmp_path / "a", name)
    assert run.digest() == Deployment(tmp_path / "b", name).simulated()
    assert [line["version"] for line in run.metrics.lines] == [0, 1, 2, 3, 4]
    assert all(line["participants"] == list(SITES) for line in run.metrics.lines[1:])
    assert {s.trained for s in run.sites.values()} == {4}


def test_a_site_that_comes_back_after_ten_rounds_stands_at_the_state_with_one_plan(tmp_path: Path) -> None:
    run = deployed(tmp_path, "flora", rounds=12, quorum=0.6)
    run.link.away.add("carl")
    told = run.federation.observe

    def back(kind: str, info: Mapping[str, Any]) -> None:
        if kind == "round" and info["round"] == 10:
            run.link.away.clear()
        told(kind, info)

    run.federation.observe = back
    run.run()
    assert [line["participants"] for line in run.metrics.lines[1:]] == [["anna", "bert"]] * 10 + [list(SITES)] * 2
    plans = run.link.kinds("carl", Kind.TRAIN)
    assert [p.about.round for p in plans] == [10, 11]
    missed = messages.decode_plan(plans[0].payload, max_bytes=2**31)
    assert (missed.have, bool(missed.tensors)) == (None, True)


def test_a_site_that_was_killed_after_training_sends_the_same_bytes(tmp_path: Path) -> None:
    class Deaf(Watched):
        """Loses bert's first answer to a plan and restarts his process."""

        lost: bytes = b""

        def answers(self, site: Site, payload: bytes) -> list[bytes]:
            said = super().answers(site, payload)
            asked, answered = self.down[-1].kind, self.up[-1][1].kind
            if (site.name, asked, answered, self.lost) == ("bert", Kind.TRAIN, Kind.ANSWER, b""):
                self.lost = self.up[-1][1].payload
                site.start()
                return []
            return said

    run = deployed(tmp_path / "a", link=Deaf)
    assert run.digest() == Deployment(tmp_path / "b").simulated()
    sent = [o.payload for name, o in run.link.up if name == "bert" and o.kind is Kind.ANSWER and o.payload]
    assert sent.count(run.link.lost) >= 2
    assert run.sites["bert"].trained == 4, "never twice for a round"


def test_a_killed_server_does_not_make_sites_train_again(tmp_path: Path) -> None:
    """Its restart asks anew; a site labels the answer that it has kept for the new attempt."""

    run = deployed(tmp_path / "a")
    kill_at(run, "admitted", 1)
    with pytest.raises(Killed):
        run.run()
    for site in run.sites.values():  # all had trained; one answer had been taken
        while site.responder.work(0):
            pass
    trained = {name: s.trained for name, s in run.sites.items()}
    again = deployed(tmp_path / "a", sites=run.sites)
    assert again.digest() == Deployment(tmp_path / "b").simulated()
    more = {name: s.trained - trained[name] for name, s in run.sites.items()}
    assert sum(more.values()) + sum(trained.values()) == 3 * 4


def test_when_the_link_is_lost_everything_is_sent_again(tmp_path: Path) -> None:
    class Frail(Watched):
        calls = 0

        def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
            self.calls += 1
            if self.calls % 3 == 0:
                self._sent.clear()
                raise LinkLost("the SuperLink is gone")
            yield from super().pull(ids, max_bytes)

    run = deployed(tmp_path / "a", link=Frail)
    assert run.digest() == Deployment(tmp_path / "b").simulated()
    assert sum(kind == "link" for kind, _ in run.events) > 3
    assert {s.trained for s in run.sites.values()} == {4}


def test_long_answers_are_fetched_a_few_at_a_time(tmp_path: Path) -> None:
    names = [f"site-{i}" for i in range(6)]
    run = deployed(tmp_path / "a", names=names)
    for site in run.sites.values():
        site.responder.inline_bytes = 100
    at_once: list[int] = []
    push = run.link.push

    def counted(*args: Any) -> str:
        at_once.append(sum(o.fetching for o in run.post._open.values()))
        return push(*args)

    run.link.push = counted  # type: ignore[method-assign]
    assert run.digest() == Deployment(tmp_path / "b", names=names).simulated()
    assert max(at_once) == PARALLEL_FETCHES
    assert all(len(run.link.kinds(n, Kind.FETCH)) == 4 for n in names)


def test_a_silent_site_is_asked_what_it_does_and_says_how_far_it_is(tmp_path: Path) -> None:
    class Slow(Watched):
        """Bert's answers come ten seconds late, and until then he says what he is at."""

        held: dict[str, float]

        def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
            clock = run.federation.clock
            for mid in list(ids):
                site, payload = self._sent.get(mid, (None, b""))
                if site is None or site.name != "bert":
                    continue
                opened = sealed.open_sealed(payload, lambda name, s=site: s.responder.server)
                if opened.kind is Kind.TRAIN:
                    self.held.setdefault(mid, clock.monotonic() + 10)
                    site.responder._doing = (opened.about.plan, "training", 0.0)
            ready = [i for i in ids if self.held.get(i, 0.0) <= clock.monotonic()]
            yield from super().pull(ready, max_bytes)

    Slow.held = {}
    run = deployed(tmp_path, link=Slow)
    run.run()
    said = [info for kind, info in run.events if kind == "progress"]
    assert {(i["client"], i["doing"]) for i in said} == {("bert", "training")}
    assert all("step" in i and "steps" in i for i in said)
    assert all(line["participants"] == list(SITES) for line in run.metrics.lines[1:])


def test_the_kept_answer_and_state_of_a_site_survive_it_and_damage_is_seen(tmp_path: Path) -> None:
    run = deployed(tmp_path)
    run.run()
    disk = SiteDisk(run.sites["anna"].folder)
    kept, state = disk.answer(run.job.run), disk.state(run.job.run)
    assert kept is not None
    assert kept[0].round == 3
    assert state is not None
    assert state[1].version == 4, "the last one, which it evaluated"
    assert disk.state("f" * 16) is None
    for name in ("answer", "state"):
        path = run.sites["anna"].folder / f"{name}-{run.job.run}.fedft"
        path.write_bytes(path.read_bytes()[:-1])
    after = SiteDisk(run.sites["anna"].folder)
    assert after.answer(run.job.run) is None
    assert after.state(run.job.run) is None
