"""Runs with noise at the server, on the toy model: letters and answers in one process, no language model."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fedft import run_file, strategies, testing
from fedft.carriers.interface import Kind, Refused
from fedft.carriers.local import LocalPost
from fedft.contract import State
from fedft.privacy.spent_budget import Ledger
from fedft.reports.metric_log import MetricsFile
from fedft.server import private_facts
from fedft.server.checkpoint import Store
from fedft.server.federation import Federation
from fedft.server.guard import Unguarded
from fedft.server.loop import Loop
from fedft.server.private_sum import PrivateSum
from fedft.update import Job, Plan, Update
from fedft.wire import messages

NAMES = ("anna", "bert", "carl", "dora", "emil", "fred")
OPTIONS: dict[str, dict[str, Any]] = {"fedkseed": {"K": 64}}
SAID = {"mode": "central-dp", "clip": 0.1, "noise_multiplier": 1.0, "delta": 1e-3, "noise": "seeded"}
Twist = Callable[[str, Plan, Update], Update | Refused]


class Site:
    """A client on the toy model: what `fedft.client` does, without data or tokenizer."""

    def __init__(self, toy: testing.Toy, index: int, twist: Twist) -> None:
        self.toy, self.index, self.twist = toy, index, twist
        self.held: State | None = None
        self.trained: list[int] = []
        """Rounds that it was asked to train in, in order."""

    def answer(self, name: str, kind: Kind, payload: bytes) -> bytes | Refused:
        """The answer to a letter of the server."""
        if kind == "query":
            return messages.encode_update(Update({}, 1, metrics={"held_out": 1.0}), "fp32")
        plan = messages.decode_plan(payload, max_bytes=2**31)
        if plan.have is not None and (self.held is None or self.held.version != plan.have):
            return Refused("behind", str(self.held.version if self.held else "none"))
        turn = self.toy.turn(plan, self.index, self.held)
        self.held = State(plan.version, turn.held)
        data = testing.data_of(self.index)
        if plan.evaluate:
            loss = float(self.toy.handle.loss(data).detach())
            update = Update({}, 1, plan.round, plan.run, plan.attempt, metrics={"loss": loss, "accuracy": 0.5})
            return messages.encode_update(update, "fp32")
        self.trained.append(plan.round)
        recipe, handle = self.toy.recipe, self.toy.handle
        delta, metrics, _ = recipe.sent(recipe.local(handle, testing.Ready(data), turn), turn, handle)
        update = Update(delta, 10 * (self.index + 1), plan.round, plan.run, plan.attempt, metrics=metrics)
        sent = self.twist(name, plan, update)
        return sent if isinstance(sent, Refused) else messages.encode_update(sent, "fp32")


class Run:
    """One run in a folder; making another one in the same folder is a restart after a crash."""

    def __init__(
        self,
        folder: Path,
        privacy: Mapping[str, Any] | None = None,
        name: str = "ffa_lora",
        twist: Twist = lambda name, plan, update: update,
        *,
        names: tuple[str, ...] = NAMES,
        deployed: bool = False,
        per_round: int | None = None,
        tables: Mapping[str, Mapping[str, Any]] | None = None,
        **server: Any,
    ) -> None:
        """`privacy`: keys of the table beside SAID's, None as value to leave one out."""
        recipe = strategies.make(name, OPTIONS.get(name, {}))
        toy = testing.toy(recipe, clients=len(names))
        said = {k: v for k, v in {**SAID, **(privacy or {})}.items() if v is not None}
        found: dict[str, Any] = {
            "strategy": {"name": name, **OPTIONS.get(name, {})},
            "local": {"steps": 2, "learning_rate": 0.05},
            "server": {"rounds": 3, "seed": testing.SEED, **server},
            "clients": {"rank": toy.ranks[0], **({} if per_round is None else {"per_round": per_round})},
            "privacy": said,
            **(tables or {}),
        }
        self.config = run_file.from_dict(found)
        self.names, self.folder = names, folder
        self.sites = {n: Site(toy, i, twist) for i, n in enumerate(names)}
        store = Store(folder / "state")
        newest = store.latest()
        self.metrics = MetricsFile(folder / "metrics.jsonl", newest[0].version if newest else -1)
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        observe = private_facts.quiet(lambda kind, info: self.events.append((kind, info)), self.config.privacy)
        guard = PrivateSum(self.config, store.folder) if self.config.privacy.on else Unguarded()
        job = Job(testing.RUN, testing.SEED, "d" * 64, {"strategy": {"name": name}})
        post = LocalPost({n: partial(site.answer, n) for n, site in self.sites.items()})
        self.federation = Federation(
            post, recipe, toy.layout, self.config, job, store, observe, deployed=deployed, guard=guard
        )
        self.loop = Loop(self.federation, self.metrics)

    def digest(self) -> str:
        """Of the state that the run ends with."""
        return self.loop.run(self.names).digest

    @property
    def ledger(self) -> Ledger:
        """What was charged; of a run that has begun."""
        assert self.federation.private is not None
        return self.federation.private.ledger.ledger
