"""The contract of a codec (`fedft.compression.codec.Codec`): what the wire, error feedback and sums rely on.

    from fedft.suites.codecs import codec_contract
    def test_mine(): codec_contract("mine:0.5")

What a codec declares is checked where it is declared; one that declares nothing keeps the promises of all.
"""

import math
import random
from collections.abc import Iterator

import torch
from torch import Tensor

from fedft.compression.codec import Codec
from fedft.compression.codec_names import parse, received
from fedft.suites.promises import kept
from fedft.update import TensorSpec, Update
from fedft.wire import messages

SEED = 5
MUTATED = 300  # inputs that are no codec's
SHAPES = {
    "scalar": (), "one": (1,), "vector": (9,), "blocks": (700,),
    "row": (1, 7), "m.lora_A": (4, 60), "m.lora_B": (60, 4),
}  # fmt: skip


def _normal(shape: tuple[int, ...], seed: int = SEED) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp_(-3, 3)


def _tensors() -> Iterator[tuple[str, Tensor]]:
    """Names and tensors: noise, zeros, a lone entry, equal ones, heavy tails, mostly zeros, very small and large."""
    for i, (name, shape) in enumerate(SHAPES.items()):
        x = 0.1 * _normal(shape, i)
        lone = torch.zeros_like(x)
        lone.view(-1)[-1] = -0.7
        yield from ((name, t) for t in (x, torch.zeros_like(x), lone, torch.full_like(x, 0.3), 9 * x**5))
        yield from ((name, t) for t in (torch.where(x > 0.1, x, 0.0), x * 2.0**-60, x * 2.0**-140, x * 2.0**12))


def _packed(codec: Codec, name: str, x: Tensor, seed: int = SEED) -> bytes:
    return b"".join(bytes(part) for part in codec.pack(name, x, seed))


def _unpacked(codec: Codec, name: str, x: Tensor, data: bytes) -> Tensor:
    return codec.unpack(name, tuple(x.shape), memoryview(data))


def _same(x: Tensor, y: Tensor) -> bool:
    """Equal, a NaN to a NaN."""
    return x.dtype == y.dtype and x.shape == y.shape and bool(torch.equal(x.nan_to_num(7.5), y.nan_to_num(7.5)))


# Promises of all


def _its_name_finds_it(codec: Codec) -> None:
    assert parse(codec.name) == codec, f"{codec.name!r} is another codec"
    assert received(codec.name) == codec, f"{codec.name!r} is not known to a message that says it"


def _decoded_is_seen(codec: Codec) -> None:
    for name, x in _tensors():
        got, seen = _unpacked(codec, name, x, _packed(codec, name, x)), codec.seen(name, x, SEED)
        assert got.dtype == torch.float32, f"{name} comes out as {got.dtype}"
        assert got.is_contiguous(), f"{name} is not contiguous"
        assert _same(got, seen), f"{name} {list(x.shape)} is not what `seen` says"


def _size_holds(codec: Codec) -> None:
    for name, x in _tensors():
        most, found = codec.size(name, tuple(x.shape)), len(_packed(codec, name, x))
        assert found <= most, f"{name} {list(x.shape)}: {found} bytes, at most {most} are said"
        assert found == most or not codec.plain, f"{name} {list(x.shape)}: {found} bytes, exactly {most} are said"


def _arguments_stay(codec: Codec) -> None:
    for name, x in _tensors():
        before = x.clone()
        data = bytearray(_packed(codec, name, x))
        got, seen = codec.unpack(name, tuple(x.shape), memoryview(data)), codec.seen(name, x, SEED)
        kept_got, kept_seen = got.clone(), seen.clone()
        data[:] = bytes(len(data))
        assert torch.equal(x, before), f"{name} was changed"
        x.fill_(0.5)
        assert torch.equal(got, kept_got), "what is decoded shares the message's memory"
        assert torch.equal(seen, kept_seen), "what is seen shares the tensor's memory"


def _views_are_tensors_too(codec: Codec) -> None:
    view = _normal((6, 8)).t()[::2]
    assert _packed(codec, "w", view) == _packed(codec, "w", view.contiguous()), "a view is written otherwise"


def _same_seed_same_bytes(codec: Codec) -> None:
    for name, x in _tensors():
        for seed in (0, 1, 2**64 - 1):
            assert _packed(codec, name, x, seed) == _packed(codec, name, x.clone(), seed), f"{name}, seed {seed}"


def _whatever_the_bytes(codec: Codec) -> None:
    rng, cases = random.Random(SEED), [(name, x, _packed(codec, name, x)) for name, x in _tensors()]
    for case in range(MUTATED):
        name, x, good = cases[rng.randrange(len(cases))]
        data = _mutated(good, rng)
        try:
            got = _unpacked(codec, name, x, data)
        except ValueError:
            continue
        except Exception as e:
            raise AssertionError(f"case {case}, {name} from {data[:40].hex()}: {type(e).__name__}: {e}") from e
        assert got.shape == x.shape, f"case {case}: {list(got.shape)} of {list(x.shape)}"
        assert got.dtype == torch.float32, f"case {case}: {got.dtype}"


def _mutated(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data) + 1)]
    if rng.random() < 0.2:
        data += rng.randbytes(rng.randrange(1, 6))
    for _ in range(rng.choice((0, 1, 1, 2, 6)) if data else 0):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(24, len(data)))
        data[at] = rng.choice((data[at] ^ 1 << rng.randrange(8), 0, 1, 2, 3, 16, 17, 18, 127, 128, 255))
    return bytes(data)


def _zero_stays_zero(codec: Codec) -> None:
    for name, x in _tensors():
        assert not codec.seen(name, x, SEED)[x == 0].any(), f"a zero of {name} {list(x.shape)} comes out as a number"


def _not_finite_stays(codec: Codec) -> None:
    for number in (math.nan, math.inf, -math.inf):
        for name, shape in SHAPES.items():
            x = 0.1 * _normal(shape)
            x.view(-1)[slice(None) if codec.drawn else -1] = number  # a draw may miss one
            got = _unpacked(codec, name, x, _packed(codec, name, x))
            assert not torch.isfinite(got).all(), f"{number} in {name} {list(shape)} comes out as finite numbers"
            assert not torch.isfinite(codec.seen(name, x, SEED)).all(), f"{number} in {name} is not seen"


def _travels(codec: Codec) -> None:
    delta = {f"{name}.{i}": x for i, (name, x) in enumerate(_tensors()) if float(x.abs().max()) < 1e3}
    delta["seeds"] = torch.arange(40, dtype=torch.int32).to(torch.uint16)
    spec = {n: TensorSpec(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for n, x in delta.items()}
    data = messages.encode_update(Update(delta, 1), codec.name, SEED)
    assert len(data) <= messages.max_update_bytes(spec, codec.name), "an honest message is over its limit"
    got, seen = messages.decode_update(data, spec, codec.name).delta, messages.roundtrip(delta, codec.name, SEED)
    assert all(_same(got[n].float(), seen[n].float()) for n in delta), "a message does not bring what is seen"


def _bits_are_about_right(codec: Codec) -> None:
    x = 0.1 * _normal((16, 4096))
    bits = 8 * len(_packed(codec, "w.lora_A", x)) / x.numel()
    wanted = codec.bits_per_parameter
    assert 0.75 * wanted <= bits <= 1.25 * wanted, f"{bits:.3g} bits per parameter, {wanted:.3g} are said"


# What a codec declares


def _exact_is_exact(codec: Codec) -> None:
    assert not codec.exact or all(torch.equal(codec.seen(name, x, SEED), x) for name, x in _tensors())


def _linear_is_linear(codec: Codec) -> None:
    """Sums of what comes out, and no entry is felt by others: the last ones become a hundred times as large."""
    if not codec.linear:
        return
    for name, shape in SHAPES.items():
        x, y = 0.1 * _normal(shape, 1), 0.05 * _normal(shape, 2)
        parts = codec.seen(name, x, SEED) + codec.seen(name, y, SEED)
        bound = max(2.0**-6, 2.0 ** (2 - codec.bits_per_parameter)) * float(parts.abs().max())
        assert (codec.seen(name, x + y, SEED) - parts).abs().max() <= bound, f"{name}: sums do not come out as sums"
        z = x.clone()
        half = z.numel() // 2
        z.view(-1)[half:] *= 100
        first, again = (codec.seen(name, t, SEED).view(-1)[:half] for t in (x, z))
        assert torch.allclose(first, again, rtol=2**-8, atol=1e-6), f"{name}: an entry depends on the others' sizes"


def _unbiased_is_unbiased(codec: Codec) -> None:
    if not codec.unbiased:
        return
    x = _normal((24,))
    some = torch.stack([codec.seen("w", x, seed) for seed in range(800)]).double()
    bound = 6 * some.std(0) / 800**0.5 + 1e-6
    assert ((some.mean(0) - x).abs() <= bound).all(), "the mean over seeds is another tensor"


def _idempotent_is_idempotent(codec: Codec) -> None:
    for name, x in _tensors() if codec.idempotent else ():
        again = _packed(codec, name, codec.seen(name, x, SEED))
        assert again == _packed(codec, name, x), f"what was decoded of {name} {list(x.shape)} makes other bytes"


def _sums_stay_on_the_scale(codec: Codec) -> None:
    for name, shape in SHAPES.items() if codec.ring_summable else ():
        x, y = (codec.seen(name, 0.1 * _normal(shape, seed), SEED) for seed in (1, 2))
        assert torch.equal(codec.seen(name, x + y, SEED), x + y), f"{name}: a sum is between the numbers there are"


def _behind_a_selection(codec: Codec) -> None:
    if codec.behind_selection is None:
        return
    selections = ("topk:0.3", "topk:1", "randk:0.4") if codec.behind_selection.has_zero else ("topk:0.3", "topk:1")
    for selection in selections:
        selected = parse(f"{selection}|{codec.name}")
        for promise in (*ALL.values(), _idempotent_is_idempotent):
            promise(selected)


ALL = {
    "its name finds it again": _its_name_finds_it,
    "what is decoded of what was encoded is what is seen": _decoded_is_seen,
    "never longer than its size, exactly as long if plain": _size_holds,
    "arguments are not changed, and results own their memory": _arguments_stay,
    "a view is written as the tensor it is": _views_are_tensors_too,
    "same seed, same bytes": _same_seed_same_bytes,
    "whatever the bytes, a tensor or ValueError": _whatever_the_bytes,
    "zero stays zero": _zero_stays_zero,
    "what is not finite stays so": _not_finite_stays,
    "a message brings what is seen, within its limit": _travels,
}
PROMISES = {
    **ALL,
    "its bits per parameter are about right": _bits_are_about_right,
    "declared exact, it is": _exact_is_exact,
    "declared linear, it is but for rounding": _linear_is_linear,
    "declared unbiased, the mean over seeds is what went in": _unbiased_is_unbiased,
    "declared idempotent, what was decoded makes the same bytes": _idempotent_is_idempotent,
    "declared ring summable, sums are on its scale": _sums_stay_on_the_scale,
    "behind a selection the same holds": _behind_a_selection,
}


def codec_contract(name: str, *, stop: bool = True) -> dict[str, str]:
    """Check every promise on the codec called `name`; returns {promise: "" or what broke it}.

    With `stop` the first failure is raised as AssertionError. Raises ValueError where there is no such codec.
    """
    codec = parse(name)
    return kept(PROMISES, codec, codec.name, stop=stop)
