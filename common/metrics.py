"""Every metric that the product exports, in one place, and the small HTTP server that exports them.

Units are in the names; label values come from closed sets; a device is told apart by the address that is scraped,
never by a label.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from fogline.common import process
from fogline.common.config import MetricsConfig
from fogline.common.errors import ConfigError

# Of the last: a cloud server, which sees both kinds of peers through one port.
LINKS = ("edge-fog", "edge-cloud", "fog-cloud", "cloud")
DIRECTIONS = ("sent", "received")
KINDS = ("image", "record", "shared_state", "model", "tensor", "control")
UPLINK_FORMS = ("original", "resized", "avif", "roi")
UPLOAD_OUTCOMES = ("stored", "duplicate", "rejected", "dropped")

Health = Callable[[], Mapping[str, object]]


class Metrics:
    """What every tier exports. Each process makes one, of its tier's class."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double every counter and nobody reads them
        self.registry = CollectorRegistry()
        self.link_bytes = self._counter(
            "fogline_link_bytes",
            "Bytes on the wire: TLS and HTTP/2 included, TCP/IP headers and retransmissions not",
            ("link", "direction", "kind"),
        )
        self.registry.register(_CpuCollector())

    def serve(self, config: MetricsConfig, health: Health) -> tuple[MetricsServer, int]:
        """Serve `/metrics` and `/healthz` on a thread; return the server and its port (-1 when switched off).

        `health` returns a JSON-able mapping with the key `ok`: true answers 200, false 503.
        Raises ConfigError when the port is taken.
        """
        server = MetricsServer(self.registry, config, health)
        return server, server.port

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, text, tuple(labels), registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._labelled(name, text, ())

    def _labelled(self, name: str, text: str, labels: Iterable[str]) -> Gauge:
        return Gauge(name, text, tuple(labels), registry=self.registry)


class EdgeMetrics(Metrics):
    """An edge agent's."""

    def __init__(self) -> None:
        super().__init__()
        self.captured_images = self._counter("fogline_captured_images", "Images taken from the sources")
        self.capture_done = self._gauge("fogline_capture_done", "1 once every source is exhausted, else 0")
        self.outbox_images = self._gauge("fogline_outbox_images", "Images waiting for upload")
        self.outbox_bytes = self._gauge("fogline_outbox_bytes", "Bytes waiting for upload")
        self.uploaded_images = self._counter(
            "fogline_uploaded_images", "Images that left the outbox, by how", ("outcome",)
        )
        for outcome in UPLOAD_OUTCOMES:
            self.uploaded_images.labels(outcome)
        self.transcode_seconds = self._counter(
            "fogline_transcode_seconds", "CPU seconds spent on making uplink forms of captured images"
        )
        self.library_records = self._gauge("fogline_library_records", "Records held in the library")
        self.library_bytes = self._gauge("fogline_library_bytes", "Bytes held in the library")
        self.cursor = self._gauge("fogline_cursor", "Newest cursor of the fog node that the library holds durably")
        self.train_step = self._gauge("fogline_train_step", "Training steps made")
        self.train_loss = self._gauge("fogline_train_loss", "Training loss, running mean")
        self.train_iou = self._gauge("fogline_train_iou", "Mean IoU on the evaluation images, 0 to 1")


class FogMetrics(Metrics):
    """A fog node's."""

    def __init__(self) -> None:
        super().__init__()
        self.taken_images = self._counter(
            "fogline_taken_images", "Images taken in, by what was sent of them", ("form",)
        )
        for form in UPLINK_FORMS:
            self.taken_images.labels(form)
        self.stored_images = self._gauge("fogline_stored_images", "Images held durably")
        self.store_bytes = self._gauge("fogline_store_bytes", "Bytes of all blobs held")
        self.encode_queue_images = self._gauge("fogline_encode_queue_images", "Images waiting to be encoded")
        self.encoded_images = self._counter("fogline_encoded_images", "Images encoded and published")
        self.encode_seconds = self._counter("fogline_encode_seconds", "Seconds spent encoding")
        self.auto_cameras = self._labelled(
            "fogline_auto_cameras", "Cameras by the codec that `auto` chose for them, since the start", ("codec",)
        )
        self.auto_trial_seconds = self._counter("fogline_auto_trial_seconds", "Seconds of encoding spent on trials")
        self.published_head = self._gauge("fogline_published_head", "Newest published cursor")
        self.subscribers = self._gauge("fogline_subscribers", "Open subscriptions")


class CloudMetrics(Metrics):
    """A cloud server's."""

    def __init__(self) -> None:
        super().__init__()
        self.devices_alive = self._gauge("fogline_devices_alive", "Devices heard from within three heartbeats")
        self.devices_known = self._gauge("fogline_devices_known", "Devices that ever joined and did not leave")
        self.model_versions = self._gauge("fogline_model_versions", "Versions of all models held")
        self.model_bytes = self._gauge("fogline_model_bytes", "Bytes of all models held")


class TailMetrics(Metrics):
    """A tail host's: what runs parts of split models."""

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


class _CpuCollector(Collector):
    """Read at scrape time; a child counts while it runs and after it ended."""

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "fogline_cpu_seconds", "CPU seconds of the process and its children", value=process.cpu_seconds()
        )


class MetricsServer:
    """The HTTP side of `Metrics`; `close()` when done."""

    def __init__(self, registry: CollectorRegistry, config: MetricsConfig, health: Health) -> None:
        self.port = -1
        self._http: _Server | None = None
        if config.port < 0:
            return
        handler = type("Handler", (_Handler,), {"registry": registry, "health": staticmethod(health)})
        try:
            self._http = _Server((config.host, config.port), handler)
        except OSError as error:
            raise ConfigError(
                f"metrics address {config.host}:{config.port} can't be used: {error.strerror or error}; choose another "
                "metrics.port, 0 for any free one or -1 for none"
            ) from error
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()
            self._http = None


class _Server(ThreadingTCPServer):
    """Not http.server's own, which looks up the host's name and waits for a DNS server that a board may not have."""

    allow_reuse_address = True
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    health: Health
    timeout = 10  # seconds; a client that connects and says nothing does not hold a thread for ever

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/metrics":
            self._answer(200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(self.registry))
        elif self.path == "/healthz":
            state = dict(self.health())
            body = json.dumps(state, default=str).encode()
            self._answer(200 if state.get("ok") else 503, "application/json", body)
        else:
            self._answer(404, "text/plain", b"try /metrics or /healthz\n")

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a log line."""
