"""Nothing contacts anybody but the configured server (threat model, promise 12), and what containers start works.

In a network of its own, where the system lets us make one, every packet is seen, whoever sends it; everywhere each
address that Python code asks for is written down. The hub's offline mode is off, and so is what the tests' own setup
switches off elsewhere.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lonely_network import Packet

SUPPORT = Path(__file__).resolve().parents[1] / "support"
HOME = "127.0.0.1"
SWITCHES = ("HF_HUB_OFFLINE", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "TOKENIZERS_PARALLELISM")
LONELY = ["unshare", "--map-root-user", "--net", sys.executable, str(SUPPORT / "lonely_network.py")]
STRAYS = """
import socket, subprocess, sys
for act in (lambda: socket.create_connection(("192.0.2.7", 443), 2), lambda: socket.getaddrinfo("hub.example.org", 443),
            lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("192.0.2.8", 9))):
    try:
        act()
    except OSError:
        pass
"""


def no_network_of_our_own() -> str:
    """Why this system makes none for us; "" if it does."""
    for program in ("unshare", "ip"):
        if not shutil.which(program):
            return f"this machine has no {program}"
    done = subprocess.run([*LONELY, os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"no network of our own: {done.stderr.strip()[-200:]}" if done.returncode else ""


@dataclass
class Watched:
    """What a command did in the network."""

    code: int
    said: str
    contacts: list[dict[str, Any]]
    packets: list[Packet] | None
    """Each packet, where there was a network of its own."""


def watched(folder: Path, command: list[str]) -> Watched:
    """Run a command under the eyes of both."""
    env = {k: v for k, v in os.environ.items() if k not in SWITCHES and "proxy" not in k.lower()}
    path = [str(SUPPORT / "contacts"), str(SUPPORT), env.get("PYTHONPATH", "")]
    env |= {"PYTHONPATH": os.pathsep.join(p for p in path if p), "FEDFT_CONTACTS": str(folder / "contacts.jsonl")}
    env |= {"HF_HOME": str(folder / "huggingface"), "FLWR_HOME": str(folder / "flwr")}
    env |= {"WARM_PROCESSES": "0"}  # from nothing: imports are watched, too
    lonely = not no_network_of_our_own()
    begun = [*LONELY, str(folder / "seen.json"), *command] if lonely else command
    done = subprocess.run(begun, env=env, capture_output=True, text=True, check=False)
    contacts = folder / "contacts.jsonl"
    lines = contacts.read_text().splitlines() if contacts.exists() else []
    packets = [(p[0], p[1], p[2], p[3]) for p in json.loads((folder / "seen.json").read_text())] if lonely else None
    return Watched(done.returncode, done.stdout + done.stderr, [json.loads(line) for line in lines], packets)


def test_who_strays_is_seen(tmp_path: Path) -> None:
    """A connection, a datagram, and a name that is asked for."""
    found = watched(tmp_path, [sys.executable, "-c", STRAYS])
    asked = {(c["event"], *c["to"]) for c in found.contacts}
    assert ("socket.connect", "192.0.2.7", "443") in asked
    assert ("socket.sendto", "192.0.2.8", "9") in asked
    assert ("socket.getaddrinfo", "hub.example.org", "443") in asked
    if found.packets is not None:
        assert {("tcp", "192.0.2.7", 443), ("udp", "192.0.2.8", 9)} <= {(p[0], p[1], p[3]) for p in found.packets}


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Watched, dict[str, Any]]:
    """The smallest run of everything, and what it tells."""
    folder = tmp_path_factory.mktemp("smallest")
    found = watched(folder, [sys.executable, str(SUPPORT / "smallest_run.py"), str(folder), str(tiny_base)])
    assert found.code == 0, found.said
    return found, json.loads((folder / "told.json").read_text())


@pytest.mark.slow
def test_every_command_of_the_container_files_works(run: tuple[Watched, dict[str, Any]]) -> None:
    """Health checks say what is so, and the run ends with the simulation's bytes."""
    found, told = run
    well = {"simulate", "server", "client", "doctor_client", "doctor_server", "server_is_well", "client_is_well"}
    assert {k: told[k] for k in well} == dict.fromkeys(well, 0), found.said
    assert (told["server_is_well_after_its_end"], told["client_is_well_before_it_runs"]) == (1, 1)
    assert told["healthz"] == 200
    assert told["deployed"] == told["simulated"]


@pytest.mark.slow
def test_python_asks_for_no_address_but_the_configured_ones(run: tuple[Watched, dict[str, Any]]) -> None:
    found, told = run
    ours = {(HOME, str(told[name])) for name in ("port", "board")}
    begun = [c["by"] for c in found.contacts if c["event"] == "began"]
    commands = {by[by.index("fedft") + 1] for by in begun if "fedft" in by}
    assert commands == {"simulate", "server", "client", "doctor", "probe"}  # all of them were watched
    asked = [c for c in found.contacts if c["event"] != "began"]
    assert ("socket.connect", HOME, str(told["port"])) in {(c["event"], *c["to"]) for c in asked}
    assert not [c for c in asked if tuple(c["to"]) not in ours]


@pytest.mark.slow
def test_no_packet_leaves_this_machine(run: tuple[Watched, dict[str, Any]]) -> None:
    """All go between the server's port, or the board's, and those who came to it."""
    found, told = run
    if found.packets is None:
        pytest.skip(no_network_of_our_own())
    ours = {told["port"], told["board"]}
    assert told["port"] in {to for *_, to in found.packets}
    assert not [p for p in found.packets if p[:2] != ("tcp", HOME) or not ours & {p[2], p[3]}]
