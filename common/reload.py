"""SIGHUP: the configuration is read again, and what can change under a running process changes.

    reload = Reload(lambda: config.from_command_line(EdgeConfig, "edge-agent", argv), settings)
    reload.on("filter", lambda new: receiver.want(new.filter))
    reload.listen()
    while not stopped.wait(1.0):
        reload.poll()

A configuration that is wrong changes nothing. What was changed and has nobody to apply it waits for a restart, and is
named in the log.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from fogline.common import logs
from fogline.common.config import Config
from fogline.common.errors import ConfigError

_log = logging.getLogger(__name__)
C = TypeVar("C", bound=Config)


class Reload(Generic[C]):
    """Calls who is concerned. `apply` runs in the main thread: let it be short."""

    def __init__(self, read: Callable[[], C], current: C) -> None:
        self._read, self._current = read, current
        self._asked = threading.Event()
        self._apply: dict[str, Callable[[C], object]] = {}
        self.on("log.level", lambda new: logs.set_level(_plain(new)["log"]["level"]))

    def on(self, key: str, apply: Callable[[C], object]) -> None:
        """Have `apply` called with the new configuration where `key` (dotted), or a key below it, has changed."""
        self._apply[key] = apply

    def listen(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """From now on, at SIGHUP: as a step of `loop`, or at the next `poll`. Call it from the main thread.

        Never in the signal handler itself, which comes between any two steps of whatever holds a lock or writes a log.
        """
        if not hasattr(signal, "SIGHUP"):
            return
        if loop is not None:
            loop.add_signal_handler(signal.SIGHUP, self.now)
        else:
            signal.signal(signal.SIGHUP, lambda *_: self._asked.set())

    def poll(self) -> None:
        """Read and apply if SIGHUP came since the last time."""
        if self._asked.is_set():
            self._asked.clear()
            self.now()

    def now(self) -> None:
        """Read and apply."""
        try:
            new = self._read()
        except ConfigError as error:
            _log.error("the configuration is not taken over, the old one stays in force: %s", error)
            return
        changed = sorted(_changed(_plain(self._current), _plain(new)))
        taken: set[str] = set()
        for key, apply in self._apply.items():
            concerned = {name for name in changed if name == key or name.startswith(f"{key}.")}
            if concerned:
                apply(new)
                taken |= concerned
        self._current = new
        left = [name for name in changed if name not in taken]
        text = ", ".join(sorted(taken)) or "nothing"
        _log.info("configuration read again: %s taken over", text, extra={"taken": sorted(taken), "restart_for": left})
        if left:
            _log.warning("these settings take effect with a restart: %s", ", ".join(left))


def _plain(config: Config) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(config, enc_hook=str)
    return plain


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> set[str]:
    """Dotted names of what differs; lists differ as a whole."""
    found: set[str] = set()
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= _changed(before, after, f"{at}{key}.")
        elif before != after:
            found.add(f"{at}{key}")
    return found
