"""A secret in n shares, of which any t give it back and t - 1 say nothing (Shamir, "How to share a secret", 1979).

    f(x) = secret + c_1 x + ... + c_(t-1) x^(t-1)  mod p = 2^255 - 19        share i = f(i), i = 1 .. n
    secret = f(0) = sum_i l_i f(i),   l_i = prod_(j != i) j / (j - i)         over any t of them

The l_i depend on who answers only: all secrets of one set of shareholders cost one inversion together.
"""

from collections.abc import Callable, Sequence

P = 2**255 - 19
SECRET_BYTES = 31
"""Of a secret: as an integer, little endian, it lies below P whatever its bytes."""
SHARE_BYTES = 32


def random_elements(count: int, draw: Callable[[int], bytes]) -> list[int]:
    """So many integers, uniform in 0 .. P - 1, of `draw`'s bytes; out of 2^250 draws one is repeated."""
    found: list[int] = []
    while len(found) < count:
        drawn = draw(SHARE_BYTES * (count - len(found)))
        words = (drawn[at : at + SHARE_BYTES] for at in range(0, len(drawn), SHARE_BYTES))
        found += [x for w in words if (x := int.from_bytes(w, "little") & (2**255 - 1)) < P]
    return found


def shares(secret: int, coefficients: Sequence[int], n: int) -> list[int]:
    """f(1) .. f(n), in 0 .. P - 1.

    Args:
        secret: in 0 .. P - 1.
        coefficients: c_1 .. c_(t-1), uniform; never used again.
        n: how many shares; small, as sums are reduced once, at the end.

    >>> shares(7, [3, 5], 3)
    [15, 33, 61]
    """
    found = []
    for x in range(1, n + 1):
        total = 0
        for c in reversed(coefficients):
            total = (total + c) * x
        found.append((total + secret) % P)
    return found


def at_zero(holders: Sequence[int]) -> list[int]:
    """l_i of each holder, in 0 .. P - 1; the holders are distinct integers in 1 .. P - 1.

    >>> [l if l < P // 2 else l - P for l in at_zero([1, 2, 3])]
    [3, -3, 1]
    """
    product, below = 1, []
    for i in holders:
        product = product * i % P
        low = i
        for j in holders:
            if j != i:
                low = low * (j - i) % P
        below.append(low)
    return [product * inverse % P for inverse in _inverses(below)]


def _inverses(values: Sequence[int]) -> list[int]:
    """1 / x mod P of every value, none of which is zero, by one inversion (Montgomery's trick)."""
    before, running = [], 1
    for x in values:
        before.append(running)
        running = running * x % P
    inverse, found = pow(running, -1, P), []
    for x, b in zip(reversed(values), reversed(before), strict=True):
        found.append(inverse * b % P)
        inverse = inverse * x % P
    return found[::-1]


def rebuilt(held: Sequence[int], coefficients: Sequence[int]) -> int:
    """The secret, in 0 .. P - 1: of the shares of the holders that `at_zero` gave the coefficients of, in their order.

    >>> rebuilt([15, 33, 61], at_zero([1, 2, 3]))
    7
    """
    return sum(s * c for s, c in zip(held, coefficients, strict=True)) % P
