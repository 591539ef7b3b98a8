"""Who takes part in a run, and the rank that each was dealt: neither shifts when somebody joins, leaves or comes back.

    members = Membership(ranks, ["anna", "carl"])      founders have places 0, 1, ... in order of name
    members.seat(["anna", "bert", "carl"])             bert is dealt the next place, whatever his name; the others stay
    members.rank("bert")                               of his place, never above the state's

Places are kept with the state, and with the round that a newcomer is first asked in, before he is asked.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Roll(Protocol):
    """Who may take part at this moment; it may change while the run goes on. Used by the engine's thread."""

    def present(self) -> Mapping[str, int]:
        """Most examples that an update may claim, by name of each client that may take part now."""

    def why_not(self, client: str) -> str:
        """Why a client may not take part now: "revoked", "removed"...; "" if it may."""


@dataclass
class Membership:
    """The members of a run by place; those who left keep theirs."""

    ranks: Sequence[int]
    """Dealt out by place, from the first again behind the last."""
    places: dict[str, int] = field(default_factory=dict)
    """Of everybody who was ever a member."""
    present: list[str] = field(default_factory=list)
    """The members of the round at work, in roster order (bytewise by name)."""
    founders: int = 0
    """How many had a place when the run began."""
    largest: int = 0
    """The state's rank: no newcomer has a larger one."""

    @staticmethod
    def founded(ranks: Sequence[int], names: Collection[str]) -> "Membership":
        """The membership of a run that begins with these names."""
        members = Membership(ranks)
        members.seat(names)
        members.founders = len(members.places)
        members.largest = max(members.rank(name) for name in members.places)
        return members

    @staticmethod
    def of(ranks: Sequence[int], kept: Mapping[str, Any]) -> "Membership":
        """What `to_dict` gave."""
        there = sorted(kept["places"].keys() - kept["absent"], key=str.encode)
        return Membership(ranks, dict(kept["places"]), there, kept["founders"], kept["largest"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, to be kept with the state and with an open round."""
        absent = sorted(self.places.keys() - {*self.present}, key=str.encode)
        return {"places": dict(self.places), "absent": absent, "founders": self.founders, "largest": self.largest}

    def seat(self, names: Collection[str]) -> tuple[list[str], list[str]]:
        """Make these names the members; (those who were not before, those who are not any more), in roster order.

        Who never had a place is dealt the next one, several in order of name.
        """
        before, self.present = self.present, sorted(names, key=str.encode)
        for name in self.present:
            self.places.setdefault(name, len(self.places))
        were, are = {*before}, {*self.present}
        return [n for n in self.present if n not in were], [n for n in before if n not in are]

    def rank(self, name: str) -> int:
        """The rank that a member's place was dealt; a newcomer's is not above the state's."""
        dealt = self.ranks[self.places[name] % len(self.ranks)]
        return min(dealt, self.largest) if self.largest else dealt

    def is_founder(self, name: str) -> bool:
        """Whether a member had its place when the run began."""
        return self.places[name] < self.founders


@dataclass(frozen=True)
class Without:
    """A roll without some of its clients."""

    roll: Roll
    removed: Callable[[], Collection[str]]
    """Gives the names that are left out."""

    def present(self) -> Mapping[str, int]:
        """See `Roll`."""
        removed = self.removed()
        return {name: most for name, most in self.roll.present().items() if name not in removed}

    def why_not(self, client: str) -> str:
        """See `Roll`."""
        return self.roll.why_not(client) or ("removed from this run" if client in self.removed() else "")
