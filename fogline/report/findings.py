"""Everything that one run of the job showed: the evaluation fills it in, `report.json` and the page show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fogline.common.images.communication import Communication
from fogline.fog_node.stats import ChoiceStats
from fogline.report.charts import Curve
from fogline.report.holdings import Completeness
from fogline.report.pictures import Exhibit, Panel
from fogline.report.traffic import Flow, Traffic

SCHEMA = 1


@dataclass(frozen=True)
class Score:
    """One decoded image against the captured original at the coded size. PSNR in dB."""

    content_id: bytes
    camera: str
    record_bytes: int
    background_bytes: int  # payload of the background layer
    object_bytes: int  # payloads of all object layers
    full_db: float
    background_db: float | None  # outside all boxes; None where they cover the frame
    object_db: float | None  # inside the boxes; None without a box
    object_background_db: float | None  # the same region, by the background layer alone


@dataclass(frozen=True)
class CodecTrial:
    """One codec on the few frames that every codec was given."""

    codec: str
    params: Mapping[str, Any]
    bytes_per_image: float  # with its part of the shared state
    full_db: float
    background_db: float | None
    object_db: float | None
    encode_per_s: float | None  # None: nothing was encoded
    decode_per_s: float
    this_run: bool
    source_bytes_per_image: float  # of the same frames as captured


@dataclass(frozen=True)
class Comparison:
    """The same detector, seeds, steps and held-out frames; trained on source and on decoded images."""

    metric: str  # iou, ap50
    seeds: tuple[int, ...]
    steps: int
    images: int
    epochs: float
    parameters: int  # of the detector
    untrained: float
    constant_box: float  # the best single guess for all cameras
    constant_box_per_camera: float  # the best guess for each
    on_source: tuple[float, ...]  # a value per seed
    on_decoded: tuple[float, ...]
    seconds_source: float
    seconds_decoded: float
    metric_curves: Mapping[str, Curve]
    loss_curves: Mapping[str, Curve]


@dataclass(frozen=True)
class Device:
    """One process over the whole run."""

    name: str
    tier: str
    cpu_s: float
    restarts: int
    captured: int | None = None
    uploaded: int | None = None  # images that the fog node acknowledged as stored, for the first time or again
    completeness: Completeness | None = None


@dataclass(frozen=True)
class Speed:
    """Images a second, and on what."""

    images_per_s: float | None  # None: there was nothing to do
    device: str


@dataclass(frozen=True)
class Delay:
    """Seconds from capture to usable, over all (image, receiver) pairs."""

    p50: float
    p95: float
    all: tuple[float, ...]


@dataclass(frozen=True)
class CameraCodec:
    """What `auto` chose for a camera in the end, how often that changed, and how many images each codec coded."""

    stats: ChoiceStats
    images: Mapping[str, int]  # by codec


@dataclass(frozen=True)
class Findings:
    """One run."""

    title: str
    synthetic: bool
    codec: str
    codec_params: Mapping[str, Any]
    chosen: Sequence[CameraCodec]  # by `auto`; empty with any other codec
    uplink: str  # the form that edges were advised to send
    uplink_forms: Mapping[str, int]  # images that came in each form
    size: tuple[int, int] | None  # coded width and height where all cameras agree
    width: int  # coded width
    images: int
    receivers_per_image: float
    traffic: Traffic
    flows: Sequence[Flow]
    model: Communication
    scores: Sequence[Score]
    encode: Speed
    decode: Speed
    prepare_per_s: float
    delay: Delay
    devices: Sequence[Device]
    published_twice: int
    comparison: Comparison | None
    metric: str  # of the detector: iou, ap50
    fleet: Mapping[str, Curve]  # IoU (or AP50) on each training edge while images arrived
    trials: Sequence[CodecTrial]
    exhibits: Sequence[Exhibit]
    trial_strips: Sequence[Sequence[Panel]]
    refused: Sequence[str]
    seconds: Mapping[str, float]  # wall time of each phase
    environment: Mapping[str, str]
    command: str
    config: Mapping[str, Any]

    @property
    def edges(self) -> list[Device]:
        """The edge agents."""
        return [device for device in self.devices if device.tier == "edge"]

    @property
    def lost(self) -> int:
        """(image, receiver) pairs that are missing."""
        return sum(d.completeness.lost for d in self.edges if d.completeness)

    @property
    def duplicated(self) -> int:
        """Records beyond the first of an image at a receiver, images where they don't belong, double publications."""
        checks = [d.completeness for d in self.edges if d.completeness]
        return sum(c.duplicated + c.unexpected for c in checks) + self.published_twice


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is there; None when nothing is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
