"""The configuration of a tail host, alone or as a child of a fog node or cloud server. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from fogline.common.config import Config, LogConfig, MetricsConfig, TlsConfig

ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=512)]


class TensorsConfig(Config, frozen=True):
    """Runs parts of split models for other devices, in a process of its own."""

    enabled: Annotated[bool, Meta(description="Off: this node runs no parts of models")] = False
    listen: Annotated[str, Meta(description="host:port to serve on; port 0: any free one")] = "127.0.0.1:7443"
    models: Annotated[
        tuple[ModelName, ...],
        Meta(description="What may be run: package.module:function of packages that are installed here"),
    ] = ()
    upstream: Annotated[
        str | None, Meta(description="host:port of the host that runs what follows our part; null: none")
    ] = None
    upstream_give_up_s: Annotated[
        float, Meta(gt=0, description="A session fails when the host further up was gone for so long")
    ] = 120.0
    upstream_log_bytes: Annotated[
        int, Meta(ge=1024, description="Operations of a session held for the host further up until durable there")
    ] = 256 << 20
    checkpoint_dir: Annotated[Path | None, Meta(description="Folder of sessions' states; null: in data_dir")] = None
    checkpoint_bytes: Annotated[int, Meta(ge=1 << 20, description="Quota of checkpoints and of weights")] = 16 << 30
    checkpoint_keep_s: Annotated[float, Meta(gt=0, description="States that nobody asked for are removed")] = 604_800.0
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$", description="auto, cpu, cuda or cuda:N")] = (
        "auto"
    )
    threads: Annotated[int, Meta(ge=0, le=1024, description="CPU threads of an operation; 0: the library's choice")] = 0
    parallel: Annotated[int, Meta(ge=1, le=256, description="Operations of different sessions at once")] = 2
    max_sessions: Annotated[int, Meta(ge=1, le=4096, description="Sessions in memory")] = 64
    max_sessions_per_peer: Annotated[int, Meta(ge=1, le=4096, description="Of them, sessions of one device")] = 16
    session_ttl_s: Annotated[float, Meta(ge=0, description="A session without connection is kept so long")] = 600.0
    stall_s: Annotated[float, Meta(gt=0, description="A client that stops in the middle of a frame is cut off")] = 30.0
    max_frame_bytes: Annotated[int, Meta(ge=1024, description="Payload of one operation; weights are one")] = 1 << 30
    max_tensor_bytes: Annotated[int, Meta(ge=1024, description="One tensor, decoded")] = 1 << 30
    max_kept_bytes: Annotated[int, Meta(ge=1024, description="Operations and answers held of all sessions")] = 2 << 30
    max_graph_bytes: Annotated[
        int, Meta(ge=1024, description="What forwards hold until their backward, of all sessions")
    ] = 4 << 30
    window: Annotated[int, Meta(ge=1, le=1024, description="Operations of a session under way")] = 16
    metrics: MetricsConfig = MetricsConfig()


class TailHostConfig(Config, frozen=True):
    """A tail host: runs parts of split models for edges and fog nodes, and nothing else."""

    data_dir: Annotated[Path, Meta(description="Folder of checkpoints; made when missing")]
    name: Annotated[str, Meta(description="Our name without certificates; with them, theirs counts")] = "fog"
    role: Annotated[Literal["fog", "cloud"], Meta(description="Our role without certificates")] = "fog"
    tensors: TensorsConfig = TensorsConfig()
    tls: TlsConfig = TlsConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def of_node(
        cls,
        tensors: TensorsConfig,
        *,
        data_dir: Path,
        name: str,
        role: Literal["fog", "cloud"],
        tls: TlsConfig,
        log: LogConfig,
    ) -> TailHostConfig:
        """That of a node's child."""
        return cls(data_dir=data_dir, name=name, role=role, tensors=tensors, tls=tls, log=log)
