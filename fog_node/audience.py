"""Who receives which camera, and how fast the links to them are: what the encoder `auto` plans for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from fogline.fog_node.link_rate import LinkRate
from fogline.fog_node.store import QueuedImage
from fogline.fog_node.subscription import Filter

AWAY_S = 600.0  # a device that was subscribed is counted for so long: it comes back and fetches what it missed
MAX_DEVICES = 65_536


class Audience:
    """The subscriptions of all devices, and both directions' rates."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, list[Filter]] = {}
        self._left: dict[str, tuple[float, Filter]] = {}
        self._tenants: dict[str, str] = {}  # of those that have one
        self.downlink, self.uplink = LinkRate(), LinkRate()

    def joined(self, device: str, wanted: Filter, tenant: str = "") -> None:
        """A subscription was opened."""
        if tenant:
            self._tenants[device] = tenant
        self._left.pop(device, None)
        self._open.setdefault(device, []).append(wanted)

    def left(self, device: str, wanted: Filter) -> None:
        """It was closed."""
        filters = self._open[device]
        filters.remove(wanted)
        if not filters:
            del self._open[device]
            self._left[device] = (self._clock(), wanted)
            if len(self._left) > MAX_DEVICES:
                gone = next(iter(self._left))
                self._left.pop(gone)
                self._tenants.pop(gone, None)

    def wants(self, device: str, camera: str, labels: frozenset[str]) -> bool:
        """Whether a device's own filters let something through; a device that never subscribed has none."""
        filters = self._open.get(device)
        if filters is None:
            left = self._left.get(device)
            filters = [left[1]] if left is not None else []
        return not filters or any(one.wants(camera, labels) for one in filters)

    def receivers(self, images: Sequence[QueuedImage], sources: Iterable[str]) -> int:
        """How many devices are going to fetch images of one camera, which the devices `sources` uploaded."""
        now, own = self._clock(), set(sources)
        self._left = {device: (at, one) for device, (at, one) in self._left.items() if now - at < AWAY_S}
        self._tenants = {d: tenant for d, tenant in self._tenants.items() if d in self._open or d in self._left}
        labels = frozenset(box.label for image in images for box in image.boxes)
        wanted = [*self._open.items(), *((device, [one]) for device, (_, one) in self._left.items())]
        return sum(
            device not in own
            and self._tenants.get(device, "") == images[0].tenant
            and any(one.wants(images[0].camera, labels) for one in filters)
            for device, filters in wanted
        )

    @contextmanager
    def sending(self) -> Iterator[Callable[[int], None]]:
        """While a device waits for what it asked for; call what is yielded with bytes sent."""
        self.downlink.begin(self._clock())
        try:
            yield lambda count: self.downlink.moved(count, self._clock())
        finally:
            self.downlink.end(self._clock())

    def expecting(self) -> None:
        """An image was promised by a device and comes now; ends with `arrived`."""
        self.uplink.begin(self._clock())

    def received(self, count: int) -> None:
        """Bytes of images came."""
        self.uplink.moved(count, self._clock())

    def arrived(self) -> None:
        """An image is here, or given up."""
        self.uplink.end(self._clock())
