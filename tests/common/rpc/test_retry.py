"""Back-off: jittered, capped, shared, and never a tight loop."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.errors import UnavailableError
from fogline.common.rpc.retry import FLOOR_S, Backoff


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(0, 1000))
def test_waits_grow_to_the_cap_and_never_vanish(seed: int) -> None:
    clock = Clock()
    backoff = Backoff(0.5, 20.0, rng=random.Random(seed), clock=clock)
    for attempt in range(60):
        delay = backoff.delay_s()
        assert FLOOR_S - 1e-9 <= delay <= min(20.0, 0.5 * 2**attempt) + 1e-9
        clock.now += delay
    backoff.reset()
    assert backoff.delay_s() <= 0.5


def test_jitter_spreads_a_thousand_devices() -> None:
    delays = []
    for seed in range(1000):
        clock = Clock()
        backoff = Backoff(rng=random.Random(seed), clock=clock)
        for _ in range(6):
            clock.now += backoff.delay_s()
        delays.append(backoff.delay_s())
    delays.sort()
    assert delays[250] < 7
    assert delays[750] > 13


def test_threads_that_fail_together_wait_for_the_same_moment() -> None:
    clock = Clock()
    backoff = Backoff(rng=random.Random(3), clock=clock)
    first = backoff.delay_s()
    clock.now += first / 2
    assert backoff.delay_s() == pytest.approx(first / 2)
    clock.now += first / 2
    second = backoff.delay_s()
    assert second <= 1.0


def test_no_attempt_is_promised_after_the_deadline() -> None:
    clock = Clock()
    backoff = Backoff(rng=random.Random(1), clock=clock)
    with pytest.raises(UnavailableError, match="gave up"):
        backoff.delay_s(deadline=clock.now + FLOOR_S / 2)


def test_stopping_ends_a_wait_at_once() -> None:
    stop = threading.Event()
    backoff = Backoff(base_s=60.0, cap_s=60.0, rng=random.Random(5))
    threading.Timer(0.05, stop.set).start()
    began = time.monotonic()
    assert backoff.wait(stop)
    assert time.monotonic() - began < 5


async def test_the_same_on_an_event_loop() -> None:
    stop = asyncio.Event()
    assert not await Backoff(base_s=0.01).wait_async(stop)
    stop.set()
    assert await Backoff(base_s=60.0, cap_s=60.0).wait_async(stop)
