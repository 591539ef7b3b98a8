"""Bad clients of every kind: each costs only itself, is refused by code, and the run ends as if it were silent."""

import json
import struct
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bad
import deployed
import numpy as np
import pytest
import torch
from bad import NOBODY, REFUSES, SEEDS, Bad, BadSite, Declared, answer, answered, first_row, header, numbers, sent, told
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deployed import SITES, Deployment, Site, key_of
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from virtual_clock import Clock

from fedft import strategies, testing
from fedft.carriers.interface import Refused
from fedft.cli import logs
from fedft.errors import RejectedUpdate
from fedft.security import sealed
from fedft.security.roster import Roster
from fedft.security.sealed import Kind, Opened
from fedft.server.audit import Audit
from fedft.update import Plan, Update
from fedft.wire import messages

TOY = testing.toy(strategies.make("flora", {}))
FOREIGN = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
EVERYTHING = (Kind.JOB, Kind.EVALUATE, Kind.STATUS, Kind.FETCH)


# -- the corpus: payloads --------------------------------------------------------------------------------------------


def payload(name: str, does: str, check: int, code: str, twist: bad.Twist, *also: str) -> Bad:
    return Bad(name, does, check, code, answered(twist), frozenset(also))


PAYLOADS = [
    payload("not_ours", "another format's magic", 5, "bad_magic", lambda f, plan: b"GGUF" + f.data()[4:]),
    payload("signed_nothing", "signs no bytes at all", 5, "bad_magic", lambda f, plan: b""),
    payload("newer", "a later protocol", 5, "version", lambda f, plan: replace(f, protocol=9)),
    payload("a_plan", "sends a plan back", 6, "malformed", lambda f, plan: replace(f, kind=1)),
    payload("cut_in_frame", "ends within the frame", 6, "malformed", lambda f, plan: f.data()[:10]),
    payload("cut", "lacks the last bytes", 6, "malformed", lambda f, plan: f.data()[:-3]),
    payload("appended", "has bytes behind the tensors", 6, "malformed", lambda f, plan: f.data() + b"x"),
    payload("long_header", "a header of 5,000 bytes", 6, "malformed", bad.raw_header(b"{}" + b" " * 5000)),
    payload("long_header_declared", "declares 65,535 bytes of header", 6, "malformed",
            bad.raw_header(b"{}", head=65535)),
    payload("key_twice", "says num_examples twice", 6, "malformed", bad.raw_header(b'{"n":1,"n":1000000}')),
    payload("unknown_key", "a header key that nobody knows", 6, "malformed", header(weight=7)),
    payload("integer_2_60", "num_examples of 2^60", 6, "malformed", header(n=2**60)),
    payload("integer_digits", "an integer of 4,000 digits", 6, "malformed",
            bad.raw_header(b'{"n":' + b"9" * 4000 + b"}")),
    payload("header_nan", "NaN in the header", 6, "malformed", bad.raw_header(b'{"n":1,"m":{"loss":NaN}}')),
    payload("header_infinity", "Infinity in the header", 6, "malformed", bad.raw_header(b'{"n":Infinity}')),
    payload("header_bomb", "4,000 brackets", 6, "malformed", bad.raw_header(b"[" * 4000)),
    payload("header_list", "a header that is no object", 6, "malformed", bad.raw_header(b"[1]")),
    payload("header_bytes", "a header that is no UTF-8", 6, "malformed", bad.raw_header(b"\xff\xfe{}")),
    payload("run_surrogate", "half a surrogate pair as the run", 6, "malformed",
            bad.raw_header(b'{"n":1,"r":"\\ud800"}')),
    payload("round_true", "a round that is true", 6, "malformed", header(t=True)),
    payload("metrics_list", "metrics that are no object", 6, "malformed", header(m=[1])),
    payload("long_table_declared", "declares 4 GiB of table", 7, "malformed", bad.raw_table(b"[]", index=2**32 - 1)),
    payload("long_table", "a table of 6,000 blanks more", 7, "malformed", bad.raw_table(b"[]" + b" " * 6000)),
    payload("table_bomb", "5,000 brackets", 7, "malformed", bad.raw_table(b"[" * 5000)),
    payload("table_object", "a table that is no list", 7, "malformed", bad.raw_table(b"{}")),
    payload("name_twice", "a tensor twice", 7, "malformed", lambda f, plan: replace(f, table=[f.table[0], *f.table])),
    payload("permuted", "tensors in another order", 7, "malformed", lambda f, plan: replace(f, table=f.table[::-1])),
    payload("odd_name", "a name with a line end", 7, "malformed", first_row(lambda r: ["a\nb", *r[1:]])),
    payload("negative", "a dimension of -1", 7, "malformed", first_row(lambda r: [*r[:2], -1, *r[3:]])),
    payload("dimension_true", "a dimension that is true", 7, "malformed", first_row(lambda r: [*r[:2], True, *r[3:]])),
    payload("dimension_2_60", "a dimension of 2^60", 7, "malformed", first_row(lambda r: [*r[:2], 2**60, *r[3:]])),
    payload("missing", "lacks a tensor", 8, "spec_mismatch", lambda f, plan: replace(f, table=f.table[1:])),
    payload("extra", "has one more", 8, "spec_mismatch",
            lambda f, plan: replace(f, table=[*f.table, ["~", "fp32", 1]])),
    payload("renamed", "calls one otherwise", 8, "spec_mismatch", first_row(lambda r: ["!", *r[1:]])),
    payload("broadcast", "a tensor that would broadcast", 8, "spec_mismatch",
            first_row(lambda r: [*r[:2], *[1] * len(r[2:]), 1])),
    payload("scalar", "a tensor without dimensions", 8, "spec_mismatch", first_row(lambda r: r[:2])),
    payload("three_dimensions", "one dimension more", 8, "spec_mismatch", first_row(lambda r: [*r[:2], 1, 1, 1])),
    payload("no_entries", "a tensor of no entries", 8, "spec_mismatch", first_row(lambda r: [*r[:2], 0, 2**19])),
    payload("2_90_entries", "a tensor of 2^90 entries", 8, "spec_mismatch",
            first_row(lambda r: [*r[:2], 2**45, 2**45])),
    payload("other_codec", "half precision", 8, "spec_mismatch", first_row(lambda r: [r[0], "fp16", *r[2:]])),
    payload("other_type", "a type that nobody knows", 8, "spec_mismatch", first_row(lambda r: [r[0], "fp64", *r[2:]])),
    payload("evaluation", "an evaluation's answer to training", 8, "spec_mismatch",
            lambda f, plan: replace(f, table=[], body=b"", header={**f.header, "m": {"loss": 1.0}})),
    payload("other_run", "an update of another run", 9, "wrong_run", header(r="f" * 16)),
    payload("no_run", "an update of no run", 9, "wrong_run", header(r=...)),
    payload("early", "an update of the next round", 9, "wrong_round",
            lambda f, plan: header(t=plan.round + 1)(f, plan)),
    payload("late", "an update of the round before", 9, "late",
            lambda f, plan: header(**({"t": plan.round - 1} if plan.round else {"a": plan.attempt + 1}))(f, plan)),
    payload("other_attempt", "an update of another attempt", 9, "late",
            lambda f, plan: header(a=plan.attempt + 1)(f, plan)),
    payload("weight_0", "no examples", 13, "weight", header(n=0)),
    payload("weight_negative", "less than none", 13, "weight", header(n=-5)),
    payload("weight_true", "true examples", 13, "weight", header(n=True)),
    payload("weight_float", "one and a half examples", 13, "weight", header(n=1.5)),
    payload("weight_text", "examples in words", 13, "weight", header(n="7")),
    payload("weight_missing", "no word of examples", 13, "weight", header(n=...)),
    payload("weight_huge", "more examples than anybody may claim", 13, "weight", header(n=1_000_001)),
    payload("weight_enrolled", "more examples than it was enrolled with", 13, "weight", header(n=501)),
]  # fmt: skip

OF_FLOATS = [
    payload("too_large_for_it", "a byte more than its own limit, which the seal has room for", 5, "too_large",
            lambda f, plan: f.data().ljust(messages.max_update_bytes(TOY.recipe.spec(TOY.layout, plan), "fp32") + 1)),
    payload("transposed", "has a matrix the other way", 8, "spec_mismatch", first_row(lambda r: [*r[:2], *r[:1:-1]])),
    payload("nan", "NaN in every entry", 11, "nonfinite", numbers(lambda x: x * np.nan)),
    payload("one_infinity", "one infinite entry", 11, "nonfinite", numbers(lambda x: np.append(np.inf, x[1:]))),
    payload("out_of_bounds", "entries of 20,000", 11, "out_of_bounds", numbers(lambda x: np.full_like(x, 2e4))),
    payload("below_bounds", "one entry of -1e30", 11, "out_of_bounds", numbers(lambda x: np.append(x[1:], -1e30))),
    payload("norm", "100 times the usual change, once there is a usual one", 12, "norm",
            lambda f, plan: numbers(lambda x: np.clip(x * 1e3, -9e3, 9e3))(f, plan) if plan.round else None,
            "deadline"),
    payload("wrong_rank", "factors of one more rank", 8, "spec_mismatch",
            lambda f, plan: replace(f, table=[[n, t, *(d + (d == plan.rank) for d in s)] for n, t, *s in f.table])),
    payload("rank_unsaid", "factors of a rank that only the bytes have", 6, "malformed",
            lambda f, plan: replace(f, body=f.body * 2)),
]  # fmt: skip

OF_SEEDS = [
    payload(name, does, SEEDS, code, bad.delta(change))
    for name, does, code, change in (
        ("seed_k", "the seed number K", "seed_out_of_pool", lambda d: {"index": _last(d["index"], 64)}),
        ("seed_65535", "the largest seed number", "seed_out_of_pool", lambda d: {"index": _last(d["index"], 65535)}),
        ("seeds_fall", "seed numbers that fall", "seed_out_of_pool", lambda d: {"index": _falling(d["index"])}),
        ("seed_twice", "a seed number twice", "seed_out_of_pool",
         lambda d: {"index": _last(d["index"], d["index"][-2])}),
        ("too_many_steps", "counts of more steps than asked", "too_many_steps", lambda d: {"count": _more(d["count"])}),
        ("too_many_pairs", "more pairs than steps", "spec_mismatch",
         lambda d: {n: torch.cat([x, x, x]) for n, x in d.items() if n != "decay"}),
        ("uneven", "fewer scalars than seeds", "spec_mismatch", lambda d: {"scalar": d["scalar"][:-1]}),
        ("scalar_bound", "scalars no clipped step can reach", "scalar_bound",
         lambda d: {"scalar": d["scalar"] * 0 + 100}),
        ("scalar_nan", "a scalar that is no number", "nonfinite", lambda d: {"scalar": d["scalar"] * float("nan")}),
        ("magnitude_negative", "a history below zero", "scalar_bound", lambda d: {"magnitude": d["magnitude"] * 0 - 1}),
        ("magnitude_huge", "a history beyond the clip", "scalar_bound",
         lambda d: {"magnitude": d["magnitude"] * 0 + 9000}),
        ("decay_2", "weights that would grow", "out_of_bounds", lambda d: {"decay": _bits(2.0)}),
        ("decay_0", "weights that would vanish", "out_of_bounds", lambda d: {"decay": _bits(0.0)}),
        ("decay_nan", "a factor that is no number", "out_of_bounds", lambda d: {"decay": _bits(float("nan"))}),
        ("index_int32", "seed numbers of another type", "spec_mismatch", lambda d: {"index": d["index"].int()}),
    )
]  # fmt: skip


def _last(index: torch.Tensor, value: Any) -> torch.Tensor:
    return torch.tensor([*index.tolist()[:-1], int(value)], dtype=torch.uint16)


def _falling(index: torch.Tensor) -> torch.Tensor:
    return torch.tensor(index.tolist()[::-1], dtype=torch.uint16)


def _more(count: torch.Tensor) -> torch.Tensor:
    return (count.int() + 1).to(torch.uint16)


def _bits(x: float) -> torch.Tensor:
    return torch.tensor([x]).view(torch.int32)


# -- the corpus: what is around a payload ----------------------------------------------------------------------------


def seal_of(check: int, code: str, name: str, does: str, says: bad.Says, *also: str) -> Bad:
    return Bad(name, does, check, code, says, frozenset(also))


def _relayed(site: BadSite, opened: Opened, data: bytes) -> bytes | None:
    return site.overheard.get("anna")


def _as_anna(site: BadSite, opened: Opened, data: bytes) -> bytes:
    return answer(site, opened, site.good(data), site="anna")


def _foreign(site: BadSite, opened: Opened, data: bytes) -> bytes:
    return answer(site, opened, site.good(data), FOREIGN)


def _stale(site: BadSite, opened: Opened, data: bytes) -> Sequence[bytes]:
    """The good answer to the round before; to the first round, one of a round that never was."""
    if opened.kind is not Kind.TRAIN:
        return [] if opened.kind is Kind.STATUS else site.honest(data)
    before = site.kept.get(opened.about.round - 1) or answer(site, opened, b"", plan=bytes(32))
    site.kept[opened.about.round] = answer(site, opened, site.good(data))
    return [before]


def _replay(site: BadSite, opened: Opened, data: bytes) -> Sequence[bytes]:
    """An answer that was refused once, again and again."""
    if opened.kind not in (Kind.TRAIN, Kind.STATUS):
        return site.honest(data)
    return [site.kept.setdefault("first", answer(site, opened, b"refuse me"))]


def _twice(first: bool, second: bool) -> bad.Says:
    """Answers the question what it is doing, and then the plan: well or badly, hence unlike or alike."""

    def says(site: BadSite, opened: Opened, data: bytes) -> Sequence[bytes] | None:
        about = opened.about
        if opened.kind is Kind.TRAIN:
            if ("said", about.plan) not in site.kept:
                site.kept.setdefault(about.plan, site.good(data))
                return None  # until it is asked what it is doing
            return [answer(site, opened, site.kept[about.plan] if second else b"something else")]
        if opened.kind is Kind.STATUS and about.plan in site.kept:
            site.kept["said", about.plan] = True
            return [answer(site, opened, site.kept[about.plan] if first else b"rubbish")]
        return site.honest(data)

    return says


def _ready(then: bad.Says, size: int = 12) -> bad.Says:
    def says(site: BadSite, opened: Opened, data: bytes) -> Sequence[bad.Said] | None:
        if opened.kind is Kind.TRAIN:
            site.kept["good"] = site.good(data)
            return [told(Kind.PROGRESS, {"doing": "ready", "size": size})(site, opened, data)]
        return then(site, opened, data) if opened.kind in (Kind.FETCH, Kind.STATUS) else site.honest(data)

    return says


def _flip(at: int) -> bad.Says:
    return bad.sealed_again(lambda d: d[:at] + bytes([d[at] ^ 1]) + d[at + 1 :])


def _put(at: int, value: bytes) -> bad.Says:
    return bad.sealed_again(lambda d: d[:at] + value + d[at + len(value) :])


def _record(record: RecordDict | Refused) -> bad.Says:
    return sent(lambda site, opened, data: record, Kind.STATUS)


def _array(stype: str) -> RecordDict:
    return RecordDict({"payload": ArrayRecord({"payload": Array("uint8", (1,), stype, b"x")})})


def _words(kind: Kind, words: Any) -> bad.Says:
    return sent(told(kind, words), Kind.STATUS)


def _enrolling(payload: bytes, joins: bool = True) -> bad.Says:
    """A payload of its own to every job; good answers to all else, which for one who has not joined are refusals."""

    def says(site: BadSite, opened: Opened, data: bytes) -> Sequence[bytes]:
        said = site.honest(data) if joins or opened.kind is not Kind.JOB else []
        return [answer(site, opened, payload)] if opened.kind is Kind.JOB else said

    return says


def _update(**metrics: float) -> bytes:
    return messages.encode_update(Update({}, 1, run=testing.RUN, metrics=metrics), "fp32")


def _nothing(site: BadSite, opened: Opened, data: bytes) -> list[bytes]:
    return []


def _good(site: BadSite, opened: Opened, data: bytes) -> list[bytes]:
    return site.honest(data) if opened.kind is not Kind.FETCH else [answer(site, opened, site.kept["good"])]


SEALS = [
    seal_of(1, "too_large", "huge", "an answer of 1 TiB", sent(lambda *_: Declared(2**40))),
    seal_of(1, "too_large", "huge_progress", "a word of 1 GiB", sent(lambda *_: Declared(2**30), Kind.STATUS)),
    seal_of(1, "too_large", "huge_enrolment", "agrees in 2 GiB", lambda *_: [Declared(2**31)]),
    seal_of(2, "malformed", "no_payload", "a record of nothing", _record(RecordDict())),
    seal_of(2, "malformed", "pickled", "an array of numpy's own format", _record(_array("numpy.ndarray"))),
    seal_of(2, "bad_magic", "unsigned", "the payload without a seal", sent(lambda site, opened, data: site.good(data))),
    seal_of(2, "bad_magic", "empty", "no bytes", sent(lambda *_: b"")),
    seal_of(2, "malformed", "five_bytes", "the beginning of a seal", bad.sealed_again(lambda d: d[:5])),
    seal_of(2, "malformed", "half_a_seal", "less than a seal", bad.sealed_again(lambda d: d[:100])),
    seal_of(2, "version", "newer_seal", "a later seal", _put(4, struct.pack("<H", 2))),
    seal_of(2, "malformed", "kind_99", "a kind that nobody knows", _put(6, b"\x63")),
    seal_of(2, "malformed", "nameless", "a seal without a name", _put(7, b"\0")),
    seal_of(2, "malformed", "name_too_long", "a name beyond the end",
            bad.sealed_again(lambda d: d[:7] + b"\xff" + d[8:130])),
    seal_of(2, "malformed", "name_slash", "a name that is a path", _put(120, b"/")),
    seal_of(2, "malformed", "name_bytes", "a name that is no UTF-8", _put(120, b"\xff")),
    seal_of(3, "unknown_client", "stranger", "signs as nobody who is enrolled",
            sent(lambda site, opened, data: answer(site, opened, site.good(data), FOREIGN, site="zoe"))),
    seal_of(3, "revoked", "revoked", "signs with a key that no longer counts",
            sent(lambda site, opened, data: answer(site, opened, site.good(data)))),
    seal_of(4, "bad_signature", "foreign_key", "its own name, somebody else's key", sent(_foreign)),
    seal_of(4, "bad_signature", "as_anna", "another site's name, its own key", sent(_as_anna)),
    seal_of(4, "bad_signature", "relayed", "hands on what another site has signed", sent(_relayed)),
    seal_of(4, "bad_signature", "echo", "sends the server's own message back", sent(lambda site, opened, data: data)),
    seal_of(4, "bad_signature", "altered", "one bit of the payload", _flip(-1)),
    seal_of(4, "bad_signature", "altered_round", "one bit of the round", _flip(16)),
    seal_of(4, "bad_signature", "altered_signature", "one bit of the signature", _flip(60)),
    seal_of(4, "bad_signature", "appended_behind", "a byte behind what it signed",
            bad.sealed_again(lambda d: d + b"\0")),
    seal_of(4, "bad_signature", "cut_behind", "a byte less than it signed", bad.sealed_again(lambda d: d[:-1])),
    seal_of(4, "bad_signature", "no_signature", "64 zeros for a signature", _put(56, bytes(64))),
    seal_of(NOBODY, "late", "stale", "the answer to the round before, sealed", _stale, "deadline"),
    seal_of(NOBODY, "late", "sealed_other_plan", "an answer to a plan nobody made",
            sent(lambda site, opened, data: answer(site, opened, site.good(data), plan=bytes(32))), "deadline"),
    seal_of(NOBODY, "wrong_round", "sealed_ahead", "an answer to the next round, sealed so",
            sent(lambda site, opened, data: answer(site, opened, site.good(data), round=opened.about.round + 1)),
            "deadline"),
    seal_of(4, "wrong_run", "sealed_other_run", "an answer sealed for another run",
            sent(lambda site, opened, data: answer(site, opened, site.good(data), run="f" * 16))),
    seal_of(4, "malformed", "sealed_as_server", "signs a question instead of an answer",
            sent(lambda site, opened, data: sealed.seal(Kind.TRAIN, opened.about, b"", key_of(site.name)))),
    seal_of(NOBODY, "deadline", "replay", "what was refused once, for ever", _replay, "bad_magic", "late"),
    seal_of(10, "equivocation", "two_faced", "rubbish, then a good answer", _twice(False, True), "bad_magic"),
    seal_of(NOBODY, "deadline", "silent", "never says a word", _nothing),
    seal_of(NOBODY, "deadline", "crashed", "its process dies at every plan",
            _record(Refused("client_error", "exit code -9"))),
    seal_of(NOBODY, "deadline", "unsigned_refusal", "a refusal that nobody signed",
            _record(RecordDict({"refusal": ConfigRecord({"code": "no", "reason": "x" * 10**5})}))),
    seal_of(NOBODY, "deadline", "unknown", "has never heard of the plan", _words(Kind.PROGRESS, {"doing": "unknown"})),
    seal_of(NOBODY, "deadline", "working", "will be ready soon, for ever",
            _words(Kind.PROGRESS, {"doing": "training", "step": 1, "steps": 2, "left_s": 0.1})),
    seal_of(NOBODY, "deadline", "junk_progress", "words that are no JSON", _words(Kind.PROGRESS, b"\xff" * 5000)),
    seal_of(NOBODY, "deadline", "odd_progress", "numbers that are none",
            _words(Kind.PROGRESS, b'{"doing":"training","step":NaN,"left_s":' + b"9" * 4000 + b"}")),
    seal_of(NOBODY, "deadline", "loud_progress", "line ends and escape sequences",
            _words(Kind.PROGRESS, {"doing": "ok\n\x1b[2J\ud800", "step": -1})),
    seal_of(NOBODY, "deadline", "deep_progress", "2,000 brackets", _words(Kind.PROGRESS, b'{"doing":' + b"[" * 2000)),
    seal_of(NOBODY, "deadline", "ready_and_gone", "ready, and then never the answer", _ready(_nothing)),
    seal_of(NOBODY, "deadline", "ready_for_ever", "ready, whenever it is asked for the answer",
            _ready(lambda s, o, d: [told(Kind.PROGRESS, {"doing": "ready"})(s, o, d)])),
    seal_of(NOBODY, "deadline", "ready_unknown", "ready, but knows of nothing when asked",
            _ready(lambda s, o, d: [told(Kind.PROGRESS, {"doing": "unknown"})(s, o, d)])),
    seal_of(4, "bad_signature", "fetched_forged", "ready, then somebody else's key",
            _ready(lambda s, o, d: [answer(s, o, s.kept["good"], FOREIGN)])),
    seal_of(5, "bad_magic", "enrols_with_rubbish", "agrees to the job in no format of ours",
            _enrolling(b"yes", joins=False)),
    seal_of(5, "bad_magic", "fetched_rubbish", "ready, then rubbish",
            _ready(lambda s, o, d: [answer(s, o, b"rubbish")])),
    seal_of(NOBODY, "stale", "refuses_stale", "has always answered before",
            _words(Kind.REFUSAL, {"code": "stale", "reason": ""})),
    seal_of(NOBODY, "no", "refuses", "will not, in every round: its good right",
            _words(Kind.REFUSAL, {"code": "no", "reason": "y"})),
    *(seal_of(REFUSES, code, name, does, _words(Kind.REFUSAL, words)) for name, does, code, words in (
        ("refuses_behind", "always stands elsewhere", "behind", {"code": "behind", "reason": "0"}),
        ("refuses_behind_far", "stands at a version of 4,000 digits", "behind",
         {"code": "behind", "reason": "9" * 4000}),
        ("refuses_behind_none", "stands at no version at all", "behind", {"code": "behind", "reason": "None x"}),
        ("refuses_run", "is always in another run", "wrong_run", {"code": "wrong_run", "reason": ""}),
        ("refuses_as_server", "takes the server's own code", "malformed", {"code": "deadline", "reason": ""}),
        ("refuses_in_colour", "a code of escape sequences", "malformed", {"code": "\x1b[31m", "reason": "\n\n"}),
        ("refuses_bare", "a refusal without a code", "malformed", {}),
        ("refuses_junk", "a refusal that is no JSON", "malformed", b"[" * 4000),
        ("refuses_at_length", "60,000 characters of reason", "malformed", {"code": "no", "reason": "z" * 60_000}),
        ("refuses_oddly", "lists for words", "malformed", {"code": [[["no"]]], "reason": {"a": [1]}}),
    )),
]  # fmt: skip

STAY = [  # what they do beside a good update is dropped or told of; the update counts
    replace(payload(name, does, 14, "", lambda f, plan, m=m: header(m={**f.header["m"], **m})(f, plan)), counts=True)
    for name, does, m in (
        ("metrics_named", "metrics of odd names", {"A": 1, "a b": 2, "": 3, "x" * 65: 4, "\ud800": 5}),
        ("metrics_many", "a hundred metrics", {f"~{i}": i for i in range(100)}),
        ("metrics_odd", "metrics that are no numbers", {"a": "1", "b": [1], "c": True, "d": None}),
    )
] + [
    Bad("twice", "the same bytes twice", 10, "", _twice(True, True), counts=True),
    Bad("held_out_huge", "holds 1e300 rows out", 14, "", _enrolling(_update(held_out=1e300)), counts=True),
    Bad("held_out_negative", "holds -1 rows out", 14, "", _enrolling(_update(held_out=-1)), counts=True),
    Bad("ready_wrong_size", "says another size than it sends", 2, "", _ready(_good, 10**15), counts=True),
]
CONTRADICTS = Bad("contradicts", "a good answer, then another", 10, "equivocation", _twice(True, False), counts=True)

FLORA, FEDKSEED = [*PAYLOADS, *OF_FLOATS, *SEALS, *STAY], [*OF_SEEDS, *PAYLOADS[::5]]
OPTIONS = {"K": 64, "pro": True, "weight_decay": 0.1}


@pytest.fixture(autouse=True)
def _seeds_with_all_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deployed.OPTIONS, "fedkseed", OPTIONS)


class Met:
    """One run in which honest sites meet bad ones; `silent`: those that are not to count never say a word."""

    def __init__(
        self, folder: Path, kinds: Mapping[str, Bad], name: str = "flora", *, silent: bool = False, rounds: int = 5,
        quorum: float | None = None,
    ) -> None:  # fmt: skip
        names = [*SITES, *(k for k in kinds if k not in SITES)]
        sites: dict[str, Site] = {}
        clock = Clock()
        honest = len(set(SITES) - set(kinds)) + sum(b.counts for b in kinds.values())
        self.link = bad.Hostile(sites)
        caps = {site: 500 for site, b in kinds.items() if b.name == "weight_enrolled"}
        self.deployed = Deployment(
            folder, name, sites=sites, link=self.link, names=names, federation={"clock": clock, "caps": caps},
            post={"clock": clock}, rounds=rounds, quorum=quorum or honest / len(names),
        )  # fmt: skip
        run = self.deployed
        for i, site in enumerate(names):
            kind, place = kinds.get(site), (min(i, 2), folder / "sites" / str(i), run.config)
            if kind is None or (silent and kind.counts):
                sites[site] = Site(site, *place)
            else:
                sites[site] = BadSite(replace(kind, says=_nothing) if silent else kind, site, *place)
        sites["carl"].responder.inline_bytes = 0  # a long answer: it has to be asked for
        gone = {site for site, b in kinds.items() if b.code == "revoked"}
        members = run.post.roster.members
        run.post.roster = Roster({s: replace(m, revoked=s in gone) for s, m in members.items()})
        self.audit = folder / "audit.jsonl"
        audit = Audit(self.audit, lambda kind, info: run.events.append((kind, info)))
        audit.begin(run.job.run, -1)
        run.post.observe = run.federation.observe = audit
        self.digest = run.digest()

    def codes(self, site: str) -> set[str]:
        """All codes told of a site."""
        return {line["code"] for line in self.told(site) if line["event"] == "refused"}

    def told(self, site: str) -> list[dict[str, Any]]:
        """The audit's lines about a site."""
        lines = map(json.loads, self.audit.read_text().splitlines()) if self.audit.exists() else ()
        return [line for line in lines if line.get("site") == site and line["event"] == "refused"]

    def notes(self) -> dict[str, Any]:
        """What the server keeps beside its state."""
        found = self.deployed.store.latest()
        assert found is not None
        return found[1]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [pytest.param("flora", FLORA, marks=pytest.mark.slow), ("fedkseed", FEDKSEED)],
    ids=["flora", "fedkseed"],
)
def test_a_run_full_of_bad_sites_ends_as_if_they_were_silent(tmp_path: Path, name: str, kinds: list[Bad]) -> None:
    """Refused by name and code; those that certainly sent it are asked no more after three rounds, and only those."""
    crowd = {b.name: b for b in kinds}
    assert len(crowd) == len(kinds) >= (100 if name == "flora" else 20)
    met = Met(tmp_path / "a", crowd, name)
    counted = {*SITES, *(b.name for b in kinds if b.counts)}
    assert [line["version"] for line in met.deployed.metrics.lines] == list(range(6))
    assert all(set(line["participants"]) == counted for line in met.deployed.metrics.lines[1:])
    assert met.digest == Met(tmp_path / "b", crowd, name, silent=True).digest
    codes, wanted = ({site: f(site) for site in crowd} for f in (met.codes, lambda s: {crowd[s].code, *crowd[s].also}))
    assert {s: (codes[s], wanted[s]) for s in crowd if codes[s] != wanted[s] - {""}} == {}
    assert all(met.codes(site) == set() for site in SITES), "nobody can spoil another's name"
    assert set(met.notes()["barred"]) == {site for site, b in crowd.items() if b.blamed and b.code}
    for site, b in crowd.items():
        assert all(line["proven"] == b.blamed for line in met.told(site) if line["code"] == b.code and b.check)
    _told_in_few_words(met)
    ranks = [m.rank for m in met.deployed.federation.members.values()] if name == "flora" else (0,)
    largest = max(_longest(name, met, rank) for rank in ranks)
    assert max(met.link.limits) <= largest + sealed.OVERHEAD
    heard = {s.name: s.heard for s in met.link.sites.values() if isinstance(s, BadSite)}
    assert max(heard.values()) <= 5 * 60, "nobody can make the server talk without end"


def _longest(name: str, met: Met, rank: int) -> int:
    recipe = strategies.make(name, OPTIONS if name == "fedkseed" else {})
    plan = Plan(testing.RUN, 0, 0, rank=rank, steps=met.deployed.config.local.steps)
    return messages.max_update_bytes(recipe.spec(met.deployed.federation.layout, plan), "fp32")


def _told_in_few_words(met: Met) -> None:
    """All that was observed can be logged; the audit holds who, why, how large, and nothing of what was in it."""
    for kind, info in met.deployed.events:
        logs.say(kind, info)
        if kind == "progress":
            assert info["doing"].isprintable()
        if kind == "refused":
            assert len(info["code"]) <= 32
            assert len(info["reason"]) <= 600
    for text in met.audit.read_text().splitlines():
        line = json.loads(text)
        if line["event"] != "refused":
            assert line.keys() <= {"time", "round", "event", "before", "site", "run", "version"}
            continue
        assert line.keys() == {"time", "round", "event", "before", "site", "code", "size", "sha256", "proven"}
        assert line["site"] in met.link.sites
        assert line["size"] <= max(met.link.limits)


_ALONE: dict[tuple[str, bool], str] = {}


def _without(factory: pytest.TempPathFactory, name: str, honest: bool) -> str:
    """Digest of three sites' run in which bert is honest, or says nothing."""
    if (name, honest) not in _ALONE:
        silent = Bad("silent", "", NOBODY, "deadline", _nothing, counts=honest)
        met = Met(factory.mktemp("alone"), {"bert": silent}, name, silent=True, rounds=2)
        _ALONE[name, honest] = met.digest
    return _ALONE[name, honest]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(n, b, id=b.name) for n, kinds in (("flora", FLORA), ("fedkseed", OF_SEEDS)) for b in kinds],
)
def test_one_bad_site_costs_only_itself(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str, kind: Bad
) -> None:
    met = Met(tmp_path, {"bert": kind}, name, rounds=2)
    assert met.digest == _without(tmp_path_factory, name, kind.counts), kind.does
    assert {kind.code} - {""} <= met.codes("bert") <= {kind.code, *kind.also}
    assert {site for _, site in met.notes()["refusals"]} <= {"bert"}
    if not kind.also:
        assert bool(met.notes()["refusals"]) == (kind.blamed and bool(kind.code))


def test_who_contradicts_himself_counts_once_and_is_asked_no_more_after_three_rounds(tmp_path: Path) -> None:
    """The silent one holds the rounds open, so that the second answer comes while somebody listens."""
    silent = Bad("silent", "", NOBODY, "deadline", _nothing)
    met = Met(tmp_path, {"bert": CONTRADICTS, "zoe": silent}, quorum=0.5)
    assert met.codes("bert") == {"equivocation"}
    assert ["bert" in line["participants"] for line in met.deployed.metrics.lines[1:]] == [True] * 3 + [False] * 2
    assert met.notes()["barred"] == ["bert"]


@pytest.mark.parametrize(
    ("code", "make"),
    [
        pytest.param("bad_magic", lambda f: b"well", id="rubbish"),
        pytest.param("too_large", lambda f: b"x" * 9000, id="too large"),
        pytest.param("malformed", lambda f: replace(f, header={**f.header, "m": {}}), id="no loss"),
        pytest.param("malformed", lambda f: replace(f, header=b'{"n":1,"m":{"loss":NaN}}'), id="NaN"),
        pytest.param("late", lambda f: replace(f, header={**f.header, "t": 99}), id="another round"),
        pytest.param("malformed", lambda f: _measured(f, loss=1.7e308), id="largest loss"),
        pytest.param("malformed", lambda f: _measured(f, loss=-1.7e308, accuracy=1e300), id="least loss"),
        pytest.param("", lambda f: _measured(f, accuracy=1.7e308, rouge_l=-1.7e308), id="huge accuracy"),
    ],
)
def test_no_evaluation_can_stop_the_run_or_spoil_its_metrics(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, code: str, make: Any
) -> None:
    """Of two sites at once: sums of what each may say must not overflow either."""

    def says(site: BadSite, opened: Opened, data: bytes) -> Sequence[bytes]:
        if opened.kind is not Kind.EVALUATE:
            return site.honest(data)
        (said,) = site.honest(data)
        if (mine := site.read(said)).kind is Kind.REFUSAL:
            return [said]  # it stands elsewhere: the server saw no answer that it could believe
        made = make(bad.Frame.of(mine.payload))
        return [answer(site, opened, made if isinstance(made, bytes) else made.data())]

    kind = Bad("evaluates", "evaluates oddly", 14, code, says, counts=True)
    met = Met(tmp_path, {"bert": kind, "anna": kind}, rounds=2)
    assert met.digest == _without(tmp_path_factory, "flora", True)
    assert met.codes("bert") == met.codes("anna") == {code} - {""}
    assert met.codes("carl") == set()
    assert [line["version"] for line in met.deployed.metrics.lines] == [0, 1, 2]

    def refuse(literal: str) -> float:
        raise AssertionError(f"{literal} in metrics.jsonl")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert abs(json.loads(line, parse_constant=refuse)["loss"]) < 1e100


def _measured(f: bad.Frame, **metrics: float) -> bad.Frame:
    return replace(f, header={**f.header, "m": {**f.header["m"], **metrics}})


def test_nothing_is_allocated_for_what_a_message_only_declares() -> None:
    good, plan = TOY.update(TOY.state(), 0), TOY.plan(TOY.state(), 0)
    spec, frame = TOY.recipe.spec(TOY.layout, plan), bad.Frame.of(messages.encode_update(good, "fp32"))
    tracemalloc.start()
    try:
        for twist in (bad.raw_header(b"{}", head=65535), bad.raw_table(b"[]", index=2**32 - 1), _shape(2**45, 2**45),
                      _shape(0, 2**52), bad.raw_header(b"[" * 4000), bad.raw_table(b"[" * 5000)):  # fmt: skip
            made = twist(frame, plan)
            assert isinstance(made, bad.Frame)
            with pytest.raises(RejectedUpdate):
                messages.decode_update(made.data(), spec, "fp32")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def _shape(*shape: int) -> bad.Twist:
    return first_row(lambda r: [*r[:2], *shape])
