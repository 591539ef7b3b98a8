"""Rounds that do not wait: `[server] buffer` answers make a version, and who is not ready goes on from an older state.

    x_{v+1} = server(x_v, aggregate of the first `buffer` updates that count),   weight n_k / sqrt(1 + tau_k)
    tau_k = v - the round that client k was asked in

At any time `[clients] per_round` clients are at work: at the beginning of a version those who are idle are drawn. A
turn is what one client was asked for; it ends with an answer, a refusal, or its age. Turns that go on stand in the
notes of every generation, with the plan that its client was sent and when, and in the plans of the next round: an
update is decoded, judged and aggregated by its own plan, and the state that the plan leads to stays on the disk. So a
process that is killed asks for the same again, and under virtual devices gets it at the same second.

Weights are integers, 256 of them for a row at tau = 0: a power of two, so that a run in which nobody is ever late has
the bits of one that waits.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation",
AISTATS 2022, arXiv:2106.06639. Theirs is the scale of an update, (1 + tau)^(-1/2); the mean of examples, weighted by
it, is ours. Theirs draws one client as soon as one has answered; here several are drawn when a version is made.
"""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedft.carriers.interface import Begun
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.server import cohort
from fedft.update import Plan
from fedft.wire import messages

log = logging.getLogger(__name__)

OF_A_ROW = 256  # of weight, where nobody is late: the weight of one row, twenty versions late, is rounded by 1 %
KEY = "turns"  # of the notes


@dataclass(frozen=True)
class OpenTurn:
    """What one client was asked for in an earlier round, and has not answered."""

    plan: Plan
    """Without the tensors that bring it to its state; with the number of the attempt."""
    begun: Begun


def check(config: RunConfig, recipe: Recipe, deployed: bool) -> None:
    """Raise ConfigError, in one line, where rounds that do not wait are asked for and cannot be had."""
    s, c = config.server, config.clients
    if s.max_staleness < 0:
        raise ConfigError(f"[server] max_staleness is {s.max_staleness}, wanted 0 or more")
    if s.buffer is None:
        return
    where = f"[server] buffer = {s.buffer}"
    if s.buffer < 1:
        raise ConfigError(f"{where}: wanted 1 or more, or the key left out")
    if c.per_round is not None and s.buffer > c.per_round:
        raise ConfigError(f"{where} is above [clients] per_round = {c.per_round}: so many are never at work")
    if why := _unfit(recipe):
        raise ConfigError(f"{where}: {why}; STRATEGIES.md says which methods can")
    if not deployed and c.devices is None:
        raise ConfigError(f"{where}: without [clients.devices] no client of a simulation is the first to answer")


def _unfit(recipe: Recipe) -> str:
    """Why updates of this recipe must not be late; "" where they may."""
    if any(t.stage == "mask" for t in recipe.uploads):
        return "masks cancel in the sum of all who were asked together, and of no others"
    if recipe.allows_stale:
        return ""
    if recipe.takes_stale is False:
        return f"an update of {recipe.name} belongs to the round that it was asked in"
    if recipe.upload_kind == "values":
        return f"clients of {recipe.name} send values, which replace what later versions have brought"
    if recipe.upload_kind == "numbers":
        return f"what clients of {recipe.name} send has a meaning at one state only"
    return f"the server of {recipe.name} does more than add a mean of changes"


def begun_from(notes: Mapping[str, Any]) -> set[int]:
    """The versions that turns began from which go on, by the notes of a generation."""
    return {turn["round"] for turn in notes.get(KEY, {}).values()}


def to_json(turns: Mapping[str, OpenTurn], *, virtual: bool) -> dict[str, dict[str, Any]]:
    """Plain JSON of turns by client; seconds are kept of a virtual clock, since no other one goes on in a new process.

    >>> said = to_json({"anna": OpenTurn(Plan("0" * 16, 3, 3, steps=2, attempt=9), Begun(1.5, 70))}, virtual=True)
    >>> turn = from_json(said, now=8.0)["anna"]
    >>> said["anna"]["round"], turn.plan.round, turn.plan.attempt, turn.begun
    (3, 3, 9, Begun(sent=1.5, down=70))
    """
    return {
        c: {
            "round": turn.plan.round,
            "plan": messages.encode_plan(turn.plan, "fp32").hex(),
            **({"sent": turn.begun.sent, "down": turn.begun.down} if virtual else {}),
        }
        for c, turn in turns.items()
    }


def from_json(said: Mapping[str, Mapping[str, Any]], now: float) -> dict[str, OpenTurn]:
    """The turns that `to_json` gave, begun `now` where it is not said when."""
    found = {}
    for client, turn in said.items():
        data = bytes.fromhex(turn["plan"])
        begun = Begun(turn.get("sent", now), turn.get("down"))
        found[client] = OpenTurn(messages.decode_plan(data, max_bytes=len(data)), begun)
    return found


def too_old(turns: Mapping[str, OpenTurn], version: int, most: int) -> dict[str, int]:
    """By client, how old its turn is at this version, of those that are older than `most` versions."""
    ages = {c: version - turn.plan.round for c, turn in turns.items()}
    return {c: age for c, age in ages.items() if age > most}


def at_work(
    allowed: Collection[str], busy: Collection[str], per_round: int | None, seed: int, version: int
) -> list[str]:
    """Who is at work from this version on, in roster order: those who are, and as many of the idle as are wanted.

    >>> at_work(["anna", "bert", "carl"], ["carl"], 3, seed=0, version=7)
    ['anna', 'bert', 'carl']
    """
    idle = [c for c in allowed if c not in busy]
    wanted = None if per_round is None else max(0, per_round - len(busy))
    return sorted([*busy, *cohort.cohort(idle, wanted, seed, version)], key=str.encode)


def weight(rows: int, staleness: int) -> int:
    """What an update of so many rows counts that is so many versions late, in 1/256 of a row.

    >>> weight(100, 0), weight(100, 3)
    (25600, 12800)
    """
    return max(1, round(OF_A_ROW * rows / math.sqrt(1 + staleness)))


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What summary.json says of a run whose rounds do not wait, from its lines of metrics; nothing of other runs."""
    of = [line for line in lines if "staleness" in line]
    if not of:
        return {}
    late = [tau for line in of for tau in line["staleness"].values()]
    dropped = sum(len(line["too_old"]) for line in of)
    return {"staleness": {"mean": sum(late) / len(late), "most": max(late), "too_old": dropped}}
