"""One connection of our server to a SuperLink: the run it starts there, that run's task, and messages on their way."""

import hashlib
import io
import logging
import threading
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from flwr.proto import control_pb2, fab_pb2, runtime_pb2
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

log = logging.getLogger(__name__)

BEAT_S = 10.0  # a task that is silent for 60 s is taken for dead

LEFT_OVER = 100  # tasks of servers that died, taken out of the way at most: more of them are somebody else's doing

APP = b"""[project]
name = "fedft"
version = "1.0.0"

[tool.flwr.app]
publisher = "fedft"

[tool.flwr.app.components]
serverapp = "fedft:none"
clientapp = "fedft:none"
"""


class NoTask(Exception):
    """The SuperLink did not give us the task of the run that we started."""


class Session:
    """One connection's run and the messages on their way in it. Used by one thread, beside its own heartbeat.

    Args:
        client: makes an HTTP client of one of Flower's classes, given the class and interceptors.
        site_of: the site of each public node key.
    Raises:
        NoTask, httpx.HTTPError: there is no session; nothing is left open.
    """

    def __init__(self, client: Callable[..., Any], site_of: Mapping[bytes, str]) -> None:
        self.sent: set[str] = set()  # ids of messages that may still be answered
        self.unsendable: set[str] = set()  # of those, the ones that the SuperLink did not take
        self.forgotten: set[str] = set()  # ids given up, whose replies are thrown away
        self.trees: dict[str, Any] = {}  # of new replies, by the message they answer
        self.nodes: dict[str, int] = {}
        self.nodes_at = float("-inf")
        self.over = threading.Event()  # set by the heartbeat when the SuperLink has ended our run
        self._stop = threading.Event()
        self.control = client(ControlHttpClient)
        self.runtime: Any = None
        try:
            self.register(site_of)
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

    def register(self, site_of: Mapping[bytes, str]) -> None:
        """Register the node keys of the sites. Raises httpx.HTTPError."""
        _register(self.control, site_of)
        self.keys = set(site_of)

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


def _register(control: Any, site_of: Mapping[bytes, str]) -> None:
    """Make the SuperLink's nodes those of the roster."""
    listed = control.ListNodes(control_pb2.ListNodesRequest()).nodes_info
    there = {n.public_key for n in listed if n.status != "unregistered"}
    gone = {n.public_key for n in listed} - there
    for key, site in site_of.items():
        if key in gone:
            log.warning("site %s: its node key was taken out of this SuperLink, which takes no key twice", site)
        elif key not in there:
            control.RegisterNode(control_pb2.RegisterNodeRequest(public_key=key))


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
    raise NoTask(f"the task of run {run} was not given to us: is another executor attached to it?")
