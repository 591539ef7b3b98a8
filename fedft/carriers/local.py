"""A post whose clients are functions of this process: letters never leave it."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from fedft.carriers.interface import Answer, Kind, Letter, Refused, Reply, refused
from fedft.errors import ClientFailed, FedftError, RejectedUpdate, in_one_line

Serve = Callable[[Kind, Any], bytes | Refused]
"""A client: (kind, payload) of a letter -> its answer. The payload is bytes, or what they were read as."""
Read = Callable[[Letter, bytes], Any]
"""(letter, its bytes) -> what the client is given in the place of the bytes, which then nobody keeps."""
Finish = Callable[[], bytes | Refused]
"""Gives the answer to a letter whose work was begun together with others'."""


class Asked(NamedTuple):
    """A letter with its bytes made, as a client in this process gets it."""

    client: str
    kind: Kind
    payload: Any
    """Bytes, or what `Read` made of them."""


Begin = Callable[[list[Asked]], list[Finish]]
"""Begins the work of several letters at once, such as a shared pass of the model; one `Finish` each, in their order."""


class LocalPost:
    """`Post` without a network: letters are answered in this process, one at a time, when pulled.

    A pull answers at most one waiting letter, so the caller's deadline, quorum and memory behave as over a network. A
    client that raises would raise again: nobody asks it twice, as over a network, and the pull raises, see there.

    With `begin`, the first `together` of the waiting letters that ask for training are begun at once, in their order;
    the answer of each is made when it is pulled.

    All clients run in the thread that pulls.
    """

    def __init__(
        self,
        clients: Mapping[str, Serve],
        begin: Begin | None = None,
        together: int = 1,
        read: Read = lambda letter, payload: payload,
    ) -> None:
        """Clients answer, by name, and never go away.

        Args:
            clients: by name.
            begin: begins the work of several letters at once.
            together: letters of training that are begun at once.
            read: what is kept of a letter until its client has it.
        """
        self._clients, self._begin, self.together, self._read = clients, begin, together, read
        self._waiting: OrderedDict[str, tuple[Letter, Asked]] = OrderedDict()  # whose first one costs no search
        self._begun: dict[str, Finish] = {}
        self._count = 0

    def push(self, letter: Letter) -> tuple[str, int]:
        """Keep a letter until it is pulled; (ticket, bytes of the payload)."""
        payload = letter.payload()
        asked = Asked(letter.client, letter.kind, self._read(letter, payload))
        self._count += 1
        ticket = str(self._count)
        self._waiting[ticket] = letter, asked
        return ticket, len(payload)

    def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
        """The reply to that of these letters which has waited longest, or nothing. The client does its work meanwhile.

        Where the letters asked for are those that have waited longest, its time does not depend on how many wait.

        Raises a FedftError of the client's as it is, and ClientFailed with any other exception of its as the cause.
        """
        waiting = (t for t in self._waiting if t in tickets)
        if (ticket := next(waiting, None)) is None:
            return
        letter, asked = self._waiting[ticket]
        try:
            finish = self._take_begun(ticket, waiting)
            said = finish() if finish else self._clients[asked.client](asked.kind, asked.payload)
            answer = _checked(said, letter.max_bytes)
        except FedftError:
            raise
        except Exception as e:
            raise ClientFailed(f"round {letter.round}: client {letter.client!r} failed: {in_one_line(e)}") from e
        finally:
            del self._waiting[ticket]
        yield Reply(ticket, letter.client, answer)

    def cancel(self, tickets: Collection[str]) -> None:
        """Drop these letters: nobody works on them any more."""
        for ticket in tickets:
            self._waiting.pop(ticket, None)
            self._begun.pop(ticket, None)

    def gone(self, client: str) -> bool:
        """False: clients in this process can always be reached."""
        return False

    def _take_begun(self, ticket: str, others: Iterator[str]) -> Finish | None:
        """What makes the answer to this letter, if it is one to be begun with `others`, which wait behind it."""
        if self._begin and ticket not in self._begun and self._waiting[ticket][1].kind == "train":
            train = (t for t in others if self._waiting[t][1].kind == "train" and t not in self._begun)
            group = [ticket, *islice(train, self.together - 1)]
            if len(group) > 1:
                self._begun |= zip(group, self._begin([self._waiting[t][1] for t in group]), strict=True)
        return self._begun.pop(ticket, None)


def _checked(said: bytes | Refused, max_bytes: int) -> Answer:
    """The answer as a network would let it through: not too long, a refusal's text short and printable."""
    try:
        if isinstance(said, Refused):
            return refused(said.code, said.reason)
        if len(said) > max_bytes:
            raise RejectedUpdate("too_large", f"message of {len(said)} bytes, at most {max_bytes} allowed")
    except RejectedUpdate as e:
        return e.with_traceback(None)
    return said
