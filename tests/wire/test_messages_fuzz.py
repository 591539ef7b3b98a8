"""10,000 broken messages, one invariant: what comes out is a value that fits, or `RejectedUpdate`.

Each case is made from its own seed; a failure prints codec, kind of message, case and bytes, and
`replay("update", "int8", 1234)` makes that case again.
"""

import json
import math
import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedft.arithmetic.norms import BLOCK
from fedft.errors import RejectedUpdate
from fedft.update import Job, Plan, TensorSpec, Update
from fedft.wire import messages, versions

SEED = 20240611
UPDATES_PER_CODEC, PLANS, JOBS = 2000, 1500, 500
OTHERS = 500  # updates, plans and tensors of each codec that is not plain
OTHER_CODECS = (
    "int4",
    "ternary",
    "fixed:12:8192",
    "topk:0.4|fp32",
    "topk:0.5|fp16",
    "topk:1|bf16",
    "topk:0.3|int8",
    "topk:0.6|int4",
    "ternary:0.5",
    "randk:0.5|fp32",
    "randk:0.4|int4",
)
PREFIX = struct.Struct("<4sHBHI")
SPEC = {
    "m.lora_A": TensorSpec((2, 5)),
    "m.lora_B": TensorSpec((4, 2)),
    "index": TensorSpec((6,), "uint16", at_most=True),
    "scalar": TensorSpec((6,), at_most=True),
    "step": TensorSpec((2,), "int32"),
}
CODES = {"too_large", "bad_magic", "version", "malformed", "spec_mismatch", "nonfinite", "out_of_bounds", "weight"}
EDGE = [0, 1, 12, 13, 14, 127, 128, 255, 256, 4096, 4097, 65535, 2**31 - 1, 2**31, 2**32 - 1]
WORDS = ["", "r", "n", "m", "fp32", "int8", "fp64", "m.lora_A", "index", "../x", "\x00", "ß", "\U0001f600", "a" * 300]
LITERALS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0",
    "9" * 30,
    str(2**53),
    "1.5",
    "null",
    "true",
    '"\\ud800"',
    "[]",
]


def tensors(rng: random.Random) -> dict[str, torch.Tensor]:
    n = rng.randint(0, 6)
    g = torch.Generator().manual_seed(rng.getrandbits(32))
    return {
        "m.lora_A": torch.randn(2, 5, generator=g),
        "m.lora_B": torch.randn(4, 2, generator=g) * 1e-3,
        "index": torch.randint(0, 65536, (n,), generator=g).to(torch.uint16),
        "scalar": torch.randn(n, generator=g) * 100,
        "step": torch.randint(-9, 9, (2,), generator=g, dtype=torch.int32),
    }


def valid(kind: str, name: str, rng: random.Random) -> bytes:
    run = f"{rng.getrandbits(64):016x}"
    if kind == "job":
        tables = [{"name": "fedavg", "x": [1, {"y": 0.5}]}, {"steps": rng.randint(1, 9)}, {"task": "ß"}]
        return messages.encode_job(
            Job(
                run,
                rng.getrandbits(40),
                "d" * 64,
                {"strategy": tables[0], "local": tables[1], "model": tables[2], "codec": {"up": name}},
            )
        )
    if kind == "plan":
        extra = {"K": 4096, "clip": rng.random(), "mode": "seeds"}
        plan = Plan(run, rng.randint(0, 99), 3, have=2, rank=2, steps=9, learning_rate=0.1, extra=extra)
        return messages.encode_plan(Plan(**{**vars(plan), "tensors": tensors(rng)}), name)
    metrics = {"loss": rng.random(), "steps": rng.randint(1, 99)}
    return messages.encode_update(
        Update(tensors(rng), rng.randint(1, 99), rng.randint(0, 9), run, metrics=metrics), name
    )


# Mutations: bytes -> bytes


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    piece = rng.choice([rng.randbytes(rng.randint(1, 9)), data[at : at + 9], b"[" * 2000, bytes(4096)])
    return data[:at] + piece + data[at:]


def change_frame(data: bytes, rng: random.Random) -> bytes:
    fields = list(PREFIX.unpack_from(data))
    i = rng.randrange(1, 5)
    value = rng.choice([rng.choice(EDGE), fields[i] + rng.choice([-1, 1])])
    fields[i] = value % (1 << (16, 8, 16, 32)[i - 1])
    return PREFIX.pack(*fields) + data[13:]


def change_numbers(data: bytes, rng: random.Random) -> bytes:
    """Overwrite bytes near the end, where the tensors are, with special floats and integers."""
    piece = rng.choice([struct.pack("<f", rng.choice([math.nan, math.inf, -3e38, 1e-45])), b"\x80" * 4, b"\xff" * 4])
    at = max(13, len(data) - rng.randint(1, 120))
    return data[:at] + piece[: len(data) - at] + data[at + 4 :]


def change_text(data: bytes, rng: random.Random) -> bytes:
    """JSON-level text: one number, name or bracket becomes a literal; keys twice; deep nests."""
    head, table, body = split(data)
    for _ in range(rng.choice([1, 1, 2])):
        text = rng.choice([head, table])
        at = rng.randrange(len(text) + 1)
        end = at + rng.choice([0, 1, 1, 2, 5])
        depth = rng.choice([3, 30, 600])
        piece = rng.choice(
            [*LITERALS, "[" * depth, "[" * depth + "]" * depth, '{"a":' * depth, ",", '"', text[at:end] * 2]
        )
        changed = text[:at] + piece + text[end:]
        head, table = (changed, table) if text is head else (head, changed)
    return join(head, table, body)


def change_value(data: bytes, rng: random.Random) -> bytes:
    """JSON-level values: some value of the header or table becomes another one, or goes, or comes twice."""
    head, table, body = split(data)
    values = [json.loads(head), json.loads(table)]
    for _ in range(rng.choice([1, 1, 3])):
        change_inside(rng.choice(values), rng)
    out = [json.dumps(v, separators=(",", ":"), ensure_ascii=rng.random() < 0.5) for v in values]
    if rng.random() < 0.1 and len(values[0]) > 0:
        key, value = rng.choice(list(values[0].items()))
        out[0] = out[0][:-1] + f",{json.dumps(key)}:{json.dumps(value)}}}"
    return join(*out, body)


def change_inside(value: Any, rng: random.Random) -> None:
    items: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(items) if items else None
    if key is not None and isinstance(value[key], dict | list) and rng.random() < 0.7:
        return change_inside(value[key], rng)
    new = rng.choice(
        [None, True, -1, 0, 1, 2, 1.5, 2**52, 2**53, 10**40, -(2**53), [], {}, [[]], {"a": {"b": []}}, *WORDS]
    )
    action = rng.randrange(4)
    if action == 0 and key is not None:
        del value[key]
    elif action == 1 and isinstance(value, list):
        value.insert(rng.randint(0, len(value)), rng.choice([new, *value]))
    elif action == 1:
        value[rng.choice(WORDS)] = new
    elif key is not None:
        value[key] = new


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    one, two = split(data), split(other)
    if rng.random() < 0.6:
        return join(*(rng.choice(pair) for pair in zip(one, two, strict=True)))
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def split(data: bytes) -> tuple[str, str, bytes]:
    *_, head, table = PREFIX.unpack_from(data)
    return data[13 : 13 + head].decode(), data[13 + head : 13 + head + table].decode(), data[13 + head + table :]


def join(head: Any, table: Any, body: Any) -> bytes:
    h, t = head.encode("utf-8", "surrogatepass"), table.encode("utf-8", "surrogatepass")
    return PREFIX.pack(b"FDFT", versions.newest(), 2, len(h) % 65536, len(t)) + h + t + body


MUTATIONS = [
    flip_bits,
    truncate,
    insert,
    change_frame,
    change_numbers,
    change_text,
    change_text,
    change_value,
    change_value,
]
KINDS = {"plan": 1, "update": 2, "job": 3}


def replay(kind: str, name: str, case: int) -> bytes:
    """The bytes of one case."""
    rng = random.Random(f"{SEED} {kind} {name} {case}")
    data = valid(kind, name, rng)
    if rng.random() < 0.15:
        other = valid(*rng.choice([(kind, name), (kind, "int8"), ("plan", name), ("update", "fp32")]), rng)
        data = splice(data, other, rng)
    else:
        data = rng.choice(MUTATIONS)(data, rng)
    if len(data) > 6 and rng.random() < 0.9:  # most cases reach the parser of their kind
        data = data[:6] + bytes([KINDS[kind]]) + data[7:]
    return data


# The invariant


def fits(update: Update) -> bool:
    ok = update.delta.keys() == SPEC.keys() and type(update.num_examples) is int and update.num_examples >= 1
    ok = ok and update.client == "" and all(math.isfinite(v) for v in update.metrics.values())
    for name, t in update.delta.items():
        want = SPEC[name]
        ok = ok and str(t.dtype) == f"torch.{want.dtype}" and len(t.shape) == len(want.shape) and t.is_contiguous()
        ok = ok and (t.shape[0] <= want.shape[0] if want.at_most else tuple(t.shape) == want.shape)
    return ok and numbers_fit(update.delta.values())


def numbers_fit(values: Any) -> bool:
    return all(bool((t.abs() <= 1e4).all()) for t in values if t.is_floating_point())


def plan_fits(plan: Plan) -> bool:
    messages.encode_plan(plan, "fp32")  # whatever was accepted can be said again: every field has its right type
    return numbers_fit(plan.tensors.values())


def job_fits(job: Job) -> bool:
    return messages.decode_job(messages.encode_job(job)) == job


def outcome_of(data: bytes, decode: Callable[[bytes], Any], good: Callable[[Any], bool]) -> str:
    refused: RejectedUpdate | None = None
    try:
        value = decode(data)
    except RejectedUpdate as e:
        refused = e
    if refused is None:
        assert good(value)
        return "accepted"
    assert refused.code in CODES
    assert str(refused).isprintable()
    return refused.code


def attack(
    kind: str, name: str, cases: int, decode: Callable[[bytes], Any], good: Callable[[Any], bool]
) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for case in range(cases):
        data = replay(kind, name, case)
        try:
            outcome = outcome_of(data, decode, good)
        except BaseException:
            print(f"\nreplay({kind!r}, {name!r}, {case}) with seed {SEED}: {data.hex()}")  # noqa: T201
            raise
        outcomes[outcome] += 1
    return outcomes


@pytest.mark.parametrize("name", [*messages.CODECS, *OTHER_CODECS])
def test_whatever_the_bytes_an_update_that_fits_or_a_refusal(name, caplog):
    caplog.set_level("CRITICAL")
    cases = UPDATES_PER_CODEC if name in messages.CODECS else OTHERS
    outcomes = attack("update", name, cases, lambda data: messages.decode_update(data, SPEC, name), fits)
    # the mutations must reach every check, or they prove little (a mutant of this size is never too large)
    assert outcomes.keys() >= {"accepted", "bad_magic", "version", "malformed", "spec_mismatch", "weight"} | nan_met(
        name
    )


@pytest.mark.parametrize("name", ["fp32", "int4", "topk:0.5|int8", "ternary:0.5"])
def test_whatever_the_bytes_a_plan_or_a_refusal(name):
    cases = PLANS if name in messages.CODECS else OTHERS
    outcomes = attack("plan", name, cases, lambda data: messages.decode_plan(data, max_bytes=2000), plan_fits)
    assert outcomes.keys() >= {"accepted", "bad_magic", "version", "malformed", "too_large"} | nan_met(name)


def nan_met(name: str) -> set[str]:
    """Changed bytes become NaN often where they are floats; elsewhere one byte in a tensor says it."""
    return {"nonfinite"} if name in messages.CODECS else set()


def test_whatever_the_bytes_a_job_or_a_refusal():
    outcomes = attack("job", "fp32", JOBS, messages.decode_job, job_fits)
    assert outcomes.keys() >= {"accepted", "bad_magic", "version", "malformed"}


@pytest.mark.parametrize("name", ["int4", "topk:0.4|int8", "ternary:0.5", "randk:0.4|int4"])
def test_whatever_stands_in_a_tensor_s_bytes_an_update_that_fits_or_a_refusal(name):
    """Changes inside one tensor's bytes, its length left right: they get past the frame, to the coders."""
    spec = {"m.lora_A": TensorSpec((8, 40)), "n": TensorSpec((600,)), "index": TensorSpec((40,), "uint16")}
    outcomes: Counter[str] = Counter()
    for case in range(OTHERS):
        rng = random.Random(f"{SEED} {name} {case}")
        g = torch.Generator().manual_seed(case)
        index = torch.randperm(65536, generator=g)[:40].sort().values.to(torch.uint16)
        delta = {"m.lora_A": torch.randn(8, 40, generator=g), "n": torch.randn(600, generator=g) ** 3, "index": index}
        head, table, body = split(messages.encode_update(Update(delta, 1), name, seed=case))
        out = bytearray(body)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.randrange(min(24, len(out)))
            out[at] = rng.choice([out[at] ^ 1 << rng.randrange(8), 0, 255, 127, 1, 2, 3, 16, 17, 18])
        try:
            update = messages.decode_update(join(head, table, bytes(out)), spec, name)
        except RejectedUpdate as e:
            outcomes[e.code] += 1
            continue
        outcomes["accepted"] += 1
        assert all(update.delta[n].shape == t.shape for n, t in spec.items())
        assert numbers_fit(update.delta.values())
    assert outcomes.keys() >= {"accepted", "malformed"}


@pytest.mark.parametrize("name", ["int4", "topk:0.4|int8", "ternary:0.5", "topk:0.1|fp32"])
def test_a_short_message_does_not_get_much_memory(name):
    """A plan says its own shapes: 256 entries need a byte, and that is checked before they are allocated."""
    data = messages.encode_plan(Plan("0" * 16, 0, 0, tensors={"w": torch.zeros(8, 128)}), name)
    head, table, body = split(data)
    for shape in ('[0,"w",8,128]', '[0,"w",32768,32768]', '[0,"w",1000000,1000000]'):
        changed = join(head, table.replace('[0,"w",8,128]', shape), body)
        changed = changed[:6] + b"\1" + changed[7:]
        tracemalloc.start()
        try:
            if "8,128" in shape:
                assert not messages.decode_plan(changed, max_bytes=2000).tensors["w"].any()
            else:
                with pytest.raises(RejectedUpdate, match="entries"):
                    messages.decode_plan(changed, max_bytes=2000)
            assert tracemalloc.get_traced_memory()[1] < 200_000
        finally:
            tracemalloc.stop()


def test_numbers_in_a_message_do_not_decide_how_much_is_allocated(monkeypatch, caplog):
    """Tensors are no larger than the message's own bytes; everything else stays within a few kilobytes of JSON."""
    caplog.set_level("CRITICAL")
    asked: list[int] = []
    empty = torch.empty

    def counting(size: Any, *, dtype: torch.dtype) -> torch.Tensor:
        out = empty(size, dtype=dtype)
        if dtype != torch.float64:  # the room in which squares are added up: 2 MiB at most, and no number's
            asked.append(out.numel() * out.element_size())
        else:
            assert out.numel() <= BLOCK
        return out

    monkeypatch.setattr(torch, "empty", counting)
    cases = [(kind, case, replay(kind, "int8", case)) for kind in ("update", "plan") for case in range(400)]
    tracemalloc.start()
    try:
        for kind, case, data in cases:
            asked.clear()
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            try:
                if kind == "update":
                    messages.decode_update(data, SPEC, "int8")
                else:
                    messages.decode_plan(data, max_bytes=1 << 30)
            except RejectedUpdate:
                pass
            _, peak = tracemalloc.get_traced_memory()
            assert sum(asked) <= len(data), (kind, case)
            assert peak - before < 60 * len(data) + 300_000, (kind, case)
    finally:
        tracemalloc.stop()
