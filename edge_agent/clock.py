"""The fog node's clock, as this device knows it. A wrong or stepping device clock never reaches a capture time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fogline.common.clock import now_us

_log = logging.getLogger(__name__)
_WARN_US = 5_000_000


@dataclass(frozen=True)
class Stamp:
    """A moment by this device: wall clock, and time since boot (which no NTP step moves) with the boot's id."""

    wall_us: int
    boot_us: int
    boot_id: str


def _boot_us() -> int:
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1000


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class FogClock:
    """Offset between the fog node's clock and this device's, measured at each Hello.

    The offset is kept against time since boot, so stepping the wall clock (a board without a battery clock gets
    its time minutes after start) changes nothing; only stamps of an earlier boot fall back on the wall clock.
    """

    def __init__(self, wall: Callable[[], int] = now_us, boot: Callable[[], int] = _boot_us) -> None:
        self._wall, self._boot, self._boot_id = wall, boot, _boot_id()
        self._lock = threading.Lock()
        self._boot_offset: int | None = None  # fog time - time since boot
        self.offset_us = 0  # fog time - wall clock, at the last Hello

    def stamp(self) -> Stamp:
        """Now, by this device."""
        return Stamp(self._wall(), self._boot(), self._boot_id)

    def wall_us(self) -> int:
        """Now, by this device's wall clock."""
        return self._wall()

    def measured(self, sent: Stamp, server_time_us: int, got: Stamp) -> None:
        """One Hello: the server's time is taken to be the middle between sending and getting the answer."""
        with self._lock:
            self._boot_offset = server_time_us - (sent.boot_us + got.boot_us) // 2
            self.offset_us = server_time_us - (sent.wall_us + got.wall_us) // 2
        if abs(self.offset_us) > _WARN_US:
            _log.warning(
                "this device's clock is %.1f s off the fog node's; capture times are corrected, but set the clock",
                -self.offset_us / 1e6,
            )

    def fog_us(self, stamp: Stamp) -> int:
        """A stamp in the fog node's time, never below 0. Before the first Hello: the wall clock as it is."""
        with self._lock:
            if self._boot_offset is not None and stamp.boot_id == self._boot_id:
                return max(0, stamp.boot_us + self._boot_offset)
            return max(0, stamp.wall_us + self.offset_us)
