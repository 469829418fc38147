"""The agent's threads: one that hangs is told from one that waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edge_helpers import until

from fogline.common.config import MetricsConfig, TlsConfig
from fogline.common.rpc.peer import Peer
from fogline.edge_agent import workers
from fogline.edge_agent.agent import Agent
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.config import EdgeConfig, FilterConfig
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


def test_another_filter_is_taken_at_once_while_the_link_is_busy(tmp_path: Path) -> None:
    """It comes in a signal's handler: waiting for who connects, perhaps the interrupted thread itself, is a hang."""
    config = EdgeConfig(
        name="edge-1",
        data_dir=tmp_path,
        fog="127.0.0.1:9",
        tls=TlsConfig(insecure=True),
        metrics=MetricsConfig(port=-1),
    )
    agent = Agent(config, Peer("edge-1", "edge"), FogClock(), trains=False)
    taken = threading.Event()

    def handler() -> None:
        agent.want(FilterConfig())
        taken.set()

    try:
        with agent._fog._lock:  # as `session` has it while it connects
            threading.Thread(target=handler, daemon=True).start()
            assert taken.wait(10)
    finally:
        agent.close()
