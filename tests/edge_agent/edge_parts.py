"""The network half of an agent in this process: link, outbox, library, uploader, receiver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_helpers import jpeg
from scripted_fog import ScriptedFog

from fogline.common.boxes import Box
from fogline.common.config import TlsConfig
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.retry import Backoff
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.config import FilterConfig, UplinkConfig
from fogline.edge_agent.fog import FogLink
from fogline.edge_agent.library import Library
from fogline.edge_agent.outbox import Outbox
from fogline.edge_agent.receive import Receiver
from fogline.edge_agent.upload import Uploader
from fogline.edge_agent.workers import Stop, Supervisor


@dataclass
class Parts:
    outbox: Outbox
    library: Library
    link: FogLink
    uploader: Uploader
    receiver: Receiver
    clock: FogClock

    def add(self, *seeds: int, data: bytes | None = None, size: tuple[int, int] = (64, 48)) -> list[bytes]:
        """Capture; the JPEGs."""
        images = [jpeg(seed, size) if data is None else data for seed in seeds]
        for seed, image in zip(seeds, images, strict=True):
            self.outbox.add(image, [Box(1, 2, 3, 4, "car")], "cam", self.clock.stamp(), "s", str(seed))
        return images


@contextmanager
def parts(
    root: Path, fog: ScriptedFog, *, clock: FogClock | None = None, max_bytes: int = 1 << 30,
    wanted: FilterConfig | None = None, uplink: UplinkConfig | None = None,
    run: Literal["both", "upload", "receive"] = "both",
) -> Iterator[Parts]:  # fmt: skip
    """Running against a fog node; ended, and closed, at the end."""
    stop, clock = Stop(), clock or FogClock()
    outbox, library = Outbox(root / "outbox", 1 << 30, "block"), Library(root / "library", max_bytes)
    find = lambda: [f"127.0.0.1:{fog.port}"]  # noqa: E731
    link = FogLink(find, TlsConfig(insecure=True), Peer("edge-1", "edge"), LinkMeter("edge-fog"), clock, stop)
    link._backoff = Backoff(0.05, 0.2)
    uploader, receiver = (
        Uploader(link, outbox, clock, stop, uplink),
        Receiver(link, library, clock, wanted or FilterConfig(), stop),
    )
    receiver._disk = Backoff(0.05, 0.2)
    supervisor = Supervisor(stop)
    made = Parts(outbox, library, link, uploader, receiver, clock)
    try:
        if run != "receive":
            supervisor.add("upload", uploader.run)
        if run != "upload":
            supervisor.add("receive", receiver.run)
        yield made
        assert [w.error for w in supervisor.workers if w.error] == []
    finally:
        stop.set()
        link.close()
        assert supervisor.join(10) == []
        outbox.close()
        library.close()
