"""rANS entropy coding of small non-negative numbers, each under a table that is known before it is read.

Range asymmetric numeral systems (J. Duda, arXiv:1311.2540), 32-bit state, 16-bit renormalisation, integers only. A
table belongs to a family of two numbers: how likely zero is, and how fast larger values become rarer. Both ends derive
it by integer arithmetic from its index, so two devices never have to agree on floating point. Numbers beyond a table's
alphabet, and all signs, are written as plain bits in a section of their own: they have nothing to gain from a model.

Unlike `rans.py`, which codes long runs of network weights under one table each, this changes the table from symbol to
symbol: a context picks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fogline.common.errors import FormatError

PRECISION = 12  # a table's frequencies add up to 2**PRECISION
ESCAPE = 15  # symbols 0..14 stand for themselves; 15 says that the rest follows as plain bits
LEVELS = 32  # of the probability of zero
DECAYS = 8
TABLES = LEVELS * DECAYS
MAX_VALUE = (1 << 16) - 1
MOST_PER_BYTE = 64  # numbers that a stream may announce for each of its bytes; bounds what it can expand to
_TOTAL = 1 << PRECISION
_LOW = 1 << 16
# Frequency of zero, of 4096: even steps in log odds, from 0.06 to 0.996.
_ZERO = (
    246, 305, 377, 464, 566, 688, 828, 987, 1166, 1361, 1569, 1787, 2010, 2232, 2448, 2654, 2847, 3023, 3182, 3322,
    3445, 3550, 3640, 3717, 3781, 3834, 3879, 3916, 3946, 3984, 4020, 4060,
)  # fmt: skip
# Tables TABLES and on, measured on motion vectors, which are of no such family (`latent_motion`): six of whether a
# vector is the predicted one (0), that of a neighbour (1 to 4) or new (5); then of bits of a new one's difference.
VECTORS: tuple[tuple[int, ...], ...] = (
    (3633, 20, 10, 5, 2, 416, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (2080, 370, 330, 302, 218, 786, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (965, 387, 351, 336, 265, 1782, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (680, 402, 368, 299, 248, 2089, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (509, 451, 401, 430, 381, 1914, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (991, 21, 11, 6, 3, 3053, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (1252, 1210, 512, 257, 239, 152, 174, 198, 88, 2, 2, 2, 2, 2, 2, 2),
    (1041, 1844, 737, 193, 129, 41, 43, 45, 16, 1, 1, 1, 1, 1, 1, 1),
    (697, 1121, 980, 675, 376, 146, 50, 35, 9, 1, 1, 1, 1, 1, 1, 1),
    (416, 446, 614, 737, 891, 700, 124, 119, 42, 1, 1, 1, 1, 1, 1, 1),
    (208, 181, 195, 278, 364, 557, 818, 1008, 456, 25, 1, 1, 1, 1, 1, 1),
    (597, 467, 384, 538, 1026, 223, 179, 399, 276, 1, 1, 1, 1, 1, 1, 1),
    (1511, 1249, 278, 194, 254, 206, 190, 151, 49, 2, 2, 2, 2, 2, 2, 2),
    (1319, 1967, 436, 133, 78, 70, 54, 25, 7, 1, 1, 1, 1, 1, 1, 1),
    (851, 1308, 824, 529, 345, 160, 29, 36, 7, 1, 1, 1, 1, 1, 1, 1),
    (464, 516, 518, 642, 963, 777, 131, 61, 17, 1, 1, 1, 1, 1, 1, 1),
    (536, 208, 176, 243, 345, 566, 794, 860, 344, 16, 3, 1, 1, 1, 1, 1),
    (768, 516, 414, 477, 965, 314, 271, 252, 105, 8, 1, 1, 1, 1, 1, 1),
)  # fmt: skip
_RATIO = (16, 40, 72, 104, 136, 168, 200, 232)  # of 256: a value's frequency over that of the one before, from 2 on


@lru_cache(maxsize=TABLES + len(VECTORS))
def frequencies(table: int) -> tuple[int, ...]:
    """Frequencies of the symbols 0..15, each at least 1, summing to 2**PRECISION."""
    if table >= TABLES:
        return VECTORS[table - TABLES]
    zero, ratio = _ZERO[table // DECAYS], _RATIO[table % DECAYS]
    weights, weight = [], 1 << 24
    for _ in range(ESCAPE):
        weights.append(weight)
        weight = weight * ratio >> 8
    spare = _TOTAL - zero - ESCAPE
    total = sum(weights)
    rest = [1 + w * spare // total for w in weights]
    return (_TOTAL - sum(rest), *rest)


@lru_cache(maxsize=1)
def costs() -> NDArray[np.float32]:
    """Bits of each symbol under each table (tables, 16); for the encoder's choices only."""
    table = np.array([frequencies(t) for t in range(TABLES + len(VECTORS))], np.float64)
    out: NDArray[np.float32] = (PRECISION - np.log2(table)).astype(np.float32)
    return out


@lru_cache(maxsize=TABLES + len(VECTORS))
def _starts(table: int) -> tuple[int, ...]:
    return tuple(int(v) for v in np.cumsum((0, *frequencies(table)))[:-1])


@lru_cache(maxsize=TABLES + len(VECTORS))
def _slots(table: int) -> tuple[bytes, tuple[int, ...], tuple[int, ...]]:
    """For decoding: the symbol of every slot, and each symbol's frequency and start."""
    freq = frequencies(table)
    return b"".join(bytes([s]) * f for s, f in enumerate(freq)), freq, _starts(table)


class StreamTooLongError(ValueError):
    """More symbols than a stream holds: there are cheaper ways to code such a picture."""


class Encoder:
    """Collects values and their tables in the order in which a decoder asks for them."""

    def __init__(self) -> None:
        self._tables: list[NDArray[np.int64]] = []
        self._symbols: list[NDArray[np.int64]] = []
        self._bits: list[NDArray[np.uint8]] = []

    def values(self, tables: NDArray[np.integer], values: NDArray[np.integer]) -> None:
        """Numbers of 0 to MAX_VALUE, each under its own table; both of one shape, written in C order."""
        flat = values.ravel().astype(np.int64)
        self._tables.append(tables.ravel().astype(np.int64))
        self._symbols.append(np.minimum(flat, ESCAPE))
        for value in flat[flat >= ESCAPE].tolist():
            self._golomb(value - ESCAPE)

    def lengths(self, tables: NDArray[np.integer], values: NDArray[np.integer]) -> None:
        """Numbers of a wide range: how many bits each has, under its table; then those bits but the first, plain."""
        flat = values.ravel().astype(np.int64)
        sizes = np.frexp(flat.astype(np.float64))[1]
        self._tables.append(tables.ravel().astype(np.int64))
        self._symbols.append(sizes.astype(np.int64))
        for value, size in zip(flat.tolist(), sizes.tolist(), strict=True):
            if size > 1:
                self._bits.append(np.array([int(c) for c in bin(value)[3:]], np.uint8))

    def signs(self, negative: NDArray[np.bool_]) -> None:
        """One plain bit each."""
        self._bits.append(negative.ravel().astype(np.uint8))

    def numbers(self, values: Sequence[int]) -> None:
        """A few signed numbers without a model, for a header."""
        for value in values:
            self._golomb(2 * abs(value) - (value > 0))

    def finish(self) -> bytes:
        """The stream. Raises StreamTooLongError.

        Length of the rANS part (u16 little-endian, in 16-bit words), that part, then the plain bits.
        """
        stream = _encode(np.concatenate([*self._tables, _NONE]), np.concatenate([*self._symbols, _NONE]))
        bits = np.packbits(np.concatenate([*self._bits, np.empty(0, np.uint8)]))
        words = len(stream) // 2
        if words > 0xFFFF:
            raise StreamTooLongError(f"{len(stream)} bytes of symbols are more than one stream holds")
        return words.to_bytes(2, "little") + stream + bits.tobytes()

    def _golomb(self, value: int) -> None:
        """Exponential-Golomb code of order 0."""
        length = (value + 1).bit_length()
        code = [0] * (length - 1) + [int(c) for c in bin(value + 1)[2:]]
        self._bits.append(np.array(code, np.uint8))


class Decoder:
    """Reads what an Encoder wrote. Every method raises FormatError where the stream can't hold what is asked for."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 2:
            raise _bad("it is too short")
        end = 2 + 2 * int.from_bytes(data[:2], "little")
        if end > len(data) or end == 4:
            raise _bad(f"it announces {end - 2} bytes of symbols and has {len(data) - 2}")
        self._words = np.frombuffer(data[2:end], "<u2").tolist()
        self._position = 2
        self._state = _LOW if end == 2 else self._words[0] << 16 | self._words[1]
        if self._state < _LOW:
            raise _bad(f"it starts in state {self._state}")
        self._plain = np.unpackbits(np.frombuffer(data[end:], np.uint8))
        self._bit = 0
        self._room = len(data) * MOST_PER_BYTE

    def values(self, tables: NDArray[np.integer]) -> NDArray[np.int64]:
        """As many numbers as there are tables, in their shape."""
        found = self._symbols(tables)
        for i in np.flatnonzero(found == ESCAPE).tolist():
            found.flat[i] += self._golomb()
        return found

    def _symbols(self, tables: NDArray[np.integer]) -> NDArray[np.int64]:
        flat = tables.ravel().tolist()
        out = [0] * len(flat)
        state, position, words, size = self._state, self._position, self._words, len(self._words)
        mask, shift, low = _TOTAL - 1, PRECISION, _LOW  # names of the function's own: this loop is most of a parse
        used = {table: _slots(table) for table in set(flat)}
        for i, table in enumerate(flat):
            slots, freq, starts = used[table]
            slot = state & mask
            symbol = slots[slot]
            state = freq[symbol] * (state >> shift) + slot - starts[symbol]
            if state < low:
                if position >= size:
                    raise _bad("its symbols end early")
                state = state << 16 | words[position]
                position += 1
            out[i] = symbol
        self._state, self._position = state, position
        return np.array(out, np.int64).reshape(tables.shape)

    def lengths(self, tables: NDArray[np.integer]) -> NDArray[np.int64]:
        """As many numbers as there are tables, in their shape; each below 2**15."""
        sizes = self._symbols(tables)
        out = np.zeros(sizes.size, np.int64)
        for i in np.flatnonzero(sizes).tolist():
            bits = self.signs(int(sizes.flat[i]) - 1)
            out[i] = int("1" + "".join("1" if b else "0" for b in bits), 2)
        return out.reshape(tables.shape)

    def expect(self, count: int) -> None:
        """Say that `count` numbers come; before anything is allocated for them."""
        self._room -= count
        if self._room < 0:
            raise _bad("it can't hold as many numbers as it announces")

    def signs(self, count: int) -> NDArray[np.bool_]:
        """`count` plain bits."""
        end = self._bit + count
        if end > len(self._plain):
            raise _bad("its plain bits end early")
        out = self._plain[self._bit : end].astype(bool)
        self._bit = end
        return out

    def numbers(self, count: int) -> list[int]:
        """Signed numbers of a header."""
        codes = [self._golomb() for _ in range(count)]
        return [(code + 1) // 2 if code % 2 else -(code // 2) for code in codes]

    def finish(self) -> None:
        """Raise FormatError unless everything was read and the encoder's first state is reached."""
        if self._state != _LOW or self._position != max(2, len(self._words)) or len(self._plain) - self._bit >= 8:
            raise _bad("it holds more than was asked for")
        if self._plain[self._bit :].any():
            raise _bad("its padding is not zero")

    def _golomb(self) -> int:
        ahead = self._plain[self._bit : self._bit + 17]
        ones = np.flatnonzero(ahead)
        if not ones.size:
            raise _bad("a number in its plain bits is too large or cut off")
        zeros = int(ones[0])
        digits = self.signs(2 * zeros + 1)[zeros:]
        return int("".join("1" if d else "0" for d in digits), 2) - 1


_NONE: NDArray[np.int64] = np.empty(0, np.int64)


def _encode(tables: NDArray[np.int64], symbols: NDArray[np.int64]) -> bytes:
    if not symbols.size:
        return b""
    state, words = _LOW, []
    for table, symbol in zip(tables[::-1].tolist(), symbols[::-1].tolist(), strict=True):
        f = frequencies(table)[symbol]
        if state >= f << (32 - PRECISION):
            words.append(state & 0xFFFF)
            state >>= 16
        state = ((state // f) << PRECISION) + state % f + _starts(table)[symbol]
    words += [state & 0xFFFF, state >> 16]
    return np.array(words[::-1], "<u2").tobytes()


def _bad(what: str) -> FormatError:
    return FormatError(f"entropy-coded stream is malformed: {what}; fetch the record again, or encode the image again")
