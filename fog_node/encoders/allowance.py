"""How much of its time the encoder may spend on what anyone can ask for. Pure logic: times in, a yes or no out."""

from __future__ import annotations

from collections.abc import Callable

BURST_S = 60.0  # saved up at most, and there at the start: cameras that come first are not kept waiting


class Allowance:
    """A share of the time that passes, spent in pieces whose length is known afterwards.

    What is overspent is waited for, so that the share holds over any time that is long beside a piece.
    """

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self._share, self._clock = share, clock
        self._left, self._at = BURST_S, clock()

    @property
    def any(self) -> bool:
        """Whether something is left to spend."""
        now = self._clock()
        self._left = min(BURST_S, self._left + self._share * (now - self._at))
        self._at = now
        return self._left > 0

    def spend(self, seconds: float) -> None:
        """So long it took."""
        self._left -= seconds
