"""What a hostile server makes a site allocate by one signed plan of zeros, which codecs make short.

    PYTHONPATH=tests/support python tests/attack/plan_bomb.py --entries 16777216 [--codec int4] [--bare]

A process of its own makes the letter; this one is a site that has joined a run of plain LoRA under a default policy,
whose `Responder` gets it. With --bare the plan is decoded alone, as if every tensor were welcome. Prints one line of
JSON: bytes sent, resident memory before and at its peak, their ratio, seconds of CPU, and what came of it.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from deployed import SERVER_KEY, Deployment

from fedft.client import allowed_jobs
from fedft.client.requests import Responder
from fedft.client.site_settings import Policy
from fedft.errors import RejectedUpdate
from fedft.security import sealed
from fedft.security.sealed import About, Kind
from fedft.update import Plan
from fedft.wire import messages

COLUMNS = 256


def plan_of(run: str, entries: int, codec: str) -> bytes:
    """A plan whose one tensor, called as one of the toy model's, has so many entries, all zero."""
    tensors = {"first.lora_A": torch.zeros(entries // COLUMNS, COLUMNS)}
    return messages.encode_plan(Plan(run, 0, 0, rank=2, steps=1, learning_rate=0.001, tensors=tensors), codec)


def letter(kind: Kind, run: str, payload: bytes) -> bytes:
    """A letter to the site anna that the server has signed."""
    return sealed.seal(kind, About(run, 0, 0, "anna", hashlib.sha256(payload).digest()), payload, SERVER_KEY)


def joined() -> tuple[Responder, str]:
    """A site that takes part in a run, and the run's identifier."""
    d = Deployment(Path(tempfile.mkdtemp()), "fedit")
    responder = d.sites["anna"].responder
    responder.check = partial(allowed_jobs.check_plan, policy=Policy())
    answered(responder, letter(Kind.JOB, d.job.run, messages.encode_job(d.job)))
    return responder, d.job.run


def answered(responder: Responder, data: bytes) -> str:
    """What the site says to a letter: the kind of its answer, and why it refuses."""
    said: list[bytes] = []
    responder.take(data, said.append)
    responder.work(0)
    opened = sealed.open_sealed(said[0], lambda site: responder.key.public_key())
    if opened.kind is not Kind.REFUSAL:
        return opened.kind.name.lower()
    refusal: Mapping[str, str] = json.loads(opened.payload)
    return f"refused {refusal['code']}: {refusal['reason']}"


def decoded(data: bytes) -> str:
    """What decoding it alone comes to."""
    try:
        plan = messages.decode_plan(data, max_bytes=2**31 - 1)
    except RejectedUpdate as e:
        return f"refused {e.code}: {e}"
    return f"decoded {[list(x.shape) for x in plan.tensors.values()]}"


def main() -> None:
    """Deliver one such plan and print what it cost."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--entries", type=int, default=2**24)
    p.add_argument("--codec", default="topk:1|bf16")
    p.add_argument("--bare", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    responder, run = joined()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        payload = pool.apply(plan_of, (run, a.entries, a.codec))
    sent = payload if a.bare else letter(Kind.TRAIN, run, payload)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    outcome = decoded(sent) if a.bare else answered(responder, sent)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = {
        "sent_bytes": len(sent),
        "codec": a.codec,
        "rss_before_mib": before // 1024,
        "peak_mib": after // 1024,
        "amplification": round((after - before) * 1024 / len(sent)),
        "cpu_s": round(time.process_time() - began, 2),
        "outcome": outcome,
    }
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
