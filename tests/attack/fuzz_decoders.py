"""Fuzz every decoder that a peer reaches, so many inputs: what comes out is a value or the refusal that is promised.

    PYTHONPATH=.:tests/support nice -n 19 python tests/attack/fuzz_decoders.py --count 1000000 [--seed 1] [--json F]

    update plan job        messages in each codec, a job under a site's policy   a value, RejectedUpdate, PlanRefused
    rewritten relabelled   the same for a peer of the version before, or another attempt       bytes, RejectedUpdate
    sealed report          seals; what sites say of themselves                       a value, RejectedUpdate
    stream                 frames: the reader, a session that takes messages, HELLO       frames, Malformed
    card roster            a site's card, a server's roster                          a value, ConfigError
    certificate            of a site, in its handshake                               a key, None
    masks                  messages of secure sums, of both sides           a value, PlanRefused, RejectedUpdate

Mutations are those of `fuzz_codecs.py`; frames and texts have their own seeds. Reported, as one line of JSON: inputs,
seconds, outcomes by code, the slowest input, peak and growth of memory, and what broke a promise.
"""

import argparse
import json
import logging
import os
import random
import resource
import ssl
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import secure_messages
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fuzz_codecs import CODECS, KEY, SPEC, havoc, job_and_policy, rss, seed_input, structured
from next_version import spoken

from fedft.carriers.stream import frames, tls
from fedft.carriers.stream.frames import Kind, Malformed
from fedft.carriers.stream.room import Room
from fedft.carriers.stream.session import Session
from fedft.errors import ConfigError, Refusal
from fedft.security import roster, sealed, site_table
from fedft.security.private_keys import node_bytes
from fedft.server import site_reports
from fedft.wire import messages, versions

HERE = Path("peer.toml")


@dataclass(frozen=True)
class Target:
    """A decoder, good inputs for it, and how often it is tried."""

    decode: Callable[[bytes], Any]
    corpus: list[bytes]
    weight: int
    fields: bool = False
    """Whether its inputs are messages with a header and a table."""


@dataclass
class Told:
    """What became of the inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[dict[str, str]] = field(default_factory=list)
    slowest: tuple[float, str, int] = (0.0, "", 0)


def stream(data: bytes) -> None:
    """A connection of a peer who says these bytes, in two parts."""
    reader, taken = frames.Reader(), []
    session = Session(lambda: 0.0, Room(2**20), lambda number, size: "too many" if size > 2**16 else "",
                      lambda *message: taken.append(message), lambda number, why: None)  # fmt: skip
    session.connection = SimpleNamespace(say=lambda *frame: None, pump=lambda: None, heard=0.0, source=None)  # type: ignore[assignment]
    for number in (1, 2):
        session.send(number, "train", [bytes(40_000)])
    for part in (data[: len(data) // 2], data[len(data) // 2 :]):
        for kind, number, body in reader.feed(memoryview(part)):
            if kind is Kind.HELLO and len(body) == frames.HELLO.size:
                newest, _, _, oldest = frames.HELLO.unpack(body)
                versions.common(oldest, newest)
            elif kind is Kind.REFUSE:
                frames.versions_in(bytes(body).decode("ascii", "replace"))
            elif kind not in (Kind.HELLO, Kind.WELCOME, Kind.PING, Kind.PONG, Kind.BYE):
                session.hear(kind, number, body)


def on_a_connection(rng: random.Random) -> bytes:
    """What a peer may say on a connection."""
    number, out = rng.choice([1, 2, 7]), [frames.frame(Kind.HELLO, 0, frames.hello(rng.randbytes(16)))]
    for _ in range(rng.randint(1, 6)):
        size = rng.choice([0, 5, 100, 40_000])
        kind = rng.choice([*Kind, Kind.MESSAGE, Kind.MESSAGE])
        body = rng.randbytes(rng.randint(0, min(frames.MOST[kind], 64)))
        if kind is Kind.MESSAGE:
            inline = [rng.randbytes(size)] if size <= frames.INLINE_BYTES else []
            out.append(frames.announcement(number, rng.choice(["train", "job", ""]), size, *inline))
        elif kind is Kind.GRANT:
            out.append(frames.frame(kind, number, frames.OFFSET.pack(rng.choice([0, 1, 2**40]))))
        else:
            out.append(frames.frame(kind, number, body))
    return b"".join(out)


def texts(rng: random.Random, sites: int) -> bytes:
    """A card, or a roster of so many sites."""
    cards = []
    for n in range(sites):
        signing = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)).public_key()
        node = ec.derive_private_key(rng.getrandbits(380) + 1, ec.SECP384R1()).public_key()
        cards.append(site_table.card_text(f"clinic-{n}", signing, node_bytes(node)))
    return "\n".join(cards).encode()


def text(data: bytes) -> str:
    """As a file is read that is no UTF-8: refused before it is parsed."""
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise ConfigError("no UTF-8") from e


def rewritten(data: bytes) -> bytes:
    """A message for a peer of another version, where there is one."""
    with spoken(2, 3):
        return messages.in_version(data, 3)


def targets(rng: random.Random) -> dict[str, Target]:
    """All of them, by name."""
    found: dict[str, Target] = {}
    for codec in CODECS:
        corpus = {kind: [seed_input(kind, codec, rng) for _ in range(12)] for kind in ("update", "plan", "job")}
        found[f"update {codec}"] = Target(
            lambda d, c=codec: messages.decode_update(d, SPEC, c), corpus["update"], 6, True
        )  # type: ignore[misc]
        found[f"plan {codec}"] = Target(lambda d: messages.decode_plan(d, max_bytes=2**31 - 1), corpus["plan"], 5, True)
    mixed = [data for kind in corpus for data in corpus[kind]]
    found["job"] = Target(job_and_policy, corpus["job"], 20, True)
    found["rewritten"] = Target(rewritten, mixed, 20, True)
    found["relabelled"] = Target(lambda d: messages.relabelled(d, round=1, attempt=2), corpus["update"], 10, True)
    about = sealed.About("0" * 16, 1, 1, "north", bytes(32))
    seals = [sealed.seal(kind, about, rng.randbytes(40), KEY) for kind in sealed.Kind for _ in range(4)]
    found["sealed"] = Target(lambda d: sealed.open_sealed(d, lambda site: KEY.public_key()), seals, 40)
    said = [b'{"doing": "training", "step": 3, "steps": 9}', b'{"code": "policy_rank", "reason": "rank 99"}']
    found["report"] = Target(lambda d: (site_reports.progress(d), site_reports.refusal(d)), said, 20)
    found["stream"] = Target(stream, [on_a_connection(rng) for _ in range(200)], 60)
    found["card"] = Target(lambda d: site_table.site_of_card(text(d), HERE), [texts(rng, 1) for _ in range(9)], 15)
    found["roster"] = Target(lambda d: roster._roster(text(d), HERE), [texts(rng, 3) for _ in range(9)], 10)
    key = ec.derive_private_key(7, ec.SECP384R1())
    pem = tls._certificate(key.public_key())
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    found["certificate"] = Target(tls.key_of, [der], 15)
    found["masks"] = Target(secure_messages.read, [said for _, said in secure_messages.readers().values()], 30)
    return found


def mutated(rng: random.Random, target: Target) -> bytes:
    """A good input, spoilt."""
    data = rng.choice(target.corpus)
    if target.fields and rng.random() < 0.6:
        with suppress(ValueError, KeyError, TypeError, OverflowError, struct.error):
            return structured(data, rng, target.corpus)
    return havoc(data, rng, target.corpus)


def tried(name: str, target: Target, data: bytes, told: Told) -> None:
    """Decode one input and note what came of it."""
    started = time.process_time()
    try:
        target.decode(data)
        code = "ok"
    except Refusal as e:
        code = e.code
    except Malformed:
        code = "malformed"
    except ConfigError:
        code = "config"
    except Exception as e:
        code = f"!!{type(e).__name__}"
        if len(told.bad) < 20:
            told.bad.append({"target": name, "error": traceback.format_exc()[-900:], "hex": data.hex()[:20000]})
    told.outcomes[f"{name.split()[0]}/{code}"] += 1
    spent = time.process_time() - started
    if spent > told.slowest[0]:
        told.slowest = (round(spent, 4), name, len(data))


def main() -> None:
    """So many inputs, and what became of them."""
    a = argparse.ArgumentParser()
    a.add_argument("--count", type=int, default=1000)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--json", default="")
    args = a.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    rng = random.Random(args.seed)
    found = targets(rng)
    names, weights = list(found), [t.weight for t in found.values()]
    told = Told()
    for name, target in found.items():  # warm up, and what is good is good
        for data in target.corpus[:3]:
            tried(name, target, data, told)
    told.outcomes.clear()
    base, started, cpu = rss(), time.monotonic(), time.process_time()
    for name in rng.choices(names, weights, k=args.count):
        tried(name, found[name], mutated(rng, found[name]), told)
    spent = time.process_time() - cpu
    out = {
        "seed": args.seed,
        "inputs": args.count,
        "wall_s": round(time.monotonic() - started, 1),
        "cpu_s": round(spent, 1),
        "outcomes": dict(sorted(told.outcomes.items())),
        "slowest_cpu_s_target_bytes": told.slowest,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "rss_before_mib": round(base / 2**20),
        "rss_growth_mib": round((rss() - base) / 2**20, 1),
        "bad": told.bad,
    }
    sys.stdout.write(json.dumps({k: v for k, v in out.items() if k != "bad"}) + f"\nUNCAUGHT {len(told.bad)}\n")
    for b in told.bad:
        sys.stdout.write(f"{b['target']} {b['error']}\n")
    if args.json:
        Path(args.json).write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
