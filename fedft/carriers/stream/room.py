"""How many bytes of messages may be on their way in at a time, over all peers."""

from collections import OrderedDict
from collections.abc import Callable, Hashable


class Room:
    """Places for messages on their way in, given in the order in which they were asked for.

    The largest one that has a place is free; the others together take at most `most` bytes. So any message finds room
    in the end, and memory does not grow with the number of peers.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Hashable, int] = {}
        self._waiting: OrderedDict[Hashable, tuple[int, Callable[[], None]]] = OrderedDict()

    def ask(self, key: Hashable, size: int, given: Callable[[], None]) -> None:
        """Ask for a place of `size` bytes; `given` is called when there is one, perhaps at once. One for each key."""
        if key in self._held:
            given()
        else:
            self._waiting.setdefault(key, (size, given))
            self._waiting[key] = (size, given)
            self._give()

    def free(self, key: Hashable) -> None:
        """Give a place back, or no longer wait for one."""
        if self._held.pop(key, None) is not None or self._waiting.pop(key, None) is not None:
            self._give()

    def crowded(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def _give(self) -> None:
        while self._waiting:
            key, (size, given) = next(iter(self._waiting.items()))
            sizes = [*self._held.values(), size]
            if len(sizes) > 1 and sum(sizes) - max(sizes) > self._most:
                return
            del self._waiting[key]
            self._held[key] = size
            given()
