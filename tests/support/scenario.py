"""One run under faults: who takes part, how rounds end and what goes wrong all follow from a seed."""

import contextlib
import functools
import logging
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from deployed import OPTIONS, ToyBase
from faults import SERVER, Disk, Killed, Odds, World, installed
from faulty import FastKey, FaultyClient, FaultySite, Network, hashed, key_of
from wires import StreamNetwork, small_frames
from witness import Witness

from fedft import run_file, strategies, testing
from fedft.client.private_state import Kept
from fedft.config import LOCAL, RunConfig
from fedft.contract import State
from fedft.errors import RunPaused
from fedft.recipe import Recipe
from fedft.reports.metric_log import MetricsFile
from fedft.server.checkpoint import Store
from fedft.server.federation import Federation
from fedft.server.loop import Loop
from fedft.server.sealed_post import SealedPost
from fedft.update import Job

NAMES = ("anna", "bert", "carl", "dora", "emil")
RECONNECT_S = 90.0  # virtual: the longest pause of a site between two connections, and what it takes to notice
CALM_ROUNDS = 4  # at the end of each run, in which nothing fails
MAX_STARTS = 60  # of the server, until nothing fails any more


@dataclass(frozen=True)
class Enrolled:
    """A roster of fast keys."""

    members: tuple[str, ...]

    def key_of(self, site: str) -> FastKey:
        """See `Roster`."""
        return key_of(site)


@dataclass
class Scenario:
    """One run: who takes part, how rounds end and what goes wrong all follow from `seed`."""

    seed: int
    folder: Path
    odds: Odds | None = None
    strategy: str = ""
    names: tuple[str, ...] = ()
    rounds: int = 0
    kill_at: int = 0
    buffered: bool = False
    """Rounds do not wait."""
    stream: bool = False
    """Our own carrier, on wires that break, in place of a network that does everything."""
    world: World = field(init=False)
    starts: int = 0
    calm_commits: int = 0
    rested: bool = False

    def __post_init__(self) -> None:
        rng = random.Random(f"scenario {self.seed}")
        self.names = self.names or NAMES[: rng.randint(2, 5)]
        self.strategy = self.strategy or rng.choice(["fedit", "flora", "fedkseed"])
        self.rounds = self.rounds or CALM_ROUNDS + rng.randint(6, 20)
        self.world = World(self.seed, self.odds)
        self.world.kill_at = self.kill_at
        self.steps, self.trains = rng.choice([1, 2, 3]), rng.random() < 0.05
        self.exact = self.trains or rng.random() < 0.8
        self.inline_bytes = rng.choice([10**6, 10**6, 64])
        self.joint = rng.random() < 0.5  # the SuperLink dies with the server
        self.server = {
            "rounds": self.rounds,
            "quorum": rng.choice([0.3, 0.5, 2 / 3, 1.0]),
            "deadline_s": rng.choice([None, 5.0, 20.0, 60.0]),
            "grace_s": rng.choice([0.0, 2.0, 10.0]),
            "attempts": rng.choice([1, 3]),
        }
        self.up = rng.choice(["fp32", "fp32", "bf16"])
        self.per_round = rng.choice([None, None, max(1, len(self.names) - 1)])
        if self.buffered:
            self.strategy = random.Random(f"strategy {self.seed}").choice(["fedit", "flora"])
            self.server["buffer"] = random.Random(f"buffer {self.seed}").randint(1, self.per_round or len(self.names))
            self.server["max_staleness"] = random.Random(f"staleness {self.seed}").choice([1, 3, 20])
        toy, bare = _toy(self.strategy)
        self.layout = toy.layout
        self.recipe = bare if self.trains else hashed(bare, toy.layout)
        self.config = self._configured(toy.ranks)
        self.slow = {n: rng.choice([0.2, 1.0, 10.0]) for n in self.names}

    def _configured(self, ranks: tuple[int, ...]) -> RunConfig:
        tables: dict[str, Any] = {
            "strategy": {"name": self.strategy, **OPTIONS.get(self.strategy, {})},
            "local": {"steps": self.steps, "learning_rate": 0.05},
            "server": {"seed": testing.SEED, **{k: v for k, v in self.server.items() if v is not None}},
            "clients": {"rank": list(ranks), **({"per_round": self.per_round} if self.per_round else {})},
            "codec": {"up": self.up},
            "eval": {"exactness": False},
        }
        return run_file.from_dict(tables)

    def run(self) -> None:
        """Carry the run to its end under faults; AssertionError if anything is not as it must be."""
        w = self.world
        fresh = {n: self._client(n, i) for i, n in enumerate(self.names)}
        self.witness = Witness(self.recipe, self.layout, fresh, self.up)
        disk = Disk(w, self.witness.torn)
        self.sites = {n: self._site(n, i, disk) for i, n in enumerate(self.names)}
        self.network = StreamNetwork(w, self.sites) if self.stream else Network(w, self.sites)
        w.tired = self._calm
        with installed(w, disk), small_frames() if self.stream else contextlib.nullcontext():
            while not self._served(disk):
                disk.crashed(SERVER)
                if self.joint or self.stream:
                    self.network.lose()
                w.live(w.now + 10 * w.rng.random())
                if self.starts > MAX_STARTS:
                    self._calm()
                assert self.starts < MAX_STARTS + 10, "nothing fails any more, yet the run does not end"
        self.witness.finished(self.folder / "metrics.jsonl", self.rounds)

    def _client(self, name: str, index: int, own: Path | None = None) -> FaultyClient:
        rows: list[Any] = [None] * 10 * (index + 1)
        handle = testing.toy(self.recipe).handle if self.trains else _toy(self.strategy)[0].handle
        client = FaultyClient(name, rows, rows[:1], ToyBase(), handle, self.recipe, self.config)  # type: ignore[arg-type]
        client.index, client.exact = index, self.exact
        client.kept = Kept(own)
        client.join(self.job)
        return client

    def _site(self, name: str, index: int, disk: Disk) -> FaultySite:
        def join(site: FaultySite) -> FaultyClient:
            return self._client(name, index, self.folder / "sites" / name / "kept")

        site = FaultySite(
            name, index, self.folder / "sites" / name, self.config, self.world, disk, join, self.witness.signed,
            self.inline_bytes,
        )  # fmt: skip
        site.slowness = self.slow[name]
        return site

    @functools.cached_property
    def job(self) -> Job:
        """What server and sites agree on."""
        said = self.config.to_dict()
        agreed = {
            t: {k: v for k, v in said[t].items() if k not in LOCAL.get(t, ())} for t in ("strategy", "local", "codec")
        }
        return Job(testing.RUN, testing.SEED, ToyBase().digest, agreed)

    def _served(self, disk: Disk) -> bool:
        """One life of the server; whether it carried the run to its end."""
        w, self.starts, why = self.world, self.starts + 1, ""
        try:
            store = Store(self.folder / "state")
            found = store.latest()
            self.witness.found(found)
            lines = MetricsFile(self.folder / "metrics.jsonl", found[0].version if found else -1)
            post = SealedPost(self.network, Enrolled(self.names), FastKey(SERVER), testing.RUN, self._observe, clock=w)
            self._watch(store)
            federation = Federation(
                post, self.recipe, self.layout, self.config, self.job, store, self._observe, w, deployed=True
            )
            Loop(federation, lines).run(self.names)
            return True
        except Killed:
            w.counts["crashes of the server"] += 1
        except RunPaused as e:
            w.counts["pauses"] += 1
            w.counts["pauses when calm"] += w.calm
            why = str(e)
        assert w.counts["pauses when calm"] < 5, f"nothing fails any more, yet: {why}"
        return False

    def _watch(self, store: Store) -> None:
        save, journal = store.save, store.journal

        def saved(state: State, notes: Mapping[str, Any]) -> None:
            self.witness.saves(state, notes)
            save(state, notes)
            self.witness.save_stands(state.version)
            self._all_take_part(notes["record"])
            self.world.counts["updates that were late"] += sum(map(bool, notes["record"].get("staleness", {}).values()))
            self._be_patient()
            if state.version >= self.rounds - CALM_ROUNDS:
                self._calm()
            if self.stream and self.world.calm and not self.rested:
                self.rested = True
                self.world.live(
                    self.world.now + RECONNECT_S
                )  # a site waits so long before it tries again: none is away by now

        def journalled(round: int, client: str, payload: bytes, sha256: str = "") -> None:
            self.witness.journals(round, client, payload)
            journal(round, client, payload, sha256)
            self.witness.journal_stands(round, client)

        store.save, store.journal = saved, journalled  # type: ignore[method-assign]

    def _observe(self, kind: str, info: Mapping[str, Any]) -> None:
        w = self.world
        w.risk()
        if w.actor != SERVER:
            return
        for site in self.sites.values():
            if w.full_until.get(site.name):
                self.witness.forgiven.add(site.name)

    def _all_take_part(self, record: Mapping[str, Any]) -> None:
        """Faults leave nothing behind: in the third round without any, whoever is asked counts."""
        self.calm_commits += self.world.calm
        enough = 10.0 if self.stream else 1e-9  # a connection that was half open takes some seconds to be found out
        if self.calm_commits > 2 and not self.buffered and self.server["grace_s"] >= enough:
            taken, asked = record["participants"], list(record["bytes"])
            assert taken == asked, f"nothing fails any more, yet of {asked} only {taken} count: {record['refused']}"

    def _be_patient(self) -> None:
        """Time is bounded once nothing fails: a round takes no longer than its deadlines."""
        if self.world.calm:
            self.world.patience = self.world.now + 4 * (self.server["deadline_s"] or 60.0) + 200

    def _calm(self) -> None:
        if not self.world.calm:
            self.world.calm = True
            self._be_patient()
            for site in self.sites.values():
                site.slowness = min(site.slowness, 0.2)
                self.world.at(0.1, site.recover)


@functools.cache
def _toy(strategy: str) -> tuple[testing.Toy, Recipe]:
    recipe = strategies.make(strategy, OPTIONS.get(strategy, {}))
    return testing.toy(recipe), recipe


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Inside, nothing is logged."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def simulate(seed: int, folder: Path, **fixed: Any) -> Scenario:
    """Run one scenario; a failure names the seed and how to see it again."""
    scenario = Scenario(seed, folder, **fixed)
    try:
        with silent():
            scenario.run()
    except BaseException as e:
        e.add_note(
            f"seed {seed}, {scenario.strategy}, sites {scenario.names}, {scenario.server}, {scenario.world.odds}, "
            f"virtual time {scenario.world.now:.1f} s\n"
            f"again: FEDFT_FAULT_SEED={seed} {'FEDFT_FAULT_STREAM=1 ' * scenario.stream}"
            f"{'FEDFT_FAULT_BUFFERED=1 ' * scenario.buffered}pytest tests/faults -k replay"
        )
        raise
    return scenario


@dataclass(frozen=True)
class Tally:
    """What a number of runs went through."""

    runs: int
    rounds: int
    counts: Counter[str]

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.runs + other.runs, self.rounds + other.rounds, self.counts + other.counts)

    def told(self, seconds: float) -> str:
        """What was injected, and how fast."""
        crashes = self.counts["crashes of the server"] + self.counts["crashes of sites"]
        faults = ", ".join(f"{n} {kind}" for kind, n in sorted(self.counts.items()))
        rounds = f"{self.rounds} rounds in {self.runs} runs, {self.rounds / seconds:.0f} rounds/s"
        return f"{rounds}, {crashes} crashes; {faults}"


def many(rounds: int, folder: Path, first: int, **fixed: Any) -> Tally:
    """Runs from seed `first` on, until so many rounds were committed."""
    torch.set_num_threads(1)
    tally = Tally(0, 0, Counter())
    while tally.rounds < rounds:
        place = folder / str(first + tally.runs)
        done = simulate(first + tally.runs, place, **fixed)
        tally += Tally(1, done.witness.commits, done.world.counts)
        shutil.rmtree(place)
    return tally
