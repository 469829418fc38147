"""The simulator on links whose answer is known, and `joint` against the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fogline.common.errors import InputError
from fogline.common.split import simulate
from fogline.common.split.bandwidth import Bandwidth
from fogline.common.split.link import LinkEstimate
from fogline.common.split.options import Option, Power, enumerate_options
from fogline.common.split.policies.base import Objective, make
from fogline.common.split.profile import Profile
from fogline.common.split.simulate import Setting

Make = Callable[..., Profile]


@pytest.fixture
def options(make_profile: Make) -> list[Option]:
    host = make_profile(0.1)
    return enumerate_options([host.scaled(8.0), host], 1, codecs=["raw", "int8"])


def by_name(options: list[Option], name: str) -> Option:
    return next(one for one in options if one.name == name)


def test_a_constant_link_gives_the_formula(options: list[Option]) -> None:
    link = Bandwidth([0.0, 60.0], [8e6, 8e6])
    run = simulate.fixed(by_name(options, "input int8"), link, Setting(rtt_s=0.04, duration_s=20.0))
    each = 8 * 0.002 + 0.1 + 0.04 + 0.102
    assert run.mean_s == pytest.approx(each)
    assert run.percentile_s(0.99) == pytest.approx(each)
    assert len(run.requests) == math.ceil(20.0 / each)
    with_headers = simulate.fixed(by_name(options, "input int8"), link, Setting(0.04, 20.0, overhead=1.1))
    assert with_headers.mean_s == pytest.approx(each + 0.01)


def test_a_stall_is_waited_out_by_fixed_and_left_by_joint(options: list[Option]) -> None:
    link = Bandwidth([0.0, 10.0, 20.0], [80e6, 0.0, 80e6])
    setting = Setting(duration_s=30.0)
    waits = simulate.fixed(by_name(options, "input int8"), link, setting)
    assert max(one.latency_s for one in waits.requests) > 9.5
    joint = simulate.planned(make("joint", options), link, setting)
    assert joint.fallbacks == 1
    assert max(one.latency_s for one in joint.requests) < 0.8 + 0.5  # local, and the patience before it
    stalled = [one for one in joint.requests if 12 < one.begun < 19]
    assert {one.option for one in stalled} == {"local"}
    back = [one for one in joint.requests if one.begun > 21]
    assert all(one.option != "local" for one in back)  # within a second of its return, by itself


def test_joint_ends_near_the_oracle_on_a_link_that_changes(options: list[Option]) -> None:
    link = Bandwidth([0, 10, 20, 30, 40], [20e6, 0.3e6, 5e6, 0.8e6, 60e6])
    setting = Setting(duration_s=50.0)
    oracle = simulate.oracle(options, link, setting)
    _, fixed = simulate.best_fixed(options, link, setting)
    joint = simulate.planned(make("joint", options), link, setting)
    assert oracle.mean_s <= fixed.mean_s
    assert joint.mean_s < 1.05 * oracle.mean_s
    assert joint.mean_s < fixed.mean_s
    assert joint.probe_bytes > 0
    assert len(joint.decision_s) == len(joint.requests)


def test_a_link_that_comes_back_is_used_before_the_device_is_done(options: list[Option]) -> None:
    link = Bandwidth([0.0, 2.0, 4.1, 30.0], [80e6, 0.0, 80e6, 80e6])
    joint = simulate.planned(make("joint", options), link, Setting(duration_s=6.0))
    local = [one for one in joint.requests if one.option == "local"]
    assert local
    assert local[-1].begun < 4.1 < local[-1].begun + local[-1].latency_s
    assert local[-1].latency_s < 0.8


def test_the_best_fixed_is_the_best_of_all_not_only_of_those_tried(options: list[Option]) -> None:
    link = Bandwidth([0, 2, 4], [3e6, 0.5e6, 9e6])
    setting = Setting(duration_s=12.0)
    best, run = simulate.best_fixed(options, link, setting)
    every = {one.name: simulate.fixed(one, link, setting).mean_s for one in options}
    assert run.mean_s == pytest.approx(min(every.values()))
    assert every[best.name] == pytest.approx(run.mean_s)


@pytest.mark.parametrize("name", ["local", "remote", "neurosurgeon", "dynamic", "joint"])
def test_the_same_run_twice_is_the_same(options: list[Option], name: str) -> None:
    link = Bandwidth([0, 1, 2, 3, 4], [2e6, 0.0, 7e6, 0.1e6, 30e6])
    runs = [simulate.planned(make(name, options), link, Setting(duration_s=20.0)) for _ in range(2)]
    assert runs[0].requests == runs[1].requests
    assert runs[0].switches == runs[1].switches


def test_bytes_that_nobody_waits_for_still_hold_up_the_next(options: list[Option]) -> None:
    # 2.5 MB/s, then almost nothing: what was abandoned takes 8 s to drain, and only then is anything known again.
    link = Bandwidth([0.0, 2.0, 2.2], [20e6, 1e3, 0.1e6])
    joint = simulate.planned(make("joint", options), link, Setting(duration_s=12.0))
    after = [one for one in joint.requests if one.begun > 3]
    assert {one.option for one in after} == {"local"}


def test_a_device_that_is_late_and_uneven_is_planned_for_nearly_as_well(options: list[Option]) -> None:
    link = Bandwidth([0, 10, 20, 30, 40], [20e6, 0.3e6, 80e6, 0.8e6, 60e6])
    real = Setting(duration_s=50.0, rtt_s=0.001, send_s=0.03, probe_s=0.01, scatter=0.1, seed=5)
    oracle = simulate.oracle(options, link, real)
    joint = simulate.planned(make("joint", options), link, real)
    ideal = simulate.oracle(options, link, Setting(duration_s=50.0, rtt_s=0.001))
    assert oracle.mean_s > ideal.mean_s
    assert joint.mean_s < 1.12 * oracle.mean_s
    assert joint.requests == simulate.planned(make("joint", options), link, real).requests


def test_energy_is_what_the_device_draws_while_it_computes_sends_and_waits(options: list[Option]) -> None:
    power = Power(10.0, 4.0, 1.0)
    setting = Setting(duration_s=5.0, every_s=1.0, objective=Objective("energy", power))
    link = Bandwidth([0.0], [8e6], last_s=60.0)
    run = simulate.fixed(by_name(options, "input int8"), link, setting)
    assert run.mean_j == pytest.approx(10 * 8 * 0.002 + 4 * 0.1 + 1 * (0.02 + 0.102))
    assert [one.begun for one in run.requests] == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])
    assert simulate.fixed(by_name(options, "local"), link, setting).mean_j == pytest.approx(10 * 0.8)
    frugal = simulate.planned(make("joint", options, {"objective": "energy", "power": power}), link, setting)
    assert frugal.mean_j < 1.2 * simulate.oracle(options, link, setting).mean_j


def test_what_comes_at_once_goes_in_the_batches_that_end_first(make_profile: Make) -> None:
    host = make_profile(0.1)
    flat = msgspec.structs.replace(host, whole_s={1: 0.1, 4: 0.12, 8: 0.3})
    options = [one for size in (1, 4, 8) for one in enumerate_options([flat], size)]
    link, setting = Bandwidth([0.0], [1e6], last_s=60.0), Setting(duration_s=2.0, samples=8)
    run = simulate.planned(make("joint", options), link, setting)
    assert {one.option for one in run.requests} == {"local x4"}
    assert run.mean_s == pytest.approx((0.12 + 0.24) / 2)
    assert simulate.oracle(options, link, setting).mean_s == pytest.approx(run.mean_s)
    assert simulate.best_fixed(options, link, setting)[0].batch == 4


def test_a_second_hop_is_used_where_it_pays(make_profile: Make) -> None:
    options = enumerate_options([make_profile(8.0), make_profile(4.0), make_profile(0.05)], 1)
    link = Bandwidth([0.0], [20e6], last_s=60.0)
    near, far = (Setting(duration_s=20.0, beyond=LinkEstimate.stated(rate, 0.01)) for rate in (1e9, 1e4))
    for setting, hops in ((near, 2), (far, 1)):
        run = simulate.planned(make("joint", options, {"accuracy_budget": 1.0}), link, setting)
        assert {one.option.count("|") for one in run.requests[1:]} == {hops - 1}
        assert run.mean_s < 1.05 * simulate.oracle(options, link, setting).mean_s


def test_settings_that_no_link_has_are_refused(make_profile: Make) -> None:
    for bad in ({"rtt_s": -1.0}, {"duration_s": 0.0}, {"overhead": 0.5}, {"rtt_s": math.nan}, {"samples": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            Setting(**bad)
    three = enumerate_options([make_profile()] * 3, 1)
    with pytest.raises(InputError, match="one hop"):
        simulate.planned(make("joint", [*three[:1], three[-1]]), Bandwidth([0.0], [1e6]), Setting())


@pytest.mark.data
def test_joint_is_near_the_oracle_on_real_traces(options: list[Option], data_root: Path) -> None:
    worst = 0.0
    for path in sorted((data_root / "traces").rglob("*.csv"))[::20]:
        link, setting = Bandwidth.read(path), Setting(duration_s=60.0)
        oracle = simulate.oracle(options, link, setting)
        joint = simulate.planned(make("joint", options), link, setting)
        worst = max(worst, joint.mean_s / oracle.mean_s - 1)
    assert worst < 0.1
