"""Images of different tenants share a fog node and nothing else: no record, no notice, no state of an encoder."""

from __future__ import annotations

from dataclasses import dataclass

_SEPARATOR = "\x1f"  # in no camera's name, which is printable, and in no tenant's


@dataclass(frozen=True)
class Viewer:
    """A device as the store sees it: what it may see depends on both."""

    device: str
    tenant: str = ""


def stream(tenant: str, camera: str) -> str:
    """What encoders know a camera by: two tenants may have cameras of one name, whose frames must never meet."""
    return f"{tenant}{_SEPARATOR}{camera}" if tenant else camera
