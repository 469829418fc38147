"""Bytes on the wire by link, direction and kind, and what the devices would have sent without a fog node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fogline.common.images.communication import Communication, communication_of


@dataclass(frozen=True)
class Flow:
    """One counter of one process, named from the side of the lower tier (edge before fog before cloud)."""

    link: str  # edge-fog, edge-cloud, fog-cloud
    direction: str  # up, down
    kind: str  # image, record, shared_state, model, control
    bytes: float


@dataclass(frozen=True)
class Traffic:
    """The schema's `bytes`: on the wire with headers, each byte counted once, summed over devices."""

    source: int  # every different source JPEG once; payload only
    source_resized: int
    uplink: int
    downlink: int
    shared_state: int
    control: int
    serverless: int
    serverless_resized: int

    @property
    def total(self) -> int:
        """Everything that went over a link."""
        return self.uplink + self.downlink + self.shared_state + self.control

    @property
    def gain_vs_source(self) -> float:
        """How many times more the devices would have sent each other with the JPEGs as captured."""
        return self.serverless / max(1, self.total)

    @property
    def gain_vs_resized(self) -> float:
        """The same against JPEGs resized to the training resolution."""
        return self.serverless_resized / max(1, self.total)


def count(
    flows: Iterable[Flow], *, source: int, source_resized: int, serverless: int, serverless_resized: int
) -> Traffic:
    """Sort flows into the schema's classes; whatever is not an image, a record or shared state is control."""
    sums = {"image": 0.0, "record": 0.0, "shared_state": 0.0, "control": 0.0}
    for flow in flows:
        sums[flow.kind if flow.kind in sums else "control"] += flow.bytes
    return Traffic(
        source=source,
        source_resized=source_resized,
        uplink=round(sums["image"]),
        downlink=round(sums["record"]),
        shared_state=round(sums["shared_state"]),
        control=round(sums["control"]),
        serverless=serverless,
        serverless_resized=serverless_resized,
    )


def model_of(traffic: Traffic, receivers: float, source_bytes: int) -> Communication:
    """alpha and beta as measured, with headers: what a receiver was sent, and what went up, per byte of source."""
    per_receiver = (traffic.downlink + traffic.shared_state) / max(1.0, receivers)
    source = max(1, source_bytes)
    # Where nothing went up (an edge's images were held already) the paper's 1 keeps the arithmetic whole.
    beta = traffic.uplink / source if traffic.uplink else 1.0
    return communication_of(receivers, source, per_receiver, beta)
