"""Places for operations: as many at once as there are, and none for who waits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fogline.common.rpc.slots import Slots


def test_no_more_at_once_than_places() -> None:
    slots, lock = Slots(2), threading.Lock()
    inside = most = 0
    both = threading.Barrier(2)

    def work(number: int) -> None:
        nonlocal inside, most
        with slots.taken():
            with lock:
                inside += 1
                most = max(most, inside)
            if number < 2:
                both.wait(20)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert most == 2


def test_who_waits_lets_another_in_and_takes_the_place_again() -> None:
    slots = Slots(1)
    answered, other = threading.Event(), threading.Event()

    def waits() -> None:
        with slots.taken():
            with slots.released(), slots.released():  # a wait within a wait gives back one place, not two
                assert answered.wait(20)
            assert not other.is_set()

    def computes() -> None:
        with slots.taken():
            other.set()
            answered.set()
            other.clear()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(waits), pool.submit(computes)]:
            done.result(20)
    with slots.released():  # who holds none gives none back
        pass
    with slots.taken(), pytest.raises(ZeroDivisionError), slots.released():
        raise ZeroDivisionError
    assert slots._free.acquire(blocking=False)
    assert not slots._free.acquire(blocking=False)
