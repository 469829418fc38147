"""From our values to the contract's messages."""

from __future__ import annotations

from fogline.cloud_server.models import Version
from fogline.common.rpc.gen import control_pb2 as pb


def model_version(version: Version) -> pb.ModelVersion:
    """Return the message for a version."""
    return pb.ModelVersion(
        name=version.name,
        version=version.version,
        digest=version.digest,
        size=version.size,
        device=version.device,
        time_us=version.time_us,
    )
