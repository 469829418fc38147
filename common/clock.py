"""Wall-clock time as the product counts it: whole microseconds since the Unix epoch."""

from __future__ import annotations

import time


def now_us() -> int:
    """Return microseconds since the Unix epoch, by this host's clock."""
    return time.time_ns() // 1000
