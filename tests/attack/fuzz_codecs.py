"""Fuzz every decoder that reads bytes of a peer: one process, own mutator, counts inputs/s, unknown exceptions, memory.

    python tests/attack/fuzz_codecs.py --minutes 5 --seed 1 [--codecs int8,topk:0.1|int4] [--json out.json]

Targets: decode_update, decode_plan, decode_job and the site's policy on it, open_sealed.
Invariant: a value or RejectedUpdate / PlanRefused. Reported: rate, outcome per target, slowest input, largest growth of
resident memory by one input beside the bytes it had, and every input that broke the invariant (hex, first 20).
Mutations: havoc on bytes (flip, set, arithmetic, splice, insert, delete, repeat, truncate), and structure: JSON values,
frame numbers, varints, table rows whose shapes lie, codec names swapped between messages.
"""

import argparse
import json
import logging
import os
import random
import resource
import struct
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft.client import allowed_jobs
from fedft.client.site_settings import Policy
from fedft.errors import PlanRefused, RejectedUpdate
from fedft.security import sealed
from fedft.update import Job, Plan, TensorSpec, Update
from fedft.wire import frame, messages

CODECS = (
    "fp32",
    "fp16",
    "bf16",
    "int8",
    "int4",
    "ternary",
    "fixed:12:8192",
    "fixed:24",
    "topk:0.4|fp32",
    "topk:0.5|fp16",
    "topk:1|bf16",
    "topk:0.3|int8",
    "topk:0.6|int4",
    "ternary:0.5",
    "randk:0.5|fp32",
    "randk:0.4|int4",
)
SPEC = {
    "m.lora_A": TensorSpec((4, 50)),
    "m.lora_B": TensorSpec((60, 4)),
    "index": TensorSpec((40,), "uint16", at_most=True),
    "scalar": TensorSpec((40,), at_most=True),
    "step": TensorSpec((2,), "int32"),
}
FRAME = frame.FRAME
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
INTERESTING = [0, 1, 2, 7, 8, 16, 17, 18, 32, 63, 64, 127, 128, 192, 193, 254, 255]
BIG = [0, 1, 255, 256, 2**15, 2**16 - 1, 2**20, 2**20 + 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**53 - 1, 2**53, -1]
JUNK = [None, True, -1, 0, 1.5, 1e308, "", "x", "../../etc/passwd", "os:system", [], {}, [[]], 2**53 - 1, 2**31, "fp32"]


def tensors(rng):
    n = rng.randint(0, 40)
    g = torch.Generator().manual_seed(rng.getrandbits(32))
    return {
        "m.lora_A": torch.randn(4, 50, generator=g),
        "m.lora_B": torch.randn(60, 4, generator=g) * 1e-3 * (torch.rand(60, 4, generator=g) < 0.3),
        "index": torch.randperm(65536, generator=g)[:n].sort().values.to(torch.uint16),
        "scalar": torch.randn(n, generator=g) * 100,
        "step": torch.randint(-9, 9, (2,), generator=g, dtype=torch.int32),
    }


def seed_input(kind, name, rng):
    run = f"{rng.getrandbits(64):016x}"
    if kind == "job":
        tables = {
            "strategy": {"name": "fedit"},
            "local": {"steps": 2, "learning_rate": 1e-3},
            "model": {"task": "causal-lm"},
            "codec": {"up": name},
            "data": {"prompt": "{a}\n", "response": "{b}", "max_length": 64},
        }
        return messages.encode_job(Job(run, rng.getrandbits(40), "0" * 64, tables))
    if kind == "plan":
        return messages.encode_plan(
            Plan(run, 3, 3, have=2, rank=2, steps=9, learning_rate=0.1, extra={"K": 4096}, tensors=tensors(rng)),
            name,
            rng.getrandbits(30),
        )
    return messages.encode_update(
        Update(tensors(rng), 5, 1, run, metrics={"loss": rng.random()}), name, rng.getrandbits(30)
    )


def havoc(data, rng, corpus):
    out = bytearray(data)
    for _ in range(1 << rng.randrange(5)):
        if not out:
            out = bytearray(b"\0")
        op, at = rng.randrange(11), rng.randrange(len(out))
        if op == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif op == 1:
            out[at] = rng.choice(INTERESTING)
        elif op == 2:
            out[at] = (out[at] + rng.randint(-35, 35)) & 255
        elif op == 3:
            del out[at : at + rng.randint(1, 64)]
        elif op == 4:
            out[at:at] = rng.randbytes(rng.randint(1, 32))
        elif op == 5:
            other = rng.choice(corpus)
            b = rng.randrange(len(other))
            out[at : at + rng.randint(0, 80)] = other[b : b + rng.randint(1, 80)]
        elif op == 6:
            out[at:at] = out[at : at + rng.randint(1, 64)] * rng.choice([1, 2, 16])
        elif op == 7:
            v = rng.choice(BIG) & 0xFFFFFFFF
            out[at : at + 4] = struct.pack(rng.choice("<>") + "I", v)
        elif op == 8:
            out = out[:at] or out
        elif op == 9:
            out[at : at + 8] = struct.pack("<q", rng.choice(BIG) & (2**62 - 1))
        else:
            out[at:at] = bytes([rng.choice([0, 255, 128])]) * rng.choice([1, 8, 200, 5000])
    return bytes(out)


def split(data):
    m, p, k, h, t = FRAME.unpack_from(data)
    at = FRAME.size
    return data[at : at + h], data[at + h : at + h + t], data[at + h + t :], (m, p, k)


def structured(data, rng, corpus):
    head, table, body, (m, p, k) = split(data)
    values = [json.loads(head), json.loads(table)]
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        poke(rng.choice(values), rng)
    if rng.random() < 0.5:
        body = havoc(body or b"\0", rng, corpus)
    if rng.random() < 0.2:
        o = split(rng.choice(corpus))
        values[1] = json.loads(o[1]) if rng.random() < 0.5 else values[1]
        body = o[2]
    h, t = (json.dumps(v, separators=(",", ":")).encode() for v in values)
    return FRAME.pack(m, p, k, len(h) & 0xFFFF, len(t)) + h + t + body


def poke(v, rng, depth=0):
    if isinstance(v, dict) and v:
        key = rng.choice(list(v))
        if isinstance(v[key], dict | list) and v[key] and depth < 6 and rng.random() < 0.85:
            return poke(v[key], rng, depth + 1)
        v[rng.choice([key, "zz", "c", "t"]) if rng.random() < 0.2 else key] = rng.choice([*JUNK, *BIG, *CODECS])
        if rng.random() < 0.2:
            v.pop(key, None)
    elif isinstance(v, list) and v:
        i = rng.randrange(len(v))
        if isinstance(v[i], dict | list) and v[i] and depth < 6 and rng.random() < 0.85:
            return poke(v[i], rng, depth + 1)
        v[i] = (
            rng.choice([*JUNK, *BIG, *CODECS]) if not isinstance(v[i], int) or rng.random() < 0.3 else rng.choice(BIG)
        )
        if rng.random() < 0.15:
            v.insert(i, rng.choice([*JUNK, *BIG]))
    return None


POLICY = Policy(strategies=["fedit", "flora", "fedkseed", "ferret"])


def job_and_policy(data):
    allowed_jobs.check_job(messages.decode_job(data), POLICY)


def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--minutes", type=float, default=5)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--codecs", default=",".join(CODECS))
    a.add_argument("--json", default="")
    args = a.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    rng = random.Random(args.seed)
    names = args.codecs.split(",")
    targets = {
        "update": lambda d, n: messages.decode_update(d, SPEC, n),
        "plan": lambda d, n: messages.decode_plan(d, max_bytes=2**31 - 1),
        "job": lambda d, n: job_and_policy(d),
        "sealed": lambda d, n: sealed.open_sealed(d, lambda s: KEY.public_key()),
    }
    corpora = {}
    for kind in ("update", "plan", "job"):
        for n in names:
            corpora[kind, n] = [seed_input(kind, n, rng) for _ in range(30)]
    about = sealed.About("0" * 16, 1, 1, "north", bytes(32))
    corpora["sealed", ""] = [sealed.seal(kind, about, rng.randbytes(40), KEY) for kind in sealed.Kind for _ in range(4)]
    keys = list(corpora)
    weights = [(1 if k[0] == "job" else 6 if k[0] == "sealed" else 3) for k in keys]
    # warm up, then the memory that counts
    for key in keys:
        for d in corpora[key][:3]:
            with suppress(RejectedUpdate, PlanRefused):
                targets[key[0]](d, key[1])
    base, seen, slow, grown, bad = rss(), Counter(), (0.0, "", b""), (0, "", 0), []
    limit_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, count, cpu0 = time.monotonic(), 0, time.process_time()
    samples = []
    while time.monotonic() - started < args.minutes * 60:
        key = rng.choices(keys, weights)[0]
        corpus = corpora[key]
        data = rng.choice(corpus)
        try:
            data = (
                structured(data, rng, corpus) if key[0] != "sealed" and rng.random() < 0.6 else havoc(data, rng, corpus)
            )
        except (ValueError, struct.error, KeyError):
            data = havoc(data, rng, corpus)
        t = time.process_time()
        try:
            targets[key[0]](data, key[1])
            seen[key[0], "ok"] += 1
            if rng.random() < 0.02 and len(data) < 20000:
                corpus[rng.randrange(len(corpus))] = data  # what still decodes is a better seed
        except (RejectedUpdate, PlanRefused) as e:
            seen[key[0], e.code] += 1
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                raise
            seen[key[0], f"!!{type(e).__name__}"] += 1
            if len(bad) < 20:
                bad.append({"target": key, "error": traceback.format_exc()[-600:], "hex": data.hex()[:20000]})
        spent = time.process_time() - t
        if spent > slow[0]:
            slow = (spent, "/".join(key), data)
        count += 1
        if count % 64 == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if peak > limit_before:
                if peak - limit_before > grown[0]:
                    grown = (peak - limit_before, "/".join(key), len(data))
                limit_before = peak
        if count % 20000 == 0:
            samples.append((count, round((rss() - base) / 2**20, 1)))
    wall, cpu = time.monotonic() - started, time.process_time() - cpu0
    out = {
        "seed": args.seed,
        "inputs": count,
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "per_cpu_s": round(count / cpu),
        "per_wall_s": round(count / wall),
        "rss_growth_mib": round((rss() - base) / 2**20, 1),
        "rss_samples": samples[:: max(1, len(samples) // 10)],
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "largest_peak_step_kib": grown,
        "slowest_cpu_s": round(slow[0], 4),
        "slowest": slow[1],
        "slowest_hex": slow[2].hex()[:400],
        "slowest_bytes": len(slow[2]),
        "outcomes": {"/".join(k): v for k, v in sorted(seen.items())},
        "bad": bad,
    }
    said = [json.dumps({k: v for k, v in out.items() if k != "bad"}, indent=1), f"UNCAUGHT {len(bad)}"]
    sys.stdout.write("\n".join([*said, *(f"{b['target']} {b['error']}" for b in bad)]) + "\n")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(out, f, indent=1)


if __name__ == "__main__":
    main()
