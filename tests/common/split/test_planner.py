"""The planner of a client through an outage and back, and hosts that are slower than profiled."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import pytest

from fogline.common.split.link import LinkEstimate, LinkEstimator, LinkState
from fogline.common.split.live import LiveLoad
from fogline.common.split.options import Option, enumerate_options
from fogline.common.split.planner import Planner
from fogline.common.split.policies.base import make
from fogline.common.split.profile import Profile

Make = Callable[..., Profile]


@pytest.fixture
def options(make_profile: Make) -> list[Option]:
    host = make_profile(0.1)
    return enumerate_options([host.scaled(8.0), host], 1)


def planner(options: list[Option], name: str = "joint") -> Planner:
    link = LinkEstimator()
    link.round_trip(0.02)
    return Planner(make(name, options), link)


def offload(one: Planner, now: float, rate: float) -> float:
    choice = one.decide(now)
    assert choice.option.cuts
    sent = now + choice.option.hosts_s[0]
    ticket = one.sending(sent, choice)
    held = choice.option.hosts_s[1]
    end = sent + 8 * choice.option.coded_bytes[0] / rate + 0.02 + held
    assert end < ticket.overdue_at
    one.answered(end, ticket, held)
    return end


def test_local_until_a_probe_tells_then_away_then_through_an_outage_and_back(options: list[Option]) -> None:
    one = planner(options)
    assert one.decide(0.0).option.name == "local"
    size = one.probe_due(0.0)
    assert size is not None
    probe = one.probing(0.0, size)
    assert one.probe_due(0.01) is None
    one.probed(8 * size / 20e6 + 0.02, probe)
    now = 0.1
    for _ in range(5):
        now = offload(one, now, 20e6)

    choice = one.decide(now)
    sent = now + choice.option.hosts_s[0]
    ticket = one.sending(sent, choice)  # the link dies here
    assert sent < ticket.overdue_at < sent + 0.5
    late = ticket.overdue_at + choice.option.rest_s
    assert one.decide(late).option.name == "local"
    assert one.link.estimate(late + 2).state is LinkState.DEAD
    assert "dead" in one.decide(late + 2).reason
    one.link.lost(late + 3)
    assert one.decide(late + 3).option.name == "local"
    at = late + 3.2
    size = one.probe_due(at)
    assert size is not None
    back = one.probing(at, size)
    one.probed(at + 0.02 + 8 * size / 20e6, back)
    assert one.decide(at + 0.1).option.cuts


def test_what_is_explained_is_what_is_decided(options: list[Option]) -> None:
    one = planner(options)
    number = one.link.begin(0.0, 50_000)
    one.link.acknowledge(0.02 + 0.05, number)
    explained = one.explain(0.1)
    assert explained.choice.option == one.decide(0.1).option
    latencies = [terms.latency_s for terms in explained.weighed]
    assert latencies == sorted(latencies)
    assert explained.weighed[0].option == explained.choice.option
    assert explained.choice.expected_s == pytest.approx(latencies[0])


def test_observed_times_correct_the_profiled_ones(options: list[Option]) -> None:
    one = planner(options)
    number = one.link.begin(0.0, 50_000)
    one.link.acknowledge(0.02 + 0.004, number)
    assert one.decide(0.1).option.cuts
    for _ in range(40):
        one.live.computed(1, 1.6, 0.1)  # the host is busy: sixteen times as slow
    assert one.live.load.factors[1] == pytest.approx(16, rel=0.01)
    assert one.decide(0.1).option.name == "local"
    queued = planner(options)
    for _ in range(40):
        queued.live.waited(1, 3.0)
    assert queued.live.load.queues_s[1] == pytest.approx(3.0, rel=0.01)


def test_absurd_times_are_bounded() -> None:
    live = LiveLoad()
    live.computed(1, 1e9, 0.1)
    assert live.load.factors[1] < 6
    live.computed(1, 0.1, 0.0)
    live.computed(1, -1.0, 0.1)
    live.waited(1, -1.0)
    assert live.load.queues_s == (0.0, 0.0, 0.0)
    assert all(math.isfinite(factor) for factor in live.load.factors)


def test_short_tasks_count_for_less() -> None:
    live = LiveLoad()
    for _ in range(20):
        live.computed(0, 0.2, 0.2)
        live.computed(0, 0.03, 0.005)  # six times as long, as a few milliseconds often take
    assert live.load.factors[0] < 1.2


def test_policies_that_look_at_nothing_probe_nothing(options: list[Option]) -> None:
    for name in ("local", "remote", "fixed"):
        assert planner(options, name).probe_due(0.0) is None


def test_the_second_hop_is_what_the_host_reports(make_profile: Make) -> None:
    edge, fog, cloud = make_profile(8.0), make_profile(1.0), make_profile(0.1)
    one = planner(enumerate_options([edge, fog, cloud], 1))
    number = one.link.begin(0.0, 500_000)
    one.link.acknowledge(0.02 + 0.04, number)
    assert len(one.decide(0.1).option.cuts) == 1
    one.link_beyond(LinkEstimate.stated(100e6, 0.01))
    assert len(one.decide(0.1).option.cuts) == 2


def test_a_decision_among_a_hundred_options_costs_less_than_a_fast_request(make_profile: Make) -> None:
    profile = make_profile(0.1)
    cuts = [profile.cuts[0]]
    cuts += [
        type(cut)(f"{cut.name}{i}", cut.ratio / (1 + i), cut.head_s, cut.tail_s, cut.codecs)
        for i in range(12)
        for cut in profile.cuts[1:]
    ]
    many = make_profile(cuts=tuple(cuts))
    one = planner(enumerate_options([many.scaled(8.0), many], 1))
    number = one.link.begin(0.0, 50_000)
    one.link.acknowledge(0.02 + 0.05, number)
    times = []
    for index in range(300):
        before = time.perf_counter()
        one.decide(0.1 + index / 100)
        times.append(time.perf_counter() - before)
    assert statistics.median(times) < 0.5e-3  # generous: 0.5 % of 100 ms; benchmarks have the real figure
