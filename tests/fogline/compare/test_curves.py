"""Bytes at equal quality: interpolated between measurements, never beyond them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.compare.curves import Cost, Front, Rung

# Bytes double with each rung of the background (2 dB) and an object rung adds 100.
PAIR = {
    (row, column): Rung(1000.0 * 2**row + 100 * column, 26.0 + 2 * row, 30.0 + 4 * column)
    for row in range(3)
    for column in range(3)
}


def cost(front: Front, db: float) -> float:
    found = front.at(db)
    assert isinstance(found, Cost)
    assert not found.at_most
    return found.bytes


def test_objects_are_interpolated_log_linearly_first() -> None:
    front = Front(PAIR, 35.0)  # a quarter of the way from 34 to 38 dB
    assert [place.background_db for place in front.places] == [26.0, 28.0, 30.0]
    assert front.places[0].bytes == pytest.approx(1100 ** (3 / 4) * 1200 ** (1 / 4))


def test_then_backgrounds() -> None:
    front = Front({(row, 0): Rung(1000.0 * 4**row, 20.0 + 3 * row, 40.0) for row in range(3)}, 35.0)
    assert cost(front, 23.0) == pytest.approx(4000)
    assert cost(front, 21.5) == pytest.approx(2000)  # half the way in dB is half the way in logarithms
    assert cost(front, 26.0) == pytest.approx(16000)


def test_nothing_is_extrapolated() -> None:
    front = Front(PAIR, 35.0)
    assert front.at(30.01) == "background reaches 30.0 dB"
    assert Front(PAIR, 38.5).at(28) == "objects reach 38.00 dB, not 38.5"
    assert Front({(0, 0): Rung(10, None, 40.0)}, 35.0).at(28) == "no frame has a background"
    assert Front({}, 35.0).at(28) == "nothing was measured"


def test_what_is_finer_than_asked_says_so() -> None:
    found = Front(PAIR, 35.0).at(20.0)
    assert isinstance(found, Cost)
    assert found == Cost(Front(PAIR, 35.0).places[0].bytes, at_most=True)


def test_one_knob_for_both_is_followed_to_where_objects_reach_it() -> None:
    """A video without layers: its objects get better with its background."""
    front = Front({(row, 0): Rung(100.0 * 2**row, 30.0 + 2 * row, 33.0 + 4 * row) for row in range(3)}, 35.0)
    assert front.places[0].background_db == pytest.approx(31.0)
    assert front.places[0].bytes == pytest.approx(100 * math.sqrt(2))
    assert [p.bytes for p in front.places[1:]] == [200.0, 400.0]


def test_frames_without_objects_ask_nothing_of_them() -> None:
    front = Front({(0, 0): Rung(10, 25.0, None), (1, 0): Rung(20, 27.0, None)}, 35.0)
    assert [place.bytes for place in front.places] == [10, 20]


def test_settings_that_another_beats_are_left_out() -> None:
    grid = {(0, 0): Rung(100, 25.0, 40.0), (1, 0): Rung(300, 24.0, 40.0), (2, 0): Rung(400, 30.0, 40.0)}
    assert [place.bytes for place in Front(grid, 35.0).places] == [100, 400]


def test_a_codec_of_half_the_bytes_has_half_the_bytes_over_what_both_measured() -> None:
    reference = Front({(row, 0): Rung(1000.0 * 2**row, 20.0 + 2 * row, 40.0) for row in range(5)}, 35.0)
    half = Front({(row, 0): Rung(1000.0 * 2**row, 22.0 + 2 * row, 40.0) for row in range(6)}, 35.0)
    found = half.against(reference)
    assert found is not None
    assert found.ratio == pytest.approx(0.5)
    assert (found.from_db, found.to_db) == (22.0, 28.0)
    assert reference.against(reference).ratio == pytest.approx(1.0)  # type: ignore[union-attr]
    far = Front({(row, 0): Rung(1000.0, 40.0 + row, 40.0) for row in range(2)}, 35.0)
    assert far.against(reference) is None


@given(
    st.lists(st.tuples(st.floats(1, 1e6), st.floats(10, 50), st.floats(20, 50)), min_size=1, max_size=20),
    st.floats(10, 50),
)
def test_more_quality_never_costs_less_and_no_setting_beats_the_front(
    rungs: list[tuple[float, float, float]], db: float
) -> None:
    grid = {(index // 4, index % 4): Rung(*rung) for index, rung in enumerate(rungs)}
    front = Front(grid, 35.0)
    levels = [place.background_db for place in front.places]
    assert levels == sorted(set(levels))
    sizes = [place.bytes for place in front.places]
    assert sizes == sorted(set(sizes))
    found = front.at(db)
    if isinstance(found, Cost):
        assert min(r.bytes for r in grid.values()) * 0.999 <= found.bytes <= max(r.bytes for r in grid.values()) * 1.001
    for rung in grid.values():
        if rung.object_db is not None and rung.object_db >= 35 and rung.background_db is not None:
            at = front.at(rung.background_db)
            assert isinstance(at, Cost)
            assert at.bytes <= rung.bytes * 1.000001
