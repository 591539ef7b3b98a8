"""A worker whose clients need no model: each says its name and what it was sent, or does what the payload says."""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedft.carriers.fleet import worker
from fedft.carriers.interface import Kind, Post, Refused
from fedft.carriers.local import LocalPost
from fedft.errors import ConfigError, DataError


def answer(client: str, kind: Kind, payload: bytes) -> bytes | Refused:
    """What one client says to a letter."""
    word, _, rest = payload.decode().partition(" ")
    if word == "refuse":
        return Refused("behind", "3 x")
    if word == "mistake":
        raise DataError("row 3 has no text")
    if word == "bug":
        raise KeyError("rank")
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        sys.stderr.write("some words\nCUDA error: the device is gone\n")
        sys.stderr.flush()
        os._exit(7)
    if word == "sleep":
        time.sleep(float(rest))
    if word == "touch":
        Path(rest, client).touch()
        return bytes(2**20)
    if word == "log":
        logging.getLogger("fedft.client").warning("%s says %s", client, rest)
    return f"{os.getpid()} {client} {kind} {payload.decode()}".encode()


def begin(told: Mapping[str, Any]) -> tuple[Post, dict[str, Any]]:
    """A post of the clients named, in groups of two where they train."""
    if told.get("wrong"):
        raise ConfigError("no such model")
    logging.getLogger("fedft.models").warning("slow on this device")
    clients = {name: (lambda kind, payload, name=name: answer(name, kind, payload)) for name in told["clients"]}
    return LocalPost(clients), {"pid": os.getpid(), "saw": os.environ.get("CUDA_VISIBLE_DEVICES", "")}


if __name__ == "__main__":
    worker.serve(sys.argv[1], begin)
