"""An enrolled site that answers with MIB mebibytes of noise whatever it is asked: what does the server hold of it?

    python tests/attack/fat_site.py SITE_FOLDER HOST:PORT SERVER_PID --mib 600

Answers the first message only and prints the server's resident memory before, at its peak and after. Linux only.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedft.carriers.stream.site_node import Node


def say(**what: Any) -> None:
    """Print a line of JSON."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def memory(pid: int) -> int:
    """Resident memory of a process in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(x for x in text.splitlines() if x.startswith("VmRSS")).split()[1]) // 1024


def main() -> None:
    """Serve as the site for a while."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("site", type=Path)
    p.add_argument("address")
    p.add_argument("pid", type=int)
    p.add_argument("--mib", type=int, default=600)
    p.add_argument("--seconds", type=float, default=60)
    a = p.parse_args()
    stop, before, seen, answered = threading.Event(), memory(a.pid), [0], list[str]()
    ca = (a.site / "keys" / "ca.pem").read_bytes()
    node = Node(a.address, ca, a.site / "keys" / "node.key")

    def handle(kind: str, payload: bytes, reply: Callable[[bytes], None]) -> None:
        if answered:
            return
        answered.append(kind)
        say(asked=kind, size=len(payload))
        began = time.monotonic()
        reply(os.urandom(2**20) * a.mib)
        say(seconds_to_reply=round(time.monotonic() - began, 1))

    def watch() -> None:
        until = time.monotonic() + a.seconds
        while time.monotonic() < until and not stop.wait(0.1):
            seen.append(memory(a.pid))
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    node.run(handle, stop)
    say(mib_before=before, peak=max(seen), after=memory(a.pid), sent_mib=a.mib if answered else 0)


if __name__ == "__main__":
    main()
