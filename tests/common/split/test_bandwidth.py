"""A rate that changes: transfers against summing in small steps, and files that are no traces."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.errors import InputError
from fogline.common.split.bandwidth import Bandwidth


def test_a_transfer_takes_what_the_rates_carry() -> None:
    link = Bandwidth([0, 1, 2], [8e6, 0, 16e6])  # 1 MB/s, nothing, 2 MB/s
    assert link.finish(0.0, 500_000) == pytest.approx(0.5)
    assert link.finish(0.5, 500_000) == pytest.approx(1.0)  # with the last byte before the gap, not after it
    assert link.finish(0.5, 500_001) == pytest.approx(2.0000005)
    assert link.finish(1.2, 1_000_000) == pytest.approx(2.5)  # waits out the gap
    assert link.duration_s == 3.0
    assert link.finish(2.5, 2_000_000) == pytest.approx(4.0)  # 1 MB until the end, 1 MB in the next round
    assert link.finish(0.0, 3_000_000 * 10) == pytest.approx(30.0)
    assert [link.rate_at(t) for t in (0.0, 1.5, 2.0, 3.1)] == [8e6, 0, 16e6, 8e6]


@given(
    st.lists(st.tuples(st.floats(0.1, 3), st.one_of(st.just(0.0), st.floats(1e3, 1e7))), min_size=1, max_size=8).filter(
        lambda rows: any(rate for _, rate in rows)
    ),
    st.floats(0, 30),
    st.floats(1, 1e6),
)
def test_what_is_carried_between_start_and_finish_is_what_was_sent(
    rows: list[tuple[float, float]], start: float, count: float
) -> None:
    times, at = [], 0.0
    for gap, _ in rows:
        times.append(at)
        at += gap
    link = Bandwidth(times, [rate for _, rate in rows])

    def carried(until: float) -> float:
        rounds, rest = divmod(until, link.duration_s)
        whole = sum(link.rates[i] * (link.times[i + 1] - link.times[i]) for i in range(len(link.rates)))
        part = sum(
            link.rates[i] * max(0.0, min(rest, link.times[i + 1]) - link.times[i]) for i in range(len(link.rates))
        )
        return rounds * whole + part

    end = link.finish(start, count)
    assert end >= start
    assert carried(end) - carried(start) == pytest.approx(count, rel=1e-6, abs=1e-3 * max(link.rates) + 1e-6)


def test_the_first_row_is_time_zero_and_a_cut_ends_earlier() -> None:
    link = Bandwidth([100.5, 101.5, 103.5], [1e6, 2e6, 3e6])
    assert link.times == [0.0, 1.0, 3.0, 5.0]
    assert link.cut(0.5).duration_s == 0.5
    assert link.cut(2.5).duration_s == 2.5
    assert link.cut(2.5).rates == [1e6 / 8, 2e6 / 8]
    assert link.cut(1.0).rates == [1e6 / 8]
    assert link.cut(1000) is link


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must name the columns"),
        ("t_s,bps\n", "empty trace"),
        ("t,b\n1,2\n", "must name the columns"),
        ("t_s,bps\n0,5\n1,x\n", "row 2"),
        ("t_s,bps\n0,5\n1\n", "row 2"),
        ("t_s,bps\n0,5\n0,6\n", "times must increase"),
        ("t_s,bps\n0,5\nnan,6\n", "row 2"),
        ("t_s,bps\n0,-5\n", "0 or more"),
        ("t_s,bps\n0,inf\n", "0 or more"),
        ("t_s,bps\n0,nan\n", "0 or more"),
        ("t_s,bps\n0,0\n1,0\n", "0 throughout"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as refused:
        Bandwidth.read(path)
    assert "trace.csv" in str(refused.value)


def test_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("x.csv", "absent.csv"):
        with pytest.raises(InputError, match=name):
            Bandwidth.read(tmp_path / name)


@pytest.mark.data
def test_every_real_trace_is_read_and_its_mean_rate_is_that_of_its_rows(data_root: Path) -> None:
    files = sorted((data_root / "traces").rglob("*.csv"))
    assert len(files) >= 100
    for path in files:
        link = Bandwidth.read(path)
        assert math.isfinite(link.finish(0.0, 1e5))
        whole = link.carried[-1]
        assert link.finish(0.0, whole) <= link.duration_s * (1 + 1e-9)
