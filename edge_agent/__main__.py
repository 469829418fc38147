"""`edge-agent --config FILE`: one edge agent process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fogline.common import config, logs, process
from fogline.edge_agent.config import EdgeConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; return the exit code."""
    return process.run_main(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    settings = config.from_command_line(EdgeConfig, "edge-agent", argv)
    logs.setup(settings.log, "edge-agent")
    # Only now: gRPC takes half a second to import, which a mistyped setting should not cost.
    from fogline.edge_agent.agent import serve

    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
