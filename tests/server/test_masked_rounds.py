"""Rounds of masked updates: the bytes that they have without masks, whoever is killed, and nothing opened twice."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from deployed import Direct, Killed, Site
from sampled_kills import sample
from summed import FRESH, NAMES, NO_NOISE, SHARED, Summed, cards
from watched_sums import Silent, Watching, kind_of, round_of

from fedft import durable
from fedft.backups import archive, snapshot
from fedft.client.privacy_ledger import Ledger
from fedft.errors import RunPaused
from fedft.privacy import spent_budget
from fedft.security.sealed import Kind

FRAME = 14


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the run without masks and faults."""
    return Summed(tmp_path_factory.mktemp("clear"), "clear").run().digest


@pytest.mark.parametrize("name", ["fedit", "fedkseed", "rolora", "fedsa_lora"])
def test_masks_change_no_byte_of_the_state_deployed_or_simulated(tmp_path: Path, name: str) -> None:
    clear = Summed(tmp_path / "clear", "clear", name).run()
    masked = Summed(tmp_path / "on", "on", name)
    assert masked.run().digest == clear.digest
    assert Summed(tmp_path / "local", "on", name).simulated().digest == clear.digest
    lines = masked.metrics.lines
    assert [line["weights"] for line in lines[1:]] == [dict.fromkeys(masked.sites, 1)] * 4
    assert all(line["refused"] == [] for line in lines)
    assert json.loads((tmp_path / "on" / "metrics.jsonl").read_text().splitlines()[1])["train_loss"] > 0


def test_a_block_costs_what_the_formula_says(tmp_path: Path) -> None:
    """Keys, book, boxes each way and a bitmap, ready, openings: each with a frame of 14 bytes."""
    masked = Summed(tmp_path)
    masked.run()
    first, second = (masked.metrics.lines[k]["secagg_bytes"] for k in (1, 2))
    n, spec = len(NAMES), len(masked.federation.guard.integers.spec(masked.federation.layout, _plan(masked)).json())  # type: ignore[attr-defined]
    up = (FRAME + 608) + (FRAME + 1040 * (n - 1)) + FRAME + (FRAME + 32 * n)
    down = (FRAME + 34 + spec) + (FRAME + 610 * n) + (FRAME + 1 + 1040 * (n - 1)) + (FRAME + 1)
    assert first["up"] == dict.fromkeys(NAMES, up)
    assert first["down"] == dict.fromkeys(NAMES, down)
    assert second["up"] == dict.fromkeys(NAMES, FRAME + 32 * n)
    assert second["down"] == dict.fromkeys(NAMES, FRAME + 1)
    line = masked.metrics.lines[2]
    opening = FRAME + 32 * n, FRAME + 1
    each = [(whole - o) // 16 + o for whole, o in zip((up, down), opening, strict=True)]  # a sixteenth of the block
    plain = Summed(tmp_path / "clear", "clear")
    plain.run()
    for a, b in zip(masked.metrics.lines[1:], plain.metrics.lines[1:], strict=True):
        extra = {way: a["training_bytes"][way] - b["training_bytes"][way] for way in ("up", "down")}
        assert extra["up"] == n * each[0]
        assert extra["down"] == pytest.approx(n * each[1], abs=n * 40)  # and plans name a slot
    assert line["evaluation_bytes"] == {"up": {}, "down": {}, "needed": {}}
    assert line["bytes_up"] == sum(b["up"] for b in line["bytes"].values()) + n * (FRAME + 32 * n)


def _plan(masked: Summed) -> Any:
    run = masked.federation
    return next(iter(run.plans(masked.store.latest()[0], [NAMES[0]]).values()))  # type: ignore[index]


class Dying(Watching):
    """In every third round two sites die, one before its answer and one behind it; both miss the next round, too."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        super().__init__(sites)
        self.dead: dict[str, int] = {}
        self.deaths = 0

    def nodes(self) -> dict[str, int]:
        """Those that live."""
        return {name: i for name, i in super().nodes().items() if name not in self.dead}

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        """What the site says to a message, if it lives to say it."""
        number = round_of(payload)
        self.dead = {name: r for name, r in self.dead.items() if r == number}
        dies = number % 3 == 2 and kind_of(payload) is Kind.TRAIN and site.name in ("bert", "emil")
        if site.name in self.dead:
            return []
        said = [] if dies and site.name == "bert" else super().answers(site, payload)
        if dies:
            self.dead[site.name], self.deaths = number, self.deaths + 1
            site.start()
        return said


SEVEN = (*NAMES, "fred", "gina")


def test_two_of_seven_that_die_in_every_third_round_change_no_byte(tmp_path: Path) -> None:
    """One before its update, one behind it, whose mask is opened by the others: as in the clear with the same ones."""
    of_seven: dict[str, Any] = {"names": SEVEN, "rounds": 6}
    clear = Summed(tmp_path / "clear", "clear", link=Dying, **of_seven)
    masked = Summed(tmp_path / "on", "on", link=Dying, **of_seven)
    assert masked.run().digest == clear.run().digest
    weights = [list(line["weights"]) for line in masked.metrics.lines[1:]]
    assert weights == [list(line["weights"]) for line in clear.metrics.lines[1:]]
    assert [len(w) for w in weights] == [7, 7, 6, 5, 7, 6]
    assert isinstance(masked.link, Dying)
    assert masked.link.deaths == 4
    masked.link.check()


def test_a_seventeenth_round_begins_another_block(tmp_path: Path) -> None:
    masked = Summed(tmp_path, rounds=18, link=Watching)
    assert masked.run().digest == Summed(tmp_path / "clear", "clear", rounds=18).run().digest
    assert isinstance(masked.link, Watching)
    masked.link.check()
    assert {(block, slot) for _, block, slot in masked.link.opened} == {(0, s) for s in range(16)} | {(1, 0), (1, 1)}


def test_what_the_server_loses_costs_a_block_and_no_byte(tmp_path: Path, undisturbed: str) -> None:
    masked = Summed(tmp_path, rounds=2)
    masked.run()
    shutil.rmtree(tmp_path / "state" / "secagg")
    again = Summed(tmp_path, sites=masked.sites, link=Watching)
    assert again.run().digest == undisturbed
    assert isinstance(again.link, Watching)
    assert min(block for _, block, _ in again.link.opened) > 0


def test_a_server_that_goes_back_to_an_earlier_state_begins_another_block(tmp_path: Path, undisturbed: str) -> None:
    """Its sites know later blocks and have used their slots; a sum over the same ones tells nothing new."""
    masked = Summed(tmp_path, rounds=1)
    masked.run()
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    Summed(tmp_path, sites=masked.sites).run()
    (tmp_path / "metrics.jsonl").unlink()
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "backup").rename(tmp_path / "state")
    again = Summed(tmp_path, sites=masked.sites)
    assert again.run().digest == undisturbed
    assert {len(line["weights"]) for line in again.metrics.lines[1:]} == {5}


def test_no_site_opens_sums_of_one_work_over_unlike_clients(tmp_path: Path) -> None:
    """Not in another block either: a server that goes back lets one site away, and would have its update."""
    masked = Summed(tmp_path, rounds=1)
    masked.run()
    for name in ("gen-00000001.fedft", "secagg/block.fedft"):
        (tmp_path / "state" / name).unlink()
    (tmp_path / "metrics.jsonl").unlink()
    again = Summed(tmp_path, sites=masked.sites, rounds=1, link=Without)
    with pytest.raises(RunPaused, match="0 of 4 clients have opened their secure sum"):
        again.run()


def test_a_site_that_loses_its_disk_sits_out_until_the_next_block(tmp_path: Path) -> None:
    masked = Summed(tmp_path, rounds=2)
    masked.run()
    (tmp_path / "sites" / "carl" / f"secagg-{masked.job.run}.fedft").unlink()
    masked.sites["carl"].start()
    again = Summed(tmp_path, sites=masked.sites, rounds=18)
    again.run()
    took_part = ["carl" in line["weights"] for line in again.metrics.lines[3:]]
    assert took_part == [False] * 14 + [True] * 2
    assert {r["code"] for line in again.metrics.lines for r in line["refused"]} == {"secagg_context"}


def _copied(site: Path, aside: Path) -> None:
    shutil.copytree(site, aside)


def _backed_up(site: Path, aside: Path) -> None:
    tar = aside.with_suffix(".tar")
    with snapshot.taken(site) as found:
        archive.write(tar, found.kind, found.parts)
    archive.restore(tar, aside)


@pytest.mark.parametrize("backup", [_copied, _backed_up])
def test_a_site_that_is_restored_uses_no_slot_of_before_and_begins_with_the_next_block(
    tmp_path: Path, backup: Callable[[Path, Path], None]
) -> None:
    """Its masks may be used by now, which it does not know. Its noise is charged again, with another key or slot."""
    masked = Summed(tmp_path, rounds=1, link=Watching, noise=FRESH)
    masked.run()
    carl, aside = tmp_path / "sites" / "carl", tmp_path / "aside"
    backup(carl, aside)
    Summed(tmp_path, sites=masked.sites, rounds=3, link=lambda sites: masked.link, noise=FRESH).run()
    charged = Ledger(carl).read().charges
    shutil.rmtree(carl)
    aside.rename(carl)
    masked.sites["carl"].start()
    Summed(tmp_path, sites=masked.sites, rounds=5, link=lambda sites: masked.link, noise=FRESH).run()
    shutil.rmtree(tmp_path / "state" / "secagg")  # so that the next block comes now
    again = Summed(tmp_path, sites=masked.sites, rounds=7, link=lambda sites: masked.link, noise=FRESH)
    again.run()
    assert isinstance(masked.link, Watching)
    masked.link.check()
    took_part = ["carl" in line["weights"] for line in again.metrics.lines[1:]]
    assert took_part == [True] * 3 + [False] * 2 + [True] * 2
    assert {r["code"] for line in again.metrics.lines for r in line["refused"]} == {"secagg_context"}
    works = [c.work for c in Ledger(carl).read().charges]
    assert len(set(works) - {c.work for c in charged}) >= 2


def test_a_site_whose_roster_is_another_takes_no_part_and_too_few_pause_the_run(tmp_path: Path) -> None:
    masked = Summed(tmp_path)
    masked.sites["anna"].cards = {**cards(), "anna": bytes(32)}  # type: ignore[attr-defined]
    masked.run()
    assert all("anna" not in line["weights"] for line in masked.metrics.lines[1:])
    assert masked.metrics.lines[1]["refused"][0]["code"] == "secagg_roster"
    other = Summed(tmp_path / "b")
    for name in NAMES[:2]:
        other.sites[name].cards = cards(NAMES[:4])  # type: ignore[attr-defined]
    with pytest.raises(RunPaused, match="3 of 5 sites sent keys, 4 needed"):
        other.run()


class Without(Direct):
    """Without emil's updates."""

    def nodes(self) -> dict[str, int]:
        """All but emil."""
        return {name: i for name, i in super().nodes().items() if name != "emil"}


def test_too_few_that_open_a_sum_pause_the_run_and_are_asked_again(tmp_path: Path, undisturbed: str) -> None:
    """The same ones: nobody opens two sums of one round, and nobody trains anew."""
    masked = Summed(tmp_path, link=Silent, attempts=1)
    with pytest.raises(RunPaused, match="3 of 5 clients have opened their secure sum, 4 are needed"):
        masked.run()
    trained = {name: site.trained for name, site in masked.sites.items()}
    again = Summed(tmp_path, sites=masked.sites, link=Watching)
    assert again.run().digest == undisturbed
    assert isinstance(again.link, Watching)
    assert {name: site.trained - trained[name] for name, site in again.sites.items()} == dict.fromkeys(NAMES, 3)


def test_work_that_is_asked_for_in_another_slot_is_masked_again_and_not_done_again(
    tmp_path: Path, undisturbed: str
) -> None:
    """As when the server has lost its block behind the updates: nothing was opened yet."""
    masked = Summed(tmp_path, link=Silent, attempts=1)
    assert isinstance(masked.link, Silent)
    masked.link.mute = NAMES
    with pytest.raises(RunPaused, match="0 of 5 clients have opened"):
        masked.run()
    shutil.rmtree(tmp_path / "state" / "secagg")
    again = Summed(tmp_path, sites=masked.sites, link=Watching)
    assert again.run().digest == undisturbed
    assert {name: site.trained for name, site in again.sites.items()} == dict.fromkeys(NAMES, 4)


class Fatal:
    """The module `os` of `durable`, whose n-th renaming is the last thing that the process does."""

    def __init__(self, number: int, behind: bool) -> None:
        self.left, self.behind, self.path = number, behind, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, aside: Any, path: Any) -> None:
        """Rename, and die before it or behind it."""
        self.left -= 1
        if self.left == 0 and not self.behind:
            self.path = str(path)
            raise Killed
        os.replace(aside, path)
        if self.left == 0:
            self.path = str(path)
            raise Killed


def killed_at(
    folder: Path, number: int, behind: bool, noise: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Watching, bool]:
    """(digest of a run of two rounds that was killed once and went on, what was said in it, whether it was killed)."""
    masked = Summed(folder, rounds=2, link=Watching, noise=noise)
    assert isinstance(masked.link, Watching)
    fatal = Fatal(number, behind)
    monkeypatch.setattr(durable, "os", fatal)
    try:
        digest = masked.run().digest
    except Killed:
        monkeypatch.setattr(durable, "os", os)
        for name, site in masked.sites.items():
            if f"/sites/{name}/" in fatal.path:  # the others' processes live on
                site.start()
        link, masked.link.sites = masked.link, masked.sites
        again = Summed(folder, rounds=2, sites=masked.sites, link=lambda sites: link, noise=noise)
        digest = again.run().digest
    return digest, masked.link, fatal.left <= 0


def deaths(step: int) -> Iterator[tuple[int, bool]]:
    """Every durable write, or every so manieth, and whether it is done."""
    return ((n, bool(n // step % 2)) for n in range(1, 4000, step))


def _charged_at_least(folder: Path, link: Watching) -> None:
    """Every opened sum is in the server's ledger, and every vector of every slot in its site's."""
    body = durable.verified(folder / "state" / "ledger.fedft")
    assert body is not None
    opened = {(block, slot) for _, block, slot in link.opened}
    assert len(spent_budget.read(body).charges) >= len(opened) >= 2
    for name in NAMES:
        charges = Ledger(folder / "sites" / name).read().charges
        slots = [said for said in link.vectors if said[0] == name]
        assert len({c.work for c in charges}) == len(charges) >= len(slots) >= 2


def _nothing_is_lost_or_said_twice(
    folder: Path, step: int, monkeypatch: pytest.MonkeyPatch, noise: Mapping[str, Any]
) -> int:
    wanted = Summed(folder / "clear", "clear", rounds=2, noise=noise).run().digest
    kills = 0
    for number, behind in deaths(step):
        digest, link, killed = killed_at(folder / str(number), number, behind, noise, monkeypatch)
        assert digest == wanted or noise is FRESH, f"killed at write {number}"
        link.check()
        if noise is FRESH:
            _charged_at_least(folder / str(number), link)
        kills += killed
        shutil.rmtree(folder / str(number))
        if not killed:
            return kills
    raise AssertionError("a run of two rounds has no end")


@pytest.mark.parametrize("noise", [NO_NOISE, SHARED, FRESH], ids=["none", "seeded", "os"])
def test_a_kill_at_a_durable_write_costs_no_byte_and_opens_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: Mapping[str, Any]
) -> None:
    """Every twentieth of them, with noise every fortieth; the slow test takes more."""
    assert _nothing_is_lost_or_said_twice(tmp_path, 40 if noise else 20, monkeypatch, noise) > 3


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("noise", [NO_NOISE, SHARED, FRESH], ids=["none", "seeded", "os"])
def test_a_kill_at_any_durable_write_costs_no_byte_and_opens_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: Mapping[str, Any]
) -> None:
    _, step = sample(1, 12 if noise else 4)
    assert _nothing_is_lost_or_said_twice(tmp_path, step, monkeypatch, noise) > 60 // step
