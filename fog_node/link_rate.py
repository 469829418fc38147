"""How fast a link is, from what was moved while it was busy. Pure logic: times and bytes in, a rate out.

Busy spans of several streams are merged, so the rate is that of the link which they share. Short spans say nothing:
a few records fit into the buffers on the way and seem to have been sent at once. Nor does time in which nothing moves:
then a peer has gone or does not read, and the link could do more.
"""

from __future__ import annotations

from collections import deque

MIN_SPAN_BYTES = 512 << 10  # several times what HTTP/2 and TCP take in before they push back
STALL_S = 20.0  # without progress, no part of a span: the largest chunk takes as long at 100 kbit/s
SPANS = 16  # remembered, so that the rate follows the link


class LinkRate:
    """Told when a stream becomes busy and idle, and what moved meanwhile; times in seconds of any steady clock."""

    def __init__(self) -> None:
        self._busy = 0
        self._since = self._progress = 0.0
        self._bytes = 0
        self._spans: deque[tuple[int, float]] = deque(maxlen=SPANS)

    def begin(self, now: float) -> None:
        """One more stream has something to move."""
        if not self._busy or self._stalled(now):
            self._start(now)
        self._busy += 1

    def moved(self, count: int, now: float) -> None:
        """So many bytes went through. A span that never ends is cut into pieces."""
        if self._busy and self._stalled(now):
            self._start(now)  # without these bytes: how long they took is not known
            return
        self._bytes += count
        self._progress = now
        if self._busy and self._bytes >= 16 * MIN_SPAN_BYTES:
            self._close(now)
            self._start(now)

    def end(self, now: float) -> None:
        """A stream that was busy has nothing more to move."""
        self._busy -= 1
        if not self._busy and not self._stalled(now):
            self._close(now)

    @property
    def bit_s(self) -> float | None:
        """The rate over the last spans; None before the first that says something."""
        seconds = sum(span for _, span in self._spans)
        return 8 * sum(count for count, _ in self._spans) / seconds if seconds > 0 else None

    def _stalled(self, now: float) -> bool:
        """Whether nothing has moved for too long; what had moved before is a span of its own."""
        if now - self._progress <= STALL_S:
            return False
        self._close(self._progress)
        return True

    def _start(self, now: float) -> None:
        self._since = self._progress = now
        self._bytes = 0

    def _close(self, now: float) -> None:
        if self._bytes >= MIN_SPAN_BYTES and now > self._since:
            self._spans.append((self._bytes, now - self._since))
