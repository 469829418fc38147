"""Memory for payloads, used again once nobody looks at it.

A fresh page is a fault of the processor and is cleared by the kernel, which together can cost more than to receive into
it. So a large buffer is mapped with huge pages where the kernel has them, is there only once it is written (a forged
size costs nothing), and is kept for the next payload of about that size.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

MAPPED = 1 << 20  # bytes from which on a buffer is mapped and kept
HUGE_PAGE = 2 << 20
KEEP_BYTES = 128 << 20


class PayloadMemory:
    """Buffers, of which at most `keep_bytes` are kept for use again. One thread at a time."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_bytes = keep_bytes
        self._kept: list[mmap.mmap] = []
        self._unseen = 0  # references to a buffer that has no view: what `_references` told of a new one

    def take(self, size: int) -> memoryview:
        """Writable memory of `size` bytes; it comes back by itself when the last view of it is gone."""
        if size < MAPPED:
            return memoryview(bytearray(size))
        for index in range(len(self._kept)):
            if size <= len(self._kept[index]) <= 2 * size + HUGE_PAGE and self._references(index) == self._unseen:
                self._kept.append(self._kept.pop(index))
                return memoryview(self._kept[-1])[:size]
        self._kept.append(_mapped(size))
        self._unseen = self._references(-1)
        view = memoryview(self._kept[-1])[:size]
        while sum(map(len, self._kept)) > self._keep_bytes:
            del self._kept[0]  # freed with its last view
        return view

    def clear(self) -> None:
        """Give back what is not in use."""
        self._kept.clear()

    def _references(self, index: int) -> int:
        """Each view holds one."""
        return sys.getrefcount(self._kept[index])


def _mapped(size: int) -> mmap.mmap:
    whole = -(-size // HUGE_PAGE) * HUGE_PAGE
    memory = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: it only takes longer
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
