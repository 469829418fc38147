"""What a service manager hears, over a real datagram socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fogline.common import notify, process


class Manager:
    """The receiving end."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every message since the last look."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(4096).decode())
        return found

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A manager that listens, by both kinds of addresses."""
    address = str(tmp_path / "notify") if request.param == "file" else f"@fogline-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    made = Manager(address)
    yield made
    made.close()


def test_ready_is_told_with_the_ready_line(manager: Manager, capsys: pytest.CaptureFixture[str]) -> None:
    process.announce_ready(metrics_port=9100)
    assert capsys.readouterr().out.startswith("ready {")
    assert manager.heard() == ["READY=1"]


def test_a_status_stays_one_line(manager: Manager) -> None:
    notify.notify(STATUS="no fog node:\nREADY=1\n", WATCHDOG=1)
    assert manager.heard() == ["STATUS=no fog node: READY=1\nWATCHDOG=1"]


def test_beats_come_three_times_as_often_as_needed_and_a_status_when_it_changes(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    now = 1000.0
    monkeypatch.setattr(notify.time, "monotonic", lambda: now)
    watchdog = notify.Watchdog()
    for _ in range(121):  # two minutes
        watchdog.beat("connected" if now < 1100 else "no fog node")
        now += 1.0
    heard = manager.heard()
    assert sum("WATCHDOG=1" in message for message in heard) == 7
    assert [message for message in heard if "STATUS" in message] == [
        "WATCHDOG=1\nSTATUS=connected",
        "WATCHDOG=1\nSTATUS=no fog node",
    ]


async def test_an_event_loop_beats_and_checks_each_time(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    checks = 0
    seen = asyncio.Event()

    def check() -> str:
        nonlocal checks
        checks += 1
        if checks == 3:
            seen.set()
        return "well"

    beats = asyncio.create_task(notify.Watchdog().beat_always(check))
    await asyncio.wait_for(seen.wait(), 10)
    beats.cancel()
    assert sum("WATCHDOG=1" in message for message in manager.heard()) >= 3


@pytest.mark.parametrize(
    "env",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}],
)
def test_no_watchdog_where_none_watches_this_process(env: dict[str, str]) -> None:
    assert notify.watchdog_s(env) is None


def test_without_a_manager_or_with_a_dead_one_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.notify(READY=1)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify.notify(READY=1)


def test_a_child_leaves_talking_to_its_parent_and_a_signal_says_stopping(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    code = (
        "import os, subprocess, sys\nfrom fogline.common import notify, process\n"
        "if len(sys.argv) > 1:\n"
        "    process.die_with_parent(); process.announce_ready(metrics_port=-1); notify.Watchdog().beat('child')\n"
        "else:\n"
        "    subprocess.run([sys.executable, '-c', os.environ['CODE'], 'child'], check=True)\n"
        "    event = process.stop_event(); process.announce_ready(metrics_port=1); event.wait()\n"
    )
    env = {**os.environ, "CODE": code, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "9000000"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout is not None
        assert [child.stdout.readline(), child.stdout.readline()] == [
            'ready {"metrics_port": -1}\n',
            'ready {"metrics_port": 1}\n',
        ]
        child.terminate()
        assert child.wait(10) == 0
    assert manager.heard() == ["READY=1", "STOPPING=1\nSTATUS=stopping"]
    manager.close()
