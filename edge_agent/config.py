"""Everything an edge agent can be told. The defaults run on a Raspberry Pi."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from fogline.common import addresses
from fogline.common.boxes import MAX_LABEL_BYTES
from fogline.common.config import Config, LogConfig, MetricsConfig, TlsConfig
from fogline.common.errors import ConfigError
from fogline.common.images.forms import Qualities

DISCOVER = "discover"


class Frames(Config, frozen=True):
    """A run of frames of one annotated folder, counted from 0 as in the folder, refused frames included."""

    path: Annotated[Path, Meta(description="OTB, COCO, VOC or YOLO folder")]
    start: Annotated[int, Meta(ge=0, description="First frame")] = 0
    stop: Annotated[int | None, Meta(description="Frame after the last; none: to the end")] = None
    camera: Annotated[str, Meta(description="Name sent with the images; empty: capture.camera")] = ""

    def __post_init__(self) -> None:
        """The range must be one, and the camera's name short."""
        _check_name("camera", self.camera)
        if self.stop is not None and self.stop < self.start:
            raise ValueError(f"frames {self.start}..{self.stop} are not a range; need start <= stop")


class CaptureConfig(Config, frozen=True):
    """Where images come from."""

    source: Annotated[
        Literal["none", "folder", "sequence", "camera", "rtsp"],
        Meta(
            description="folder: upload what is there, then what appears; sequence: replay runs of frames; "
            "camera: of this board; rtsp: of the network (the last two need fogline[camera])"
        ),
    ] = "none"
    runs: Annotated[tuple[Frames, ...], Meta(description="Replayed one after another; folders are all watched")] = ()
    camera: Annotated[str, Meta(description="Name sent with the images; empty: the folder's or the device's")] = ""
    fps: Annotated[
        float, Meta(ge=0, description="Frames a second; 0: as fast as the outbox takes them, or as the camera gives")
    ] = 10.0
    label: Annotated[str, Meta(description="Of boxes in formats that carry no label (OTB)")] = "object"
    poll_s: Annotated[float, Meta(gt=0, description="Seconds between looks at watched folders")] = 1.0
    device: Annotated[
        str, Meta(description="Of `camera`: /dev/videoN (USB), or csi:N (ribbon cable of a Raspberry Pi or Jetson)")
    ] = "/dev/video0"
    url: Annotated[
        str, Meta(description="Of `rtsp`, with user and password where needed; never logged", extra={"secret": True})
    ] = ""
    transport: Annotated[Literal["tcp", "udp"], Meta(description="Of `rtsp`: how frames travel")] = "tcp"
    width: Annotated[int, Meta(ge=0, le=16384, description="Of live frames; 0: as the camera gives them")] = 0
    height: Annotated[int, Meta(ge=0, le=16384, description="Of live frames; 0: as the camera gives them")] = 0
    quality: Annotated[int, Meta(ge=1, le=100, description="Of the JPEGs that live frames become")] = 85
    annotate: Annotated[
        str,
        Meta(description="`module:function` of yours that finds the boxes of a live frame; empty: frames have none"),
    ] = ""
    stall_s: Annotated[float, Meta(gt=0, description="Without a frame for so long, the camera is opened again")] = 10.0

    def __post_init__(self) -> None:
        """A source needs folders or a camera, and names must fit a record."""
        _check_name("camera", self.camera)
        _check_name("label", self.label)
        if self.source in ("folder", "sequence") and not self.runs:
            raise ValueError(f"source {self.source!r} needs `runs`; add runs: [{{path: FOLDER}}]")
        if self.source == "camera" and not re.fullmatch(r"/dev/\S+|csi:\d", self.device):
            raise ValueError(f"device {self.device!r} is no camera; give /dev/video0, or csi:0")
        if self.source == "rtsp" and not re.fullmatch(r"rtsps?://[^/?#\s]+\S*", self.url):
            # Not shown: it may hold a password.
            raise ValueError("`url` is no address of a camera; give url: rtsp://USER:PASSWORD@HOST/PATH")
        if (self.width == 0) != (self.height == 0):
            raise ValueError(f"width {self.width} and height {self.height}: give both, or neither")
        if self.annotate and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", self.annotate):
            raise ValueError(f"annotate {self.annotate!r} is not of the form package.module:function")


class OutboxConfig(Config, frozen=True):
    """What was captured and is not stored at the fog node yet."""

    max_bytes: Annotated[int, Meta(ge=1 << 16, description="Bytes of images held at most")] = 1 << 30
    policy: Annotated[
        Literal["block", "drop-oldest"], Meta(description="When full: capture waits, or the oldest image is given up")
    ] = "block"


class UplinkConfig(Config, frozen=True):
    """What is sent of a captured image. The outbox keeps the JPEG; other forms are made from it when it is sent."""

    form: Annotated[
        Literal["auto", "original", "resized", "avif", "roi"],
        Meta(description="auto: what the fog node advises; a form that it does not take: original"),
    ] = "auto"
    resized_quality: Annotated[int, Meta(ge=1, le=100, description="Of `resized`, a JPEG")] = Qualities.resized
    avif_quality: Annotated[int, Meta(ge=1, le=100, description="Of `avif`")] = Qualities.avif
    roi_object_quality: Annotated[int, Meta(ge=0, le=100, description="Of the objects; 0: the fog node's advice")] = 0
    roi_background_quality: Annotated[int, Meta(ge=0, le=100, description="Of the rest; 0: the fog node's advice")] = 0


class LibraryConfig(Config, frozen=True):
    """What was received; the trainer learns from it."""

    max_bytes: Annotated[int, Meta(ge=1 << 16, description="Quota; beyond it the oldest are evicted")] = 4 << 30


class FilterConfig(Config, frozen=True):
    """What this device wants to receive; its own images never come back."""

    labels: Annotated[tuple[str, ...], Meta(description="Images with any of these labels; empty: all")] = ()
    cameras: Annotated[tuple[str, ...], Meta(description="Images of these cameras; empty: all")] = ()


class TrainConfig(Config, frozen=True):
    """The detector that learns while images arrive, in a child process (the only one with torch)."""

    enabled: Annotated[bool | Literal["auto"], Meta(description="auto: when torch is installed")] = "auto"
    trainer: Annotated[
        str, Meta(description="Your own in place of the detector's: package.module:function, given a fogline.Training")
    ] = ""
    width: Annotated[int, Meta(ge=32, multiple_of=16, description="Training resolution")] = 320
    height: Annotated[int, Meta(ge=32, multiple_of=16, description="Training resolution")] = 240
    view: Annotated[tuple[int, int], Meta(description="Width and height that a step sees of an image")] = (160, 112)
    batch: Annotated[int, Meta(ge=1, description="Images a step")] = 24
    steps: Annotated[int, Meta(ge=0, description="Steps in all; 0: as long as the agent runs")] = 0
    lr: Annotated[float, Meta(gt=0, description="Learning rate before its decay")] = 3e-3
    seed: Annotated[int, Meta(ge=0, description="Of weights and batches")] = 0
    labels: Annotated[tuple[str, ...], Meta(description="What to tell apart; empty: every object is of one kind")] = ()
    metric: Annotated[Literal["iou", "ap50"], Meta(description="iou: one object a frame; ap50: many")] = "iou"
    evaluate: Annotated[tuple[Frames, ...], Meta(description="Held-out frames on this disk")] = ()
    evaluate_every: Annotated[int, Meta(ge=1, description="Steps between evaluations")] = 100
    checkpoint_every: Annotated[int, Meta(ge=1, description="Steps between checkpoints")] = 100
    publish_every: Annotated[int, Meta(ge=0, description="Steps between versions sent to the cloud; 0: never")] = 0
    model: Annotated[str, Meta(pattern=r"^[a-z0-9._-]{1,64}$", description="Name in the model registry")] = "detector"
    cache_bytes: Annotated[int, Meta(ge=0, description="Of decoded images kept; others are decoded anew")] = 512 << 20
    shared_bytes: Annotated[
        int, Meta(ge=0, description="Of decoded shared state kept (reference pictures); the rest is decoded anew")
    ] = 128 << 20
    quiet_s: Annotated[float, Meta(ge=0, description="Nothing came for so long: the last steps are made")] = 30.0
    threads: Annotated[int, Meta(ge=1, description="CPU threads of the child")] = 1
    device: Annotated[str, Meta(description="cpu, cuda, …")] = "cpu"

    def __post_init__(self) -> None:
        """What a step sees must be what the detector takes."""
        if any(side < 32 or side % 16 for side in self.view):
            raise ValueError(f"view {self.view} must have sides of at least 32 that are multiples of 16")


def _check_name(key: str, name: str) -> None:
    if len(name.encode()) > MAX_LABEL_BYTES:
        raise ValueError(f"{key} {name!r} is longer than {MAX_LABEL_BYTES} bytes; shorten it")


class EdgeConfig(Config, frozen=True):
    """One edge agent."""

    name: Annotated[str, Meta(min_length=1, description="Of this device, as in its certificate")]
    data_dir: Annotated[Path, Meta(description="Outbox, library and checkpoints; for one agent at a time")]
    fog: Annotated[str, Meta(description="host:port of the fog node, or `discover` to ask the cloud server")]
    cloud: Annotated[str, Meta(description="host:port of the cloud server; empty: none")] = ""
    tls: TlsConfig = TlsConfig()
    capture: CaptureConfig = CaptureConfig()
    outbox: OutboxConfig = OutboxConfig()
    uplink: UplinkConfig = UplinkConfig()
    library: LibraryConfig = LibraryConfig()
    filter: FilterConfig = FilterConfig()
    train: TrainConfig = TrainConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        """Addresses must be addresses, and discovery needs whom to ask."""
        try:
            if self.fog != DISCOVER:
                addresses.parse(self.fog)
            if self.cloud:
                addresses.parse(self.cloud)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.fog == DISCOVER and not self.cloud:
            raise ValueError("`fog: discover` asks the cloud server, and `cloud` is empty; set cloud: host:port")
