"""The benchmark of split policies on a few synthetic links: what it writes can be read again and adds up."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fogline.benchmarks import split_link, split_policies
from fogline.common.split.bandwidth import Bandwidth
from fogline.common.split.options import Option
from fogline.common.split.profile import INPUT, SCHEMA, CodecFigures, CutFigures, Profile
from fogline.common.split.simulate import Setting


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for group, rows in (("slow", "0,300000\n20,500000\n"), ("wild", "0,9000000\n10,100000\n20,9000000\n30,50000\n")):
        folder = tmp_path / "traces" / group
        folder.mkdir(parents=True)
        (folder / f"{group}.csv").write_text("t_s,bps\n" + rows)
    return tmp_path


def profile() -> Profile:
    def codecs(size: float) -> tuple[CodecFigures, ...]:
        widths = {"raw": 4.0, "fp16": 2.0, "int8": 1.0, "int8+zstd": 0.8}
        if size == 1e5:
            widths["jpeg-input"] = 0.1
        return tuple(CodecFigures(name, {1: width * size}, {1: 0.001}, {1: 0.001}) for name, width in widths.items())

    cuts = (
        CutFigures(INPUT, 1.0, {1: 0.0}, {1: 0.02}, codecs(1e5)),
        CutFigures("a", 0.2, {1: 0.01}, {1: 0.01}, codecs(2e4)),
    )
    return Profile(SCHEMA, "m:f", "a", "h", "t", 1, 100_000, {1: 0.02}, cuts)


def test_both_sets_of_codecs_are_compared(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(
        data=data, edge_factor=8.0, rtt=20.0, duration=20.0, accuracy_budget=1.0, plots=data / "plots"
    )
    found = json.loads(json.dumps(split_policies.compared("net", profile(), options)))
    assert set(found) == {"all codecs", "without jpeg-input"}
    for one in found.values():
        assert one["summary"]["all"]["traces"] == 2
        assert one["summary"]["all"]["policies"]["oracle"]["regret_max"] == 0
    assert any(row["option"] == "input jpeg-input" for row in found["all codecs"]["options"])
    assert not any(row["option"] == "input jpeg-input" for row in found["without jpeg-input"]["options"])
    assert len(list((data / "plots").glob("*.png"))) == 2
    assert "traces" in capsys.readouterr().out


def test_rounding_keeps_five_digits() -> None:
    assert split_policies.rounded({"a": [1.23456789, 2], "b": "x", "c": (True, None)}) == {
        "a": [1.2346, 2],
        "b": "x",
        "c": [True, None],
    }


def test_stretches_are_where_adapting_gains_and_groups_take_turns(data: Path) -> None:
    options = [Option(1, (), (), (0.2,), ()), Option(1, ("a",), ("int8",), (0.05, 0.02), (2e4,), rest_s=0.1)]
    paths = sorted((data / "traces").rglob("*.csv"))
    found = split_link.stretches(options, paths, Setting(rtt_s=0.0, duration_s=10.0), 2)
    assert [group for _, group in found] == ["slow", "wild"]
    for link, _ in found:
        assert isinstance(link, Bandwidth)
        assert link.duration_s >= 10.0
        assert all(split_link.LEAST_BIT_S <= 8 * rate <= split_link.MOST_BIT_S for rate in link.rates)


def test_buckets_hold_a_burst_and_never_stop_for_good() -> None:
    assert split_link.bucket(0.0)[2] == "8000bit"
    assert split_link.bucket(1e12)[2] == "100000000bit"
    assert int(split_link.bucket(1e8)[4]) >= 1e8 / 8 * 0.0009
