"""`host:port` texts, read once and strictly."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from fogline.common.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """A host (name, IPv4 or IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Write it the way `parse` reads it and gRPC dials it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it. Names other than `localhost` are not resolved: they count as remote."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse(text: str, *, allow_any_port: bool = False) -> Address:
    """Read `host:port` or `[v6]:port`; port 0 (any free one) only with `allow_any_port`.

    Raises ConfigError.
    """
    host, colon, port_text = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or host == "[]":
        raise ConfigError(f"address {text!r} has no host and port; write it as host:port, such as 10.0.0.5:7400")
    if bracketed:
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {text!r} is an IPv6 address without brackets; write it as [{host}]:{port_text}")
    lowest = 0 if allow_any_port else 1
    if not (port_text.isascii() and port_text.isdigit()) or not lowest <= int(port_text) <= 65535:
        raise ConfigError(f"address {text!r} has the port {port_text!r}; use {lowest} to 65535")
    if any(c.isspace() or c == "/" for c in host):
        raise ConfigError(f"address {text!r} is not host:port; leave out the scheme, path and blanks")
    return Address(host, int(port_text))
