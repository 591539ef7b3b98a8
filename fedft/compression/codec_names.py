"""What codecs are called: `parse("topk:0.1 | int8")`. Loads no tensors until a name is parsed.

    name        [selection |] values
    selection   topk:Q    the ceil(Q d) largest magnitudes of a tensor of d entries; of equal ones the first; no zeros
                randk:Q   ceil(Q d) entries drawn from a seed in the message, times d / ceil(Q d): unbiased
    values      fp32, fp16, bf16, int8, int4, ternary (a sign and the tensor's mean magnitude),
                fixed:BITS or fixed:BITS:CLIP (integers that add up exactly, see `fixed_point.py`),
                NAME or NAME:ARGUMENTS of an installed package
    ternary:Q   short for topk:Q | ternary (ComPEFT, tensor by tensor)
    compeft:DENSITY,SCALE   ComPEFT as published, one selection and magnitude for all tensors (`compeft.py`)

`topk:1` keeps whatever is not zero: a lossless way to send few entries among many zeros.

Downloads are in such a codec, or changes of the state are: `downloads("delta | int4")`, see `delta_downloads.py`.

A codec of another package is an entry point in the group `fedft.codecs`: its name, and a factory that takes the
ARGUMENTS as text ("" where there are none) and returns a `Codec`, or raises ValueError. `fedft.suites.codecs` checks
what a codec promises. Such packages are imported for names of the operator's own files and command line (`parse`),
never for a name in a message or a job (`received`).
"""

import re
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fedft import allowed_code, check
from fedft.compression.codec import Codec, number, promises
from fedft.errors import in_one_line

GROUP = "fedft.codecs"
PLAIN = ("fp32", "fp16", "bf16", "int8")
"""Codecs whose size follows from the shape."""
MODULES = {
    "fp32": "plain:FP32",
    "fp16": "plain:FP16",
    "bf16": "plain:BF16",
    "int8": "quantized:INT8",
    "int4": "quantized:INT4",
    "ternary": "ternary:TERNARY",
    "fixed": "fixed_point:fixed",
    "compeft": "compeft:compeft",
}
"""Codec -> "module:attribute" in this room; `fixed` and `compeft` take arguments."""
SELECTIONS = ("topk", "randk")
DELTA = "delta"
RESERVED = {*MODULES, *SELECTIONS, DELTA, "int32", "uint16", "numbers"}
"""Names that no other package's codec can have: the last are wire types of tensors that are not floats."""
EXAMPLES = (
    *PLAIN,
    "int4",
    "ternary",
    "ternary:0.1",
    "compeft:0.1,1",
    "fixed:16",
    "topk:1|fp16",
    "topk:0.1|int8",
    "randk:0.1|fp32",
)
NAME = re.compile(r"[a-z0-9][a-z0-9:.,|+-]{0,31}")
"""A canonical name: what may stand as a wire type in a message's table."""

_known: dict[str, Codec] = {}
"""Codecs of other packages that local config has named: by what they were called there, and by their own name."""


def parse(name: str) -> Codec:
    """The codec that the operator's own file or command line names; it may be another package's, which is imported.

    Raises ValueError in one line for names that are unknown or make no sense.

    >>> parse(" topk:1e-1 | int8 ").name
    'topk:0.1|int8'
    >>> parse("fixed:99")
    Traceback (most recent call last):
        ...
    ValueError: codec is 'fixed:99': wanted fixed:BITS[:CLIP] with BITS from 2 to 24 and CLIP a power of two up to 8192
    """
    return _parsed(name, True)


def received(name: str) -> Codec:
    """The codec of a name that a peer may have sent: built in, or one that `parse` has met in this process.

    Imports no other package. Raises ValueError as `parse` does.
    """
    return _parsed(name, False)


def codecs() -> dict[str, str]:
    """{name: its promises in a line} of all codecs that can be named; of those that take arguments an example."""
    told = {}
    for name in (*EXAMPLES, *sorted(_installed())):
        try:
            told[name] = promises(parse(name))
        except ValueError as e:
            told[name] = str(e)
    return told


def downloads(down: str, read: Callable[[str], Codec] = parse) -> tuple[str, str]:
    """(codec of plans, codec of the changes that they bring or "") of a `[codec] down`, names read by `read`.

    Raises ValueError in one line for names that are unknown or make no sense.

    >>> downloads("int8")  # the state itself is rounded
    ('int8', '')
    >>> downloads("delta | int4")  # what each round changed in the state is rounded
    ('fp32', 'int4')
    """
    first, _, rest = (part.strip() for part in down.partition("|"))
    if first != DELTA:
        if rest:
            check.one_of((DELTA, *SELECTIONS), selection=first.partition(":")[0])
        codec = read(down)
        if not (codec.plain or (codec.idempotent and not codec.coarse and not codec.ring_summable)):
            raise ValueError(
                f"{down!r} blurs or leaves out much of a state; wanted fp32, fp16, bf16, int8, one of them behind "
                "'topk:1 |', or changes of the state, as in 'delta | int4'"
            )
        return down, ""
    if not rest:
        raise ValueError(f"{down!r} does not say the codec of the changes; wanted one behind it, as in 'delta | int4'")
    codec = read(rest)
    why = ""
    if codec.drawn:  # |x - sent|^2 is 1 / Q - 1 times |x|^2: for Q < 1/2 it grows in every round
        why = "what randk sends is scaled up, so what is left out would pile up; wanted topk"
    elif codec.ring_summable:
        why = f"{_kind(codec)} is for sums over clients"
    elif codec.name == "fp32":
        why = "a change in fp32 is as long as the state; wanted 'fp32'"
    if why:
        raise ValueError(f"{down!r}: {why}")
    return "fp32", rest


# Names


@lru_cache(maxsize=256)
def _parsed(name: str, ours: bool) -> Codec:
    first, bar, last = (part.strip() for part in name.partition("|"))
    values = last if bar else first
    if not bar and values.startswith("ternary:"):
        first, bar, values = f"topk:{values.removeprefix('ternary:')}", "|", "ternary"
    codec = _values(values, ours)
    if not bar:
        return codec
    selection, _, share = first.partition(":")
    check.one_of(SELECTIONS, selection=selection)
    rounding, q = codec.behind_selection, number(share)
    if codec.ring_summable:
        raise ValueError(
            f"codec is {name!r}: {_kind(codec)} is for sums over clients, who select unlike entries; wanted it alone"
        )
    if not (0 < q <= 1):
        raise ValueError(f"codec is {name!r}: wanted {selection}:Q with Q the share of entries kept, 0 < Q <= 1")
    if selection == "randk" and q == 1:
        raise ValueError(f"codec is {name!r}: randk:1 keeps everything; wanted {values!r}")
    if rounding is None:
        raise ValueError(f"codec is {name!r}: {values} is not made for selected entries; wanted it alone")
    if selection == "randk" and not rounding.has_zero:
        raise ValueError(
            f"codec is {name!r}: {values} has to know which entries are 0; wanted topk before it, or nothing"
        )
    made: Codec = _found(f"top_k:{selection}")(f"{q:g}", rounding)
    if not NAME.fullmatch(made.name):
        raise ValueError(f"codec is {name!r}: {made.name!r} is too long for a message; wanted 32 characters at most")
    return made


def _values(text: str, ours: bool) -> Codec:
    """The codec of a name without selection."""
    kind, colon, arguments = text.partition(":")
    if kind in MODULES:
        found = _found(MODULES[kind])
        if not isinstance(found, Codec):
            made: Codec = found(arguments)
            return made
        if not colon:
            return found
    elif text in _known:
        return _known[text]
    elif ours and kind in _installed():
        made = _outside(kind, arguments)
        _known[text] = _known[made.name] = made
        return made
    if ours and kind not in MODULES and allowed_code.NAME.fullmatch(text):
        raise ValueError(f"codec is {text!r}, wanted the name of an installed one: sites read its bytes as well")
    takers = {"fixed": "fixed:BITS", "compeft": "compeft:DENSITY,SCALE"}
    check.one_of((*(takers.get(known, known) for known in MODULES), *(_installed() if ours else ())), codec=text)
    raise AssertionError("a name that is one of those is found above")


def _outside(kind: str, arguments: str) -> Codec:
    """The codec of an installed package; whatever goes wrong in it is a ValueError in one line."""
    (point, *_) = entry_points(group=GROUP, name=kind)
    try:
        codec = point.load()(arguments)
    except Exception as e:  # it may raise what it likes
        raise ValueError(f"codec {kind}:{arguments} of {point.value}: {in_one_line(e)}") from e
    if not isinstance(codec, Codec) or not NAME.fullmatch(codec.name) or _kind(codec) != kind or "|" in codec.name:
        said = f"a codec called {codec.name!r}" if isinstance(codec, Codec) else type(codec).__name__
        raise ValueError(f"codec {kind}:{arguments} of {point.value}: got {said}, wanted one called {kind}[:arguments]")
    return codec


def _installed() -> set[str]:
    """Names of other packages' codecs."""
    return {point.name for point in entry_points(group=GROUP)} - RESERVED


def _found(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(import_module(f"fedft.compression.{module}"), attribute)


def _kind(codec: Codec) -> str:
    return codec.name.partition(":")[0]
