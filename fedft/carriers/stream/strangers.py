"""Connections that have not said who they are, counted in all and by address, and who of them is dealt with next."""

import asyncio
import ipaddress
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from fedft.carriers.stream.channel import Channel
from fedft.carriers.stream.connection import Connection

HERD = 512  # at one address: so many come together, after a pause of the server


@dataclass(eq=False)
class Stranger:
    """A connection that has not said who it is."""

    sock: socket.socket
    fd: int
    address: str
    since: float
    channel: Channel | None = None
    connection: Connection | None = None
    key: bytes = b""
    refused: bool = False
    left: bool = False

    def far(self) -> int:
        """How far it has come: not as a site does, a ClientHello of ours, the handshake."""
        if self.refused or self.channel is None or self.channel.protocol() is None:
            return 0
        return 2 if self.connection else 1


class Places:
    """Strangers of one kind, the oldest first."""

    def __init__(self, most: int, per_address: int) -> None:
        self._most, self._per_address = most, per_address
        self._there: OrderedDict[Stranger, None] = OrderedDict()
        self._of: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Stranger]:
        return iter(list(self._there))

    def enter(self, stranger: Stranger) -> str | None:
        """Take a stranger in: None if there is room, "" if somebody must leave, else the address of which."""
        self._there[stranger] = None
        self._of[stranger.address] += 1
        if self._of[stranger.address] > self._per_address:
            return stranger.address
        return "" if len(self._there) > self._most else None

    def leave(self, stranger: Stranger) -> None:
        """Let a stranger go, if it is here."""
        if stranger in self._there:
            del self._there[stranger]
            self._of[stranger.address] -= 1
            if not self._of[stranger.address]:
                del self._of[stranger.address]

    def oldest(self) -> Stranger | None:
        """Who has been here the longest."""
        return next(iter(self._there), None)

    def worst(self, address: str, seen: Collection[str]) -> Stranger | None:
        """Who should leave first, of this address or ("") of all."""
        rank = lambda s: (s.far(), s.address in seen)  # noqa: E731
        found: Stranger | None = None
        for stranger in self._there:
            if address in ("", stranger.address) and (found is None or rank(stranger) < rank(found)):
                found = stranger
                far, known = rank(found)
                if not far and (address or not known):  # nobody behind is worse
                    break
        return found


@dataclass
class Turns:
    """Steps that take long: one, then everything else in the loop has its turn; addresses by turns.

    Of one address those come first who have begun, then the oldest; where more than HERD wait, the newest: in a flood
    the oldest would be thrown out before its turn, all of them.
    """

    loop: asyncio.AbstractEventLoop
    _waiting: OrderedDict[str, tuple[dict[Stranger, Callable[[], None]], ...]] = field(default_factory=OrderedDict)
    """By address: those who have begun, and those who have not."""
    _called: bool = False

    def add(self, stranger: Stranger, step: Callable[[], None]) -> None:
        """Have a step done for somebody, one at a time."""
        begun, new = self._waiting.setdefault(stranger.address, ({}, {}))
        (begun if stranger.channel else new)[stranger] = step
        self._call()

    def leave(self, stranger: Stranger) -> None:
        """Do nothing more for somebody."""
        for steps in self._waiting.get(stranger.address, ()):
            steps.pop(stranger, None)

    def _call(self) -> None:
        if self._waiting and not self._called:
            self._called = True
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._called = False
        address, (begun, new) = self._waiting.popitem(last=False)
        steps = begun or new
        step = None
        if steps:
            stranger = next(reversed(new)) if steps is new and len(new) > HERD else next(iter(steps))
            step = steps.pop(stranger)
        if begun or new:
            self._waiting[address] = begun, new
        self._call()
        if step:
            step()


def network(host: str) -> str:
    """What counts as one address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
