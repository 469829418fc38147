"""Counting bytes where they meet the wire, per link, direction and kind.

A `LinkMeter` belongs to a link; a `Connection` counts a channel, or a server, into it. "sent" and "received" are seen
from this process. What counts as which kind is decided here and nowhere else.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

from fogline.common.rpc.gen import control_pb2, images_pb2
from fogline.common.rpc.overhead import Wire

SENT, RECEIVED = "sent", "received"
IMAGE, RECORD, SHARED_STATE, MODEL, CONTROL = "image", "record", "shared_state", "model", "control"


class _Child(Protocol):
    def inc(self, amount: float = ...) -> None: ...


class ByteCounter(Protocol):
    """What `LinkMeter` needs of a Prometheus counter with the labels link, direction and kind."""

    def labels(self, *, link: str, direction: str, kind: str) -> _Child:
        """The counter of one combination."""


class LinkMeter:
    """Bytes of one link ("edge-fog", "edge-cloud", "fog-cloud"); safe to share between threads and channels."""

    def __init__(self, link: str, counter: ByteCounter | None = None) -> None:
        self.link = link
        self._counter = counter
        self._lock = threading.Lock()
        self._totals: Counter[tuple[str, str]] = Counter()

    def add(self, direction: str, kind: str, count: int) -> None:
        """Count `count` bytes."""
        with self._lock:
            self._totals[direction, kind] += count
        if self._counter is not None:
            self._counter.labels(link=self.link, direction=direction, kind=kind).inc(count)

    def totals(self) -> dict[tuple[str, str], int]:
        """Bytes by (direction, kind)."""
        with self._lock:
            return dict(self._totals)

    def total(self, direction: str) -> int:
        """Bytes of every kind in one direction."""
        return sum(count for (way, _), count in self.totals().items() if way == direction)


def kind_of(message: Any) -> str:
    """The kind of a message of the contract. Answers, notifications, greetings and whatever is unknown are control."""
    if isinstance(message, images_pb2.UploadRequest):
        return IMAGE
    if isinstance(message, images_pb2.FetchResponse) and message.chunks:
        return SHARED_STATE if message.chunks[0].WhichOneof("what") == "shared_digest" else RECORD
    if isinstance(message, control_pb2.FetchModelResponse):
        return MODEL
    if isinstance(message, control_pb2.PublishModelRequest) and message.WhichOneof("message") == "chunk":
        return MODEL
    return CONTROL


class Connection:
    """Counts a client's connection, or all of a server's by peer, into a meter; from any thread."""

    def __init__(self, meter: LinkMeter, wire: Wire, *, client: bool) -> None:
        self._meter, self._wire, self._client = meter, wire, client
        self._lock = threading.Lock()
        self._methods: dict[str, set[str]] = {}

    def opened(self, peer: str = "") -> None:
        """A connection was set up: TLS handshake, HTTP/2 preface and settings."""
        with self._lock:
            self._methods[peer] = set()

    def forget(self, peer: str) -> None:
        """Nothing more is expected from `peer`."""
        with self._lock:
            self._methods.pop(peer, None)

    def call(self, method: str, metadata: Iterable[tuple[str, str]], peer: str = "") -> None:
        """A call began."""
        with self._lock:
            known = self._methods.setdefault(peer, set())
            first = method not in known
            known.add(method)
        there, back = (SENT, RECEIVED) if self._client else (RECEIVED, SENT)
        self._meter.add(there, CONTROL, self._wire.request(first, method, metadata))
        self._meter.add(back, CONTROL, self._wire.response())

    def sent(self, message: Any, size: int) -> None:
        """A message of `size` serialised bytes was handed to gRPC."""
        self._meter.add(SENT, kind_of(message), self._wire.message(size))

    def received(self, message: Any, size: int) -> None:
        """A message of `size` serialised bytes came from gRPC."""
        self._meter.add(RECEIVED, kind_of(message), self._wire.message(size))
