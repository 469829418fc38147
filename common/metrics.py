"""Every metric that the product exports, in one place.

Units are in the names; label values come from closed sets; a device is told apart by the address that is scraped,
never by a label.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics

import fogline
from fogline.common.board import BoardCollector
from fogline.common.config import MetricsConfig, TlsConfig
from fogline.common.host_metrics import ERRORS, LEVELS, NONE, OTHER, HostCollector, LogCounter
from fogline.common.metrics_server import Health, MetricsServer

# Of the last: a cloud server, which sees both kinds of peers through one port.
LINKS = ("edge-fog", "edge-cloud", "fog-cloud", "cloud")
DIRECTIONS = ("sent", "received")
KINDS = ("image", "record", "shared_state", "model", "tensor", "control")
UPLINK_FORMS = ("original", "resized", "avif", "roi")
UPLOAD_OUTCOMES = ("stored", "duplicate", "rejected", "dropped")
# By their number in the container. The registry has them too, but with all that decoding takes, which an edge that
# only captures and receives does without.
IMAGE_CODECS = {1: "jpeg2", 2: "avif2", 3: "siren", 4: "latent", 5: "nerv"}
LAYERS = ("background", "object", "header")
DEVICE_ROLES = ("edge", "fog")
AREAS = ("full", "background", "object")
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

DELAY_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1800, 3600, 14400)
QUALITY_BUCKETS_DB = (15, 20, 22.5, 25, 27.5, 30, 32.5, 35, 37.5, 40, 45, 50)


class Exporter:
    """Makes metrics in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, text, tuple(labels), registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(name, text, tuple(labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], labels: Iterable[str] = ()) -> Histogram:
        return Histogram(name, text, tuple(labels), buckets=tuple(buckets), registry=self.registry)

    def _link_bytes(self) -> Counter:
        return self._counter(
            "fogline_link_bytes",
            "Bytes on the wire: TLS and HTTP/2 included, TCP/IP headers and retransmissions not",
            ("link", "direction", "kind"),
        )

    def _build_info(self, tier: str) -> None:
        build = Info("fogline_build", "What runs here; always 1", registry=self.registry)
        build.info({"version": fogline.__version__, "python": platform.python_version(), "tier": tier})


class Metrics(Exporter):
    """What every tier exports. Each process makes one, of its tier's class."""

    tier = ""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double every counter and nobody reads them
        super().__init__()
        self.link_bytes = self._link_bytes()
        self._build_info(self.tier)
        self.log_records = self._counter(
            "fogline_log_records",
            "Log lines from warnings up, by the class of the error that they tell of",
            ("level", "error"),
        )
        for level in LEVELS:
            for error in (*(cls.__name__ for cls in ERRORS), OTHER, NONE):
                self.log_records.labels(level, error)
        self._host = HostCollector()
        self.registry.register(self._host)
        self.registry.register(BoardCollector())

    def serve(
        self, config: MetricsConfig, health: Health, *, data_dir: Path | None = None, tls: TlsConfig | None = None
    ) -> tuple[MetricsServer, int]:
        """Serve `/metrics` and `/healthz` on a thread; return the server and its port (-1 when switched off).

        `health` returns a JSON-able mapping with the key `ok`: true answers 200, false 503. `data_dir` and `tls` are
        what free disk space and the expiry of certificates are told of. Raises ConfigError when the port is taken.
        """
        self._host.data_dir, self._host.tls = data_dir, tls
        self._host.healthy = lambda: bool(health().get("ok"))
        server = MetricsServer(self.registry, config, health, LogCounter(self.log_records))
        return server, server.port


class EdgeMetrics(Metrics):
    """An edge agent's."""

    tier = "edge"

    def __init__(self) -> None:
        super().__init__()
        self.connected = self._gauge("fogline_connected", "1 while there is a connection, else 0", ("link",))
        self.clock_offset = self._gauge(
            "fogline_clock_offset_seconds",
            "How far the fog node's clock is ahead of this device's, at the last greeting",
        )
        self.captured_images = self._counter("fogline_captured_images", "Images taken from the sources")
        self.captured_bytes = self._counter("fogline_captured_bytes", "Bytes of these images, as captured")
        self.capture_done = self._gauge("fogline_capture_done", "1 once every source is exhausted, else 0")
        self.capture_waiting = self._gauge(
            "fogline_capture_waiting", "1 while capture waits for room in the outbox or on the disk, else 0"
        )
        self.camera_delivers = self._gauge("fogline_camera_delivers", "0 while a live camera gives no frames, else 1")
        self.missed_frames = self._counter("fogline_missed_frames", "Frames of a live camera that found no room")
        self.outbox_images = self._gauge("fogline_outbox_images", "Images waiting for upload")
        self.outbox_bytes = self._gauge("fogline_outbox_bytes", "Bytes waiting for upload")
        self.outbox_max_bytes = self._gauge("fogline_outbox_max_bytes", "Bytes that may wait at most")
        self.uploaded_images = self._counter(
            "fogline_uploaded_images", "Images that left the outbox, by how", ("outcome",)
        )
        self.uploaded_bytes = self._counter(
            "fogline_uploaded_bytes", "Bytes, as captured, of the images that left the outbox", ("outcome",)
        )
        for outcome in UPLOAD_OUTCOMES:
            self.uploaded_images.labels(outcome)
            self.uploaded_bytes.labels(outcome)
        self.transcode_seconds = self._counter(
            "fogline_transcode_seconds", "CPU seconds spent on making uplink forms of captured images"
        )
        self.received_images = self._counter("fogline_received_images", "Records received whole, each image once")
        self.received_bytes = self._counter(
            "fogline_received_bytes", "Bytes of these records, by codec and by what of a record", ("codec", "layer")
        )
        self.delay = self._histogram(
            "fogline_delay_seconds",
            "From the capture of an image to its record being usable here, by the fog node's clock",
            DELAY_BUCKETS_S,
        )
        self.behind_records = self._gauge("fogline_behind_records", "Newest known cursor less the one held durably")
        self.library_records = self._gauge("fogline_library_records", "Records held in the library")
        self.library_bytes = self._gauge("fogline_library_bytes", "Bytes held in the library")
        self.library_max_bytes = self._gauge("fogline_library_max_bytes", "Quota of the library")
        self.cursor = self._gauge("fogline_cursor", "Newest cursor of the fog node that the library holds durably")
        self.train_step = self._gauge("fogline_train_step", "Training steps made")
        self.train_loss = self._gauge("fogline_train_loss", "Training loss, running mean")
        self.train_iou = self._gauge("fogline_train_iou", "Mean IoU on the evaluation images, 0 to 1")


class FogMetrics(Metrics):
    """A fog node's."""

    tier = "fog"

    def __init__(self) -> None:
        super().__init__()
        self.taken_images = self._counter(
            "fogline_taken_images", "Images taken in, by what was sent of them", ("form",)
        )
        self.taken_bytes = self._counter("fogline_taken_bytes", "Bytes of these images, as sent", ("form",))
        for form in UPLINK_FORMS:
            self.taken_images.labels(form)
            self.taken_bytes.labels(form)
        self.stored_images = self._gauge("fogline_stored_images", "Images held durably")
        self.set_aside_images = self._gauge(
            "fogline_set_aside_images", "Images that can't be encoded, until the next start"
        )
        self.store_bytes = self._gauge("fogline_store_bytes", "Bytes of all blobs held")
        self.store_capacity_bytes = self._gauge(
            "fogline_store_capacity_bytes", "Bytes of blobs that may be held; 0 where there is no limit but the disk"
        )
        self.encode_queue_images = self._gauge("fogline_encode_queue_images", "Images waiting to be encoded")
        self.encode_queue_age = self._gauge(
            "fogline_encode_queue_age_seconds",
            "For how long the oldest image that is not published yet has been queued",
        )
        self.encoded_images = self._counter("fogline_encoded_images", "Images encoded and published")
        self.encode_seconds = self._counter("fogline_encode_seconds", "Seconds spent encoding")
        self.record_bytes = self._counter(
            "fogline_record_bytes", "Bytes of published records, by codec and by what of a record", ("codec", "layer")
        )
        self.resized_bytes = self._counter(
            "fogline_resized_bytes", "Bytes that the encoded images take as JPEGs of quality 75 at the coded size"
        )
        self.quality = self._histogram(
            "fogline_quality_db",
            "PSNR of one image of each batch against what was uploaded, at the coded size, by part of the frame",
            QUALITY_BUCKETS_DB,
            ("area",),
        )
        for area in AREAS:
            self.quality.labels(area)
        self.encoder_restarts = self._counter("fogline_encoder_restarts", "Encoder processes that ended unasked")
        self.auto_cameras = self._gauge(
            "fogline_auto_cameras", "Cameras by the codec that `auto` chose for them, since the start", ("codec",)
        )
        self.auto_trial_seconds = self._counter("fogline_auto_trial_seconds", "Seconds of encoding spent on trials")
        self.published_head = self._gauge("fogline_published_head", "Newest published cursor")
        self.expired_records = self._counter(
            "fogline_expired_records", "Published records deleted by age or for want of room"
        )
        self.subscribers = self._gauge("fogline_subscribers", "Open subscriptions")


def count_record(counter: Counter, layers: Sequence[tuple[int, int, int]], size: int) -> None:
    """Count the bytes of one record; `layers` are kind, codec number and payload bytes of each, background first.

    What is no payload is the header's, and counts as its background's codec.
    """
    for kind, codec, count in layers:
        counter.labels(IMAGE_CODECS.get(codec, OTHER), LAYERS[kind]).inc(count)
    if layers:
        header = size - sum(count for _, _, count in layers)
        counter.labels(IMAGE_CODECS.get(layers[0][1], OTHER), LAYERS[-1]).inc(max(0, header))


class CloudMetrics(Metrics):
    """A cloud server's."""

    tier = "cloud"

    def __init__(self) -> None:
        super().__init__()
        self.devices_alive = self._gauge(
            "fogline_devices_alive", "Devices heard from within three heartbeats", ("role",)
        )
        self.devices_known = self._gauge(
            "fogline_devices_known", "Devices that ever joined and did not leave", ("role",)
        )
        self.model_versions = self._gauge("fogline_model_versions", "Versions of all models held")
        self.model_bytes = self._gauge("fogline_model_bytes", "Bytes of all models held")


class Hookable(Protocol):
    """What `watch` needs of a torch module."""

    def register_forward_pre_hook(self, hook: Any, /) -> Any:
        """Call `hook` before each forward."""

    def register_forward_hook(self, hook: Any, /) -> Any:
        """Call `hook` after each forward."""


class SplitMetrics(Exporter):
    """What a program that splits a model exports: make one, and hand it to `RemoteTail.connect` or `AdaptiveModel`.

    It registers with prometheus_client's own registry, which `prometheus_client.start_http_server(9100)` serves, or
    with `registry`. One is enough for a program; two in one registry raise ValueError.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(REGISTRY if registry is None else registry)
        self.link_bytes = self._link_bytes()
        self._build_info("split")
        self.calls = self._counter(
            "fogline_split_calls", "Calls, by where the model was cut and by who answered", ("cut", "codec", "by")
        )
        self.call_seconds = self._histogram(
            "fogline_split_call_seconds",
            "What a call of an AdaptiveModel took as a whole, by who answered",
            STEP_BUCKETS_S,
            ("by",),
        )
        self.seconds = self._histogram(
            "fogline_split_seconds",
            "What the parts of a call took: head and tail compute, encode and decode code tensors, queue waits for the "
            "host, link is the rest",
            STEP_BUCKETS_S,
            ("operation", "part"),
        )
        self.tensor_bytes = self._counter(
            "fogline_split_tensor_bytes", "Coded bytes of the tensors of calls and answers", ("direction", "codec")
        )
        self.raw_bytes = self._counter(
            "fogline_split_raw_bytes", "Bytes that the same tensors have uncoded", ("direction", "codec")
        )
        self.connected = self._gauge("fogline_split_connected", "1 while a host has the session, else 0")
        self.link_rate = self._gauge(
            "fogline_split_link_rate_bytes_per_second",
            "An AdaptiveModel's estimate of what the link carries; 0 for a dead link, NaN while nothing is known",
        )
        self.link_round_trip = self._gauge(
            "fogline_split_link_round_trip_seconds", "An AdaptiveModel's estimate of the link's round trip"
        )

    def watch(self, head: Hookable) -> None:
        """Time every forward of `head`, the part of a model that runs here, as the part `head` of a step.

        On an accelerator this is the time until the kernels are queued; what they take is in `encode` then.
        """
        began = threading.local()

        def before(*_: object) -> None:
            began.at = time.perf_counter()

        def after(*_: object) -> None:
            self.seconds.labels("forward", "head").observe(time.perf_counter() - began.at)

        head.register_forward_pre_hook(before)
        head.register_forward_hook(after)


class TailMetrics(Metrics):
    """A tail host's: what runs parts of split models."""

    tier = "tail"

    def __init__(self) -> None:
        super().__init__()
        self.tail_sessions = self._gauge("fogline_tail_sessions", "Sessions of split models in memory")
        self.tail_operations = self._counter(
            "fogline_tail_operations", "Operations of sessions, by kind and outcome", ("kind", "outcome")
        )
        self.tail_compute_seconds = self._counter("fogline_tail_compute_seconds", "Seconds that operations took")
        self.tail_queued_seconds = self._counter("fogline_tail_queued_seconds", "Seconds that operations waited")
        self.tail_tensor_bytes = self._counter(
            "fogline_tail_tensor_bytes", "Coded bytes of the tensors of operations and answers", ("direction", "role")
        )
        self.tail_raw_bytes = self._counter(
            "fogline_tail_raw_bytes", "Bytes that the same tensors have uncoded", ("direction", "role")
        )
        self.tail_kept_bytes = self._gauge(
            "fogline_tail_kept_bytes", "Coded bytes of operations that wait and answers that were not acknowledged"
        )
