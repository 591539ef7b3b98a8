"""Runs a script in a network namespace of its own, so that the kernel counts its bytes on loopback and no others.

    python benchmarks/deployment/own_loopback.py benchmarks/deployment/rounds.py --mib 50 --sites 2

Linux, as anybody: `unshare -rn`. Nothing outside can be reached from there.
"""

import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

SIOCSIFFLAGS, IFF_UP_LOOPBACK_RUNNING = 0x8914, 0x1 | 0x8 | 0x40
INSIDE = "--inside"


def loopback_bytes() -> int:
    """Bytes that loopback has carried in this namespace, headers and all; 0 where nobody counts them."""
    try:
        lines = Path("/proc/self/net/dev").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:")), 0)


def main() -> None:
    """Go there, and run what the arguments name."""
    words = sys.argv[1:]
    if words[:1] != [INSIDE]:
        os.execvp("unshare", ["unshare", "-rn", sys.executable, __file__, INSIDE, *words])
    with socket.socket() as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP_LOOPBACK_RUNNING, b""))
    os.execv(sys.executable, [sys.executable, *words[1:]])


if __name__ == "__main__":
    main()
