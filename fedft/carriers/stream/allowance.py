"""How much of something somebody may do: so many at once, and so many more a second."""

from dataclasses import dataclass


@dataclass
class Allowance:
    """A number that is spent, and comes back with time.

    Args:
        per_s: what comes back in a second.
        most: what there is at first, and at most.
        at: now, by any clock of seconds that goes on evenly.
    """

    per_s: float
    most: float
    at: float
    left: float = float("inf")

    def spend(self, amount: float, now: float) -> float:
        """Take `amount`, which may be negative; seconds until as much is back as was taken too many, 0 if none was."""
        self.left, self.at = min(self.most, self.left + (now - self.at) * self.per_s), now
        self.left = min(self.most, self.left - amount)
        return max(0.0, -self.left / self.per_s)
