"""One answer of the cloud server, and the rates between two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fogline.common.clock import now_us
from fogline.common.rpc.gen import control_pb2 as pb
from fogline.common.rpc.gen.control_pb2_grpc import FleetServiceStub
from fogline.common.rpc.status import translate

_ROLES: dict[int, str] = {pb.ROLE_EDGE: "edge", pb.ROLE_FOG: "fog"}
# Gauges of cumulative bytes are named LINK_DIRECTION_bytes, the link's dash as an underscore (`LinkMeter.gauges`).
LINKS = ("edge-fog", "edge-cloud", "fog-cloud")


@dataclass(frozen=True)
class Device:
    """A device as it last reported."""

    name: str
    role: str
    version: str
    address: str  # of a fog node
    alive: bool
    last_seen_us: int  # cloud server's clock
    gauges: Mapping[str, float]
    capabilities: Mapping[str, str]


@dataclass(frozen=True)
class Sample:
    """The whole fleet at one time of this host's clock."""

    taken_us: int
    devices: tuple[Device, ...]


@dataclass(frozen=True)
class Rate:
    """What a device moved over a link, in bit/s, seen from the device. None: not known yet."""

    up: float | None
    down: float | None


def fetch(stub: FleetServiceStub, server: str) -> Sample:
    """Ask the cloud server. Raises what the error tree has for a failed call."""
    with translate(server):
        answer = stub.FleetStatus(pb.FleetStatusRequest())
    devices = tuple(
        Device(
            device.name,
            _ROLES.get(device.role, "?"),
            device.version,
            device.address,
            device.alive,
            device.last_seen_us,
            dict(device.gauges),
            dict(device.capabilities),
        )
        for device in answer.devices
    )
    return Sample(now_us(), devices)


class Rates:
    """Follows samples, and tells every device's rate by link, over its last two *reports*: samples come more often."""

    def __init__(self) -> None:
        self._last: dict[str, Device] = {}
        self._rates: dict[str, dict[str, Rate]] = {}

    def add(self, sample: Sample) -> None:
        """Take a newer sample."""
        for device in sample.devices:
            before = self._last.get(device.name)
            if before is None or device.last_seen_us > before.last_seen_us:
                self._last[device.name] = device
                self._rates[device.name] = {link: _rate(link, before, device) for link in _links(device)}

    def of(self, device: Device) -> Mapping[str, Rate]:
        """By link; a device that is not alive moves nothing."""
        if not device.alive:
            return {}
        return self._rates.get(device.name, {})

    def known(self, sample: Sample) -> bool:
        """Whether every living device that reports bytes has reported twice."""
        rates = [rate for device in sample.devices for rate in self.of(device).values()]
        return all(rate.up is not None and rate.down is not None for rate in rates)


def _links(device: Device) -> list[str]:
    return [link for link in LINKS if _key(link, "sent") in device.gauges or _key(link, "received") in device.gauges]


def _rate(link: str, before: Device | None, after: Device) -> Rate:
    if before is None:
        return Rate(None, None)
    seconds = (after.last_seen_us - before.last_seen_us) / 1e6

    def bits(direction: str) -> float | None:
        key = _key(link, direction)
        moved = after.gauges.get(key, 0.0) - before.gauges.get(key, 0.0)
        # Counters begin anew when a process does.
        return moved * 8 / seconds if moved >= 0 else None

    return Rate(bits("sent"), bits("received"))


def _key(link: str, direction: str) -> str:
    return f"{link.replace('-', '_')}_{direction}_bytes"
