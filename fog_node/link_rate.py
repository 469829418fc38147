"""How fast a link is, from what was moved while it was busy. Pure logic: times and bytes in, a rate out.

Busy spans of several streams are merged, so the rate is that of the link which they share. Short spans say nothing:
a few records fit into the buffers on the way and seem to have been sent at once.
"""

from __future__ import annotations

from collections import deque

MIN_SPAN_BYTES = 512 << 10  # several times what HTTP/2 and TCP take in before they push back
SPANS = 16  # remembered, so that the rate follows the link


class LinkRate:
    """Told when a stream becomes busy and idle, and what moved meanwhile; times in seconds of any steady clock."""

    def __init__(self) -> None:
        self._busy = 0
        self._since = 0.0
        self._bytes = 0
        self._spans: deque[tuple[int, float]] = deque(maxlen=SPANS)

    def begin(self, now: float) -> None:
        """One more stream has something to move."""
        if not self._busy:
            self._since, self._bytes = now, 0
        self._busy += 1

    def moved(self, count: int, now: float) -> None:
        """So many bytes went through. A span that never ends is cut into pieces."""
        self._bytes += count
        if self._busy and self._bytes >= 16 * MIN_SPAN_BYTES:
            self._close(now)
            self._since, self._bytes = now, 0

    def end(self, now: float) -> None:
        """A stream that was busy has nothing more to move."""
        self._busy -= 1
        if not self._busy:
            self._close(now)

    @property
    def bit_s(self) -> float | None:
        """The rate over the last spans; None before the first that says something."""
        seconds = sum(span for _, span in self._spans)
        return 8 * sum(count for count, _ in self._spans) / seconds if seconds > 0 else None

    def _close(self, now: float) -> None:
        if self._bytes >= MIN_SPAN_BYTES and now > self._since:
            self._spans.append((self._bytes, now - self._since))
