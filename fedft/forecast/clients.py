"""What a run takes at each of its clients, in a round and in all: the rows of `fedft plan`.

Clients of one shape are one row: its memory is the largest among them, its steps, operations and seconds as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedft import config as tables
from fedft.contract import Member, Roster, State, Work
from fedft.errors import ConfigError
from fedft.forecast.memory import Memory
from fedft.forecast.rows import Rows
from fedft.forecast.seconds import Device, round_seconds
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
    of: Forecaster, rows: Mapping[str, Rows], device: Device | None = None, state: State | None = None
) -> list[Client]:
    """What each client of a run does in its first round, and what that takes.

    Args:
        of: the run's forecaster, of whatever rows.
        rows: what is known of each client's rows, by name.
        device: what each of them computes and sends with; None: nobody knows.
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
        seconds = device.seconds(flops, steps, up, down) if device is not None else None
        found.append(Client(name, work, own, own.memory(work), steps, flops, up, down, seconds))
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
    pace: str
    """The client that sets the pace of a round in which it is asked."""
    cut: str
    """What of the run its budget leaves out, in words; "": nothing."""


def run_of(clients: Sequence[Client], config: tables.RunConfig) -> Run:
    """What all rounds of a run take whose clients have such rounds; those asked are taken as the mean of all."""
    asked = min(config.clients.per_round or len(clients), len(clients))
    up, down = (sum(getattr(c, key) for c in clients) * asked // len(clients) for key in ("up", "down"))
    timed = {c.name: c.seconds for c in clients if c.seconds is not None}
    one, pace = round_seconds(timed, len(timed)) if len(timed) == len(clients) else (None, "")
    pace = pace or max(clients, key=lambda c: (c.flops, c.name)).name
    rounds, cut = config.server.rounds, ""
    if config.server.budget is not None:
        kind, most = tables.budget_of(config.server.budget)
        per_round = {"bytes": up + down, "steps": config.local.steps, "seconds": one}[kind]
        if per_round and most / per_round < rounds:
            rounds = int(most / per_round)
            cut = f"[server] budget {config.server.budget!r} ends it at round {rounds} of {config.server.rounds}"
    return Run(rounds, asked, rounds * up, rounds * down, None if one is None else rounds * one, pace, cut)
