"""What a run takes at each of its clients, in a round and in all: the rows of `fedft plan`.

Clients of one shape are one row: its memory is the largest among them, its steps, operations and seconds as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from fedft import config as tables
from fedft.contract import Member, Roster, State, Work
from fedft.errors import ConfigError
from fedft.forecast.memory import Memory
from fedft.forecast.rows import Rows
from fedft.forecast.seconds import Device, round_seconds, version_seconds
from fedft.forecast.work import Forecaster
from fedft.update import Shape


@dataclass(frozen=True)
class Client:
    """One client's round."""

    name: str
    work: Work
    of: Forecaster
    memory: Memory
    steps: int
    flops: float
    """Of all steps."""
    up: int
    down: int
    seconds: float | None
    """None where no speed is known."""
    evaluation: float | None = None
    """Seconds of an evaluation, likewise."""

    @property
    def rank(self) -> int:
        """The largest rank of its adapter."""
        return self.of.shape(self.work).largest


@dataclass(frozen=True)
class Group:
    """Clients of one shape, by the largest of each of their numbers."""

    clients: Sequence[Client]

    @property
    def largest(self) -> Client:
        """Whose memory is largest, the first by name of several."""
        return max(self.clients, key=lambda c: c.memory.peak)

    @property
    def slowest(self) -> Client:
        """Whose round takes longest, or has the most operations where no speed is known."""
        return max(self.clients, key=lambda c: (c.seconds or 0.0, c.flops))

    @property
    def name(self) -> str:
        """The client's name, or how many there are."""
        return self.clients[0].name if len(self.clients) == 1 else f"{len(self.clients)} clients"

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        large, slow = self.largest, self.slowest
        return {
            "clients": len(self.clients), "name": self.name, "rank": large.rank,
            "memory": {**asdict(large.memory), "peak": large.memory.peak},
            "largest": large.name, "slowest": slow.name, "steps": slow.steps, "flops": slow.flops,
            "seconds": slow.seconds, "up": max(c.up for c in self.clients), "down": max(c.down for c in self.clients),
        }  # fmt: skip


def clients_of(
    of: Forecaster,
    rows: Mapping[str, Rows],
    device: Device | Mapping[str, Device] | None = None,
    state: State | None = None,
) -> list[Client]:
    """What each client of a run does in its first round, and what that takes.

    Args:
        of: the run's forecaster, of whatever rows.
        rows: what is known of each client's rows, by name.
        device: what each of them computes and sends with, all alike or by name; None: nobody knows.
        state: the first state, for a planner to plan from; None: clients do what the run file says.
    Raises:
        ConfigError: a planner's plan that makes no sense.
    """
    ranks = [0] if of.recipe.space.rank_free else of.config.ranks()
    named = {name: ranks[n % len(ranks)] for n, name in enumerate(sorted(rows, key=str.encode))}
    works: Mapping[str, Work] = {}
    if state is not None:
        members = {name: Member(rank, {"rows": float(rows[name].train or 0)}) for name, rank in named.items()}
        roster = Roster(members, 0, of.config.server.seed, tuple(members), of.forecast)
        try:
            works = of.recipe.plan(state, roster)
        except ValueError as e:
            raise ConfigError(f"{of.recipe.name}: {e}") from e
    found = []
    for name, rank in named.items():
        own, work = replace(of, rows=rows[name]), works.get(name, Work())
        work = work if work.shape is not None else replace(work, shape=Shape(rank))
        up, down, steps, flops = own.up(work), own.down(work), own.steps(work), own.flops(work)
        its = (device.get(name) if isinstance(device, Mapping) else device) or Device()
        seconds, evaluation = its.seconds(flops, steps, up, down), its.seconds(own.evaluated(work), 0, 0, 0)
        found.append(Client(name, work, own, own.memory(work), steps, flops, up, down, seconds, evaluation))
    return found


def grouped(clients: Sequence[Client]) -> list[Group]:
    """Clients by the shape, batch and precision that they work in, in order of their first names."""
    found: dict[tuple[object, ...], list[Client]] = {}
    for c in clients:
        shape = c.of.shape(c.work)
        found.setdefault((shape.key, shape.chosen, c.work.batch, c.work.bits), []).append(c)
    return [Group(of) for of in found.values()]


@dataclass(frozen=True)
class Run:
    """A whole run."""

    rounds: int
    """Those that its budget allows, at most."""
    asked: int
    """Clients of a round."""
    up: int
    """Bytes of all rounds."""
    down: int
    seconds: float | None
    """Of all rounds, of training and links; None where no speed is known."""
    evaluation: float | None
    """Seconds of all evaluations; None where no speed is known, or clients are virtual devices, which take none."""
    pace: str
    """The client that sets the pace of a round in which it is asked."""
    why: str
    """What it does for that, in words."""
    cut: str
    """What of the run its budget leaves out, in words; "": nothing."""


def run_of(clients: Sequence[Client], config: tables.RunConfig) -> Run:
    """What all rounds of a run take whose clients have such rounds; those asked are taken as the mean of all.

    A round ends as in a deployment: when all have answered, or the quorum has and `[server] grace_s` are over; where
    rounds do not wait, with the last answer that `[server] buffer` wants, and so many are sent anew.
    """
    server, asked = config.server, min(config.clients.per_round or len(clients), len(clients))
    counted = asked if server.buffer is None else min(server.buffer, asked)
    up, down = (sum(getattr(c, key) for c in clients) * counted // len(clients) for key in ("up", "down"))
    timed = {c.name: c.seconds for c in clients if c.seconds is not None}
    one, pace, why = None, max(clients, key=lambda c: (c.flops, c.name)).name, "has most to compute"
    if len(timed) == len(clients):
        slowest = max(timed, key=lambda name: (timed[name], name))
        one, pace = round_seconds(timed, ceil(server.quorum * len(timed) - 1e-9), server.grace_s)
        why = "takes longest" if pace == slowest else "is the last one that a round waits for"
        if server.buffer is not None:
            one, pace, why = version_seconds(timed, asked, counted), slowest, "takes longest, and no round waits for it"
    rounds, cut = server.rounds, ""
    if server.budget is not None:
        kind, most = tables.budget_of(server.budget)
        per_round = {"bytes": up + down, "steps": config.local.steps, "seconds": one}[kind]
        if per_round and most / per_round < rounds:
            rounds = int(most / per_round)
            cut = f"[server] budget {server.budget!r} ends it at round {rounds} of {server.rounds}"
    evaluation = None
    if one is not None and config.clients.devices is None:
        times = 1 + rounds // config.eval.every + bool(rounds % config.eval.every)
        evaluation = times * max(c.evaluation or 0.0 for c in clients)
    seconds = None if one is None else rounds * one
    return Run(rounds, asked, rounds * up, rounds * down, seconds, evaluation, pace, why, cut)
