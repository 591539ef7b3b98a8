"""Rounds that do not wait, by hand: FedBuff on made-up updates, and a deployment with a slow site that is killed."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed import SITES, Deployment, Direct, Killed, Site, ToyBase, ToyClient, kill_at

from fedft import run_file, strategies, testing
from fedft.carriers.interface import Refused
from fedft.client.train import Client
from fedft.contract import Turn
from fedft.errors import ConfigError, RejectedUpdate
from fedft.server import buffered
from fedft.server.archive import Archive
from fedft.server.archive_check import replayed
from fedft.server.checkpoint import Store
from fedft.server.kept_generations import kept
from fedft.update import Job, Update

MOVES = {"anna": 1.0, "bert": 2.0, "carl": 4.0}
"""What each site's updates add to every number of the state."""
ROWS = {"anna": 10, "bert": 20, "carl": 30}


@dataclass
class Slow(Direct):
    """A plan to a site is worked off when its answer was looked for more often than `looks` says."""

    looks: Mapping[str, int] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """Keep it for `pull`."""
        mid = super().push(node, kind, payload, group)
        if kind == "train":
            self._seen[mid] = 0
        return mid

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """The answers that are ready, in the order in which they were asked for."""
        for mid in self._seen.keys() & {*ids}:
            self._seen[mid] += 1
        ready = [
            mid
            for mid in ids
            if mid in self._sent and self._seen.get(mid, 10**9) > self.looks.get(self._sent[mid][0].name, 0)
        ]
        yield from super().pull(ready, max_bytes)


class Moving(Site):
    """A site whose every update adds MOVES to all numbers."""

    def _join(self, job: Job) -> Client:
        site, recipe = self, strategies.make(self.config.strategy.name, {})

        class Own(ToyClient):
            index = self.index

            def train(self, turn: Turn) -> Update:
                site.trained += 1
                delta = {n: torch.full_like(t, MOVES[site.name]) for n, t in turn.held.items()}
                return self._update(turn.plan, delta, len(self.train_rows), {"loss": 1.0})

        rows: list[Any] = [None] * ROWS[self.name]
        handle = testing.toy(recipe).handle
        return Own(self.name, rows, rows[:1], ToyBase(), handle, recipe, self.config)  # type: ignore[arg-type]


def deployment(folder: Path, before: Deployment | None = None, looks: int = 2, **server: Any) -> Deployment:
    """A run of three sites, of which carl is slow; `before` is its server before a restart."""
    config = run_file.from_dict({"strategy": {"name": "fedit"}, "local": {"steps": 3, "learning_rate": 0.05}})
    sites = before.sites if before else {s: Moving(s, i, folder / s, config) for i, s in enumerate(SITES)}
    link = before.link if before else Slow(sites, looks={"carl": looks})
    run = Deployment(folder, sites=sites, link=link, **{"buffer": 2, **server})
    run.federation.config = replace(run.config, eval=replace(run.config.eval, every=100))
    return run


def moved(run: Deployment) -> float:
    """By how much the run has moved every number of its state, all alike."""
    found = run.store.latest(recover=False)
    first = Store(run.store._folder)._read(0)
    assert found is not None
    assert first is not None
    by = torch.cat([(x - first[0].tensors[n]).flatten() for n, x in found[0].tensors.items()])
    assert torch.allclose(by, by[0].expand_as(by), atol=1e-4)
    return float(by.double().mean())


def of_lines(run: Deployment) -> float:
    """The same by the weights in the lines of metrics."""
    of = [line["weights"] for line in run.metrics.lines[1:]]
    return sum(sum(n * MOVES[c] for c, n in w.items()) / sum(w.values()) for w in of)


def test_four_versions_by_hand(tmp_path: Path) -> None:
    """carl is looked for three times before he answers: asked at version 0, he counts in the round of version 2, with
    30 / sqrt(3) rows, and in his place bert is one version late."""
    run = deployment(tmp_path)
    run.run()
    lines = run.metrics.lines[1:]
    assert [line["staleness"] for line in lines] == [
        {"anna": 0, "bert": 0},
        {"anna": 0, "bert": 0},
        {"anna": 0, "carl": 2},
        {"anna": 0, "bert": 1},
    ]
    third, fourth = 30 / 3**0.5, 20 / 2**0.5
    wanted = 2 * (10 * 1 + 20 * 2) / 30 + (10 * 1 + third * 4) / (10 + third) + (10 * 1 + fourth * 2) / (10 + fourth)
    assert moved(run) == pytest.approx(wanted, rel=1e-4)
    assert lines[2]["weights"] == {"anna": 2560, "carl": round(256 * third)}
    assert lines[1]["bytes"]["carl"] == {"up": 0, "down": 0, "needed": 0}
    assert len(lines[-1]["evaluation"]) == 3  # nobody trains any more


def test_an_answer_that_comes_while_others_are_measured_counts_in_the_next_round(tmp_path: Path) -> None:
    run = deployment(tmp_path, looks=1)
    run.federation.config = replace(run.federation.config, eval=replace(run.config.eval, every=1))
    run.run()
    lines = run.metrics.lines[1:]
    assert lines[1]["staleness"]["carl"] == 1
    assert "carl" not in lines[0]["evaluation"]  # he trained then
    assert not any(line["refused"] for line in lines)
    asked = [c for line in lines for c, b in line["bytes"].items() if b["down"]]
    assert {s: site.trained for s, site in run.sites.items()} == {s: asked.count(s) for s in SITES}


KILLS = [(kind, n) for kind in ("admitted", "line") for n in range(4)]


@pytest.mark.parametrize(("at", "number"), KILLS)
def test_a_deployment_that_is_killed_counts_every_update_once(tmp_path: Path, at: str, number: int) -> None:
    """Which updates are the first depends on when they come; each trained once, and counts as its line says."""
    run = deployment(tmp_path)
    kill_at(run, at, number)
    with pytest.raises(Killed):
        run.run()
    run = deployment(tmp_path, run)
    run.run()
    assert [line["version"] for line in run.metrics.lines] == [0, 1, 2, 3, 4]
    assert [len(line["participants"]) for line in run.metrics.lines[1:]] == [2] * 4
    assert moved(run) == pytest.approx(of_lines(run), rel=1e-4)
    counted = [(c, line["round"] - tau) for line in run.metrics.lines[1:] for c, tau in line["staleness"].items()]
    assert len(counted) == len(set(counted)) == 8
    assert max(site.trained for site in run.sites.values()) <= 4


def test_a_round_of_the_archive_has_plans_of_several_versions(tmp_path: Path) -> None:
    """Computed anew from the first state, round after round."""
    run = deployment(tmp_path)
    run.store._archive = Archive(tmp_path / "archive", "fp32")
    last = run.run()
    recipe, layout = run.federation.recipe, run.federation.layout
    state = recipe.first_state(layout, run.federation.rank, testing.SEED)
    for number in range(4):
        state = replayed(tmp_path / "archive" / f"round-{number:08d}.fedft", recipe, layout, state)
    assert state.digest == last.digest


def test_the_states_of_turns_that_go_on_stay_on_the_disk(tmp_path: Path) -> None:
    """And what is too old is given up, and its client asked anew."""
    run = deployment(tmp_path, looks=10**6, rounds=9, max_staleness=4)
    run.run()
    assert [(line["round"], c) for line in run.metrics.lines[1:] for c in line["too_old"]] == [(5, "carl")]
    assert run.metrics.lines[6]["bytes"]["carl"]["down"] > 0
    _, notes = run.store.latest(recover=False) or (None, {})
    assert buffered.begun_from(notes) == {5}
    assert not kept(5, 9)
    assert run.store.state(5) is not None


def test_a_turn_whose_state_is_lost_is_asked_anew_after_a_restart(tmp_path: Path) -> None:
    run = deployment(tmp_path)
    kill_at(run, "line", 1)
    with pytest.raises(Killed):
        run.run()
    (tmp_path / "state" / "gen-00000000.fedft").write_bytes(b"torn")
    run = deployment(tmp_path, run)
    run.run()
    assert [(r["client"], r["code"]) for r in run.metrics.lines[2]["refused"]] == [("carl", "state_lost")]
    assert "carl" in run.metrics.lines[2]["bytes"]


def test_masks_that_cancel_in_one_sum_are_refused() -> None:
    class Masks:
        stage = "mask"
        keeps = False

        def apply(self, trained: Any, turn: Any, handle: Any) -> Any:
            return trained

    recipe = replace(strategies.make("fedit", {}), uploads=(Masks(),))
    with pytest.raises(ConfigError, match="masks cancel in the sum of all who were asked together"):
        buffered.check(run_file.from_dict({"server": {"buffer": 2}}), recipe, deployed=True)


def test_the_idle_are_drawn_by_seed_and_version_alone() -> None:
    everybody = [f"c{n}" for n in range(20)]
    one = buffered.at_work(everybody, ["c3", "c7"], 8, seed=1, version=5)
    assert one == buffered.at_work(everybody[::-1], ["c7", "c3"], 8, seed=1, version=5)
    assert len(one) == 8
    assert {"c3", "c7"} <= {*one}
    assert one != buffered.at_work(everybody, ["c3", "c7"], 8, seed=1, version=6)
    assert buffered.at_work(everybody, everybody[:9], 8, seed=1, version=5) == sorted(everybody[:9])
