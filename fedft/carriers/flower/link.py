"""A `Link` over a Flower SuperLink."""

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import httpx
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto import control_pb2, fab_pb2, message_pb2, node_pb2, runtime_pb2
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedft.carriers import interface
from fedft.carriers.flower import grid, objects, superlink_gate
from fedft.carriers.flower.superlink import log
from fedft.carriers.interface import LinkLost, Refused
from fedft.errors import RejectedUpdate

BEAT_S = 10.0  # a task that is silent for 60 s is taken for dead

NODES_S = 1.0  # how old the list of nodes may be

LEFT_OVER = 100  # tasks of servers that died, taken out of the way at most

APP = b"""[project]
name = "fedft"
version = "1.0.0"

[tool.flwr.app]
publisher = "fedft"

[tool.flwr.app.components]
serverapp = "fedft:none"
clientapp = "fedft:none"
"""


class FlowerLink:
    """The link to the sites through a SuperLink; see `network.Link`.

    Args:
        address: host:port of the SuperLink.
        ca: PEM certificates to trust, and no others.
        members: the public node key of each site; may change while the link is in use.
        secret: of our own SuperLink's gate; None for somebody else's SuperLink, whose other nodes are left alone.

    Used by one thread. Connects when first used, and again after each LinkLost.
    """

    def __init__(self, address: str, ca: bytes, members: Mapping[str, bytes], secret: str | None = None) -> None:
        self._address, self._ca, self._members, self._secret = address, ca, members, secret
        self._session: _Session | None = None

    def nodes(self) -> Mapping[str, int]:
        """Node id by site, of those online; up to a second old."""
        session = self._connected()
        if time.monotonic() - session.nodes_at > NODES_S:
            with self._guarded():
                if session.keys != set(self._members.values()):
                    session.register(self._members)
                listed = session.control.ListNodes(control_pb2.ListNodesRequest()).nodes_info
            site_of = {key: site for site, key in self._members.items()}
            session.nodes = {
                site_of[n.public_key]: n.node_id for n in listed if n.status == "online" and n.public_key in site_of
            }
            session.nodes_at = time.monotonic()
        return session.nodes

    def push(self, node: int, kind: str, payload: bytes, group: str) -> str:
        """Send; returns the message's id."""
        session = self._connected()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = session.identity  # of this whole process
        message = grid.pack(cast(interface.Kind, kind), payload, node, group)
        known = True

        def register(announced: Any, tree: Any) -> tuple[Collection[str], str]:
            nonlocal known
            request = runtime_pb2.PushAppMessagesRequest(messages_list=[announced], message_object_trees=[tree])
            response = session.runtime.PushMessages(request)
            known = bool(response.message_ids[0])
            return response.objects_to_push, response.session_id

        with self._guarded():
            try:
                objects.send(message, register, session.runtime, SUPERLINK_NODE_ID)
            except objects.Withdrawn:
                known = False
        mid = message.metadata.message_id
        session.sent.add(mid)
        if not known:
            session.unsendable.add(mid)
        return mid

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """Replies by the id they answer, one in memory at a time; ids that this connection never gave are refused.

        A reply still on its way up is left for the next call. One that is taken, or refused, is freed in the SuperLink.
        """
        session = self._connected()
        for mid in ids:
            if mid not in session.sent or mid in session.unsendable:
                session.sent.discard(mid)
                yield (
                    mid,
                    Refused(
                        "client_error", "the message was lost on its way: its connection ended, or its node is gone"
                    ),
                )
        with self._guarded():
            self._collect(session, set(ids) & session.sent)
        for mid in [mid for mid in session.trees if mid in ids]:
            if session is not self._session:
                raise LinkLost("the connection was lost meanwhile")
            tree = session.trees[mid]
            try:
                with self._guarded():
                    answer = self._answer(session, tree, max_bytes)
            except objects.Pending:
                continue
            del session.trees[mid]
            self._free(session, mid, tree.object_id)
            yield mid, answer

    def forget(self, ids: Collection[str]) -> None:
        """Give messages up: a node that has not taken one yet never will, and a late reply is thrown away."""
        session = self._connected()
        for mid in set(ids) & session.sent:
            tree = session.trees.pop(mid, None)
            if tree is None:
                session.forgotten.add(mid)
            self._free(session, mid, *([tree.object_id] if tree else []))

    def close(self) -> None:
        """End the run, if it can still be reached."""
        if self._session:
            with suppress(httpx.HTTPError, ValueError):
                self._session.runtime.PushTaskOutput(
                    runtime_pb2.PushTaskOutputRequest(sub_status="completed", details="")
                )
        self._reset()

    def _answer(self, session: "_Session", tree: Any, max_bytes: int) -> bytes | Refused | RejectedUpdate:
        try:
            message = objects.fetch(tree, session.run, session.runtime, SUPERLINK_NODE_ID, max_bytes)
            return grid.unpack(message, max_bytes)
        except RejectedUpdate as e:
            return e.with_traceback(None)
        except objects.Withdrawn as e:
            return Refused("client_error", str(e))

    def _collect(self, session: "_Session", ids: set[str]) -> None:
        """Ask for new replies to `ids`; Flower names each reply once only, so their trees are kept."""
        asked = (ids - session.trees.keys()) | session.forgotten
        if not asked:
            return
        response = session.runtime.PullMessages(runtime_pb2.PullAppMessagesRequest(message_ids=asked))
        for head, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            mid = head.metadata.reply_to_message_id
            if mid in session.forgotten:
                session.forgotten.discard(mid)
                self._free(session, mid, tree.object_id)
            else:
                session.trees[mid] = tree

    def _free(self, session: "_Session", mid: str, *roots: str) -> None:
        """Let the SuperLink drop a message's objects and its reply's."""
        session.sent.discard(mid)
        session.unsendable.discard(mid)
        with self._guarded():
            for root in (mid, *roots):
                session.runtime.ConfirmMessageReceived(
                    message_pb2.ConfirmMessageReceivedRequest(
                        node=node_pb2.Node(node_id=SUPERLINK_NODE_ID), run_id=session.run, message_object_id=root
                    )
                )

    def _connected(self) -> "_Session":
        if self._session is None:
            with self._guarded():
                self._session = _Session(self._client, self._members, ours=self._secret is not None)
        elif self._session.over.is_set():
            self._reset()
            raise LinkLost("the SuperLink has ended our run")
        return self._session

    def _client(self, kind: Any, *interceptors: Any) -> Any:
        secret = [objects.Headers({superlink_gate.SECRET: self._secret})] if self._secret else []
        return objects.connect(
            kind, self._address, self._ca, *secret, *interceptors, component="flwr-serverapp", proxies=not self._secret
        )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What the SuperLink or the network does to a call becomes LinkLost, and the session is over."""
        try:
            yield
        except (httpx.HTTPError, ValueError, _NoTask) as e:
            self._reset()
            raise LinkLost(f"SuperLink {self._address}: {_line(e)}") from e

    def _reset(self) -> None:
        session, self._session = self._session, None
        if session:
            session.close()


class _NoTask(Exception):
    """The SuperLink did not give us the task of the run that we started."""


class _Session:
    """One connection's run and what is on its way in it."""

    def __init__(self, client: Callable[..., Any], members: Mapping[str, bytes], ours: bool) -> None:
        self.sent: set[str] = set()
        self.unsendable: set[str] = set()
        self.forgotten: set[str] = set()
        self.trees: dict[str, Any] = {}  # of new replies, by the message they answer
        self.nodes: dict[str, int] = {}
        self.nodes_at = float("-inf")
        self.over = threading.Event()
        self._ours = ours
        self._stop = threading.Event()
        self.control = client(ControlHttpClient)
        self.runtime: Any = None
        try:
            self.register(members)
            fab = _app()
            request = control_pb2.StartRunRequest(
                fab=fab_pb2.Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab)
            )
            self.run: int = self.control.StartRun(request).run_id
            self.runtime = _acquire(client, self.run)
            got = self.runtime.PullTaskInput(runtime_pb2.PullTaskInputRequest())
            self.identity = got.task_id, got.run.run_id, got.context.node_id
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._beat, name="superlink-heartbeat", daemon=True).start()

    def register(self, members: Mapping[str, bytes]) -> None:
        """Let the members in, and on our own SuperLink nobody else."""
        _register(self.control, members, self._ours)
        self.keys = set(members.values())

    def close(self) -> None:
        """Free the connections; the run is left to end by itself."""
        self._stop.set()
        self.control.close()
        if self.runtime:
            self.runtime.close()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                if not self.runtime.SendTaskHeartbeat(runtime_pb2.SendTaskHeartbeatRequest()).success:
                    self.over.set()
            except (httpx.HTTPError, ValueError, RuntimeError):  # RuntimeError: closed under our hands
                continue  # whoever calls next hears of it


def _register(control: Any, members: Mapping[str, bytes], ours: bool) -> None:
    """Make the SuperLink's nodes those of the roster."""
    listed = control.ListNodes(control_pb2.ListNodesRequest()).nodes_info
    there = {n.public_key: n.node_id for n in listed if n.status != "unregistered"}
    gone = {n.public_key for n in listed} - there.keys()
    for site, key in members.items():
        if key in gone:
            log.warning("site %s: its node key was taken out of this SuperLink, which takes no key twice", site)
        elif key not in there:
            control.RegisterNode(control_pb2.RegisterNodeRequest(public_key=key))
    for key in there.keys() - set(members.values()) if ours else ():
        try:
            control.UnregisterNode(control_pb2.UnregisterNodeRequest(node_id=there[key]))
        except httpx.HTTPStatusError as e:
            if e.response.status_code != 500:  # what Flower answers after it has taken out a node that never came
                raise


def _app() -> bytes:
    """A Flower app of no code: what a run cannot be started without."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        z.writestr("pyproject.toml", APP)
        z.writestr(".info/CONTENT", f"pyproject.toml,{hashlib.sha256(APP).hexdigest()},{len(APP) * 8}")
    return packed.getvalue()


def _acquire(client: Callable[..., Any], run: int) -> Any:
    """A Runtime client with the token of our run's task; tasks that dead servers left waiting are ended."""
    acquirer = client(RuntimeHttpClient)
    try:
        for _ in range(LEFT_OVER):
            got = acquirer.AcquireTask(runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
            if not got.token:
                break
            runtime = client(RuntimeHttpClient, RuntimeTokenHttpInterceptor(got.token))
            if got.task.run_id == run:
                return runtime
            runtime.PushTaskOutput(runtime_pb2.PushTaskOutputRequest(sub_status="failed", details="its server is gone"))
            runtime.close()
    finally:
        acquirer.close()
    raise _NoTask(f"the task of run {run} was not given to us: is another executor attached to it?")


def _line(e: Exception) -> str:
    if isinstance(e, httpx.HTTPStatusError):
        return f"{e.request.url.path} answered {e.response.status_code}: {e.response.text[:200]!r}"
    return f"{type(e).__name__}: {e}".splitlines()[0][:300]
