"""Back-off before the next attempt to reach a peer: one object per peer, shared by everything that talks to it."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable

from fogline.common.errors import UnavailableError

FLOOR_S = 0.05  # full jitter may draw 0, which would be a tight loop


class Backoff:
    """Full-jitter exponential back-off: the n-th wait is uniform in [0, min(cap, base * 2**n)], never below `FLOOR_S`.

    Threads that fail during one outage share one wait: they don't push each other's next attempt further away.
    """

    def __init__(
        self,
        base_s: float = 0.5,
        cap_s: float = 20.0,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base, self._cap, self._clock = base_s, cap_s, clock
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0

    def reset(self) -> None:
        """Call after a success: the next wait is short again."""
        with self._lock:
            self._failures = 0
            self._until = 0.0

    def delay_s(self, deadline: float | None = None) -> float:
        """Note a failure; returns seconds until the next attempt.

        Raises UnavailableError when that would be after `deadline` (by the clock, which is `time.monotonic`).
        """
        with self._lock:
            now = self._clock()
            if now >= self._until:
                ceiling = min(self._cap, self._base * 2.0 ** min(self._failures, 32))
                self._until = now + max(FLOOR_S, self._rng.uniform(0.0, ceiling))
                self._failures += 1
            if deadline is not None and self._until > deadline:
                raise UnavailableError(f"gave up after {self._failures} attempts: no time is left for another")
            return self._until - now

    def wait(self, stop: threading.Event, deadline: float | None = None) -> bool:
        """Note a failure and sleep; returns True as soon as `stop` is set."""
        return stop.wait(self.delay_s(deadline))

    async def wait_async(self, stop: asyncio.Event, deadline: float | None = None) -> bool:
        """`wait` on an event loop."""
        try:
            await asyncio.wait_for(stop.wait(), self.delay_s(deadline))
        except asyncio.TimeoutError:
            return False
        return True
