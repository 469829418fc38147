"""What a gRPC message, call and connection cost on the wire, in bytes of TCP payload.

gRPC does not say what it writes to a socket, so everything but the messages themselves is modelled: exactly where a
protocol fixes the size, and as observed of gRPC 1.85 where the implementation is free (`docs/wire-format.md`, "Byte
accounting"). A test holds the sum per connection against the kernel's counters. TCP/IP headers and retransmissions are
not counted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

import grpc

PREFIX = 5  # gRPC: compressed flag and length of a message
FRAME = 9  # HTTP/2 frame header
WINDOW_UPDATE = FRAME + 4
PING = FRAME + 8
WINDOW = 4 << 20  # bytes in flight that an end allows
WRITE = 128 * 1024  # data that gRPC puts into one frame and hands to TLS at once
RECORD = 22  # TLS 1.3: header 5, content type 1, tag 16
RECORD_DATA = 16284  # plain bytes that gRPC puts into one TLS record

PREFACE = 24
CLIENT_SETTINGS, SERVER_SETTINGS = FRAME + 36, FRAME + 30

# TLS 1.3 with X25519MLKEM768 and P-256 certificates, records included. What varies is added below.
CLIENT_HELLO, SERVER_HELLO, CHANGE_CIPHER = 1445, 1215, 6
CLIENT_FINISHED, SERVER_FINISHED = 150, 196  # with certificate message but not the certificate itself
TICKETS = 442  # two session tickets; each holds the client's certificate
SERVER_EXTRA = 20  # bytes by which a server's certificate is longer: a client does not get to see it
SERVER_NAME = 9  # extension, besides the name; not sent for IP addresses


@dataclass(frozen=True)
class Wire:
    """The cost model of one connection."""

    tls: bool
    authority: str = ""  # host:port as dialled
    certificate: int = 0  # bytes of our own, DER
    client: bool = True
    aio: bool = False

    def write(self, plain: int) -> int:
        """What `plain` bytes become that are written at once."""
        return plain + -(-plain // RECORD_DATA) * RECORD if self.tls else plain

    def message(self, size: int) -> int:
        """One gRPC message of `size` serialised bytes, as DATA frames."""
        full, rest = divmod(PREFIX + size, WRITE)
        # A short rest travels with the last full frame.
        whole = full * self.write(FRAME + WRITE)
        return whole + (self.write(FRAME + rest) if rest > FRAME + 64 or not full else FRAME + rest)

    def handshake(self, peer_certificate: int | None = None) -> tuple[int, int]:
        """What a client and a server write until the first call: TLS, HTTP/2 preface and settings."""
        client = self.write(PREFACE + CLIENT_SETTINGS + WINDOW_UPDATE) + self.write(FRAME)
        server = self.write(SERVER_SETTINGS + WINDOW_UPDATE) + self.write(FRAME)
        if not self.tls:
            return client, server
        clients, servers = self.certificate, self.certificate + SERVER_EXTRA
        if not self.client:
            clients, servers = peer_certificate or self.certificate, self.certificate
        client += CLIENT_HELLO + self._server_name() + CHANGE_CIPHER + CLIENT_FINISHED + clients
        server += SERVER_HELLO + CHANGE_CIPHER + SERVER_FINISHED + servers + TICKETS + 2 * clients
        return client, server

    def _server_name(self) -> int:
        host = self.authority.rpartition(":")[0].strip("[]")
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return SERVER_NAME + len(host) if host else 0
        return 0


def field(key: str, value: str) -> int:
    """A header as HPACK literal; gRPC uses no Huffman code."""
    return 3 + len(key) + len(value)


class Headers:
    """The HEADERS of one connection: what was sent once is in the HPACK tables, and costs one byte from then on."""

    def __init__(self, wire: Wire) -> None:
        agent = "grpc-python-asyncio" if wire.aio else "grpc-python"
        self._once = [
            (":authority", wire.authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-accept-encoding", "identity, deflate, gzip"),
            ("user-agent", f"{agent}/{grpc.__version__} grpc-c/58.0.0 (linux; chttp2)"),
        ]
        self._methods: set[str] = set()
        self._answered = False
        self._timeouts = 0

    def request(self, method: str, metadata: Iterable[tuple[str, str | bytes]], deadline: bool) -> int:
        """The frame that starts a call."""
        size = FRAME + 2  # :scheme and :method
        size += sum(1 if self._methods else field(key, value) for key, value in self._once)
        size += 1 if method in self._methods else field(":path", method)
        self._methods.add(method)
        if deadline:
            # The remaining time is rounded to what was sent before, once it was.
            self._timeouts += 1
            size += 1 if self._timeouts > 2 else field("grpc-timeout", "20000m")
        own = ("user-agent", "te", "content-type", "grpc-accept-encoding")  # a server sees these as metadata, too
        return size + sum(field(key, str(value)) for key, value in metadata if key not in own)

    def response(self) -> int:
        """The frame that starts an answer, and the one that ends it."""
        first, self._answered = not self._answered, True
        status = field("grpc-status", "0") if first else 1
        fixed = field("content-type", "application/grpc") + field("grpc-accept-encoding", self._once[3][1])
        return FRAME + 1 + (fixed if first else 2) + FRAME + status + field("grpc-message", "")
