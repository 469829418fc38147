"""The configuration of a fog node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, field
from PIL import features

from fogline.common.boxes import MAX_BOXES
from fogline.common.config import Config, LogConfig, MetricsConfig, TlsConfig
from fogline.common.images.container import MAX_SOURCE_PIXELS
from fogline.common.images.forms import Form
from fogline.common.tails.config import TensorsConfig

TORCH_CODECS = ("siren", "latent", "nerv")


class Limits(Config, frozen=True):
    """What an uploaded image may be at most. Edges are told these in Hello."""

    max_image_bytes: Annotated[int, Meta(ge=1024, le=1 << 30, description="Bytes of one JPEG")] = 32 << 20
    max_image_pixels: Annotated[int, Meta(ge=4096, le=MAX_SOURCE_PIXELS, description="Pixels of one JPEG")] = 50_000_000
    max_boxes: Annotated[int, Meta(ge=0, le=MAX_BOXES, description="Object boxes of one image")] = MAX_BOXES


class EncoderConfig(Config, frozen=True):
    """How images are compressed. The encoder runs in a child process of its own."""

    codec: Annotated[
        Literal["siren", "latent", "nerv", "jpeg2", "avif2", "auto"],
        Meta(description="Image codec; auto: chosen for each camera"),
    ] = "siren"
    params: Annotated[dict[str, Any], Meta(description="Parameters of the codec; {} for its defaults")] = field(
        default_factory=dict
    )
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$", description="auto, cpu, cuda or cuda:N")] = (
        "auto"
    )
    batch: Annotated[int, Meta(ge=1, le=1024, description="Images encoded together at most; nerv: params.group")] = 32
    max_wait_s: Annotated[float, Meta(ge=0, le=3600, description="A batch that is not full starts after this")] = 1.0
    threads: Annotated[int, Meta(ge=0, le=1024, description="CPU threads; 0: the library's choice")] = 0


class UplinkConfig(Config, frozen=True):
    """What edges may send of an image, and what they are told is worth sending. The captured JPEG is always taken."""

    accept: Annotated[
        tuple[Literal["resized", "avif", "roi"], ...], Meta(description="Forms taken besides the original")
    ] = ("resized", "avif", "roi")
    advise: Annotated[
        Literal["auto", "original", "resized", "avif", "roi"],
        Meta(description="What edges that have no form of their own send; auto: original where sources are kept"),
    ] = "auto"

    def __post_init__(self) -> None:
        """What is advised must be taken."""
        if self.advise not in ("auto", "original", *self.accept):
            raise ValueError(f"uplink.advise {self.advise!r} is not among uplink.accept {list(self.accept)}; add it")

    @property
    def forms(self) -> tuple[Form, ...]:
        """Every form that is taken: of `accept`, what the Pillow that is installed can read."""
        named = (Form.of(name) for name in self.accept)
        readable = features.check("avif")
        return (Form.ORIGINAL, *(form for form in named if readable or form not in (Form.AVIF, Form.ROI)))

    def advice(self, keep_sources: bool) -> Form:
        """The form that edges are advised to send: the smallest, unless what was captured is wanted."""
        if self.advise != "auto":
            wanted = Form.of(self.advise)
            return wanted if wanted in self.forms else Form.ORIGINAL
        smallest = [form for form in ("roi", "avif", "resized") if Form.of(form) in self.forms]
        return Form.ORIGINAL if keep_sources or not smallest else Form.of(smallest[0])


class RetentionConfig(Config, frozen=True):
    """When published records are deleted. A device that was away so long never receives them."""

    max_age_s: Annotated[float, Meta(ge=0, description="Seconds after publication; 0: kept for ever")] = 0.0
    when_full: Annotated[
        Literal["wait", "delete-oldest"],
        Meta(description="A full store has uploads wait at the edges, or deletes its oldest records"),
    ] = "wait"


class FogConfig(Config, frozen=True):
    """A fog node: takes images from edge agents, compresses them and publishes the records to other edges."""

    data_dir: Annotated[Path, Meta(description="Folder of the store; made when missing")]
    listen: Annotated[str, Meta(description="host:port to serve on; port 0: any free one")] = "127.0.0.1:7400"
    advertise: Annotated[str, Meta(description="host:port that edges reach us at; empty: as `listen`")] = ""
    cloud: Annotated[str | None, Meta(description="host:port of the cloud server; null: work without one")] = None
    name: Annotated[str, Meta(description="Our name without certificates; with them, theirs counts")] = "fog"
    tls: TlsConfig = TlsConfig()
    limits: Limits = Limits()
    capacity_bytes: Annotated[
        Annotated[int, Meta(ge=1 << 20)] | None, Meta(description="Quota of the store; null: the disk")
    ] = None
    retention: RetentionConfig = RetentionConfig()
    width: Annotated[int, Meta(ge=16, le=8192, description="Coded width in pixels; smaller frames keep theirs")] = 320
    keep_sources: Annotated[bool, Meta(description="Keep uploads after encoding while there is room")] = True
    uplink: UplinkConfig = UplinkConfig()
    encoder: EncoderConfig = EncoderConfig()
    tensors: TensorsConfig = TensorsConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()
