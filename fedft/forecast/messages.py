"""Bytes of plans and updates, from names and shapes alone.

A codec whose length depends on the numbers counts as its longest; `drawn_share` says how much of that an update of
normal numbers takes, by encoding one.
"""

import math

import torch

from fedft.compression import codec_names
from fedft.errors import ConfigError
from fedft.update import Spec, TensorSpec, Update
from fedft.wire.body import body_bytes
from fedft.wire.messages import encode_update

ROW_BYTES, HEADER_BYTES = 30, 250  # beside a tensor's name in a message's table, and of the rest of its header
DRAWN = 2**18  # numbers of the update that is encoded: a codec's share does not depend on how many


def message_bytes(spec: Spec, codec: str, share: float = 1.0) -> int:
    """Bytes of a message with these tensors, within those of a header; `share`: of the codec's longest, see below.

    Raises ConfigError for a tensor that is neither a vector nor a matrix, such as experts in one parameter.
    """
    if stack := next((f"{n} has {len(t.shape)} dimensions" for n, t in spec.items() if len(t.shape) > 2), ""):
        raise ConfigError(f"{stack}, messages carry up to 2; wanted a strategy with adapters, or of seeds and scalars")
    return HEADER_BYTES + sum(len(n) + ROW_BYTES for n in spec) + round(share * body_bytes(spec, codec))


def drawn_share(spec: Spec, codec: str) -> float:
    """Bytes of normal numbers in this codec over its longest form, of tensors such as the first ones of the spec.

    1 where the length follows from shapes, or where the spec has no floats of known number.
    """
    floats = {n: t for n, t in spec.items() if t.dtype == "float32" and not t.at_most and 0 not in t.shape}
    if codec in codec_names.PLAIN or not floats:
        return 1.0
    some: dict[str, TensorSpec] = {}
    numbers = 0
    for n, t in floats.items():
        numbers += math.prod(t.shape)
        if some and numbers > DRAWN:
            break
        some[n] = t
    g = torch.Generator().manual_seed(0)
    update = Update({n: 1e-2 * torch.randn(t.shape, generator=g) for n, t in some.items()}, 1)
    header = len(encode_update(update, "fp32")) - body_bytes(some, "fp32")
    return (len(encode_update(update, codec)) - header) / body_bytes(some, codec)
