"""What a service manager such as systemd is told: that we are ready, how we do, that we still work, that we end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping

_log = logging.getLogger(__name__)
_SOCKET = "NOTIFY_SOCKET"
_WATCHDOG = ("WATCHDOG_USEC", "WATCHDOG_PID")


def notify(**state: object) -> None:
    """Send `KEY=value` for each argument (sd_notify(3)) where a service manager listens; elsewhere do nothing.

    `notify(READY=1, STATUS="connected")`. A manager that does not take it is no reason to end: it is logged.
    """
    path = os.environ.get(_SOCKET, "")
    if not path:
        return
    message = "\n".join(f"{key}={' '.join(str(value).split())}" for key, value in state.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as manager:
            # "@": a socket without a file. Never wait: a manager that hangs must not hang its services.
            manager.setblocking(False)
            manager.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)
    except OSError as error:
        _log.debug("the service manager at %s can't be told %s: %s", path, ", ".join(state), error)


def forget(env: MutableMapping[str, str] | None = None) -> None:
    """For a child process: the service manager listens to its parent, and would take its word for the parent's."""
    env = os.environ if env is None else env
    for name in (_SOCKET, *_WATCHDOG):
        env.pop(name, None)


def watchdog_s(env: Mapping[str, str] | None = None) -> float | None:
    """Seconds within which the service manager wants to hear of this process again and again; None: it does not."""
    env = os.environ if env is None else env
    limit, pid = (env.get(name, "") for name in _WATCHDOG)
    if not limit.isdecimal() or int(limit) == 0 or (pid.isdecimal() and int(pid) != os.getpid()):
        return None
    return int(limit) / 1e6


class Watchdog:
    """Tells the service manager that this process works; `beat` is called by the loop whose hang matters."""

    def __init__(self) -> None:
        limit = watchdog_s()
        # A third: two beats may be late or lost before the process is taken for dead.
        self.interval_s = None if limit is None else limit / 3
        self._next = 0.0
        self._status = ""

    def beat(self, status: str = "") -> None:
        """Say that all is well, and how we do where that has changed. Cheap to call more often than needed."""
        news: dict[str, object] = {}
        now = time.monotonic()
        if self.interval_s is not None and now >= self._next:
            self._next = now + self.interval_s
            news["WATCHDOG"] = 1
        if status and status != self._status:
            self._status = status
            news["STATUS"] = status
        if news:
            notify(**news)

    async def beat_always(self, check: Callable[[], str]) -> None:
        """Beat as often as is needed from an event loop; `check` does a small piece of real work and says how we do."""
        pause = min(self.interval_s or 10.0, 10.0)
        while True:
            self.beat(check())
            await asyncio.sleep(pause)
