from __future__ import annotations

import pytest

from fogline.benchmarks.tensor_transport import WAYS, Pair, bulk, enrol


@pytest.fixture
def folder(tmp_path):
    enrol(tmp_path)
    return tmp_path


def test_every_way_brings_the_same_bytes_and_is_measured(folder):
    pairs = {way: Pair(way, folder, 4 << 20) for way in WAYS}
    try:
        found = bulk(pairs, 1)
    finally:
        for pair in pairs.values():
            pair.close()
    assert set(found) == set(WAYS)
    for row in found.values():
        assert row["mib_per_s"] > 0
        assert row["cpu_s_per_gib"] > 0
        assert row["extra_ratio"] < 20
        assert len(row["runs"]) == 1
    assert found["bare"]["cpu_s_per_gib_of_bare"] == 1


def test_round_trips_are_measured_in_turns(folder):
    echo = Pair("echo", folder, 1 << 20)
    try:
        trips = echo.sender("rounds", count=10)
    finally:
        echo.close()
    assert set(trips) == {"unary", "stream", "ours"}
    assert all(0 < row["median_s"] <= row["p90_s"] for row in trips.values())
