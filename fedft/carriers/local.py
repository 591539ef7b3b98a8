"""Messages that never leave the process."""

from collections.abc import Callable, Iterable
from uuid import uuid4

from flwr.app import Error, RecordDict
from flwr.app import Message as Message
from flwr.serverapp import Grid as Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid(Grid):
    """Flower's Grid without a network: messages are answered in this process, one at a time, when pulled.

    Pulling answers at most one waiting message, so the caller's deadline, quorum and memory behave as over a network.
    An answer that raises becomes an error reply, as Flower does it; KeyboardInterrupt passes.

    With `begin`, the first `together` of the waiting messages that ask for training are begun at once, in their order;
    what it gives makes their answers, each when it is pulled.
    """

    def __init__(
        self,
        nodes: Iterable[int],
        answer: Callable[[int, Message], Message],
        begin: Callable[[list[Message]], list[Callable[[], Message]]] | None = None,
        together: int = 1,
    ) -> None:
        self._nodes, self._answer, self._begin, self._together = list(nodes), answer, begin, together
        self._waiting: dict[str, Message] = {}
        self._begun: dict[str, Callable[[], Message]] = {}
        self._run = Run.create_empty(run_id=1)
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # what Message() reads

    def set_run(self, run: Run) -> None:
        """Use `run` as the current run."""
        self._run = run

    @property
    def run(self) -> Run:
        """An empty run: there is no SuperLink."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message; Flower keeps this for older apps."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """All nodes: they never go away."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; returns their ids."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = mid = uuid4().hex
            self._waiting[mid] = message
            ids.append(mid)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The reply to the first of these messages still waiting, or nothing."""
        waiting = [m for m in message_ids if m in self._waiting]
        if not waiting:
            return []
        message = self._waiting[waiting[0]]
        try:
            begun = self._take_begun(waiting)
            reply = begun() if begun else self._answer(message.metadata.dst_node_id, message)
        except Exception as e:
            reply = Message(Error(code=2, reason=f"{type(e).__name__}: {e}"), reply_to=message)
        finally:
            del self._waiting[waiting[0]]
        reply.metadata.__dict__["_message_id"] = uuid4().hex
        return [reply]

    def _take_begun(self, waiting: list[str]) -> Callable[[], Message] | None:
        """What makes the answer to the first of these, if it is one to be begun with others."""
        if self._begin and waiting[0] not in self._begun:
            train = [m for m in waiting if self._waiting[m].metadata.message_type == "train" and m not in self._begun]
            group = train[: self._together] if waiting[0] in train[:1] else []
            if len(group) > 1:
                self._begun |= zip(group, self._begin([self._waiting[m] for m in group]), strict=True)
        return self._begun.pop(waiting[0], None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull until all have answered."""
        ids = self.push_messages(messages)
        return [reply for _ in ids for reply in self.pull_messages(ids)]
