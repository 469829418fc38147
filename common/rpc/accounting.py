"""Counting bytes where they meet the wire, per link, direction and kind.

A `LinkMeter` belongs to a link; a `Connection` counts one connection into it. "sent" and "received" are seen from this
process. What counts as which kind is decided here and nowhere else.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from fogline.common.rpc.gen import control_pb2, images_pb2, tensors_pb2
from fogline.common.rpc.overhead import PING, WINDOW, WINDOW_UPDATE, Headers, Wire
from fogline.common.rpc.pings import Pings
from fogline.common.wire.session_client import Ack, Step
from fogline.common.wire.session_host import Reply
from fogline.common.wire.tensors import Chunk

SENT, RECEIVED = "sent", "received"
IMAGE, RECORD, SHARED_STATE, MODEL = "image", "record", "shared_state", "model"
TENSOR, CONTROL = "tensor", "control"
KEEPALIVE_S = 20.0

_OF_SESSIONS = (Chunk, Step, Reply, Ack, tensors_pb2.SessionRequest, tensors_pb2.SessionResponse)


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

    def gauges(self) -> dict[str, float]:
        """Bytes by direction since the start, for the fleet's status: `edge_fog_sent_bytes`, …"""
        link, totals = self.link.replace("-", "_"), self.totals()
        return {
            f"{link}_{direction}_bytes": float(sum(count for (way, _), count in totals.items() if way == direction))
            for direction in (SENT, RECEIVED)
        }

    def total(self, direction: str) -> int:
        """Bytes of every kind in one direction."""
        return sum(count for (way, _), count in self.totals().items() if way == direction)


def kind_of(message: Any) -> str:
    """The kind of a message of the contract. Answers, notifications, greetings and whatever is unknown are control."""
    if isinstance(message, images_pb2.UploadRequest):
        return IMAGE
    if isinstance(message, images_pb2.FetchResponse) and message.chunks:
        return SHARED_STATE if message.chunks[0].WhichOneof("what") == "shared_digest" else RECORD
    if isinstance(message, _OF_SESSIONS):
        return TENSOR
    if isinstance(message, control_pb2.FetchModelResponse):
        return MODEL
    if isinstance(message, control_pb2.PublishModelRequest) and message.WhichOneof("message") == "chunk":
        return MODEL
    return CONTROL


class _End:
    """What one end of a connection owes: window updates for what it received.

    They go along with whatever it writes next, or by themselves when half the window is used up.
    """

    def __init__(self, now: float) -> None:
        self.pings = Pings(now, KEEPALIVE_S)
        self.stream_owes = self.connection_owes = False
        self._used = 0

    def heard(self, size: int) -> bool:
        """`size` bytes came in; whether window updates go out at once."""
        self.stream_owes = self.connection_owes = True
        self._used += size
        return self._used >= WINDOW // 2

    def settle(self, *, stream: bool) -> int:
        """Bytes of the window updates that go along with a write; a stream's only while the stream is open."""
        count = WINDOW_UPDATE * (self.connection_owes + (stream and self.stream_owes))
        self.connection_owes, self._used = False, 0
        self.stream_owes = self.stream_owes and not stream
        return count


class Connection:
    """Counts one connection into a meter, by the model of `overhead` and `pings`; called from any thread."""

    def __init__(self, meter: LinkMeter, wire: Wire, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter, self._wire, self._clock = meter, wire, clock
        self._lock = threading.Lock()
        # The model speaks of client and server; the meter of us and them.
        self._client, self._server = (SENT, RECEIVED) if wire.client else (RECEIVED, SENT)
        self._reset()

    def _reset(self) -> None:
        now = self._clock()
        self._headers = Headers(self._wire)
        self._ends = {SENT: _End(now), RECEIVED: _End(now)}
        self._open = False

    def opened(self, peer_certificate: int | None = None) -> None:
        """A connection was set up, or again; `peer_certificate`: bytes of it, where known."""
        with self._lock:
            self._settle_pings()
            self._reset()
            self._open = True
            client, server = self._wire.handshake(peer_certificate)
        self._meter.add(self._client, CONTROL, client)
        self._meter.add(self._server, CONTROL, server)

    def closed(self) -> None:
        """The connection ended."""
        with self._lock:
            self._settle_pings()
            self._open = False

    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], *, deadline: bool = False, unary: bool = True
    ) -> None:
        """A call began. What starts, ends and surrounds it is counted now, though its end is still to come."""
        with self._lock:
            # A client announces room for the answer together with the call. Unary: all in the one write of the message.
            client = self._headers.request(method, metadata, deadline) + WINDOW_UPDATE
            server = self._headers.response()
            self._ends[self._client].stream_owes = False
            if not unary:
                client, server = self._wire.write(client), self._wire.write(server)
        self._meter.add(self._client, CONTROL, client)
        self._meter.add(self._server, CONTROL, server)

    def sent(self, message: Any, size: int, *, unary: bool = False) -> None:
        """A message of `size` serialised bytes was handed to gRPC."""
        self._message(SENT, RECEIVED, message, size, unary)

    def received(self, message: Any, size: int, *, unary: bool = False) -> None:
        """A message of `size` serialised bytes came from gRPC."""
        self._message(RECEIVED, SENT, message, size, unary)

    def _message(self, way: str, back: str, message: Any, size: int, unary: bool) -> None:
        now = self._clock()
        with self._lock:
            updates = self._ends[way].settle(stream=not unary)
            if self._ends[back].heard(size):
                self._meter.add(back, CONTROL, self._wire.write(self._ends[back].settle(stream=True)))
            self._ping(back, self._ends[back].pings.data(now))
        self._meter.add(way, kind_of(message), self._wire.message(size))
        if updates:
            self._meter.add(way, CONTROL, updates)

    def _settle_pings(self) -> None:
        now = self._clock()
        for way, end in self._ends.items():
            if self._open:
                self._ping(way, end.pings.until(now))

    def _ping(self, way: str, count: int) -> None:
        """An end sent pings, with the window update that it owes, and the other answered each."""
        if count:
            self._meter.add(way, CONTROL, count * self._wire.write(PING) + self._ends[way].settle(stream=False))
            self._meter.add(RECEIVED if way == SENT else SENT, CONTROL, count * self._wire.write(PING))
