"""The agent's threads: one that hangs is told from one that waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from edge_helpers import until

from fogline.edge_agent import workers
from fogline.edge_agent.workers import Stop, Supervisor


@pytest.fixture
def stop() -> Iterator[Stop]:
    made = Stop()
    yield made
    made.set()


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let hours pass for whoever asks."""
    passed = 0.0
    real = workers.time.monotonic

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return real() + passed

    def later(count: float) -> None:
        nonlocal passed
        passed += 3600 * count

    monkeypatch.setattr(workers, "time", Clock)
    return later


def test_who_waits_for_a_lock_for_ever_hangs_and_who_waits_for_a_call_does_not(
    stop: Stop, hours: Callable[[float], None]
) -> None:
    deadlock, call, busy = threading.Lock(), threading.Event(), threading.Event()

    def hang() -> None:
        with deadlock:
            pass

    def in_a_call() -> None:
        with stop.calling(call.set):
            call.wait()

    def work() -> None:
        while not stop:
            busy.set()
            stop.wait(0.005)

    supervisor = Supervisor(stop)
    with deadlock:
        for name, run in (("hang", hang), ("call", in_a_call), ("work", work), ("sleep", lambda: stop.wait(86400))):
            supervisor.add(name, run)
        until(lambda: len(stop._looked) == 4)
        assert supervisor.stuck() == {}
        hours(1)
        busy.clear()
        busy.wait(10)
        assert supervisor.stuck().keys() == {"hang"}
        assert supervisor.stuck()["hang"] > 3000
    until(lambda: supervisor.stuck() == {})
    stop.set()
    assert supervisor.join(10) == []
    assert not stop._looked


def test_a_thread_is_watched_again_after_its_call(stop: Stop, hours: Callable[[float], None]) -> None:
    in_call, after, deadlock = threading.Event(), threading.Event(), threading.Lock()

    def run() -> None:
        with stop.calling(lambda: None), stop.calling(lambda: None):
            assert not stop
            in_call.wait()
        after.set()
        with deadlock:
            pass

    supervisor = Supervisor(stop)
    with deadlock:
        supervisor.add("run", run)
        until(lambda: bool(stop._looked))
        hours(1)
        in_call.set()
        after.wait(10)
        assert supervisor.stuck() == {}
        hours(1)
        assert supervisor.stuck().keys() == {"run"}
    assert supervisor.join(10) == []
