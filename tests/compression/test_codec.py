"""Codecs that select, round coarsely or make integers: what they promise by name, what is kept, in how many bytes."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedft.compression import codec_names, fixed_point, top_k
from fedft.compression.codec_names import parse
from fedft.compression.entropy_coder import bits_per_place
from fedft.errors import RejectedUpdate
from fedft.update import Plan, TensorSpec, Update
from fedft.wire import messages, versions

NAMES = (
    "int4",
    "ternary",
    "ternary:0.5",
    "fixed:16",
    "fixed:24:4",
    "topk:0.1|fp32",
    "topk:0.3|fp16",
    "topk:1|bf16",
    "topk:0.25|int8",
    "topk:0.5|int4",
    "randk:0.2|fp32",
    "randk:0.5|fp16",
    "randk:0.3|bf16",
    "randk:0.4|int8",
    "randk:0.6|int4",
)
every = pytest.mark.parametrize("name", NAMES)
few = settings(derandomize=True, max_examples=40, deadline=None)
RUN = "0123456789abcdef"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora_update(modules: int, rank: int, width: int) -> dict[str, Tensor]:
    """Pairs whose tensors differ in size by factors; the rows of one tensor by less."""
    out = {}
    for i in range(modules):
        name = f"model.layers.{i // 4}.self_attn.{'qkvo'[i % 4]}_proj"
        size = 10.0 ** -(i % 3) * torch.linspace(0.7, 1.4, rank)
        out[f"{name}.lora_A"] = 1e-2 * normal(rank, width, seed=2 * i) * size[:, None]
        out[f"{name}.lora_B"] = 3e-2 * normal(width, rank, seed=2 * i + 1) * size
    return out


def spec_of(delta: dict[str, Tensor]) -> dict[str, TensorSpec]:
    return {n: TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in delta.items()}


def message(delta: dict[str, Tensor], name: str, seed: int = 7) -> bytes:
    return messages.encode_update(Update(delta=delta, num_examples=1), name, seed)


def there_and_back(delta: dict[str, Tensor], name: str, seed: int = 7) -> dict[str, Tensor]:
    return dict(messages.decode_update(message(delta, name, seed), spec_of(delta), name).delta)


def relative_error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """By tensor, root mean square over tensors: none of them is drowned."""
    errors = [float((got[n].double() - t).norm() / t.double().norm()) ** 2 for n, t in want.items()]
    return (sum(errors) / len(errors)) ** 0.5


# What is promised


@pytest.mark.parametrize("name", [*codec_names.PLAIN, *NAMES])
def test_the_promises_of_a_codec_hold(name):
    c = parse(name)
    x = {"m.lora_A": 0.1 * normal(8, 500), "v": 0.1 * normal(3000, seed=1)}
    y = {n: 0.5 * t.flip(0) for n, t in x.items()}
    got = messages.roundtrip(x, name, 3)
    rounding = {"bf16": 2**-6, "fp16": 2**-9, "fixed": 1e-3}.get(name.split("|")[-1].split(":")[0], 1e-6)
    assert c.exact == all(torch.equal(got[n], x[n]) for n in x)
    both = messages.roundtrip({n: x[n] + y[n] for n in x}, name, 3)
    parts = messages.roundtrip(y, name, 3)
    added = all(torch.allclose(both[n], got[n] + parts[n], rtol=0, atol=rounding) for n in x)
    assert added == c.linear
    again = messages.roundtrip(got, name, 3)
    assert not c.idempotent or all(torch.equal(again[n], got[n]) for n in x)
    assert c.ring_summable == name.startswith("fixed")
    assert c.plain == (name in codec_names.PLAIN)
    big = {"w.lora_A": 0.1 * normal(16, 8192)}
    bits = 8 * len(message(big, name)) / big["w.lora_A"].numel()
    assert bits == pytest.approx(c.bits_per_parameter, rel=0.12)


def test_randk_is_unbiased():
    x = {"w": normal(40)}
    mean = torch.stack([messages.roundtrip(x, "randk:0.25|fp32", seed)["w"] for seed in range(4000)]).mean(0)
    deviation = x["w"].abs() * (3 / 4000) ** 0.5  # one entry: x times 4 or 0, with chances 1/4 and 3/4
    assert ((mean - x["w"]).abs() < 4.5 * deviation).all()
    assert parse("randk:0.25|fp32").unbiased
    assert not parse("topk:0.25|fp32").unbiased


# There and back


@every
def test_the_other_side_sees_what_roundtrip_says(name):
    delta = lora_update(2, 4, 70) | {"v": normal(300), "s": torch.tensor(0.5), "empty": torch.zeros(0, 3)}
    delta["i"], delta["u"] = torch.arange(5, dtype=torch.int32), torch.tensor([3, 9, 4000]).to(torch.uint16)
    sent, seen = there_and_back(delta, name), messages.roundtrip(delta, name, 7)
    assert sent.keys() == seen.keys() == delta.keys()
    for n, t in sent.items():
        assert t.dtype == delta[n].dtype
        assert t.shape == delta[n].shape
        assert torch.equal(t, seen[n])
        assert t.is_contiguous()
    assert torch.equal(sent["i"], delta["i"])
    assert torch.equal(sent["u"], delta["u"])


values = st.floats(-9984, 9984, width=32) | st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 1e-30, 1 / 3])


@pytest.mark.parametrize("name", [n for n in NAMES if parse(n).idempotent])
@few
@given(data=st.data())
def test_what_was_decoded_encodes_to_the_same_bytes(name, data):
    shape = data.draw(st.sampled_from([(), (1,), (9,), (300,), (3, 5), (0, 4), (1, 40)]))
    n = math.prod(shape)
    some = data.draw(st.lists(values, min_size=1, max_size=12))
    exponent = data.draw(st.sampled_from([0, 0, -20, -80, -120, -140]))
    x = torch.tensor((some * n)[:n]).reshape(shape) * 2.0**exponent
    delta = {data.draw(st.sampled_from(["w", "m.lora_A", "m.lora_B"])): x}
    first = message(delta, name)
    assert len(first) <= messages.max_update_bytes(spec_of(delta), name)
    got = messages.decode_update(first, spec_of(delta), name)
    assert message(dict(got.delta), name) == first


@every
def test_no_numbers_of_an_honest_client_are_over_the_bound(name):
    """Zeros, a lone entry, equal ones, all magnitudes, noise: the body never is longer than the spec says."""
    d = 5000
    for x in (
        torch.zeros(d),
        torch.eye(1, d)[0],
        torch.ones(d),
        torch.logspace(-30, 3, d),
        normal(d) ** 5,
        torch.arange(d) % 255 - 127.0,
    ):
        delta = {"w": x, "m.lora_A": x.reshape(50, 100), "u": (torch.arange(d) % 60000).flip(0).to(torch.uint16)}
        data = message(delta, name)
        head, table = struct.unpack_from("<HI", data, 7)
        assert len(data) - 13 - head - table <= messages.body_bytes(spec_of(delta), name)
        assert messages.body_bytes(spec_of(delta), name) < 4.1 * 3 * d


@every
def test_order_of_names_does_not_matter_and_arguments_do_not_change(name):
    delta = lora_update(3, 4, 30)
    before = {n: t.clone() for n, t in delta.items()}
    assert message(delta, name) == message(dict(reversed(delta.items())), name)
    assert all(torch.equal(delta[n], before[n]) for n in delta)


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "int8", *NAMES])
@pytest.mark.parametrize("cut", [lambda x: x.t()[::2], lambda x: x[:, :1], lambda x: x[::2, 3]], ids=["t", "B", "row"])
def test_a_view_with_gaps_travels_as_its_copy(name, cut):
    """The factors of a smaller rank are columns of larger ones: B[:, :1] has gaps however it is reshaped."""
    view = cut(normal(6, 8))
    assert not view.is_contiguous()
    assert torch.equal(there_and_back({"w": view}, name)["w"], there_and_back({"w": view.contiguous()}, name)["w"])


@every
def test_a_diverged_update_is_refused_as_not_finite(name):
    for x in (math.nan, math.inf, -math.inf):
        for shape in ((5,), (300,), (4, 100)):
            bad = normal(math.prod(shape))
            bad[3 if name.startswith("topk") else slice(None)] = x  # a random selection may well miss one
            delta = {"m.lora_B": bad.reshape(shape)}
            with pytest.raises(RejectedUpdate) as e:
                there_and_back(delta, name)
            assert e.value.code == "nonfinite"
            assert not torch.isfinite(messages.roundtrip(delta, name, 7)["m.lora_B"]).all()


def test_one_row_that_is_not_finite_does_not_hide_in_int4():
    bad = normal(4, 50)
    bad[2, 7] = math.nan
    got = messages.roundtrip({"m.lora_A": bad}, "int4")["m.lora_A"]
    assert torch.isnan(got[2]).any()
    assert torch.isfinite(got[[0, 1, 3]]).all()


@every
def test_a_large_number_is_out_of_bounds_for_the_receiver(name):
    if parse(name).ring_summable:
        assert there_and_back({"w": torch.full((30,), 2e4)}, name)["w"].max() <= 4  # cut to CLIP
        return
    with pytest.raises(RejectedUpdate) as e:
        there_and_back({"w": torch.full((30,), 2e4)}, name)
    assert e.value.code == "out_of_bounds"


def test_a_plan_tells_its_own_codec():
    tensors = {"pool": normal(500), "u": torch.arange(0, 900, 9, dtype=torch.int32).to(torch.uint16)}
    for name in NAMES:
        plan = Plan(run=RUN, round=1, version=1, tensors=tensors)
        got = messages.decode_plan(messages.encode_plan(plan, name, 5), max_bytes=10_000).tensors
        seen = messages.roundtrip(tensors, name, 5)
        assert all(torch.equal(got[n], seen[n]) for n in tensors)


# What is selected


def test_a_share_counts_exactly():
    """0.1 x 30 is 3 in decimal; in binary it may be a little more."""
    for q in ("0.1", "0.2", "0.3", "0.7", "0.05", "0.001"):
        for n in range(1, 300):
            thousandths = round(float(q) * 1000) * n
            assert top_k.kept(Fraction(q), n) == -(-thousandths // 1000)


def test_topk_keeps_the_largest_and_of_equal_ones_the_first():
    x = torch.tensor([1.0, -3, 2, -2, 0, 2, 5, -2, 0.5, 2])
    assert messages.roundtrip({"w": x}, "topk:0.4|fp32")["w"].tolist() == [0, -3, 2, -2, 0, 0, 5, 0, 0, 0]
    assert messages.roundtrip({"w": x}, "topk:0.01|fp32")["w"].tolist() == [0, 0, 0, 0, 0, 0, 5, 0, 0, 0]


@few
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=60), st.integers(1, 60))
def test_largest_is_what_a_stable_sort_says(numbers, k):
    x = np.array(numbers, np.float32)
    want = sorted(sorted(range(len(x)), key=lambda i: (-abs(x[i]), i))[:k])
    assert top_k.largest(x, k).tolist() == [i for i in want if x[i]]


def test_a_tensor_that_is_not_zero_sends_at_least_one_entry_and_a_zero_one_none():
    got = messages.roundtrip({"a": torch.zeros(50), "b": 1e-20 * torch.eye(1, 50)[0]}, "topk:0.001|int8")
    assert not got["a"].any()
    assert got["b"].count_nonzero() == 1


@pytest.mark.parametrize("q", [0.05, 0.2, 0.5, 1.0])
def test_ternary_is_a_sign_times_the_mean_magnitude_of_what_is_kept(q):
    x = normal(40, 25)
    got = messages.roundtrip({"w": x}, f"ternary:{q}")["w"]
    k = math.ceil(1000 * q)
    kept = x.abs().flatten().sort(descending=True).values[:k]
    assert got.count_nonzero() == k
    assert got[got != 0].abs().unique().tolist() == [pytest.approx(float(kept.double().mean()), rel=2**-9)]
    assert torch.equal(got[got != 0].sign(), x[got != 0].sign())
    least = float((got - x).norm())
    assert all(least <= float((f * got - x).norm()) + 1e-4 for f in (0.5, 0.9, 1.1, 2.0))  # least squares


def test_more_kept_is_less_error():
    x = {"w": normal(4000)}
    for kind in ("topk:{}|fp32", "topk:{}|int4"):
        errors = [relative_error(messages.roundtrip(x, kind.format(q)), x) for q in (0.05, 0.1, 0.3, 0.6, 1)]
        assert errors == sorted(errors, reverse=True)
    errors = [relative_error(messages.roundtrip(x, f"ternary:{q}"), x) for q in (0.05, 0.1, 0.2, 0.5)]
    assert errors == sorted(errors, reverse=True)


def test_randk_draws_by_seed_and_name_and_the_seed_is_in_the_message():
    x = {"a": torch.ones(1000), "b": torch.ones(1000)}
    one, two = (there_and_back(x, "randk:0.3|fp32", seed) for seed in (1, 2**64 - 1))
    assert one["a"].unique().tolist() == [0, float(np.float32(1000 / 300))]
    assert one["a"].count_nonzero() == 300
    assert not torch.equal(one["a"], one["b"])
    assert not torch.equal(one["a"], two["a"])
    assert message(x, "randk:0.3|fp32", 1) == message(x, "randk:0.3|fp32", 1)
    overlap = float((one["a"] * two["a"]).count_nonzero())
    assert overlap == pytest.approx(90, abs=5 * (90 * 0.7) ** 0.5)


def test_error_feedback_loses_nothing():
    """e' = (u + e) - roundtrip(u + e): what was sent and what is left add up to what was meant."""
    for name in ("ternary:0.1", "topk:0.05|int4", "int4"):
        error, sent, meant = torch.zeros(30, 20), torch.zeros(30, 20), torch.zeros(30, 20)
        for t in range(20):
            u = normal(30, 20, seed=t)
            seen = messages.roundtrip({"w": u + error}, name)["w"]
            error, sent, meant = u + error - seen, sent + seen, meant + u
        torch.testing.assert_close(sent + error, meant, rtol=0, atol=1e-4)
        assert error.norm() < meant.norm() * 2


# Rounding


@pytest.mark.parametrize("shape", [(8, 300), (1, 7), (1000,), (3,)])
@pytest.mark.parametrize("name", ["m.lora_A", "m.lora_B"])
def test_int4_rounds_to_steps_of_its_group_and_cuts_nothing(name, shape):
    x = normal(*shape) * (torch.linspace(1, 1000, shape[0])[:, None] if len(shape) == 2 else 1)
    x.view(-1)[-1] = 900 * x.abs().max()  # far out, and its group becomes coarse; the others stay fine
    got = messages.roundtrip({name: x}, "int4")[name]
    if len(shape) == 2:
        groups = (
            [(x[i], got[i]) for i in range(len(x))] if name.endswith("A") else list(zip(x.t(), got.t(), strict=True))
        )
    else:
        groups = list(zip(x.split(256), got.split(256), strict=True))
    for a, b in groups:
        step = 2**0.25 * max(0.42 * float(a.square().mean().sqrt()), float(a.abs().max()) / 127)
        assert (a - b).abs().max() <= 0.5001 * step


def test_the_size_of_an_update_does_not_change_what_int4_makes_of_it():
    x = normal(16, 200)
    for scale in (2.0**-60, 2.0**-3, 2.0**10):
        torch.testing.assert_close(
            messages.roundtrip({"w": x * scale}, "int4")["w"], messages.roundtrip({"w": x}, "int4")["w"] * scale
        )
    assert not messages.roundtrip({"w": x * 2.0**-130}, "int4")["w"].any()


def test_groups_far_below_the_largest_are_sent_as_zero():
    x = normal(3, 50) * torch.tensor([[1.0], [2.0**-50], [2.0**-70]])
    got = messages.roundtrip({"m.lora_A": x}, "int4")["m.lora_A"]
    assert got[:2].any(1).all()
    assert not got[2].any()


def test_integers_of_many_clients_add_up_under_masks():
    """Modulo 2^32, in int32: masks that cancel leave the sum of what the clients meant, to the last bit."""
    scale = fixed_point.scale("20:2")
    xs = [normal(200, seed=k).clamp(-1.9, 1.9) for k in range(50)]
    masks = [torch.randint(-(2**31), 2**31 - 1, (200,), generator=torch.Generator().manual_seed(k)) for k in range(49)]
    masks.append(-sum(masks))
    total = torch.zeros(200, dtype=torch.int32)
    for x, m in zip(xs, masks, strict=True):
        total += scale.integers(x) + m.to(torch.int32)
    want = sum(messages.roundtrip({"w": x}, "fixed:20:2")["w"].double() for x in xs)
    assert torch.equal(total.double() * (2 / 2**19), want)
    torch.testing.assert_close(want, sum(x.double() for x in xs), rtol=0, atol=50 * 2 / 2**20)


def test_fixed_cuts_at_its_clip_and_tells_nan_from_numbers():
    got = messages.roundtrip({"w": torch.tensor([0.3, 5.0, -5.0, math.nan, 0.0])}, "fixed:4")["w"]
    assert got[[0, 1, 2, 4]].tolist() == [0.25, 0.875, -0.875, 0.0]
    assert torch.isnan(got[3])


# Economy


def test_int4_is_nine_times_smaller_than_float32_and_near_the_limit():
    """A Gaussian of relative error e takes at least -log2 e bits per entry; frame, names and scales are counted."""
    delta = lora_update(12, 16, 1024)
    n = sum(t.numel() for t in delta.values())
    bits = 8 * len(message(delta, "int4")) / n
    error = relative_error(there_and_back(delta, "int4"), delta)
    assert bits < 32 / 9
    assert error < 0.14
    assert bits < -math.log2(error) + 0.3


def test_ternary_at_half_is_twenty_times_smaller_than_float32():
    delta = lora_update(12, 16, 1024)
    n = sum(t.numel() for t in delta.values())
    assert 8 * len(message(delta, "ternary:0.5")) / n < 32 / 20
    assert relative_error(there_and_back(delta, "ternary:0.5"), delta) < 0.46


@pytest.mark.parametrize("q", [0.05, 0.1, 0.2, 0.5])
def test_ternary_is_within_3_percent_of_its_entropy(q):
    x = {"w": normal(200, 100)}
    size = len(message(x, f"ternary:{q}")) - len(message({"w": torch.zeros(200, 100)}, f"ternary:{q}")) + 79
    assert size * 8 <= 1.03 * 20_000 * (bits_per_place(q) + q) + 80


def test_names_take_little_in_the_table_of_a_small_model():
    delta = {n: torch.zeros(1, 1) for n in lora_update(84, 1, 1)}
    short, full = len(message(delta, "int4")), len(message(delta, "int8"))
    assert short < full / 2
    assert there_and_back(delta, "int4").keys() == delta.keys()


@pytest.mark.parametrize(
    ("down", "up", "most", "error_down", "error_up"),
    [
        ("topk:1|fp16", "topk:1|int8", 8900, 3e-4, 0.01),
        ("int8", "topk:1|fp16", 5000, 0.015, 3e-4),
        ("topk:1|int8", "topk:1|int8", 4300, 0.015, 0.01),
    ],
)
def test_the_scalars_of_fedkseed_take_less_than_9000_bytes_both_ways(down, up, most, error_down, error_up):
    """K = 4096 and 200 steps: the dense pool down, the pairs up.

    What the pool is rounded by does not add up: clients replay from w0, and the server keeps the pool as it is.
    """
    pool = 1e-3 * normal(4096)
    plan = Plan(run=RUN, round=10, version=10, have=9, steps=200, learning_rate=1e-4, tensors={"pool": pool})
    drawn = torch.randperm(4096, generator=torch.Generator().manual_seed(1))[:200].sort().values
    delta = {"index": drawn.to(torch.uint16), "scalar": 1e-3 * normal(200)}
    sent = Update(delta, 1000, 10, RUN, metrics={"loss": 1.2345678901234567, "steps": 200.0})
    assert len(messages.encode_plan(plan, down)) + len(messages.encode_update(sent, up)) < most
    assert relative_error(messages.roundtrip(plan.tensors, down), {"pool": pool}) < error_down
    seen = messages.roundtrip(delta, up)
    assert torch.equal(seen["index"], delta["index"])
    assert relative_error({"scalar": seen["scalar"]}, {"scalar": delta["scalar"]}) < error_up
    assert len(messages.encode_update(sent, up)) < len(messages.encode_update(sent, "fp32")) * 0.6


def test_a_pool_of_which_most_is_still_zero_takes_what_the_rest_takes():
    drawn = torch.randperm(4096, generator=torch.Generator().manual_seed(1))[:200]
    early = Plan(run=RUN, round=1, version=1, tensors={"pool": torch.zeros(4096).index_copy(0, drawn, normal(200))})
    assert len(messages.encode_plan(early, "topk:1|fp16")) < 800  # most directions are still 0


# What is refused


def broken(name: str, shape: tuple[int, ...], payload: bytes, length: int | None = None) -> tuple[bytes, dict]:
    """A message of one tensor `w` whose bytes are `payload`."""
    good = message({"w": torch.zeros(shape)}, name)
    head, table = struct.unpack_from("<HI", good, 7)
    start = good[: 13 + head + table]
    return start + bytes([len(payload) if length is None else length]) + payload, {"w": TensorSpec(shape)}


BAD = {
    "no bytes": ("ternary", (4,), b"", "malformed"),
    "a scale that is infinite": ("ternary", (4,), b"\x04" + b"\x80\x7f" + b"\xa0", "nonfinite"),
    "a scale that is NaN": ("ternary", (4,), b"\x04" + b"\xc0\x7f" + b"\xa0", "nonfinite"),
    "a scale below 0": ("ternary", (4,), b"\x04" + b"\x80\xbf" + b"\xa0", "malformed"),
    "a scale of 1e5": ("ternary", (4,), b"\x04" + b"\xc3\x47" + b"\xa0", "out_of_bounds"),
    "signs behind the last": ("ternary", (4,), b"\x04" + b"\x80\x3f" + b"\xa8", "malformed"),
    "no signs": ("ternary", (4,), b"\x04" + b"\x80\x3f", "malformed"),
    "more entries than the tensor has": ("ternary", (4,), b"\x05" + b"\x80\x3f" + b"\xa0", "malformed"),
    "more entries than the codec keeps": ("ternary:0.5", (4,), b"\x04" + b"\x80\x3f" + b"\xa0", "malformed"),
    "bytes behind the last": ("ternary", (4,), b"\x04" + b"\x80\x3f" + b"\xa0" + b"\0", "malformed"),
    "bytes behind none": ("ternary", (4,), b"\x00\x01", "malformed"),
    "numbers cut short": ("topk:1|fp32", (2,), b"\x02" + bytes(7), "malformed"),
    "a NaN": ("topk:1|fp32", (2,), b"\x02" + struct.pack("<2f", 1, math.nan), "nonfinite"),
    "a bfloat16 that is infinite": ("topk:1|bf16", (1,), b"\x01" + b"\x80\x7f", "nonfinite"),
    "an exponent too large": ("topk:1|fp16", (1,), b"\x01" + struct.pack("<be", 127, 1e4), "nonfinite"),
    "a step too large": ("int4", (2,), struct.pack("<hB", 508, 1) + b"\x80" + b"\x02\x80", "out_of_bounds"),
    "a step above 2^127": ("int4", (2,), struct.pack("<hB", 512, 1) + b"\x80" + b"\x02\x80", "malformed"),
    "a step below 2^-112": ("int4", (2,), struct.pack("<hB", -449, 1) + b"\x80" + b"\x02\x80", "malformed"),
    "steps of 9 bits": ("int4", (2,), struct.pack("<hB", 0, 9) + b"\x80\0" + b"\x02\x80", "malformed"),
    "a group that is not finite": ("int4", (2,), struct.pack("<hB", 0, 8) + b"\xff" + b"\x02\x80", "nonfinite"),
    "no symbols": ("int4", (2,), struct.pack("<hB", 0, 1) + b"\x80", "malformed"),
    "a seed cut short": ("randk:0.5|fp32", (2,), bytes(7), "malformed"),
    "a number that is none": ("fixed:8", (2,), b"\x80\x00", "nonfinite"),
    "a number too few": ("fixed:8", (2,), b"\x80", "malformed"),
}


@pytest.mark.parametrize("what", BAD)
def test_bytes_of_a_tensor_out_of_the_format_are_refused_under_their_code(what):
    name, shape, payload, code = BAD[what]
    data, spec = broken(name, shape, payload)
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_update(data, spec, name)
    assert e.value.code == code


def test_the_hand_made_bytes_are_good_before_they_are_broken():
    for name, shape, payload, want in (
        ("ternary", (4,), b"\x04" + b"\x80\x3f" + b"\xa0", [-1.0, 1.0, -1.0, 1.0]),
        ("ternary", (4,), b"\x00", [0.0] * 4),
        ("topk:1|fp16", (1,), b"\x01" + struct.pack("<be", 1, 3), [6.0]),
        ("int4", (2,), struct.pack("<hB", 4, 1) + b"\x80" + b"\x02\x80", [2.0, -2.0]),
        ("fixed:8", (2,), b"\x80\xff", [0.0, 127 / 128]),
    ):
        data, spec = broken(name, shape, payload)
        assert messages.decode_update(data, spec, name).delta["w"].tolist() == want


@pytest.mark.parametrize("length", [0, 3, 5, 127])
def test_a_length_that_is_wrong_is_refused(length):
    data, spec = broken("ternary", (4,), b"\x04\x80\x3f\xa0", length)
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_update(data, spec, "ternary")
    assert e.value.code == "malformed"


def test_a_tensor_in_another_codec_than_agreed_is_refused():
    delta = {"w": normal(100)}
    for sent, wanted in (
        ("topk:0.5|int8", "topk:0.1|int8"),
        ("int4", "fp32"),
        ("fp32", "int4"),
        ("fixed:16", "fixed:24"),
    ):
        with pytest.raises(RejectedUpdate) as e:
            messages.decode_update(message(delta, sent), spec_of(delta), wanted)
        assert e.value.code == "spec_mismatch"


@pytest.mark.parametrize(
    "table",
    [
        '{"c":"int4"}',
        '{"t":[]}',
        '{"c":"int4","t":[],"x":1}',
        '{"c":4,"t":[]}',
        '{"c":"int4","t":{}}',
        '{"c":"int4","t":[1]}',
        '{"c":"int4","t":[[]]}',
        '{"c":"int4","t":[[1,"w",4]]}',
        '{"c":"int4","t":[[-1,"w",4]]}',
        '{"c":"int4","t":[[0,7,4]]}',
        '{"c":"int4","t":[[0,"w","INT4",4]]}',
        '{"c":"topk:0.10|int4","t":[[0,"w",4]]}',
        '{"c":"int4 ","t":[[0,"w",4]]}',
        '{"c":"fp64","t":[[0,"w",4]]}',
        '{"c":"int4","t":[[0,"w",4],[1,"",4]]}',
        '{"c":"int4","t":[[0,"' + "w" * 201 + '",4]]}',
    ],
)
def test_a_short_table_out_of_the_format_is_refused(table):
    body = bytes(20)
    head = f'{{"r":"{RUN}","t":0,"v":0}}'
    data = (
        struct.pack("<4sHBHI", b"FDFT", versions.newest(), 1, len(head), len(table))
        + head.encode()
        + table.encode()
        + body
    )
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_plan(data, max_bytes=10_000)
    assert e.value.code == "malformed"


# An update under another label


@pytest.mark.parametrize("name", ["fp32", "int4", "randk:0.2|fp32"])
def test_another_label_leaves_the_tensors_bytes_as_they_are(name):
    delta = lora_update(2, 4, 50)
    data = messages.encode_update(Update(delta, 17, 3, RUN, 1, metrics={"loss": 0.5}), name, seed=9)
    again = messages.relabelled(data, round=4, attempt=2)
    got, was = (messages.decode_update(d, spec_of(delta), name) for d in (again, data))
    assert (got.round, got.attempt, got.num_examples, got.run, got.metrics) == (4, 2, 17, RUN, {"loss": 0.5})
    assert all(torch.equal(got.delta[n], was.delta[n]) for n in delta)
    assert messages.encode_update(Update(delta, 17, 4, RUN, 2, metrics={"loss": 0.5}), name, seed=9) == again
    for bad in (b"", data[:20], b"FDFT" + bytes(30)):
        with pytest.raises(RejectedUpdate):
            messages.relabelled(bad, round=0, attempt=0)
