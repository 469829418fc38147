"""What hosts do now against what their profiles say: observed times correct the profiled ones. Pure logic."""

from __future__ import annotations

from fogline.common.split.options import MAX_HOPS, Load

WEIGHT = 0.2  # of a new observation
BOUNDS = (0.05, 20.0)  # of a factor: one absurd time must not rule a host out for long


class LiveLoad:
    """Smooths observed ÷ profiled time of each host, and the time spent waiting for a host's turn.

    Both times are smoothed before they are divided, so that a short task, which is off by more, counts for less.
    """

    def __init__(self) -> None:
        self._factors = [1.0] * (MAX_HOPS + 1)
        self._times: list[tuple[float, float] | None] = [None] * (MAX_HOPS + 1)  # observed, profiled
        self._queues = [0.0] * (MAX_HOPS + 1)
        self._load = Load()

    @property
    def load(self) -> Load:
        """Factors and queues as they stand."""
        return self._load

    def computed(self, host: int, observed_s: float, profiled_s: float) -> None:
        """Host (0: the device) took so long for what its profile says takes `profiled_s`."""
        if profiled_s > 0 and observed_s >= 0:
            observed_s = min(max(observed_s, BOUNDS[0] * profiled_s), BOUNDS[1] * profiled_s)
            observed, profiled = self._times[host] or (profiled_s, profiled_s)
            observed += WEIGHT * (observed_s - observed)
            profiled += WEIGHT * (profiled_s - profiled)
            self._times[host] = (observed, profiled)
            self._factors[host] = observed / profiled
            self._load = Load(tuple(self._factors), tuple(self._queues))

    def waited(self, host: int, queue_s: float) -> None:
        """A request waited so long at a host before it was computed."""
        if queue_s >= 0:
            self._queues[host] += WEIGHT * (queue_s - self._queues[host])
            self._load = Load(tuple(self._factors), tuple(self._queues))
