"""What a run under differential privacy says of its rounds: nothing that one client alone decides.

metrics.jsonl, loggers, status.json    what may be public
state/private.jsonl                    mode 0600, a JSON line per round and per refusal: who took part, bytes and
                                       seconds by client, why an update was refused; a round that was made twice has
                                       two. Nothing reads it but the server's operator
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedft.errors import RejectedUpdate
from fedft.privacy.tables import Privacy
from fedft.reports.observers import Observer
from fedft.server.traffic import Traffic
from fedft.update import MEMORY_LOST, Update

FILE = "private.jsonl"
SEE = f"see state/{FILE} at the server"
BY_CLIENT = ("cut_weights", "bytes", "reply_s")
"""Of a round's record: what is of single clients, and of their rows."""
BY_COIN = ("participants", "weights", MEMORY_LOST, "refused")
"""What tells besides who was asked, where that is a secret."""
SAYS_WHO = ("admitted", "measured", "progress", "refused", "terms", MEMORY_LOST)
"""Events that tell who was asked, or how many."""
EMPTY: Mapping[str, Any] = {"asked": (), "clients": (), "recovered": (), "need": None}
"""What other events say in place of that."""

Admit = Callable[[bytes], tuple[Update, float]]


class PrivateFacts:
    """The file of what is not published of a run. Each line is added whole, from any thread."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the run's state."""
        self._path = folder / FILE

    def add(self, facts: Mapping[str, Any]) -> None:
        """Add a line. It is for a person who looks for a fault: a disk that does not take it is no reason to stop."""
        line = (json.dumps(facts, sort_keys=True) + "\n").encode()
        try:
            with open(self._path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as f:
                f.write(line)
        except OSError:
            return

    def published(self, record: Mapping[str, Any], *, secret: bool) -> dict[str, Any]:
        """The record of a round as metrics.jsonl has it; all of it is added here.

        Bytes are those of all clients, as they were sent; under `hidden` stands what was left out. `secret`: who was
        asked is, too, and how many, which bytes and seconds would tell.
        """
        self.add(record)
        hidden = [k for k in (*BY_CLIENT, *BY_COIN * secret) if k in record]
        found = {k: x for k, x in record.items() if k not in hidden}
        if secret:  # seconds, too: a round of few is short
            found |= {"participants": [], "weights": {}, "refused": [], "seconds": {}}
        found["refused"] = [{**r, "reason": SEE} for r in found["refused"]]
        if not secret:
            up, down, needed = (sum(b[k] for b in record["bytes"].values()) for k in ("up", "down", "needed"))
            masks = record.get("secagg_training", {"up": 0, "down": 0})
            training = {"up": up + masks["up"], "down": needed + masks["down"]}
            found |= {"bytes_up": up, "bytes_down": down, "training_bytes": training}
        return {**found, "hidden": hidden}

    def of_evaluation(self, version: int, traffic: Traffic, *, secret: bool) -> dict[str, int]:
        """bytes_up and bytes_down of an evaluation, of all clients; none where it is `secret` who was asked to train.

        What is sent to a client goes by what it holds, which tells whether it took part. By client they are added here.
        """
        self.add({"version": version, "evaluation_bytes": {"up": traffic.up, "down": traffic.down}})
        total = {"bytes_up": sum(traffic.up.values()), "bytes_down": sum(traffic.down.values())}
        return {} if secret else total

    def without_numbers(self, admit: Admit, round: int, client: str) -> Admit:
        """`admit`, which refuses with the code alone: the reason, with its numbers, is added here."""

        def admitted(payload: bytes) -> tuple[Update, float]:
            try:
                return admit(payload)
            except RejectedUpdate as e:
                self.add({"round": round, "client": client, "code": e.code, "reason": str(e)})
                raise RejectedUpdate(e.code, SEE) from None

        return admitted


def quiet(observe: Observer, said: Privacy) -> Observer:
    """`observe`, which hears no number of a single client under a mode of `[privacy]`, nor who was asked by coins."""
    if not said.on:
        return observe
    central = said.mode == "central-dp"
    secret = central and said.cohort == "poisson"

    def heard(kind: str, info: Mapping[str, Any]) -> None:
        if secret and kind in SAYS_WHO:
            return
        if secret and kind in ("round", "asking"):
            info = {k: EMPTY.get(k, x) for k, x in info.items()}
        if central and kind == "refused":
            info = {**info, "reason": SEE}
        if central and kind in ("admitted", "measured"):
            info = {**info, "timed": False}  # whoever hears it is not to say how long that one took
        if central and kind == "progress":
            info = {k: info[k] for k in ("client", "round", "doing")}
        observe(kind, {**info, "metrics": {}} if kind == "admitted" else info)

    return heard
