"""`edge-agent --config FILE`: one edge agent process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fogline.common import config, logs, process
from fogline.common.reload import Reload
from fogline.edge_agent.config import EdgeConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; return the exit code."""
    return process.run_main(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    def read() -> EdgeConfig:
        return config.from_command_line(EdgeConfig, "edge-agent", argv)

    settings = read()
    logs.setup(settings.log, "edge-agent")
    # Only now: gRPC takes half a second to import, which a mistyped setting should not cost.
    from fogline.edge_agent.agent import serve

    return serve(settings, Reload(read, settings))


if __name__ == "__main__":
    sys.exit(main())
