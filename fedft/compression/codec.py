"""What a codec is: a value that writes float32 tensors and reads them back, and the rounding that a selection calls.

What codecs are called is in `codec_names.py`. Loads no tensors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from fedft.arithmetic.tensors import Tensors
    from fedft.compression.bit_packing import Floats, Reader

Part = bytes | memoryview
Shape = tuple[int, ...]


class Rounded(NamedTuple):
    """A vector as both sides will know it, before it is bytes."""

    entries: Any
    """A numpy array of whatever dtype, one entry for each number."""
    scale: Any = None
    """What the numbers have in common."""


def _is_zero(entries: Any) -> Any:
    return entries == 0


def _as_they_are(tensors: "Tensors") -> "Tensors":
    return tensors


@dataclass(frozen=True)
class Rounding:
    """A way to round and write a vector of k > 0 numbers: all of a tensor's (`plain.whole`) or those a selection keeps.

    Numbers that are not finite may come; some that are not finite come out then.
    """

    name: str
    bits_per_parameter: float
    """See `Codec`; of the numbers that are kept."""
    size: Callable[[int], int] = field(compare=False)
    """(k) -> bytes of k numbers, at most."""
    round: Callable[["Floats"], Rounded] = field(compare=False)
    """(numbers) -> what is sent of them."""
    floats: Callable[[Rounded], "Floats"] = field(compare=False)
    """(what is sent) -> float32 [k], as the other side sees them; may share memory with what is sent."""
    pack: Callable[[Rounded], list[Part]] = field(compare=False)
    """(what is sent) -> its bytes, in parts."""
    unpack: Callable[["Reader", int], Rounded] = field(compare=False)
    """(bytes, k) -> what was sent, in new memory. Raises ValueError for bytes that are not in the format."""
    is_zero: Callable[[Any], Any] = field(default=_is_zero, compare=False)
    """(entries of what is sent) -> bool [k], where the number comes out as 0: topk does not send it then."""
    plain: bool = False
    """`size` is exact."""
    linear: bool = False
    """No number depends on the other ones: rounding commutes with sums but for its error."""
    exact: bool = False
    """What comes out is equal to what went in."""
    idempotent: bool = False
    """What came out, without its zeros, is rounded to the same bytes again."""
    coarse: bool = False
    """See `Codec`."""
    ring_summable: bool = False
    """See `Codec`."""
    has_zero: bool = True
    """0 comes out as 0: a must for a codec of all entries and behind randk, not behind topk, which sends no zeros."""


@dataclass(frozen=True)
class Codec:
    """A way to write float32 tensors of at most two dimensions; functions are asked for tensors with entries only.

    A tensor's name counts: it may say which dimension of a matrix is the rank.
    """

    name: str
    """Canonical (no spaces, no short form), as in `NAME`; begins with the name it is found by."""
    bits_per_parameter: float
    """About how many bits one parameter of a large tensor of Gaussian entries takes, scales left out."""
    size: Callable[[str, Shape], int] = field(compare=False)
    """(tensor's name, shape) -> bytes, at most; exactly if `plain`."""
    pack: Callable[[str, "Tensor", int], list[Part]] = field(compare=False)
    """(tensor's name, tensor, seed of 64 bits) -> bytes in parts, which may share the tensor's memory."""
    unpack: Callable[[str, Shape, memoryview], "Tensor"] = field(compare=False)
    """(tensor's name, shape, its bytes) -> float32, contiguous, in new memory.

    Raises ValueError for bytes that are not in the format, before much is allocated: there is a byte for 256 entries.
    """
    seen: Callable[[str, "Tensor", int], "Tensor"] = field(compare=False)
    """(tensor's name, tensor, seed) -> what `unpack` makes of what `pack` makes, in new memory."""
    across: Callable[["Tensors"], "Tensors"] = field(default=_as_they_are, compare=False)
    """(tensors of a message, by name) -> those that are packed in their place, where a choice is made among all."""
    plain: bool = False
    """Every entry at its place in a fixed number of bytes: the size follows from the shape."""
    linear: bool = False
    """Decoding commutes with sums, but for rounding (and a clip): no value depends on the other entries' sizes."""
    exact: bool = False
    """What comes out is equal to what went in."""
    unbiased: bool = False
    """The mean over seeds of what comes out is what went in."""
    ring_summable: bool = False
    """Integers on a public scale: sums modulo 2^32 of what clients send decode to the sum of what they meant."""
    idempotent: bool = False
    """What was decoded encodes to the same bytes again."""
    coarse: bool = False
    """So much is lost that a client does well to add it to its next update (error feedback)."""
    drawn: bool = False
    """What is sent stands for what is not, scaled up: nothing is left out that could be sent later."""
    behind_selection: Rounding | None = field(default=None, compare=False)
    """How entries are written that a selection keeps; left out: no selection may stand before this codec."""


def promises(codec: Codec) -> str:
    """What a codec declares, as text.

    >>> from fedft.compression.plain import FP16
    >>> promises(FP16)
    'plain, linear, idempotent, behind a selection; about 16 bits per parameter'
    """
    flags = ("plain", "linear", "exact", "unbiased", "ring_summable", "idempotent", "coarse", "drawn")
    said = [flag for flag in flags if getattr(codec, flag)] + ["behind a selection"] * bool(codec.behind_selection)
    return f"{', '.join(said) or 'nothing'}; about {codec.bits_per_parameter:.3g} bits per parameter"


def number(text: str) -> float:
    """The number that an argument of a codec's name says; NaN if it says none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
