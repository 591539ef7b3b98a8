"""The codec: what goes in comes out within the promised error, and everything else is refused under its right code."""

import json
import logging
import math
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedft.errors import RejectedUpdate
from fedft.update import Job, Plan, TensorSpec, Update
from fedft.wire import messages

RUN = "0123456789abcdef"
BIG = 1 << 30
every_codec = pytest.mark.parametrize("name", messages.CODECS)
few = settings(derandomize=True, max_examples=60, deadline=None)

floats = st.floats(-9984, 9984, width=32) | st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 1e-30, 65504e-6, 1 / 3])
shapes = st.lists(st.integers(0, 5), max_size=2).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(st.lists(st.sampled_from(["w", "b", "m.0.lora_A", "m.0.lora_B", "m.10.lora_B", "M"]), unique=True))
    out = {}
    for name in names:
        shape = draw(shapes)
        n = math.prod(shape)
        exponent = draw(st.sampled_from([0, 0, -20, -80, -100, -120]))
        values = draw(st.lists(floats, min_size=n, max_size=n))
        out[name] = torch.tensor(values, dtype=torch.float32).reshape(shape) * 2.0**exponent
    if draw(st.booleans()):
        out["i"] = torch.tensor(draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4)), dtype=torch.int32)
        out["u"] = torch.tensor(draw(st.lists(st.integers(0, 65535), max_size=4)), dtype=torch.int32).to(torch.uint16)
    return out


def spec_of(delta: dict[str, Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in delta.items()}


def there_and_back(delta: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    data = messages.encode_update(Update(delta=delta, num_examples=1), name)
    return dict(messages.decode_update(data, spec_of(delta), name).delta)


def same(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and bool(torch.equal(x, y))


# What goes in comes out


@few
@given(tensors())
def test_fp32_and_integers_come_back_exactly(delta):
    got = there_and_back(delta, "fp32")
    assert got.keys() == delta.keys()
    for name, t in got.items():
        assert same(t, delta[name])
        assert t.is_contiguous()
        assert not t.requires_grad
    for name in messages.CODECS:
        again = there_and_back(delta, name)
        assert all(same(again[n], delta[n]) for n in ("i", "u") if n in delta)


@few
@given(tensors())
def test_the_lossy_codecs_keep_their_promised_errors(delta):
    exact = {n: t.double() for n, t in delta.items() if t.dtype == torch.float32 and t.numel()}
    for codec_name in ("fp16", "bf16", "int8"):
        got = there_and_back(delta, codec_name)
        for n, x in exact.items():
            if codec_name == "bf16":
                bound = 2.0**-8 * x.abs() + 2.0**-134  # its smallest step below 2^-126 is 2^-133
            elif codec_name == "fp16":
                bound = 2.0**-11 * x.abs() + 2.0**-40 * x.abs().max() + 2.0**-150
            else:
                if x.dim() == 2:
                    most = x.abs().amax(dim=0 if n.endswith("lora_B") else 1, keepdim=True)
                else:
                    most = x.abs().max()
                bound = 0.501 * most / 127 + 2.0**-100
                assert not got[n][x == 0].any()
            assert got[n].dtype == torch.float32
            assert ((got[n].double() - x).abs() <= bound).all()


@few
@given(tensors())
def test_what_was_decoded_encodes_to_the_same_bytes(delta):
    for name in messages.CODECS:
        first = messages.encode_update(Update(delta=delta, num_examples=1), name)
        got = messages.decode_update(first, spec_of(delta), name)
        assert messages.encode_update(got, name) == first


@few
@given(tensors())
def test_roundtrip_is_what_the_other_side_sees(delta):
    for name in messages.CODECS:
        seen, sent = messages.roundtrip(delta, name), there_and_back(delta, name)
        assert list(seen) == list(sent)
        assert all(same(seen[n], sent[n]) for n in seen)
        assert all(seen[n].data_ptr() != delta[n].data_ptr() for n in seen if delta[n].numel())


@few
@given(tensors(), st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_change_the_bytes(delta, random):
    names = list(delta)
    random.shuffle(names)
    shuffled = {n: delta[n] for n in names}
    for name in messages.CODECS:
        one, other = (messages.encode_update(Update(delta=d, num_examples=1), name) for d in (delta, shuffled))
        assert one == other


@few
@given(tensors())
def test_the_formula_of_bytes_is_what_is_measured(delta):
    for name in messages.CODECS:
        data = messages.encode_update(Update(delta=delta, num_examples=1), name)
        head, table = struct.unpack_from("<HI", data, 7)
        assert messages.body_bytes(spec_of(delta), name) == len(data) - 13 - head - table
        assert len(data) <= messages.max_update_bytes(spec_of(delta), name)


@every_codec
def test_arguments_are_not_changed_and_results_own_their_memory(name):
    whole = torch.randn(6, 8)
    view = whole.t()[::2]  # (4, 6), strided
    before = whole.clone()
    data = bytearray(messages.encode_update(Update(delta={"w": view}, num_examples=1), name))
    got = messages.decode_update(bytes(data), {"w": TensorSpec((4, 6))}, name).delta["w"]
    kept = got.clone()
    data[-8:] = bytes(8)
    assert torch.equal(whole, before)
    assert torch.equal(got, kept)
    got += 1  # writable


@every_codec
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (0, 0)])
def test_a_tensor_without_entries_takes_no_bytes(name, shape):
    for tensor in ("w", "w.lora_B"):
        assert there_and_back({tensor: torch.empty(shape)}, name)[tensor].shape == shape
        assert messages.body_bytes({tensor: TensorSpec(shape)}, name) == 0


@every_codec
def test_a_scalar_without_dimensions_comes_back(name):
    assert there_and_back({"s": torch.tensor(0.5)}, name)["s"].shape == ()


def test_int8_has_one_scale_per_rank():
    """Rank 2 with factors 1 and 1000: A is [rank, in], B is [out, rank]; each index of the rank is exact on its own."""
    a = torch.tensor([[127.0, -64.0, 1.0], [12.7, 0.1, 0.0]])
    b = torch.tensor([[127.0, 0.127], [3.0, 0.001], [-5.0, 0.0]])
    got = messages.roundtrip({"m.lora_A": a, "m.lora_B": b, "w": b}, "int8")
    torch.testing.assert_close(got["m.lora_A"], a, rtol=1e-5, atol=0)
    torch.testing.assert_close(got["m.lora_B"], b, rtol=1e-5, atol=0)
    assert got["w"][1, 1] == 0.0  # per row: 0.001 drowns beside 3
    assert messages.body_bytes({"m.lora_B": TensorSpec((3, 2))}, "int8") == 4 * 2 + 6
    assert messages.body_bytes({"w": TensorSpec((3, 2))}, "int8") == 4 * 3 + 6


def test_int8_rounds_half_to_even_and_keeps_zero_rows():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    got = messages.roundtrip({"w": x}, "int8")["w"]
    assert got.tolist() == [[127, 0, 2, 2, 0, -2], [0] * 6]


def test_an_int8_scale_is_found_again_whatever_its_mantissa():
    """One row per float32 in [1, 2): the largest decoded entry is 127 * scale, rounded; divided by 127 it is scale."""
    largest = (torch.arange(2**23, dtype=torch.int32) + 0x3F800000).view(torch.float32)
    scale = largest / 127
    assert torch.equal(scale * 127 / 127, scale)
    x = torch.rand(4096, 3, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.linspace(-112, 13, 4096)[:, None]
    once = messages.roundtrip({"w": x}, "int8")
    assert torch.equal(messages.roundtrip(once, "int8")["w"], once["w"])


def test_fp16_neither_overflows_nor_vanishes():
    x = torch.tensor([1e-30, 2e-30, 0.0])
    assert messages.roundtrip({"w": x}, "fp16")["w"][0] > 0
    for largest, sent in ((1 - 2**-13, 1.0), (1 - 2**-12, 1.0), (1 - 2**-11, 1 - 2**-11), (-65520.0, -65536.0)):
        assert messages.roundtrip({"w": torch.tensor([largest, 0.0])}, "fp16")["w"].tolist() == [sent, 0.0]
    x = torch.tensor([1e38, -3.4e38, 1.0])
    torch.testing.assert_close(messages.roundtrip({"w": x}, "fp16")["w"][:2], x[:2], rtol=2**-11, atol=0)


def test_bf16_rounds_half_to_even():
    x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8])
    assert messages.roundtrip({"w": x}, "bf16")["w"].tolist() == [1.0, 1 + 4 * 2**-8, -1.0]


# Plans, jobs, headers

PLAN = Plan(run=RUN, round=3, version=4, have=2, attempt=1, evaluate=True, rank=8, steps=10, learning_rate=1e-3)
EXTRA = {"K": 4096, "clip": 2.5, "text": "größer\n", "on": True, "off": False, "minus": -3, "float": 1.0}


@every_codec
def test_a_plan_comes_back(name):
    sent = replace(PLAN, extra=EXTRA, tensors={"w": torch.full((2, 3), 127.0), "i": torch.arange(3, dtype=torch.int32)})
    got = messages.decode_plan(messages.encode_plan(sent, name), max_bytes=4096)
    assert replace(got, tensors={}) == replace(sent, tensors={})
    assert {k: type(v) for k, v in got.extra.items()} == {k: type(v) for k, v in EXTRA.items()}
    assert all(same(got.tensors[n], sent.tensors[n]) for n in sent.tensors)
    assert messages.encode_plan(got, name) == messages.encode_plan(sent, name)


def test_the_order_of_keys_does_not_change_the_bytes():
    turned = dict(reversed(EXTRA.items()))
    one, other = (messages.encode_plan(replace(PLAN, extra=extra), "fp32") for extra in (EXTRA, turned))
    assert one == other
    one, other = (messages.encode_job(saying(local=local)) for local in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert one == other


def test_a_plan_at_its_defaults_comes_back():
    sent = Plan(run=RUN, round=0, version=0)
    assert messages.decode_plan(messages.encode_plan(sent, "fp32"), max_bytes=200) == sent


TABLES = {"strategy": {"name": "fedavg", "a": [1, None, {"b": 1.5}]}, "local": {"steps": 3}, "model": {}}
JOB = Job(run=RUN, seed=7, base="0" * 64, tables=TABLES)


def saying(**tables):
    return replace(JOB, tables={**TABLES, **tables})


def test_a_job_comes_back():
    for job in (JOB, saying(codec={"up": "int8"}), replace(JOB, tokenizer="a" * 64)):
        data = messages.encode_job(job)
        assert messages.decode_job(data) == job
        assert messages.encode_job(messages.decode_job(data)) == data


@pytest.mark.parametrize(
    "job",
    [
        replace(JOB, seed=2**53),
        replace(JOB, seed=-1),
        replace(JOB, run="r"),
        saying(local={"x": math.nan}),
        saying(local={"x": 2**60}),
        saying(local={1: 2}),
        saying(local={"x": object()}),
        saying(local={"x": "\ud800"}),
        saying(local={"x": "a" * 65536}),
    ],
)
def test_a_job_that_would_not_come_back_is_our_mistake(job):
    with pytest.raises(ValueError):  # noqa: PT011 (each has its own message)
        messages.encode_job(job)


@pytest.mark.parametrize(
    "update",
    [
        Update(delta={}, num_examples=0),
        Update(delta={}, num_examples=True),
        Update(delta={}, num_examples=1, run="r1"),
        Update(delta={}, num_examples=1, round=-1),
        Update(delta={"w": torch.zeros(1, dtype=torch.float64)}, num_examples=1),
        Update(delta={"w": torch.zeros(1, 1, 1)}, num_examples=1),
        Update(delta={"a name": torch.zeros(1)}, num_examples=1),
        Update(delta={"": torch.zeros(1)}, num_examples=1),
    ],
)
def test_an_update_nobody_could_accept_is_our_mistake(update):
    with pytest.raises(ValueError):  # noqa: PT011 (each has its own message)
        messages.encode_update(update, "fp32")


def test_an_unknown_codec_or_dtype_is_our_mistake():
    for call in (
        lambda: messages.encode_update(Update(delta={}, num_examples=1), "fp8"),
        lambda: messages.decode_update(b"", {}, "fp8"),
        lambda: messages.decode_update(b"", {"w": TensorSpec((1,), "float64")}, "fp32"),
        lambda: messages.roundtrip({}, "fp8"),
    ):
        with pytest.raises(ValueError, match="wanted one of"):
            call()


def test_who_sent_an_update_is_not_in_the_message():
    update = Update(delta={}, num_examples=1, client="clinic-3")
    assert messages.decode_update(messages.encode_update(update, "fp32"), {}, "fp32").client == ""
    assert b"clinic" not in messages.encode_update(update, "fp32")


def test_bad_metrics_are_dropped_with_a_warning_and_the_update_stays(caplog):
    bad = {"Loss": 1, "": 1, "a" * 65: 1, "nul": None, "flag": True, "text": "1", "inf": float("1e400"), "fine_1.x": 2}
    head = json.dumps({"n": 1, "m": bad}).replace("Infinity", "1e400")
    with caplog.at_level(logging.WARNING):
        got = messages.decode_update(message(head, []), {}, "fp32")
    assert got.metrics == {"fine_1.x": 2}
    assert "7 metrics dropped" in caplog.text
    update = Update(delta={}, num_examples=1, metrics={f"m{i:02}": i + 0.5 for i in range(40)} | {"nan": math.nan})
    with caplog.at_level(logging.WARNING):
        got = messages.decode_update(messages.encode_update(update, "fp32"), {}, "fp32")
    assert got.metrics == {f"m{i:02}": i + 0.5 for i in range(32)}
    assert "9 metrics dropped" in caplog.text


def test_the_longest_metrics_fit_the_header():
    metrics = {f"{i:064}": -1.2345678901234567e-300 for i in range(32)}
    data = messages.encode_update(Update(delta={}, num_examples=2**53 - 1, run=RUN, metrics=metrics), "fp32")
    assert messages.decode_update(data, {}, "fp32").metrics == metrics


# Economy


def test_a_seed_pool_costs_less_than_200_bytes_around_its_numbers():
    plan = replace(PLAN, evaluate=False, round=12345, version=12345, have=12344, tensors={"pool": torch.randn(4096)})
    assert len(messages.encode_plan(plan, "fp32")) - 4 * 4096 < 200


def test_a_seed_update_costs_less_than_200_bytes_around_its_numbers():
    n = 200
    delta = {"index": torch.arange(n, dtype=torch.int32).to(torch.uint16), "scalar": torch.randn(n)}
    metrics = {"loss": 1.2345678901234567, "steps": 200.0}
    update = Update(delta=delta, num_examples=1_000_000, round=12345, run=RUN, attempt=2, metrics=metrics)
    assert len(messages.encode_update(update, "fp32")) - 6 * n < 200


def test_the_limit_of_bytes_is_5_percent_and_64_kib_above_the_largest():
    spec = {"w": TensorSpec((1000, 1000))}
    assert messages.max_update_bytes(spec, "fp32") == math.ceil(1.05 * (13 + 4096 + 4096 + 256 + 4_000_000)) + 65536
    assert messages.max_update_bytes({"w": TensorSpec((2**20, 2**20))}, "int8") == 2**31 - 1


def test_at_most_bounds_the_first_dimension():
    spec = {"i": TensorSpec((3,), "uint16", at_most=True), "s": TensorSpec((3, 2), at_most=True)}
    for n in range(5):
        delta = {"i": torch.zeros(min(n, 3), dtype=torch.uint16), "s": torch.ones(n, 2)}
        data = messages.encode_update(Update(delta=delta, num_examples=1), "fp32")
        if n <= 3:
            assert messages.decode_update(data, spec, "fp32").delta["s"].shape == (n, 2)
        else:
            with pytest.raises(RejectedUpdate, match=r"tensor 's' is fp32\[4, 2\], wanted fp32\[<=3, 2\]"):
                messages.decode_update(data, spec, "fp32")


# What is refused: one hand-made message per line. SPEC is two float rows of three and up to four numbers

SPEC = {"w": TensorSpec((2, 3)), "s": TensorSpec((4,), "uint16", at_most=True)}
TABLE = '[["s","uint16",1],["w","fp32",2,3]]'
BODY = struct.pack("<H6f", 7, 1, -2, 3, -4, 5, 1e4)


def message(head="{}", table=TABLE, body=b"", *, magic=b"FDFT", version=2, kind=2, lengths=None) -> bytes:
    head, table = (x.encode() if isinstance(x, str) else json.dumps(x).encode() for x in (head, table))
    lengths = lengths or (len(head), len(table))
    return struct.pack("<4sHBHI", magic, version, kind, *lengths) + head + table + body


def update(head='{"n":1}', table=TABLE, body=BODY, **frame) -> bytes:
    return message(head, table, body, **frame)


def with_value(x: float) -> bytes:
    return update(body=BODY[:6] + struct.pack("<f", x) + BODY[10:])


def table(*rows: str) -> str:
    return "[" + ",".join(rows) + "]"


S, W = '["s","uint16",1]', '["w","fp32",2,3]'
BAD_UPDATES = {
    "nothing": ("bad_magic", b""),
    "another magic": ("bad_magic", update(magic=b"FDFU")),
    "a pickle": ("bad_magic", b"\x80\x04K\x01."),
    "the magic alone": ("malformed", b"FDFT"),
    "another protocol": ("version", update(version=3)),
    "the protocol before": ("version", update(version=1)),
    "protocol with its bytes swapped": ("version", update(version=512)),
    "a plan": ("malformed", update(kind=1)),
    "no such kind": ("malformed", update(kind=9)),
    "longer than any legal update": ("too_large", update() + bytes(100_000)),
    "a header over its limit": ("malformed", update('{"n":1' + " " * 4096 + "}")),
    "a header longer than the message": ("malformed", update(lengths=(4000, 0))),
    "a table longer than the message": ("malformed", update(lengths=(7, 4608))),
    "a table of 4 GiB": ("malformed", update(lengths=(7, 2**32 - 1))),
    "a table over its limit": ("malformed", update(table=TABLE + " " * 5000)),
    "a header that is not JSON": ("malformed", update('{"n":1')),
    "a header that is not UTF-8": ("malformed", message(BODY.decode("latin-1").encode().decode(), [])),
    "a header in UTF-16": ("malformed", update("\x00{\x00}\x00")),
    "a header that is a list": ("malformed", update("[1]")),
    "no header": ("malformed", update("")),
    "a key twice": ("malformed", update('{"n":1,"n":2}')),
    "a metric twice": ("malformed", update('{"n":1,"m":{"a":1,"a":2}}')),
    "an unknown key": ("malformed", update('{"n":1,"client":"me"}')),
    "NaN in the header": ("malformed", update('{"n":1,"m":{"a":NaN}}')),
    "Infinity in the header": ("malformed", update('{"n":1,"m":{"a":-Infinity}}')),
    "an integer of 2^53": ("malformed", update('{"n":9007199254740992}')),
    "an integer of 4,000 digits": ("malformed", update('{"n":' + "9" * 4000 + "}")),
    "a nest of 2,000 lists": ("malformed", update("[" * 2000 + "]" * 2000)),
    "a nest of 500 lists": ("malformed", update('{"n":1,"m":' + "[" * 500 + "]" * 500 + "}")),
    "a round below 0": ("malformed", update('{"n":1,"t":-1}')),
    "a round that is true": ("malformed", update('{"n":1,"t":true}')),
    "a round that is null": ("malformed", update('{"n":1,"t":null}')),
    "an attempt that is 1.0": ("malformed", update('{"n":1,"a":1.0}')),
    "a run that is no hexadecimal": ("malformed", update('{"n":1,"r":"../../../etc/pas"}')),
    "a run with a line break": ("malformed", update('{"n":1,"r":"0123456789abcdef\\n"}')),
    "a run that is a number": ("malformed", update('{"n":1,"r":12}')),
    "metrics that are a list": ("malformed", update('{"n":1,"m":[]}')),
    "no weight": ("weight", update("{}")),
    "weight 0": ("weight", update('{"n":0}')),
    "weight -1": ("weight", update('{"n":-1}')),
    "weight true": ("weight", update('{"n":true}')),
    "weight 1.5": ("weight", update('{"n":1.5}')),
    "weight 1.0": ("weight", update('{"n":1.0}')),
    "weight 1e400": ("weight", update('{"n":1e400}')),
    "weight as text": ("weight", update('{"n":"1"}')),
    "weight null": ("weight", update('{"n":null}')),
    "a table that is an object": ("malformed", update(table="{}")),
    "a table of numbers": ("malformed", update(table="[1,2]")),
    "an entry without wire type": ("malformed", update(table=table(S, '["w"]'))),
    "an entry whose name is a number": ("malformed", update(table=table(S, '[1,"fp32",2,3]'))),
    "an entry whose wire type is a list": ("malformed", update(table=table(S, '["w",["fp32"],2,3]'))),
    "a dimension below 0": ("malformed", update(table=table(S, '["w","fp32",-2,-3]'))),
    "a dimension that is true": ("malformed", update(table=table(S, '["w","fp32",2,true]'))),
    "a dimension of 2^60": ("malformed", update(table=table(S, '["w","fp32",1152921504606846976]'))),
    "a name twice": ("malformed", update(table=table(S, S, W))),
    "names out of order": ("malformed", update(table=table(W, S))),
    "a name with a line break": ("malformed", update(table=table(S, W, '["w\\n","fp32",1]'))),
    "a name with half a surrogate pair": ("malformed", update(table=table(S, W, '["w\\ud800","fp32",1]'))),
    "a tensor missing": ("spec_mismatch", update(table=table(S))),
    "no tensors": ("spec_mismatch", update(table="[]", body=b"")),
    "a tensor too many": ("spec_mismatch", update(table=table(S, W, '["x","fp32",1]'), body=BODY + bytes(4))),
    "a tensor of another codec": ("spec_mismatch", update(table=table(S, '["w","bf16",2,3]'), body=BODY[:14])),
    "a tensor of an unknown type": ("spec_mismatch", update(table=table(S, '["w","fp64",2,3]'))),
    "an integer tensor as float": ("spec_mismatch", update(table=table('["s","fp32",1]', W))),
    "a smaller rank": ("spec_mismatch", update(table=table(S, '["w","fp32",1,3]'), body=BODY[:14])),
    "a shape to broadcast": ("spec_mismatch", update(table=table(S, '["w","fp32",1,6]'))),
    "the same entries in one row": ("spec_mismatch", update(table=table(S, '["w","fp32",6]'))),
    "three dimensions": ("spec_mismatch", update(table=table(S, '["w","fp32",1,2,3]'))),
    "more seeds than the bound": ("spec_mismatch", update(table=table('["s","uint16",5]', W), body=bytes(8) + BODY)),
    "a shape of 2^52 entries": ("spec_mismatch", update(table=table(S, '["w","fp32",4503599627370496]'))),
    "a byte too few": ("malformed", update(body=BODY[:-1])),
    "a byte too many": ("malformed", update(body=BODY + b"\0")),
    "NaN in a tensor": ("nonfinite", with_value(math.nan)),
    "infinity in a tensor": ("nonfinite", with_value(math.inf)),
    "minus infinity in a tensor": ("nonfinite", with_value(-math.inf)),
    "1.0001e4 in a tensor": ("out_of_bounds", with_value(1.0001e4)),
    "-3e38 in a tensor": ("out_of_bounds", with_value(-3e38)),
}


def test_the_hand_made_message_is_good_before_it_is_broken():
    got = messages.decode_update(update(), SPEC, "fp32")
    assert got.delta["w"].tolist() == [[1, -2, 3], [-4, 5, 10000]]
    assert got.delta["s"].tolist() == [7]


@pytest.mark.parametrize("what", BAD_UPDATES)
def test_a_bad_update_is_refused_under_its_code(what):
    code, data = BAD_UPDATES[what]
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_update(data, SPEC, "fp32")
    assert e.value.code == code
    assert len(str(e.value)) < 700
    assert str(e.value).isprintable()


BAD_LOSSY = {
    "a lossy scale that is NaN": ("int8", "nonfinite", struct.pack("<f2b", math.nan, 1, 2)),
    "a scale that is infinite": ("int8", "nonfinite", struct.pack("<f2b", math.inf, 0, 0)),
    "a scale too large": ("int8", "out_of_bounds", struct.pack("<f2b", 1e3, 100, 2)),
    "the entry -128": ("int8", "malformed", struct.pack("<f2b", 1, -128, 2)),
    "no scale": ("int8", "malformed", struct.pack("<2b", 1, 2)),
    "an exponent too large": ("fp16", "nonfinite", struct.pack("<b2e", 127, 1e4, 0)),
    "an exponent a bit too large": ("fp16", "out_of_bounds", struct.pack("<b2e", 1, 5020, 0)),
    "a half that is NaN": ("fp16", "nonfinite", struct.pack("<b2e", 0, math.nan, 0)),
    "a half that is infinite": ("fp16", "nonfinite", struct.pack("<b2e", -100, math.inf, 0)),
    "no exponent": ("fp16", "malformed", struct.pack("<2e", 1, 2)),
    "a bfloat16 that is NaN": ("bf16", "nonfinite", struct.pack("<2H", 0x7FC0, 0)),
    "a bfloat16 of 1e38": ("bf16", "out_of_bounds", struct.pack("<2H", 0x7E96, 0)),
}


@pytest.mark.parametrize("what", BAD_LOSSY)
def test_a_bad_tensor_of_a_lossy_codec_is_refused_under_its_code(what):
    name, code, body = BAD_LOSSY[what]
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_update(update(table=[["w", name, 2]], body=body), {"w": TensorSpec((2,))}, name)
    assert e.value.code == code


@every_codec
@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_a_diverged_update_is_refused_as_not_finite_in_every_codec(name, x):
    data = messages.encode_update(Update(delta={"w": torch.tensor([[1.0, x], [2.0, 3.0]])}, num_examples=1), name)
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_update(data, {"w": TensorSpec((2, 2))}, name)
    assert e.value.code == "nonfinite"
    data = messages.encode_plan(Plan(run=RUN, round=0, version=0, tensors={"w": torch.tensor([1.0, x])}), name)
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_plan(data, max_bytes=BIG)
    assert e.value.code == "nonfinite"


def test_a_mismatch_names_the_tensor_what_was_found_and_what_was_wanted():
    data = messages.encode_update(Update(delta={"q.lora_A": torch.zeros(4, 64)}, num_examples=1), "fp32")
    with pytest.raises(RejectedUpdate, match=r"tensor 'q.lora_A' is fp32\[4, 64\], wanted fp32\[8, 64\]"):
        messages.decode_update(data, {"q.lora_A": TensorSpec((8, 64))}, "fp32")
    with pytest.raises(RejectedUpdate, match=r"tensor 'q.lora_A' is fp32\[4, 64\], wanted no such tensor"):
        messages.decode_update(data, {}, "fp32")
    with pytest.raises(RejectedUpdate, match=r"tensor 'b' is missing, wanted uint16\[8\]"):
        messages.decode_update(data, {"b": TensorSpec((8,), "uint16"), "q.lora_A": TensorSpec((4, 64))}, "fp32")


def test_a_limit_below_the_legal_one_holds():
    data = messages.encode_update(Update(delta={}, num_examples=1), "fp32")
    messages.decode_update(data, {}, "fp32", max_bytes=len(data))
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_update(data, {}, "fp32", max_bytes=len(data) - 1)
    assert e.value.code == "too_large"


def plan(head='{"r":"0123456789abcdef","t":0,"v":0}', table="[]", body=b"", kind=1) -> bytes:
    return message(head, table, body, kind=kind)


def plan_with(field: str) -> bytes:
    return plan('{"r":"0123456789abcdef","t":0,"v":0,' + field + "}")


BAD_PLANS = {
    "an update": ("malformed", update()),
    "no run": ("malformed", plan('{"t":0,"v":0}')),
    "no version": ("malformed", plan('{"r":"0123456789abcdef","t":0}')),
    "have null": ("malformed", plan_with('"h":null')),
    "evaluate 1": ("malformed", plan_with('"e":1')),
    "rank true": ("malformed", plan_with('"k":true')),
    "steps as text": ("malformed", plan_with('"s":"1"')),
    "a learning rate of 1e999": ("malformed", plan_with('"l":1e999')),
    "a learning rate below 0": ("malformed", plan_with('"l":-1')),
    "a learning rate that is true": ("malformed", plan_with('"l":true')),
    "extra as a list": ("malformed", plan_with('"x":[]')),
    "a list in extra": ("malformed", plan_with('"x":{"a":[1]}')),
    "null in extra": ("malformed", plan_with('"x":{"a":null}')),
    "1e999 in extra": ("malformed", plan_with('"x":{"a":1e999}')),
    "half a surrogate pair in extra": ("malformed", plan_with('"x":{"a":"\\udc00"}')),
    "a name with a space in extra": ("malformed", plan_with('"x":{"a b":1}')),
    "three dimensions": ("malformed", plan(table='[["w","fp32",1,1,1]]', body=bytes(4))),
    "an unknown wire type": ("malformed", plan(table='[["w","fp64",1]]', body=bytes(8))),
    "2^52 entries": ("malformed", plan(table='[["w","int8",67108864,67108864]]', body=bytes(8))),
    "an empty tensor of 2^52 rows": ("malformed", plan(table='[["w","fp32",4503599627370496,0]]')),
    "too many tensors": ("malformed", plan(table=[[f"{i:04}", "fp32", 0] for i in range(8193)])),
    "2e4 in a tensor": ("out_of_bounds", plan(table='[["w","fp32"]]', body=struct.pack("<f", 2e4))),
    "too long": ("too_large", plan(table=" " * 50_000)),
}


@pytest.mark.parametrize("what", BAD_PLANS)
def test_a_bad_plan_is_refused_under_its_code(what):
    code, data = BAD_PLANS[what]
    limit = 40_000 if code == "too_large" else BIG
    messages.decode_plan(plan(), max_bytes=limit)
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_plan(data, max_bytes=limit)
    assert e.value.code == code


HEAD = '{"b":"' + "0" * 64 + '","r":"0123456789abcdef","s":1}'
GOOD = '{"t":{"local":{},"model":{},"strategy":{}}}'
BAD_JOBS = {
    "a plan": ("malformed", plan()),
    "no seed": ("malformed", message(HEAD.replace(',"s":1', ""), GOOD, kind=3)),
    "no base": ("malformed", message('{"r":"0123456789abcdef","s":1}', GOOD, kind=3)),
    "a base that is no digest": ("malformed", message(HEAD.replace("0" * 64, "0" * 63), GOOD, kind=3)),
    "no tables": ("malformed", message(HEAD, "{}", kind=3)),
    "an unknown key": ("malformed", message(HEAD, GOOD[:-1] + ',"x":{}}', kind=3)),
    "a table that is a list": ("malformed", message(HEAD, GOOD[:-2] + ',"codec":[]}}', kind=3)),
    "a nest of 100": ("malformed", message(HEAD, GOOD[:-2] + ',"c":{"a":' + "[" * 100 + "]" * 100 + "}}}", kind=3)),
    "bytes after the job": ("malformed", message(HEAD, GOOD, b"\0", kind=3)),
    "too long": ("too_large", message(HEAD, GOOD + " " * 65536, kind=3)),
}


@pytest.mark.parametrize("what", BAD_JOBS)
def test_a_bad_job_is_refused_under_its_code(what):
    code, data = BAD_JOBS[what]
    messages.decode_job(message(HEAD, GOOD, kind=3))
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_job(data)
    assert e.value.code == code


def test_lack_of_memory_and_depth_become_refusals(monkeypatch):
    for error in (MemoryError(), RuntimeError("allocator"), RecursionError(), OverflowError()):

        def fail(*_args: object, error: Exception = error, **_kwargs: object) -> Tensor:
            raise error

        with monkeypatch.context() as m:
            m.setattr(torch, "empty", fail)
            with pytest.raises(RejectedUpdate) as e:
                messages.decode_update(update(), SPEC, "fp32")
        assert e.value.code == "malformed"
