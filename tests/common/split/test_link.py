"""The estimate of a link: what it learns, what it must not learn, and when it says that the link is dead."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.errors import InternalError
from fogline.common.split.link import LinkEstimate, LinkEstimator, LinkSettings, LinkState

RTT = 0.02


def connected(settings: LinkSettings | None = None) -> LinkEstimator:
    link = LinkEstimator(settings)
    for _ in range(20):
        link.round_trip(RTT)
    return link


def send(link: LinkEstimator, now: float, count: int, rate_bit_s: float, held: float = 0.0) -> float:
    """One transfer over an ideal link; returns when its acknowledgement came."""
    number = link.begin(now, count)
    end = now + 8 * count / rate_bit_s + RTT + held
    link.acknowledge(end, number, held_s=held)
    return end


def test_nothing_is_known_before_the_first_acknowledgement() -> None:
    link = LinkEstimator()
    assert link.estimate(5.0).state is LinkState.UNKNOWN
    assert link.estimate(5.0).rate_bit_s is None
    assert not link.estimate(5.0).usable
    assert link.probe_due(5.0)


@pytest.mark.parametrize("rate", [1e5, 2e6, 80e6])
def test_the_rate_is_that_of_the_link_whatever_the_peer_computes(rate: float) -> None:
    link, now = connected(), 0.0
    for _ in range(5):
        now = send(link, now, 50_000, rate, held=0.3)
    assert link.estimate(now).rate_bit_s == pytest.approx(rate, rel=0.02)


def test_idle_gaps_do_not_count_as_slowness() -> None:
    link, now = connected(), 0.0
    for _ in range(5):
        now = send(link, now, 50_000, 4e6) + 3.0
    assert link.estimate(now).rate_bit_s == pytest.approx(4e6, rel=0.02)


def test_small_transfers_raise_the_rate_and_never_lower_it() -> None:
    link = connected()
    now = send(link, 0.0, 100_000, 50e6)
    before = link.estimate(now).rate_bit_s
    for _ in range(50):
        now = send(link, now + 0.1, 10, 50e6)  # 1.6 µs on the link: nothing but jitter
    assert link.estimate(now).rate_bit_s == pytest.approx(before)
    slow = connected()
    now = send(slow, 0.0, 1000, 1e6)
    number = slow.begin(now, 100_000)
    slow.acknowledge(now + RTT, number)  # 100 kB in no time at all
    assert (slow.estimate(now).rate_bit_s or 0) > 100e6


def test_what_waits_behind_other_bytes_is_not_slow() -> None:
    link = connected()
    numbers = [link.begin(0.0, 50_000) for _ in range(4)]
    for index, number in enumerate(numbers):
        link.acknowledge((index + 1) * 0.1 + RTT, number)
    assert link.estimate(0.5).rate_bit_s == pytest.approx(4e6, rel=0.02)


def test_an_answer_tells_of_all_that_was_sent_before_it() -> None:
    link = connected()
    first, second = link.begin(0.0, 50_000), link.begin(0.0, 50_000)
    link.acknowledge(0.2 + RTT, second)
    assert link.estimate(0.3).backlog_bytes == 0
    assert link.estimate(0.3).rate_bit_s == pytest.approx(4e6, rel=0.02)
    link.acknowledge(0.4, first)  # late, and already known
    assert link.estimate(0.5).rate_bit_s == pytest.approx(4e6, rel=0.02)


def test_acknowledged_parts_tell_before_the_whole_has_arrived() -> None:
    link = connected()
    number = link.begin(0.0, 1_000_000)
    for part in range(1, 5):
        link.acknowledge(part * 0.1 + RTT, number, through=part * 50_000)
    estimate = link.estimate(0.42)
    assert estimate.rate_bit_s == pytest.approx(4e6, rel=0.02)
    assert estimate.backlog_bytes == 800_000


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_one_transfer_is_enough_when_the_link_has_changed(factor: float) -> None:
    link, now = connected(), 0.0
    for _ in range(10):
        now = send(link, now, 50_000, 4e6)
    now = send(link, now, 50_000, factor * 4e6)
    assert link.estimate(now).rate_bit_s == pytest.approx(factor * 4e6, rel=0.1)


def test_noise_is_averaged() -> None:
    link, now = connected(LinkSettings(noise=0.2)), 0.0
    for index in range(40):
        now = send(link, now, 50_000, 4e6 * (1.15 if index % 2 else 0.87))
    assert link.estimate(now).rate_bit_s == pytest.approx(4e6, rel=0.1)


def test_a_busy_end_that_answers_late_does_not_make_the_link_slow() -> None:
    """10 kB over 100 Mbit/s take 0.8 ms, and the device tens of them for what it does about them."""
    late, link = random.Random(3), LinkEstimator()
    for _ in range(5):
        link.round_trip(0.001 + late.expovariate(100), 0.0)
    now, trip, seen = 1.0, 1.0, []
    for _ in range(60):
        number = link.begin(now, 10_000)
        now += 0.0018 + late.expovariate(100)
        link.acknowledge(now, number)
        seen.append(link.estimate(now).rate_bit_s or 0.0)
        now += 0.06
        if link.trip_due(now):
            trip = now
            link.round_trip(0.001 + late.expovariate(100), now)
    assert trip > 1.0
    assert sorted(seen[10:])[len(seen[10:]) // 2] > 10e6  # the mean round trip and its jitter alone say 5 Mbit/s
    # And it is not deaf: where the link is slow, that is seen at once.
    number = link.begin(now, 10_000)
    link.acknowledge(now + 0.2, number)
    assert (link.estimate(now + 0.2).rate_bit_s or 0.0) < 1e6


def test_the_round_trip_is_looked_at_again_where_nothing_else_is_under_way() -> None:
    link = LinkEstimator()
    assert link.trip_due(0.0)
    link.round_trip(0.01, 0.0)
    every = link.settings.trip_every_s
    assert not link.trip_due(0.9 * every)
    assert link.trip_due(every)
    number = link.begin(every, 1000)
    assert not link.trip_due(every)
    link.acknowledge(every + 0.1, number)
    assert link.trip_due(every + 0.1)
    link.lost(every + 0.2)
    assert not link.trip_due(2 * every)


def test_silence_lowers_the_rate_and_then_ends_the_link_within_the_deadline() -> None:
    link = connected()
    now = send(link, 0.0, 50_000, 4e6)
    link.begin(now, 50_000)  # due after 0.1 s
    assert link.estimate(now + 0.1).rate_bit_s == pytest.approx(4e6, rel=0.02)
    assert (link.estimate(now + 0.6).rate_bit_s or 0) < 1e6
    deadline = now + 2 * 0.1 + RTT + LinkSettings().dead_after_s + 0.05
    dead = link.estimate(deadline)
    assert dead.state is LinkState.DEAD
    assert dead.rate_bit_s == 0
    assert math.isinf(dead.seconds_per_byte)
    assert not link.probe_due(deadline)  # the bytes under way are the probe


def test_a_dead_link_comes_back_with_what_was_outstanding() -> None:
    link = connected()
    now = send(link, 0.0, 50_000, 4e6)
    number = link.begin(now, 50_000)
    assert link.estimate(now + 10).state is LinkState.DEAD
    link.acknowledge(now + 10, number)
    assert link.estimate(now + 10).usable
    assert link.probe_due(now + 10.2)  # a mean over the outage says little about now


def test_a_lost_connection_is_dead_at_once_and_probed_ever_more_rarely() -> None:
    link = connected()
    now = send(link, 0.0, 50_000, 4e6)
    link.begin(now, 50_000)
    link.lost(now + 0.1)
    assert link.estimate(now + 0.1).state is LinkState.DEAD
    assert link.estimate(now + 0.1).backlog_bytes == 0
    probes, at = [], now + 0.1
    while at < now + 60:
        if link.probe_due(at):
            link.probing(at)
            link.probe_failed()
            probes.append(at)
        at += 0.05
    gaps = [round(b - a, 6) for a, b in pairwise(probes)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(LinkSettings().probe_every_s[1], abs=0.1)
    number = link.begin(at, 4096)
    link.acknowledge(at + 0.1, number)
    assert link.estimate(at + 0.1).usable


def test_probes_are_frequent_near_the_rate_in_question_and_rare_far_from_it() -> None:
    def probes(worth: float) -> int:
        link = connected()
        now = send(link, 0.0, 50_000, 1e6)
        count, end = 0, now + 20.0
        while now < end:
            if link.probe_due(now, worth):
                count += 1
                link.probing(now)
                number = link.begin(now, link.probe_size(worth))
                now += 0.03 + RTT
                link.acknowledge(now, number)
            now += 0.05
        return count

    near, far = probes(1.1e6), probes(1e9)
    assert near > 2 * far
    assert far >= 20 / LinkSettings().probe_every_s[1] - 1


def test_a_probe_is_due_when_the_rate_may_have_crossed_the_one_in_question() -> None:
    link, now = connected(), 0.0
    for _ in range(12):
        now = send(link, now, 50_000, 1e6)
    settings = link.settings
    for factor in (1.5, 1.7, 2.0):
        due = link.probe_at(factor * 1e6)
        rate, spread = link.estimate(due).rate_bit_s, link.estimate(due).spread
        assert rate is not None
        crossed = 0.5 * math.erfc(math.log(factor * 1e6 / rate) / spread / math.sqrt(2))
        assert due >= now + settings.probe_every_s[0]
        assert crossed == pytest.approx(settings.chance)
        assert not link.probe_due(due - 1e-6, factor * 1e6)
        assert link.probe_due(due, factor * 1e6)
    assert link.probe_at(1e12) == pytest.approx(now + settings.probe_every_s[1])
    assert link.probe_at(1.01e6) == pytest.approx(now + settings.probe_every_s[0])
    link.begin(now, 1000)
    assert link.probe_at(1e6) == math.inf  # what is under way will tell
    link.lost(now)
    assert link.probe_at(1e6) <= now + settings.probe_every_s[0]


def test_a_probe_occupies_the_link_long_enough_to_be_measured_and_not_longer() -> None:
    link = connected()
    least, most = LinkSettings().probe_bytes
    assert link.probe_size(8e6) == pytest.approx(8e6 / 8 * max(LinkSettings().probe_s, 4 * link.estimate(0).jitter_s))
    assert link.probe_size(1.0) == least
    assert link.probe_size(1e12) == most
    assert least <= LinkEstimator().probe_size() <= most


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_stated_rate_that_is_none_is_no_link(rate: float) -> None:
    estimate = LinkEstimate.stated(rate)
    assert estimate.state is LinkState.DEAD
    assert not estimate.usable
    assert math.isinf(estimate.seconds_per_byte)


def test_misuse_is_our_own_mistake() -> None:
    for seconds in (-1.0, math.nan, math.inf):
        with pytest.raises(InternalError, match="round trip"):
            LinkEstimator().round_trip(seconds)
    with pytest.raises(InternalError, match="0 bytes"):
        LinkEstimator().begin(0.0, 0)


def test_an_arrival_that_seems_to_be_before_the_one_before_is_no_time_at_all() -> None:
    link = connected()
    first, second = link.begin(0.0, 50_000), link.begin(0.0, 1000)
    link.acknowledge(0.10, first)
    link.round_trip(0.5)  # the host was busy: the round trip is taken for longer than it is
    link.acknowledge(0.101, second)
    assert link.estimate(0.2).usable


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "ack", "part", "lost", "rtt", "probe"]),
            st.integers(0, 5),
            st.floats(0, 3),
            st.integers(1, 10**7),
        ),
        max_size=60,
    )
)
def test_any_order_of_events_leaves_a_sane_estimate(events: list[tuple[str, int, float, int]]) -> None:
    link, now, numbers = LinkEstimator(), 0.0, [0]
    for kind, which, wait, count in events:
        now += wait
        number = numbers[-1 - which % len(numbers)]
        if kind == "begin":
            numbers.append(link.begin(now, count))
        elif kind == "ack":
            link.acknowledge(now, number, held_s=wait)
        elif kind == "part":
            link.acknowledge(now, number, through=count)
        elif kind == "lost":
            link.lost(now)
        elif kind == "rtt":
            link.round_trip(wait)
        else:
            link.probing(now)
        estimate = link.estimate(now)
        assert estimate.rate_bit_s is None or 0 <= estimate.rate_bit_s < math.inf
        assert estimate.backlog_bytes >= 0
        assert estimate.usable == (estimate.state is LinkState.ALIVE)
        link.probe_due(now, 1e6)
        assert 0 < link.probe_size(1e6) <= 256 << 10
