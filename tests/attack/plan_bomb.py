"""What a hostile server makes a site allocate before its policy is asked: one plan of zeros, which codecs make short.

    python tests/attack/plan_bomb.py --entries 16777216 [--codec int4]

A process of its own encodes the plan; this one decodes it as `client/requests.py` does. Prints one line of JSON: bytes
sent, resident memory before and at its peak, their ratio, seconds of CPU, and what came of it.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time

import torch

from fedft.errors import RejectedUpdate
from fedft.update import Plan
from fedft.wire import messages

COLUMNS = 256


def plan_of(entries: int, codec: str) -> bytes:
    """A plan whose one tensor has so many entries, all zero."""
    tensors = {"x": torch.zeros(entries // COLUMNS, COLUMNS)}
    return messages.encode_plan(Plan("0" * 16, 0, 0, rank=1, steps=1, learning_rate=0.1, tensors=tensors), codec)


def main() -> None:
    """Decode one such plan and print what it cost."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--entries", type=int, default=2**24)
    p.add_argument("--codec", default="topk:1|bf16")
    a = p.parse_args()
    torch.set_num_threads(1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        data = pool.apply(plan_of, (a.entries, a.codec))
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
