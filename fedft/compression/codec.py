"""What a codec is called, and what it promises: `parse("topk:0.1 | int8")`. Reads text only, no tensors.

    name        [selection |] values
    selection   topk:Q    the ceil(Q d) largest magnitudes of a tensor of d entries; of equal ones the first; no zeros
                randk:Q   ceil(Q d) entries drawn from a seed in the message, times d / ceil(Q d): unbiased
    values      fp32, fp16, bf16, int8, int4, ternary (a sign and the tensor's mean magnitude),
                fixed:BITS or fixed:BITS:CLIP (integers that add up exactly, see below)
    ternary:Q   short for topk:Q | ternary (ComPEFT)

`topk:1` keeps whatever is not zero: a lossless way to send few entries among many zeros.

fixed:BITS takes x to round(x 2^(BITS-1) / CLIP), half to even, from -(2^(BITS-1) - 1) to 2^(BITS-1) - 1: what is beyond
+-CLIP is cut. The scale is the same for everybody, so integers of many clients may be added modulo 2^32 and their sum
decoded; CLIP is a power of two (1 if left out), BITS at most 24, so that a decoded integer is exact in float32.

Downloads are in such a codec, or changes of the state are: `downloads("delta | int4")`, see `delta_downloads.py`.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from fedft import check

PLAIN = ("fp32", "fp16", "bf16", "int8")
VALUES = (*PLAIN, "int4", "ternary")
SELECTIONS = ("topk", "randk")
DELTA = "delta"
_BITS = {"fp32": 32.0, "fp16": 16.0, "bf16": 16.0, "int8": 8.0, "int4": 3.4, "ternary": 1.0}


@dataclass(frozen=True)
class Codec:
    """One codec; made by `parse`."""

    name: str
    """Canonical: no spaces, no short form."""
    values: str
    """fp32, fp16, bf16, int8, int4, ternary or fixed."""
    selection: str = ""
    """topk, randk or "" for all entries."""
    share: float = 1.0
    """Of the entries that are selected."""
    bits: int = 0
    """Of a fixed-point integer."""
    clip: float = 0.0
    """Largest magnitude of a fixed-point number."""

    @property
    def plain(self) -> bool:
        """Every entry at its place in a fixed number of bytes: the size follows from the shape."""
        return self.name in PLAIN

    @property
    def linear(self) -> bool:
        """Decoding commutes with sums, but for rounding (and `clip`): no value depends on the other entries' sizes."""
        return self.values in ("fp32", "fp16", "bf16", "fixed") and (self.selection != "topk" or self.share == 1)

    @property
    def exact(self) -> bool:
        """What comes out is equal to what went in."""
        return self.values == "fp32" and (not self.selection or (self.selection == "topk" and self.share == 1))

    @property
    def unbiased(self) -> bool:
        """The mean over seeds of what comes out is what went in."""
        return self.values == "fp32" and (self.exact or self.selection == "randk")

    @property
    def ring_summable(self) -> bool:
        """Integers on a public scale: sums modulo 2^32 of what clients send decode to the sum of what they meant."""
        return self.values == "fixed"

    @property
    def settles(self) -> bool:
        """What was decoded encodes to the same bytes again."""
        return self.values != "int4" and self.selection != "randk"

    @property
    def bits_per_parameter(self) -> float:
        """About how many bits one parameter of a large tensor of Gaussian entries takes, scales left out."""
        per_value = float(self.bits) if self.values == "fixed" else _BITS[self.values]
        if not self.selection:
            return per_value
        per_value = 6.5 if self.values == "int8" else per_value  # coded by its entropy
        support = bits_per_place(self.share) if self.selection == "topk" else 0.0
        return support + self.share * per_value

    def kept(self, entries: int) -> int:
        """How many of `entries` are selected, at most."""
        return math.ceil(Fraction(f"{self.share:g}") * entries) if self.selection else entries


def bits_per_place(p: float) -> float:
    """Entropy of whether a place is kept, if a share p of all are."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@lru_cache(maxsize=256)
def parse(name: str) -> Codec:
    """The codec of a name. Raises ValueError in one line for names that are unknown or make no sense."""
    first, bar, last = (part.strip() for part in name.partition("|"))
    values = last if bar else first
    if not bar and values.startswith("ternary:"):
        first, bar, values = f"topk:{values.removeprefix('ternary:')}", "|", "ternary"
    kind, _, numbers = values.partition(":")
    if kind == "fixed":
        if bar:
            raise ValueError(
                f"codec is {name!r}: fixed is for sums over clients, who select unlike entries; wanted it alone"
            )
        return _fixed(name, numbers)
    check.one_of((*VALUES, "fixed:BITS"), codec=values)
    if not bar:
        return Codec(values, values)
    selection, _, share = first.partition(":")
    check.one_of(SELECTIONS, selection=selection)
    q = _number(share)
    if not (0 < q <= 1):
        raise ValueError(f"codec is {name!r}: wanted {selection}:Q with Q the share of entries kept, 0 < Q <= 1")
    if selection == "randk" and q == 1:
        raise ValueError(f"codec is {name!r}: randk:1 keeps everything; wanted {values!r}")
    if selection == "randk" and values == "ternary":
        raise ValueError(
            f"codec is {name!r}: ternary has to know which entries are 0; wanted topk before it, or nothing"
        )
    return Codec(f"{selection}:{q:g}|{values}", values, selection, float(f"{q:g}"))


def downloads(down: str) -> tuple[str, str]:
    """(codec of plans, codec of the changes that they bring or "") of a `[codec] down`.

    "int8" is ("int8", ""): the state itself is rounded. "delta | int4" is ("fp32", "int4").
    Raises ValueError in one line for names that are unknown or make no sense.
    """
    first, _, rest = (part.strip() for part in down.partition("|"))
    if first != DELTA:
        if rest:
            check.one_of((DELTA, *SELECTIONS), selection=first.partition(":")[0])
        codec = parse(down)
        if not (codec.plain or (codec.selection and codec.share == 1 and codec.values != "int4")):
            raise ValueError(
                f"{down!r} blurs or leaves out much of a state; wanted fp32, fp16, bf16, int8, one of them behind "
                "'topk:1 |', or changes of the state, as in 'delta | int4'"
            )
        return down, ""
    if not rest:
        raise ValueError(f"{down!r} does not say the codec of the changes; wanted one behind it, as in 'delta | int4'")
    codec = parse(rest)
    why = ""
    if codec.selection == "randk":  # |x - sent|^2 is 1 / Q - 1 times |x|^2: for Q < 1/2 it grows in every round
        why = "what randk sends is scaled up, so what is left out would pile up; wanted topk"
    elif codec.values == "fixed":
        why = "fixed is for sums over clients"
    elif codec.name == "fp32":
        why = "a change in fp32 is as long as the state; wanted 'fp32'"
    if why:
        raise ValueError(f"{down!r}: {why}")
    return "fp32", rest


def _fixed(name: str, numbers: str) -> Codec:
    bits, colon, clip = numbers.partition(":")
    width, most = int(bits) if bits.isascii() and bits.isdigit() and len(bits) < 4 else 0, _number(clip or "1")
    if not 2 <= width <= 24 or not (2.0**-40 <= most <= 2.0**13 and math.frexp(most)[0] == 0.5) or (colon and not clip):
        raise ValueError(
            f"codec is {name!r}: wanted fixed:BITS[:CLIP] with BITS from 2 to 24 and CLIP a power of two up to 8192"
        )
    return Codec(f"fixed:{width}" + (f":{most:.17g}" if most != 1 else ""), "fixed", "", 1.0, width, most)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
