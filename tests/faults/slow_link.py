"""A link between this network namespace and another, as slow, long, lossy or broken as a test wants it.

Not every kernel has netem, so packets go through this process: two TUN devices, and a thread that carries what comes
out of one into the other, later, or not at all. IPv4 alone.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import secrets
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

HERE, THERE = "10.99.9.1", "10.99.9.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_QUEUE_S = 0.5  # of packets that wait for a rate; more are dropped, as a router would


@dataclass
class Conditions:
    """Of each direction; may change at any time."""

    rate_bit_s: float = 0.0  # 0: as fast as can be
    delay_s: float = 0.0
    loss: float = 0.0  # share of packets
    largest: int = 65536  # bytes; larger packets vanish, and nobody is told
    up: bool = True


class Link:
    """`namespace`: where the far end is, with the address THERE."""

    def __init__(self, namespace: str, ends: tuple[int, int]) -> None:
        self.namespace = namespace
        self.conditions = Conditions()
        self.carried = 0  # bytes, both directions
        self._ends = ends
        self._free = {end: 0.0 for end in ends}
        self._random = random.Random(1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="link", daemon=True)
        self._thread.start()

    def command(self, *words: str) -> list[str]:
        """A command line that runs at the far end."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def close(self) -> None:
        """Stop carrying."""
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self._stop.is_set():
            wait = 0.05 if not waiting else min(0.05, max(0.0, waiting[0][0] - time.monotonic()))
            readable, _, _ = select.select(self._ends, [], [], wait)
            now = time.monotonic()
            for end in readable:
                packet = os.read(end, 65536)
                due = self._due(end, len(packet), now)
                if due is not None:
                    number += 1
                    other = self._ends[1] if end == self._ends[0] else self._ends[0]
                    heapq.heappush(waiting, (due, number, other, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, out, packet = heapq.heappop(waiting)
                self.carried += len(packet)
                with suppress(OSError):
                    os.write(out, packet)

    def _due(self, end: int, size: int, now: float) -> float | None:
        now_is = self.conditions
        if not now_is.up or size > now_is.largest or self._random.random() < now_is.loss:
            return None
        start = max(now, self._free[end])
        if start - now > _QUEUE_S:
            return None
        if now_is.rate_bit_s:
            start += size * 8 / now_is.rate_bit_s
            self._free[end] = start
        return start + now_is.delay_s


@contextmanager
def slow_link() -> Iterator[Link]:
    """Needs root, `ip` and /dev/net/tun."""
    suffix = secrets.token_hex(3)
    namespace, here, there = f"fgl{suffix}", f"fga{suffix}", f"fgb{suffix}"
    _run("ip", "netns", "add", namespace)
    link: Link | None = None
    try:
        ends = _tun(here), _tun(there)
        link = Link(namespace, ends)
        _run("ip", "link", "set", there, "netns", namespace)
        _run("ip", "addr", "add", HERE, "peer", THERE, "dev", here)
        _run("ip", "link", "set", here, "up")
        _run("ip", "-n", namespace, "addr", "add", THERE, "peer", HERE, "dev", there)
        _run("ip", "-n", namespace, "link", "set", there, "up")
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        yield link
    finally:
        if link is not None:
            link.close()
        _run("ip", "netns", "del", namespace)


def _tun(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
