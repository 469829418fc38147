"""rANS entropy coding of small signed integers, on integer tables only.

Range asymmetric numeral systems (J. Duda, arXiv:1311.2540) with one 32-bit state and byte-wise renormalisation. Both
ends derive the frequency tables by integer arithmetic from a table number, so two devices never have to agree on
floating point. A stream has one lane: at the few thousand symbols of a layer, plain Python integers take 0.13 us a
symbol; numpy over interleaved lanes would need about 100 of them to win (estimated), and every lane costs 4 bytes.

Stream: the encoder's final state (4 bytes, big-endian), then renormalisation bytes in the order the decoder reads them.
A decoder must end in the state that the encoder began with, with every byte read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fogline.common.errors import FormatError

PRECISION = 14  # a table's frequencies add up to 2**PRECISION
MIN_BITS_PER_SYMBOL = 0.5  # no table codes a symbol in less; bounds what a stream can expand to
_LOW = 1 << 23  # the state stays within [_LOW, _LOW << 8)
_TOTAL = 1 << PRECISION
_ONE = 1 << 16  # fixed-point one of the table recurrence

# Widths in quarters: mean magnitude of a geometric table, twice the variance of a normal one.
_GEOMETRIC = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_NORMAL = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TABLES = len(_GEOMETRIC) + len(_NORMAL)


@lru_cache(maxsize=TABLES)
def frequencies(table: int) -> NDArray[np.int64]:
    """Frequencies (256,) of the symbols -128..127, each at least 1, summing to 2**PRECISION; integer arithmetic."""
    if table < len(_GEOMETRIC):
        width = _GEOMETRIC[table]
        ratio, decay = _ONE * width // (width + 4), _ONE
    else:
        width = _NORMAL[table - len(_GEOMETRIC)]
        ratio = _ONE * width // (width + 4)
        decay = ratio * ratio // _ONE
    weights, weight = [], 1 << 30
    for _ in range(129):  # the weight of magnitude i is the one before times `ratio`, which itself decays for a normal
        weights.append(weight)
        weight, ratio = weight * ratio // _ONE, ratio * decay // _ONE
    symmetric = [weights[abs(symbol)] for symbol in range(-128, 128)]
    total = sum(symmetric)
    spare = _TOTAL - 256  # one each, so that every symbol can be coded
    out = np.array([1 + weight * spare // total for weight in symmetric], dtype=np.int64)
    out[128] += _TOTAL - int(out.sum())
    out.flags.writeable = False
    return out


@lru_cache(maxsize=1)
def _costs() -> NDArray[np.float64]:
    """Bits of each symbol in each table, (TABLES, 256); only for the encoder's choice."""
    return PRECISION - np.log2(np.stack([frequencies(table) for table in range(TABLES)]))


@lru_cache(maxsize=TABLES)
def _starts(table: int) -> list[int]:
    freq = frequencies(table)
    return [int(v) for v in np.cumsum(freq) - freq]


@lru_cache(maxsize=TABLES)
def _decoding(table: int) -> list[tuple[int, int, int]]:
    """For every slot of the table: symbol, its frequency, and the slot's offset within the symbol."""
    return [(s - 128, f, offset) for s, f in enumerate(frequencies(table).tolist()) for offset in range(f)]


def best_table(symbols: NDArray[np.int8]) -> int:
    """The table that codes these symbols in the fewest bits."""
    histogram = np.bincount(symbols.astype(np.int64) + 128, minlength=256)
    return int(np.argmin(_costs() @ histogram))


def encode(runs: Sequence[tuple[int, NDArray[np.int8]]]) -> bytes:
    """Code runs of symbols, each given as (table, symbols (n,)), into one stream."""
    state, out = _LOW, bytearray()
    for table, symbols in reversed(runs):  # last in, first out
        freq, starts = frequencies(table).tolist(), _starts(table)
        for symbol in symbols[::-1].tolist():
            f = freq[symbol + 128]
            limit = f << (31 - PRECISION)
            while state >= limit:
                out.append(state & 0xFF)
                state >>= 8
            state = ((state // f) << PRECISION) + state % f + starts[symbol + 128]
    return state.to_bytes(4, "big") + bytes(reversed(out))


def decode(data: bytes, runs: Sequence[tuple[int, int]]) -> list[NDArray[np.int8]]:
    """Decode runs given as (table, count) from a stream that must hold exactly those.

    Raises FormatError where the stream is too short for the counts, ends early, has bytes left, or doesn't end in the
    encoder's first state.
    """
    count = sum(n for _, n in runs)
    if len(data) < 4 or count * MIN_BITS_PER_SYMBOL > 8 * len(data):
        raise FormatError(f"entropy-coded stream of {len(data)} bytes can't hold {count} symbols; it is damaged")
    bad = [table for table, _ in runs if not 0 <= table < TABLES]
    if bad:
        raise FormatError(f"entropy table {bad[0]} is unknown; known: 0 to {TABLES - 1}; update or discard the record")
    state, position, size = int.from_bytes(data[:4], "big"), 4, len(data)
    if not _LOW <= state < _LOW << 8:
        raise FormatError(f"entropy-coded stream starts in state {state}, which no encoder leaves; it is damaged")
    mask, decoded = _TOTAL - 1, []
    for table, n in runs:
        slots, symbols = _decoding(table), [0] * n
        for i in range(n):
            symbols[i], f, offset = slots[state & mask]
            state = f * (state >> PRECISION) + offset
            while state < _LOW:
                if position == size:
                    raise FormatError(f"entropy-coded stream of {size} bytes ends before its {count} symbols")
                state = state << 8 | data[position]
                position += 1
        decoded.append(np.array(symbols, dtype=np.int8))
    if position != size or state != _LOW:
        raise FormatError(f"entropy-coded stream: {size - position} bytes left, last state {state}; it is damaged")
    return decoded
