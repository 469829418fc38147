"""The context-driven entropy coder: round trips, efficiency, an independent decoder, damaged streams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.errors import FormatError
from fogline.common.images import static_rans as coder

PAIRS = st.lists(st.tuples(st.integers(0, coder.TABLES - 1), st.integers(0, coder.MAX_VALUE)), max_size=80)


def encoded(tables: np.ndarray, values: np.ndarray) -> bytes:
    encoder = coder.Encoder()
    encoder.values(tables, values)
    return encoder.finish()


@pytest.mark.parametrize("table", range(coder.TABLES + len(coder.VECTORS)))
def test_tables_can_code_every_symbol(table: int) -> None:
    frequencies = coder.frequencies(table)
    assert sum(frequencies) == 1 << coder.PRECISION
    assert len(frequencies) == coder.ESCAPE + 1
    assert min(frequencies) >= 1


@given(PAIRS, st.lists(st.booleans(), max_size=30), st.lists(st.integers(-5000, 5000), max_size=5))
def test_round_trip(pairs: list[tuple[int, int]], signs: list[bool], numbers: list[int]) -> None:
    tables, values = np.array(pairs, np.int64).reshape(-1, 2).T
    encoder = coder.Encoder()
    encoder.numbers(numbers)
    encoder.values(tables, values)
    encoder.signs(np.array(signs, bool))
    decoder = coder.Decoder(encoder.finish())
    assert decoder.numbers(len(numbers)) == numbers
    assert decoder.values(tables).tolist() == values.tolist()
    assert decoder.signs(len(signs)).tolist() == signs
    decoder.finish()


def test_an_independent_decoder_reads_the_same() -> None:
    rng = np.random.default_rng(0)
    tables, values = rng.integers(0, coder.TABLES, 500), rng.integers(0, coder.ESCAPE, 500)
    data = encoded(tables, values)
    words = np.frombuffer(data[2 : 2 + 2 * int.from_bytes(data[:2], "little")], "<u2").tolist()
    state, rest = words[0] * 65536 + words[1], iter(words[2:])
    for table, value in zip(tables.tolist(), values.tolist(), strict=True):
        ends = np.cumsum(coder.frequencies(table))
        symbol = int(np.searchsorted(ends, state % 4096, side="right"))
        assert symbol == value
        frequency = coder.frequencies(table)[symbol]
        state = frequency * (state // 4096) + state % 4096 - (int(ends[symbol]) - frequency)
        if state < 65536:
            state = state * 65536 + next(rest)
    assert state == 65536
    assert next(rest, None) is None


def test_size_is_that_of_the_model() -> None:
    rng = np.random.default_rng(1)
    table = 20 * coder.DECAYS + 3
    p = np.array(coder.frequencies(table)) / 4096
    values = rng.choice(16, 20_000, p=p)
    values[values == coder.ESCAPE] = 0
    bits = coder.costs()[table][values].sum()
    size = len(encoded(np.full(20_000, table), values))
    assert bits / 8 <= size <= bits / 8 * 1.01 + 8


@given(PAIRS.filter(bool), st.data())
def test_damage_is_refused_or_changes_numbers_and_nothing_else(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    tables, values = np.array(pairs, np.int64).reshape(-1, 2).T
    good = encoded(tables, values)
    at = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[at // 8] ^= 1 << at % 8
    with_cut = bytes(bad[: data.draw(st.integers(0, len(bad)))]) if data.draw(st.booleans()) else bytes(bad)
    try:
        decoder = coder.Decoder(with_cut)
        found = decoder.values(tables)
        decoder.finish()
    except FormatError:
        return
    assert found.shape == tables.shape
    assert found.min() >= 0


@given(st.lists(st.tuples(st.integers(6, 17), st.integers(0, 2**15 - 1)), max_size=60))
def test_numbers_of_a_wide_range_round_trip(pairs: list[tuple[int, int]]) -> None:
    tables, values = np.array(pairs, np.int64).reshape(-1, 2).T
    encoder = coder.Encoder()
    encoder.lengths(tables + coder.TABLES, values)
    decoder = coder.Decoder(encoder.finish())
    assert decoder.lengths(tables + coder.TABLES).tolist() == values.tolist()
    decoder.finish()


def test_what_follows_is_refused() -> None:
    tables, values = np.zeros(3, np.int64), np.array([1, 2, 3])
    decoder = coder.Decoder(encoded(tables, values) + b"\0")
    decoder.values(tables)
    with pytest.raises(FormatError, match="more than was asked for"):
        decoder.finish()


def test_more_than_the_stream_can_hold_is_refused_before_it_is_read() -> None:
    decoder = coder.Decoder(bytes(10))
    decoder.expect(10 * coder.MOST_PER_BYTE)
    with pytest.raises(FormatError, match="can't hold"):
        decoder.expect(1)
