"""The sum of the survivors' integers, from their masked vectors and what t of them opened.

    sum_(i in U) q_i  =  sum_(i in U) (y_i - self_i)  -  sum_(i in U, j in D \\ U) (pair_ij if j > i else -pair_ij)

Masks between two survivors cancel. b of a survivor gives its self mask, a of a dropped site the masks that it shared
with the survivors; nobody's both are ever opened.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fedft.errors import RejectedUpdate
from fedft.privacy.secure_sum import derived_keys, ring, shamir
from fedft.privacy.secure_sum.context import Spec


def unmasked(
    masked: Mapping[int, np.ndarray],
    holders: Sequence[int],
    opened: Mapping[int, Sequence[int]],
    public: Mapping[int, bytes],
    slot: int,
    ctx: bytes,
    spec: Spec,
) -> np.ndarray:
    """The sum, int64 [spec.length].

    Args:
        masked: the survivors' vectors by index, uint32 or uint16 [spec.length]; ValueError for others.
        holders: indices of t survivors whose shares are in `opened`.
        opened: by index of every dealer the shares that the holders gave, in their order.
        public: X25519 keys of the slot by index, of every dealer.
        slot, ctx: what keys are bound to.
        spec: of the vector.
    Raises:
        RejectedUpdate: secagg_out_of_range, where secrets or sums are none that honest sites can have.
    """
    total = np.zeros(spec.length, ring.word(spec.ring))
    for i, y in masked.items():
        if y.dtype != total.dtype or y.shape != total.shape:
            raise ValueError(f"expected {total.dtype} {total.shape} of site {i}, got {y.dtype} {y.shape}")
        total += y
    coefficients = shamir.at_zero(holders)
    secrets = {j: _secret(shamir.rebuilt(shares, coefficients)) for j, shares in opened.items()}
    keys = [(derived_keys.self_key(secrets[i], ctx, slot), True) for i in masked]
    for j in opened.keys() - masked.keys():
        if derived_keys.public(secrets[j]) != public[j]:
            raise RejectedUpdate("secagg_out_of_range", "shares of a dropped site's key do not give its key")
        key = derived_keys.exchange_key(secrets[j])
        keys += [(derived_keys.mask_key(derived_keys.agreed(key, public[i]), ctx, slot), j > i) for i in masked]
    ring.add_masks(total, keys)
    found = ring.centred(total)
    if np.abs(found).max() > spec.most(len(masked), len(holders)):
        raise RejectedUpdate("secagg_out_of_range", "what was opened is no sum of integers in their range")
    return found


def _secret(value: int) -> bytes:
    try:
        return value.to_bytes(shamir.SECRET_BYTES, "little")
    except OverflowError:
        raise RejectedUpdate("secagg_out_of_range", "shares of a secret do not fit together") from None
