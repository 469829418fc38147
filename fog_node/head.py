"""The newest published cursor, and a way to wait for the next."""

from __future__ import annotations

import asyncio


class Head:
    """Rises as records are published; any number of tasks may wait."""

    def __init__(self) -> None:
        self.value = 0
        self._moved = asyncio.Event()

    def advance(self, value: int) -> None:
        """Move on and wake whoever waits."""
        if value > self.value:
            self.value = value
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    async def beyond(self, cursor: int, timeout_s: float | None) -> bool:
        """Wait until the head is above `cursor`; False after `timeout_s` seconds without that."""
        try:
            await asyncio.wait_for(self._beyond(cursor), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def _beyond(self, cursor: int) -> None:
        while self.value <= cursor:
            await self._moved.wait()
