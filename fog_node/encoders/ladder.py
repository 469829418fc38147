"""Finding the lowest rung of a quality ladder that is good enough. Pure logic: says what to try, is told the result."""

from __future__ import annotations


class LadderSearch:
    """The lowest of `rungs` rungs that passes, where quality rises with the rung; the top one when none does.

    `start` is tried first: where a former search ended, so that a camera that has not changed needs two tries.
    """

    def __init__(self, rungs: int, start: int | None = None) -> None:
        self.top = rungs - 1
        self._low, self._high = 0, self.top
        self._first = None if start is None else min(max(start, 0), rungs - 1)
        self._step = 1

    @property
    def settled(self) -> bool:
        """Whether `rung` is the answer."""
        return self._low == self._high

    @property
    def rung(self) -> int:
        """The one to try next, or the answer."""
        if self.settled:
            return self._low
        if self._first is not None:
            return self._first
        return (self._low + self._high) // 2

    def settle(self, rung: int) -> None:
        """Search no further: nothing can be measured here."""
        self._low = self._high = rung

    def tell(self, passed: bool) -> None:
        """What `rung` turned out to be."""
        tried = self.rung
        if self.settled:
            return
        if passed:
            self._high = tried
        else:
            self._low = min(tried + 1, self._high)  # the top one is taken, good enough or not
        if self._first is not None and not self.settled:
            # Near the start first, in steps that double, then by halves.
            near = tried - self._step if passed else tried + self._step
            self._step *= 2
            self._first = near if self._low <= near <= self._high and near != tried else None
