"""Run a command in a network of its own in which every address leads back to it, and write down who was addressed.

    unshare -rn python lonely_network.py SEEN.json COMMAND...

Whatever the command or a library below it sends, from whatever language, is a packet on the loopback interface and is
seen there, names that are asked for too; nobody answers but what the command itself has started.
"""

import ipaddress
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

IPV4, IPV6 = 0x0800, 0x86DD
PORTS = {6: "tcp", 17: "udp"}
OUTGOING = 4  # PACKET_OUTGOING: each packet is seen once more when it comes in
LAST_S = 0.3  # for the last packets to be seen


Packet = tuple[str, str, int, int]
"""Protocol, the address that it goes to, the port that it is from and the one that it goes to."""


def seen(frame: bytes) -> Packet | None:
    """What is told of a packet on the loopback interface; None for other things than IP."""
    (kind,), ip = struct.unpack_from("!H", frame, 12), frame[14:]
    if kind == IPV4:
        protocol, to, rest = ip[9], ipaddress.ip_address(ip[16:20]), ip[4 * (ip[0] & 15) :]
    elif kind == IPV6:
        protocol, to, rest = ip[6], ipaddress.ip_address(ip[24:40]), ip[40:]
    else:
        return None
    ports = struct.unpack_from("!HH", rest) if protocol in PORTS else (0, 0)
    return PORTS.get(protocol, str(protocol)), str(to), *ports


def main(file: Path, command: list[str]) -> int:
    """The command's exit code, when all that was seen is in the file."""
    for words, needed in (
        ("link set lo up", True),
        ("route add local default dev lo", True),
        ("-6 route add local default dev lo", False),  # there are machines without IPv6
    ):
        subprocess.run(["ip", *words.split()], check=needed)
    found: set[Packet] = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.bind(("lo", 0))

        def watch() -> None:
            while True:
                frame, where = wire.recvfrom(256)
                if where[2] != OUTGOING and (one := seen(frame)):
                    found.add(one)

        threading.Thread(target=watch, daemon=True).start()
        code = subprocess.run(command, check=False).returncode
        time.sleep(LAST_S)
        file.write_text(json.dumps(sorted(found)))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
