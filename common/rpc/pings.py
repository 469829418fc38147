"""How many PINGs an end of a connection sends.

gRPC probes the bandwidth-delay product while data comes in: a probe goes out with the first data after the last one's
time is over; the time between probes starts at 0.1 s and, as nothing changes, grows by 0.1 to 0.2 s each time, up to
10 s. Keepalive goes out after each 20 s without anything received.
"""

from __future__ import annotations

FIRST_S, STEP_S, MAX_S = 0.1, 0.15, 10.0
STABLE = 2  # probes before the time between them grows


class Pings:
    """One end's. Times are seconds of a monotonic clock."""

    def __init__(self, now: float, keepalive_s: float) -> None:
        self._keepalive_s = keepalive_s
        self._interval, self._probes, self._next, self._unprobed = FIRST_S, 0, now, False
        self._heard = now

    def data(self, now: float) -> int:
        """Data came in; returns the pings that were due before and now."""
        count = self.until(now)
        self._heard = now
        if now >= self._next:
            return count + self._probe(now)
        self._unprobed = True
        return count

    def until(self, now: float) -> int:
        """The pings that were due since the last call, without anything coming in."""
        count = 0
        if self._unprobed and now >= self._next:
            count += self._probe(self._next)
        idle = int((now - self._heard) / self._keepalive_s)
        self._heard += idle * self._keepalive_s
        return count + idle

    def _probe(self, when: float) -> int:
        self._probes += 1
        if self._probes > STABLE:
            self._interval = min(MAX_S, self._interval + STEP_S)
        self._next, self._unprobed = when + self._interval, False
        return 1
