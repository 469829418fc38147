"""Rising integers in about 2 + log2(n / k) bits each: Elias-Fano, or a bitmap where that is smaller.

Each index is split into some low bits, stored as they are, and a high part, stored in unary: bit number high + rank of
a bit vector is set. Form and size follow from k and n alone, so that a receiver knows them before it reads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fogline.common.errors import FormatError

Indices = NDArray[np.int64]


def _low_bits(count: int, size: int) -> int | None:
    """How many low bits are split off; None: a bitmap needs fewer bytes."""
    low = max(0, (size // max(count, 1)).bit_length() - 1)
    return low if sum(_parts(count, size, low)) < -(-size // 8) else None


def _parts(count: int, size: int, low: int) -> tuple[int, int]:
    """Bytes of the low bits and of the unary part."""
    return -(-count * low // 8), -(-(count + (size >> low) + 1) // 8)


def coded_bytes(count: int, size: int) -> int:
    """Bytes of `count` indices below `size`."""
    low = _low_bits(count, size)
    return -(-size // 8) if low is None else sum(_parts(count, size, low))


def encode(indices: Indices, size: int) -> bytes:
    """`indices` rise strictly and are below `size`."""
    low = _low_bits(len(indices), size)
    if low is None:
        marks = np.zeros(size, np.uint8)
        marks[indices] = 1
        return np.packbits(marks).tobytes()
    bits = np.empty((len(indices), low), np.uint8)
    for i in range(low):
        bits[:, i] = (indices >> i) & 1
    unary = np.zeros(len(indices) + (size >> low) + 1, np.uint8)
    unary[(indices >> low) + np.arange(len(indices))] = 1
    return np.packbits(bits.reshape(-1)).tobytes() + np.packbits(unary).tobytes()


def decode(data: memoryview, count: int, size: int) -> Indices:
    """The indices. Raises FormatError for bytes that `encode` would not have made of `count` of them."""
    low = _low_bits(count, size)
    if data.nbytes != coded_bytes(count, size):
        raise FormatError(f"{data.nbytes} bytes of indices; {count} of {size} take {coded_bytes(count, size)}")
    raw = np.frombuffer(data, np.uint8)
    if low is None:
        indices = np.flatnonzero(np.unpackbits(raw, count=size))
    else:
        split, _ = _parts(count, size, low)
        marks = np.flatnonzero(np.unpackbits(raw[split:], count=count + (size >> low) + 1))
        if len(marks) != count:
            raise FormatError(f"{len(marks)} indices where {count} were announced")
        indices = (marks - np.arange(count)) << low
        bits = np.unpackbits(raw[:split], count=count * low).reshape(count, low)
        for i in range(low):
            indices |= bits[:, i].astype(np.int64) << i
    if len(indices) != count or (count and (indices[-1] >= size or (np.diff(indices) <= 0).any())):
        raise FormatError(f"{len(indices)} indices, {count} announced; they must rise and stay below {size}")
    return indices
