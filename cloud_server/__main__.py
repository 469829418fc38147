"""`cloud-server --config FILE`: one cloud server process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from fogline.cloud_server.config import CloudConfig
from fogline.common import config, logs, process
from fogline.common.reload import Reload


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; return the exit code."""
    return process.run_main(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    def read() -> CloudConfig:
        return config.from_command_line(CloudConfig, "cloud-server", argv)

    settings = read()
    logs.setup(settings.log, "cloud-server")
    # Only now: gRPC takes half a second to import, which a mistyped setting should not cost.
    from fogline.cloud_server.server import serve

    asyncio.run(serve(settings, Reload(read, settings)))


if __name__ == "__main__":
    sys.exit(main())
