"""A clock (`fedft.server.traffic.Clock`) of which no test waits for a second."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Time that passes only where somebody sleeps."""

    now: float = 0.0

    def monotonic(self) -> float:
        """Seconds so far."""
        return self.now

    def sleep(self, seconds: float, /) -> None:
        """Let them pass."""
        self.now += seconds
