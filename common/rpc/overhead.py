"""What a gRPC message, call and connection cost on the wire, in bytes of TCP payload.

gRPC does not say what it writes to a socket, so everything but the messages themselves is modelled: exactly where a
protocol fixes the size, and by calibration where the implementation is free (`docs/wire-format.md`, "Byte accounting").
A test holds the sum per connection against the kernel's counters. TCP/IP headers and retransmissions are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PREFIX = 5  # gRPC: compressed flag and length of a message
FRAME = 9  # HTTP/2 frame header
MAX_FRAME = 16384  # HTTP/2 SETTINGS_MAX_FRAME_SIZE as gRPC leaves it
RECORD = 22  # TLS 1.3: header 5, content type 1, tag 16
MAX_RECORD = 16284  # plain bytes that gRPC puts into one TLS record


@dataclass(frozen=True)
class Wire:
    """The cost model of one connection; `tls`: encrypted or not, `certificates`: bytes of our own certificate (DER)."""

    tls: bool
    certificate: int = 0

    def write(self, plain: int) -> int:
        """Bytes on the wire of `plain` bytes that are written at once."""
        return plain + (-(-plain // MAX_RECORD) * RECORD if self.tls else 0)

    def message(self, size: int) -> int:
        """One gRPC message of `size` serialised bytes, as DATA frames."""
        body = PREFIX + size
        return self.write(body + -(-body // MAX_FRAME) * FRAME)

    def request(self, first: bool, method: str, metadata: Iterable[tuple[str, str]]) -> int:
        """The HEADERS of a call. The first call to a method puts its constant fields into the HPACK table."""
        extra = sum(3 + len(key) + len(value) for key, value in metadata)
        return FRAME + 8 + extra + (len(method) + 80 if first else 0)

    def response(self) -> int:
        """The HEADERS and trailers that answer a call."""
        return 2 * FRAME + 10
