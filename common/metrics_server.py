"""The small HTTP server that exports metrics and health."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from prometheus_client import CollectorRegistry, generate_latest

from fogline.common.config import MetricsConfig
from fogline.common.errors import ConfigError

Health = Callable[[], Mapping[str, object]]


class MetricsServer:
    """The HTTP side of `Metrics`; `close()` when done. What is logged meanwhile is counted by `counting`."""

    def __init__(
        self, registry: CollectorRegistry, config: MetricsConfig, health: Health, counting: logging.Handler
    ) -> None:
        self.port = -1
        self._http: _Server | None = None
        self._counting = counting
        if config.port < 0:
            return
        handler = type("Handler", (_Handler,), {"registry": registry, "health": staticmethod(health)})
        try:
            server = _Server6 if ":" in config.host else _Server
            self._http = server((config.host, config.port), handler)
        except OSError as error:
            raise ConfigError(
                f"metrics address {config.host}:{config.port} can't be used: {error.strerror or error}; choose another "
                "metrics.port, 0 for any free one or -1 for none",
                number=208,
            ) from error
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        logging.getLogger().addHandler(counting)

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._http is not None:
            logging.getLogger().removeHandler(self._counting)
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()
            self._http = None


class _Server(ThreadingTCPServer):
    """Not http.server's own, which looks up the host's name and waits for a DNS server that a board may not have."""

    allow_reuse_address = True
    daemon_threads = True


class _Server6(_Server):
    """On an IPv6 address; `::` takes IPv4, too, where the host says so."""

    address_family = socket.AF_INET6


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
