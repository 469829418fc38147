"""`fog-node --config FILE`: one fog node process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from fogline.common import config, logs, process
from fogline.common.reload import Reload
from fogline.fog_node.config import FogConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; return the exit code."""
    return process.run_main(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    def read() -> FogConfig:
        return config.from_command_line(FogConfig, "fog-node", argv)

    settings = read()
    logs.setup(settings.log, "fog-node")
    # Only now: gRPC takes half a second to import, which a mistyped setting should not cost.
    from fogline.fog_node.node import serve

    asyncio.run(serve(settings, Reload(read, settings)))


if __name__ == "__main__":
    sys.exit(main())
