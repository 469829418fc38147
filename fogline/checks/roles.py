"""Reading a process's configuration by its role, as that process would."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from fogline.common.config import load

# `tail`: a host of parts of split models, alone (`fogline split serve`); its certificate is of a fog or cloud.
ProcessRole = Literal["edge", "fog", "cloud", "tail"]
ROLES: tuple[ProcessRole, ...] = ("edge", "fog", "cloud", "tail")


def load_role(path: Path, role: ProcessRole) -> Any:
    """The configuration of a process of `role`: file and environment. Raises ConfigError."""
    if role == "edge":
        from fogline.edge_agent.config import EdgeConfig

        return load(EdgeConfig, path, os.environ, {})
    if role == "fog":
        from fogline.fog_node.config import FogConfig

        return load(FogConfig, path, os.environ, {})
    if role == "tail":
        from fogline.common.tails.config import TailHostConfig

        return load(TailHostConfig, path, os.environ, {})
    from fogline.cloud_server.config import CloudConfig

    return load(CloudConfig, path, os.environ, {})
