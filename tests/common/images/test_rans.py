"""The entropy coder: round trips, efficiency, an independent decoder, and damaged streams."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.errors import FormatError
from fogline.common.images import rans

RUNS = st.lists(
    st.tuples(
        st.integers(0, rans.TABLES - 1),
        st.lists(st.integers(-128, 127), max_size=60).map(lambda values: np.array(values, dtype=np.int8)),
    ),
    max_size=5,
)


def laplace(count: int, width: float, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).laplace(0, width, count)
    return np.clip(np.round(values), -128, 127).astype(np.int8)


def by_big_integer(data: bytes, runs: list[tuple[int, int]]) -> list[list[int]]:
    """Decode with symbols found by search instead of tables, and the input as one iterator: an independent decoder."""
    state, rest = int.from_bytes(data[:4], "big"), iter(data[4:])
    out = []
    for table, count in runs:
        ends = np.cumsum(rans.frequencies(table))
        symbols = []
        for _ in range(count):
            slot = state % 2**rans.PRECISION
            symbol = int(np.searchsorted(ends, slot, side="right"))
            frequency = int(rans.frequencies(table)[symbol])
            state = frequency * (state // 2**rans.PRECISION) + slot - (int(ends[symbol]) - frequency)
            while state < 2**23:
                state = state * 256 + next(rest)
            symbols.append(symbol - 128)
        out.append(symbols)
    assert state == 2**23
    assert next(rest, None) is None
    return out


@given(RUNS)
def test_round_trip(runs: list[tuple[int, np.ndarray]]) -> None:
    data = rans.encode(runs)
    counts = [(table, len(symbols)) for table, symbols in runs]
    decoded = rans.decode(data, counts)
    assert [d.tolist() for d in decoded] == [s.tolist() for _, s in runs]
    assert by_big_integer(data, counts) == [s.tolist() for _, s in runs]


@pytest.mark.parametrize("table", range(rans.TABLES))
def test_tables_can_code_every_symbol(table: int) -> None:
    frequencies = rans.frequencies(table)
    assert frequencies.sum() == 2**rans.PRECISION
    assert frequencies.min() >= 1
    assert -math.log2(frequencies.max() / 2**rans.PRECISION) >= rans.MIN_BITS_PER_SYMBOL


def test_tables_never_change() -> None:
    """A record written today must decode for ever: the tables are part of the format."""
    digest = [int(rans.frequencies(t) @ np.arange(1, 257) ** 2 % 1_000_003) for t in range(rans.TABLES)]
    assert (digest[0], digest[9], digest[16], digest[27]) == (20424, 194274, 30274, 611938)
    assert rans.encode([(4, np.array([0, 1, -1, 5, -128, 127], np.int8))]).hex() == "012e23a5f8003fff00"


@pytest.mark.parametrize("width", [1.0, 3.0, 11.0, 30.0])
def test_best_table_comes_close_to_the_entropy(width: float) -> None:
    symbols = laplace(4000, width)
    counts = np.bincount(symbols.astype(int) + 128, minlength=256)
    p = counts[counts > 0] / counts.sum()
    entropy_bytes = -(p * np.log2(p)).sum() * len(symbols) / 8
    assert len(rans.encode([(rans.best_table(symbols), symbols)])) < 1.05 * entropy_bytes + 8


def test_an_empty_stream_costs_four_bytes() -> None:
    assert len(rans.encode([])) == 4


def test_every_damaged_byte_is_noticed() -> None:
    symbols = laplace(200, 8)
    data, runs = rans.encode([(9, symbols)]), [(9, 200)]
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        with pytest.raises(FormatError):
            rans.decode(bytes(damaged), runs)


def test_short_and_long_streams_are_refused() -> None:
    symbols = laplace(200, 8)
    data = rans.encode([(9, symbols)])
    for wrong in (*(data[:n] for n in range(len(data))), data + b"\0", data + data):
        with pytest.raises(FormatError):
            rans.decode(wrong, [(9, 200)])


@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 255), st.integers(0, 400)), max_size=4))
def test_random_bytes_decode_or_are_refused(data: bytes, runs: list[tuple[int, int]]) -> None:
    try:
        decoded = rans.decode(data, runs)
    except FormatError:
        return
    assert [len(d) for d in decoded] == [n for _, n in runs]


def test_an_impossible_count_is_refused_before_any_work() -> None:
    start = time.perf_counter()
    with pytest.raises(FormatError, match="can't hold"):
        rans.decode(b"\0\x80\0\0" * 4, [(0, 10**12)])
    assert time.perf_counter() - start < 0.5


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(FormatError, match="table 28"):
        rans.decode(rans.encode([]), [(28, 0)])
