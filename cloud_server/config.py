"""Configuration of the cloud server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fogline.common.config import Config, LogConfig, Meta, MetricsConfig, TlsConfig
from fogline.common.tails.config import TensorsConfig


class ModelsConfig(Config, frozen=True):
    """Limits of the model registry."""

    max_bytes: Annotated[int, Meta(gt=0, description="Largest model accepted, in bytes")] = 256 << 20
    quota_bytes: Annotated[int, Meta(gt=0, description="Bytes of all models together")] = 8 << 30
    keep_versions: Annotated[int, Meta(ge=1, description="Newest versions kept of each model; older are deleted")] = 16


class CloudConfig(Config, frozen=True):
    """The cloud server: fleet registry and model registry."""

    data_dir: Annotated[Path, Meta(description="Folder for everything durable")]
    listen: Annotated[str, Meta(description="host:port to serve on; port 0: any free one")] = "127.0.0.1:7300"
    heartbeat_ms: Annotated[
        int, Meta(ge=50, le=600_000, description="How often devices report; silent for three of these: not alive")
    ] = 5000
    max_devices: Annotated[int, Meta(ge=1, description="Most devices registered at once")] = 10_000
    models: ModelsConfig = ModelsConfig()
    tensors: TensorsConfig = TensorsConfig()
    name: Annotated[str, Meta(description="Our name without certificates; with them, theirs counts")] = "cloud"
    tls: TlsConfig = TlsConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()
