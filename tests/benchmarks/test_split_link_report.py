"""What is read from the requests of a real link: how slow, late and uneven device and host were."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")

from fogline.benchmarks import split_link_report as report
from fogline.common.split.options import enumerate_options
from fogline.common.split.profile import INPUT, SCHEMA, CodecFigures, CutFigures, Profile

TRIP_S, LATE_S = 0.002, 0.012


def profile(whole_s: float) -> Profile:
    def codecs(size: float) -> tuple[CodecFigures, ...]:
        return tuple(
            CodecFigures(name, {1: width * size}, {1: 1e-4}, {1: 1e-4}) for name, width in (("raw", 4.0), ("int8", 1.0))
        )

    cuts = (
        CutFigures(INPUT, 1.0, {1: 0.0}, {1: whole_s}, codecs(1e5)),
        CutFigures("a", 0.1, {1: whole_s / 2}, {1: whole_s / 2}, codecs(1e4)),
    )
    return Profile(SCHEMA, "m:f", "a", "h", "t", 1, 100_000, {1: whole_s}, cuts)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Device 1.25 times and host twice as slow as profiled, at 8 Mbit/s from the second half on."""
    folder = tmp_path / "traces" / "slow"
    folder.mkdir(parents=True)
    (folder / "x.csv").write_text("t_s,bps\n0,100000\n10,8000000\n30,8000000\n")
    device, host = profile(0.16), profile(0.02)
    option = next(one for one in enumerate_options([device, host], 1) if one.name == "a int8")
    common = {"fell_back": False, "expected_s": 0.1, "rate_bit_s": 8e6, "decision_s": 1e-4, "decision_cpu_s": 1e-5}
    local = [{**common, "begun_s": 0.2 * i, "latency_s": 0.2, "option": "local"} for i in range(8)]
    sent = []
    for index in range(8):
        ready = 0.2 * index + 0.1
        took = 1.06 * 1e4 / 1e6 + TRIP_S + LATE_S + 2 * option.hosts_s[1]
        times = {"ready_s": ready, "head_s": 0.1, "answered_s": ready + took, "compute_s": 2 * option.hosts_s[1]}
        one = {"begun_s": 0.2 * index, "latency_s": 0.1 + took, "option": "a int8", "bytes": 10_000, "queued_s": 0.0}
        sent.append({**common, **times, **one, "backlog_bytes": 0})

    def policy(requests: list[dict[str, Any]]) -> dict[str, Any]:
        mean_s = sum(one["latency_s"] for one in requests) / len(requests)
        return {"real": {"mean_s": mean_s, "decision_s": 1e-4}, "simulated": {"mean_s": mean_s}, "requests": [requests]}

    row = {"trace": "x from 12 s", "group": "slow", "best_fixed": "local"}
    row["policies"] = {
        "local": policy(local),
        "best fixed": policy(local),
        "joint": policy(sent),
        "oracle": policy(sent),
    }
    profiles = {"device": msgspec.to_builtins(device, str_keys=True), "host": msgspec.to_builtins(host, str_keys=True)}
    result = {"schema": 1, "policies": list(row["policies"]), "rtt_s": TRIP_S, "seconds": 4.0, "accuracy_budget": 1.0}
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({**result, "profiles": profiles, "stretches": [row]}))
    return path


def test_a_simulation_of_what_was_there_agrees(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = measured.with_name("out.json")
    monkeypatch.setattr(sys, "argv", ["x", str(measured), "--data", str(measured.parent), "--json", str(out)])
    report.main()
    told = json.loads(out.read_text())
    assert told["observed"]["device_factor"] == pytest.approx(1.25)
    assert told["observed"]["host_factor"] == pytest.approx(2.0)
    assert told["observed"]["send_s"] == pytest.approx(LATE_S)
    assert told["observed"]["scatter"] == pytest.approx(0.0)
    (row,) = told["stretches"]
    for name in ("local", "best fixed", "joint", "oracle"):
        one = row["policies"][name]
        assert one["simulated_as_observed_s"] == pytest.approx(one["real"]["mean_s"], rel=0.15)
        assert len(one["requests"][0][0]) == len(told["columns"])
    assert "| x from 12 s (local) |" in capsys.readouterr().out
