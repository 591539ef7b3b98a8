"""Bits, fixed-width fields and varints; the reader that every decoder takes its bytes from."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.float32]


class Reader:
    """Bytes of a message read from front to back; each method raises ValueError where they end too early."""

    def __init__(self, data: memoryview) -> None:
        self.left = data

    def take(self, n: int) -> memoryview:
        """The next n bytes, a view into the message."""
        if n > len(self.left):
            raise ValueError(f"expected {n} more bytes, got {len(self.left)}")
        out, self.left = self.left[:n], self.left[n:]
        return out

    def byte(self) -> int:
        """The next byte as an integer in 0 .. 255."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next variable-length integer, below 2^35. Raises ValueError if it is longer than needed."""
        value = 0
        for shift in range(0, 35, 7):
            b = self.byte()
            value |= (b & 127) << shift
            if b < 128:
                if not b and shift:
                    break
                return value
        raise ValueError("an integer is longer than needed")

    def close(self) -> None:
        """Raise ValueError if bytes are left."""
        if len(self.left):
            raise ValueError(f"{len(self.left)} bytes too many")


def varint(n: int) -> bytes:
    """The bytes of an integer in 0 .. 2^35 - 1: 7 bits per byte, low ones first.

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def put_bits(bits: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """The bytes of a vector of zeros and ones, 8 to a byte, the first in the highest bit."""
    return np.packbits(bits).tobytes()


def get_bits(r: Reader, n: int) -> NDArray[np.uint8]:
    """The next n bits, uint8 [n] of zeros and ones. Raises ValueError if the last byte is not filled up with zeros."""
    data = np.frombuffer(r.take((n + 7) // 8), np.uint8)
    if n % 8 and data[-1] & (0xFF >> n % 8):
        raise ValueError("the last byte is not filled up with zeros")
    return np.unpackbits(data, count=n)


def put_fields(values: Ints, width: int) -> bytes:
    """The bytes of non-negative integers in `width` bits each, highest bit first; width is at most 24."""
    if not width % 8:
        return values.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 4 - width // 8 :].tobytes()
    planes = np.empty((len(values), width), np.uint8)
    for i in range(width):
        planes[:, i] = (values >> (width - 1 - i)) & 1
    return put_bits(planes.reshape(-1))


def get_fields(r: Reader, n: int, width: int) -> NDArray[np.int32]:
    """The next n integers of `width` bits each, int32 [n]."""
    if not width % 8:
        whole = np.zeros((n, 4), np.uint8)
        whole[:, 4 - width // 8 :] = np.frombuffer(r.take(n * width // 8), np.uint8).reshape(n, width // 8)
        return whole.view(">u4").astype(np.int32).reshape(n)
    planes = get_bits(r, n * width).reshape(n, width)
    out = np.zeros(n, np.int32)
    for i in range(width):
        out = (out << 1) | planes[:, i]
    return out
