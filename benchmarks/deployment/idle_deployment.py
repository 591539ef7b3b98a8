"""The processes of a deployment whose sites train nothing; all but the local steps is as in earnest.

    python idle_deployment.py serve FOLDER
    python idle_deployment.py attend FOLDER SITE[,SITE...]

`rounds.py` starts them. FOLDER has `keys/`, `sites/` and `said.json`: MiB of the state, rounds, the server's address.
The state is one float32 tensor, trained in the full space; a local step returns a ready change of that tensor at once.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from round_notes import Notes
from torch import nn

from fedft import run_file
from fedft.carriers.stream.link import StreamLink
from fedft.carriers.stream.site_node import Node
from fedft.client.disk import SiteDisk
from fedft.client.requests import Responder
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.contract import Layout, Trained
from fedft.models.handle import ModelHandle
from fedft.models.load import Base
from fedft.recipe import Full, Recipe
from fedft.reports.metric_log import MetricsFile
from fedft.security import private_keys
from fedft.security import roster as keys
from fedft.server.arrival_clock import ArrivalClock
from fedft.server.checkpoint import Store
from fedft.server.federation import Federation
from fedft.server.job import job_of
from fedft.server.loop import Loop
from fedft.server.sealed_post import SealedPost

FLOATS_PER_MIB = 2**18
DEADLINE_S = 900.0
BASE_DIGEST = "d" * 64  # what the base model's weights hash to, as the server and the sites say


class Setting:
    """What the server and the sites agree on, read from FOLDER.

    Args:
        folder: with `said.json` of the run.
    """

    def __init__(self, folder: Path) -> None:
        said = json.loads((folder / "said.json").read_text())
        self.address: str = said.get("address", "")
        self.floats = said["mib"] * FLOATS_PER_MIB
        self.layout = Layout(parameters={"w": (self.floats,)})
        self.config = _config(said["rounds"])
        self.recipe = self._recipe(said["mib"])

    def _recipe(self, seed: int) -> Recipe:
        """Full fine-tuning of one parameter whose local step costs nothing."""
        change = {"w": 1e-3 * torch.randn(self.floats, generator=torch.Generator().manual_seed(seed))}
        ready = Trained(change, {"loss": 1.0})
        return Recipe("idle", Full(), local=lambda handle, data, turn: ready, start=lambda handle, turn: None)

    def base(self) -> Base:
        """The base model, on torch's meta device: nobody runs it, so its weights need no memory."""
        model = nn.Module()
        model.register_parameter("w", nn.Parameter(torch.empty(self.floats, device="meta")))
        return Base(model, None, "causal-lm", "benchmark", BASE_DIGEST)


def _config(rounds: int) -> RunConfig:
    """The run file's content: everybody in every round, nothing evaluated, fp32 on the wire."""
    server = {"rounds": rounds, "quorum": 1.0, "deadline_s": DEADLINE_S}
    return run_file.from_dict(
        {"strategy": {"name": "fedit"}, "server": server, "codec": {"up": "fp32", "down": "fp32"}}
    )


def serve(folder: Path) -> None:
    """The server's process; ends after the last round. Notes go to `server.jsonl`."""
    setting, note, place = Setting(folder), Notes(folder / "server.jsonl"), folder / "keys"
    roster = keys.load_roster(place / "roster.toml")
    members = {name: m.nodes() for name, m in roster.members.items()}
    pem, key, clock = place / "server.pem", place / "server.key", ArrivalClock()
    link = StreamLink("127.0.0.1", 0, pem, key, lambda: members, 2**31 - 1, clock.came)
    link.start()
    note("listens", port=link.port)
    job = job_of(setting.config, BASE_DIGEST, ())
    store = Store(folder / "state")
    _note_calls(store, "save", note)
    fsync_s = _fsync_clock()

    def observe(kind: str, info: Any) -> None:
        if kind in ("round", "admitted", "line", "refused"):
            more = {k: info[k] for k in ("client", "code", "reason", "bytes_up", "bytes_down") if k in info}
            note(kind, fsync=fsync_s(), **more)

    post = SealedPost(link, roster, private_keys.load_signing(place / "signing.key"), job.run, observe, clock)
    metrics = MetricsFile(folder / "metrics.jsonl", -1)
    federation = Federation(
        post, setting.recipe, setting.layout, setting.config, job, store, observe, clock, deployed=True
    )
    loop = Loop(federation, metrics)
    try:
        loop.run(list(members))
    finally:
        link.close()


def _note_calls(owner: Any, name: str, note: Notes) -> None:
    """Note from now on when the method `name` of `owner` begins and ends."""
    inner = getattr(owner, name)

    def outer(*args: Any) -> None:
        note(f"{name} begins")
        inner(*args)
        note(f"{name} ends")

    setattr(owner, name, outer)


def _fsync_clock() -> Callable[[], float]:
    """A function that returns the seconds this process has spent in fsync since this call."""
    inner, spent = os.fsync, 0.0

    def outer(file: int) -> None:
        nonlocal spent
        started = time.monotonic()
        inner(file)
        spent += time.monotonic() - started

    os.fsync = outer  # type: ignore[assignment]
    return lambda: spent


def attend(folder: Path, names: list[str]) -> None:
    """The process of these sites, a thread for each; runs until it is killed. Notes go to `site-NAME.jsonl`."""
    setting = Setting(folder)
    base = setting.base()
    handle = ModelHandle(base.model, setting.layout, setting.recipe.space)
    for name in names[1:]:
        threading.Thread(target=_attend_as, args=[name, folder, setting, base, handle], daemon=True).start()
    _attend_as(names[0], folder, setting, base, handle)


def _attend_as(name: str, folder: Path, setting: Setting, base: Base, handle: ModelHandle) -> None:
    """One site."""
    note, own, stop = Notes(folder / f"site-{name}.jsonl"), folder / "sites" / name, threading.Event()
    ca, server = (folder / "keys" / "ca.pem").read_bytes(), private_keys.load_public(folder / "keys" / "server.pub")
    rows: list[Any] = [None] * 10
    client = Client(name, rows, [], base, handle, setting.recipe, setting.config)
    signing, disk = private_keys.load_signing(own / "signing.key"), SiteDisk(own / "state")
    responder = Responder(name, signing, server, disk, lambda job: client, lambda plan, size: None)

    def work() -> None:
        while not stop.is_set():
            responder.work(1.0)

    def handle_message(kind: str, payload: bytes, reply: Callable[[bytes], None]) -> None:
        note("got", kind=payload[6], size=len(payload))  # byte 6 of a sealed letter is its kind

        def answer(data: bytes) -> None:
            note("says", kind=data[6], to=payload[6], size=len(data))
            reply(data)

        responder.take(payload, answer)

    threading.Thread(target=work, daemon=True).start()
    Node(setting.address, ca, own / "node.key").run(handle_message, stop)


if __name__ == "__main__":
    torch.set_num_threads(1)
    role, place = sys.argv[1], Path(sys.argv[2])
    serve(place) if role == "serve" else attend(place, sys.argv[3].split(","))
