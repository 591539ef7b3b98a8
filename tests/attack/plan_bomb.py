"""What a hostile server makes a site allocate before its policy is asked: one signed plan of MIB mebibytes.

    python tests/attack/plan_bomb.py --mib 1 [--codec int4]

Builds a plan by hand (frame, table of one tensor, zeros) and decodes it as `client/requests.py` does. Prints one line
of JSON: bytes sent, resident memory before and at its peak, their ratio, seconds of CPU, and what came of it.
"""

import argparse
import json
import resource
import sys
import time

import torch

from fedft.compression.bit_packing import varint
from fedft.errors import RejectedUpdate
from fedft.wire import messages

COLUMNS = 256
MAX_ENTRIES = 2**31 - 1


def plan_of(size: int, codec: str) -> bytes:
    """A plan of about `size` bytes, whose one tensor claims as many entries as a body of that many zeros can."""
    rows = min(COLUMNS * size, MAX_ENTRIES) // COLUMNS
    fields = {"r": "0" * 16, "t": 0, "v": 0, "k": 1, "s": 1, "l": 0.1}
    head = json.dumps(fields, separators=(",", ":")).encode()
    table = json.dumps([["x", codec, rows, COLUMNS]], separators=(",", ":")).encode()
    frame = messages._FRAME.pack(messages._MAGIC, messages.PROTOCOL, messages._PLAN, len(head), len(table))
    return frame + head + table + varint(rows) + bytes(rows)


def main() -> None:
    """Decode one such plan and print what it cost."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--mib", type=float, default=1)
    p.add_argument("--codec", default="topk:1|bf16")
    a = p.parse_args()
    torch.set_num_threads(1)
    data = plan_of(int(a.mib * 2**20), a.codec)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        plan = messages.decode_plan(data, max_bytes=2**31 - 1)
        outcome: object = {name: list(x.shape) for name, x in plan.tensors.items()}
    except RejectedUpdate as e:
        outcome = f"refused {e.code}: {e}"
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = {
        "sent_bytes": len(data),
        "codec": a.codec,
        "rss_before_mib": before // 1024,
        "peak_mib": after // 1024,
        "amplification": round((after - before) * 1024 / len(data)),
        "cpu_s": round(time.process_time() - began, 2),
        "outcome": outcome,
    }
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
