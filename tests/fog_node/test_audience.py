"""Who is counted as a receiver, and what a link's rate is taken from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.boxes import Box
from fogline.fog_node.audience import AWAY_S, Audience
from fogline.fog_node.link_rate import MIN_SPAN_BYTES, SPANS, STALL_S, LinkRate
from fogline.fog_node.store import QueuedImage
from fogline.fog_node.subscription import Filter


def image(camera: str = "north", *labels: str) -> QueuedImage:
    return QueuedImage(b"i" * 32, camera, 0, 160, 120, tuple(Box(1, 1, 9, 9, label) for label in labels))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_receivers_are_those_who_want_it_and_did_not_send_it() -> None:
    audience = Audience()
    audience.joined("a", Filter())
    audience.joined("b", Filter())
    audience.joined("c", Filter(cameras=frozenset({"south"})))
    audience.joined("d", Filter(labels=frozenset({"cat"})))
    assert audience.receivers([image()], ["a"]) == 1
    assert audience.receivers([image()], []) == 2
    assert audience.receivers([image("south")], ["a"]) == 2
    assert audience.receivers([image("north", "dog"), image("north", "cat")], ["a"]) == 2


def test_nothing_is_kept_of_a_device_that_stays_away() -> None:
    clock = Clock()
    audience = Audience(clock)
    audience.joined("a", Filter(), tenant="t")
    audience.joined("b", Filter(), tenant="t")
    audience.left("a", Filter())
    clock.now += AWAY_S + 1
    audience.receivers([image()], [])
    assert audience._tenants == {"b": "t"}


def test_a_device_that_is_away_for_a_moment_still_counts_once() -> None:
    clock = Clock()
    audience = Audience(clock)
    audience.joined("a", Filter())
    audience.joined("a", Filter())  # it reconnects before its old call is found dead
    assert audience.receivers([image()], []) == 1
    audience.left("a", Filter())
    audience.left("a", Filter())
    clock.now += AWAY_S - 1
    assert audience.receivers([image()], []) == 1
    clock.now += 2
    assert audience.receivers([image()], []) == 0


def test_a_rate_is_taken_from_long_spans_only() -> None:
    rate = LinkRate()
    rate.begin(0.0)
    rate.moved(MIN_SPAN_BYTES - 1, 0.001)
    rate.end(0.001)
    assert rate.bit_s is None
    rate.begin(10.0)
    rate.moved(1_000_000, 11.0)
    rate.end(12.0)
    assert rate.bit_s == pytest.approx(4e6)


def test_streams_that_overlap_share_the_link() -> None:
    rate = LinkRate()
    rate.begin(0.0)
    rate.begin(0.5)
    rate.moved(1_000_000, 1.0)
    rate.end(1.5)
    rate.moved(1_000_000, 1.8)
    rate.end(2.0)
    assert rate.bit_s == pytest.approx(8e6)


def test_a_rate_follows_the_link_and_a_span_without_end_is_seen() -> None:
    rate = LinkRate()
    rate.begin(0.0)
    now = 0.0
    for _ in range(200):
        now += 1.0
        rate.moved(MIN_SPAN_BYTES, now)
    fast = rate.bit_s
    for _ in range(16 * (SPANS + 1)):
        now += 10.0
        rate.moved(MIN_SPAN_BYTES, now)
    assert fast == pytest.approx(8 * MIN_SPAN_BYTES, rel=0.01)
    assert rate.bit_s == pytest.approx(8 * MIN_SPAN_BYTES / 10, rel=0.01)


@given(st.lists(st.tuples(st.sampled_from(["stall", "gone", "join"]), st.floats(STALL_S + 1, 1e4)), max_size=8))
def test_time_in_which_nothing_moves_does_not_count(stalls: list[tuple[str, float]]) -> None:
    """A device that stops reading, one that goes away without a word, one that comes while another is stuck."""
    rate, now = LinkRate(), 0.0

    def flow() -> None:
        nonlocal now
        for _ in range(2 * MIN_SPAN_BYTES >> 16):
            now += 0.5
            rate.moved(1 << 16, now)

    for kind, stall_s in stalls:
        rate.begin(now)
        flow()
        now += stall_s
        if kind == "stall":
            rate.moved(1 << 16, now)
            flow()
        elif kind == "join":
            rate.begin(now)
            flow()
            rate.end(now)
        rate.end(now)
        assert rate.bit_s == pytest.approx(8 * (1 << 16) / 0.5, rel=1e-6)


@given(st.floats(1e5, 1e9), st.lists(st.integers(MIN_SPAN_BYTES, 4 * MIN_SPAN_BYTES), min_size=1, max_size=40))
def test_a_steady_link_is_measured_exactly(bit_s: float, spans: list[int]) -> None:
    rate, now = LinkRate(), 0.0
    for count in spans:
        rate.begin(now)
        for part in [1 << 16] * (count >> 16) + [count % (1 << 16)]:
            now += 8 * part / bit_s
            rate.moved(part, now)
        rate.end(now)
        now += 5.0
    assert rate.bit_s == pytest.approx(bit_s, rel=1e-6)
