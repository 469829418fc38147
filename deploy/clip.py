"""`python -m fogline.deploy.clip FOLDER --name NAME`: paint the built-in clip of one camera.

For clusters without cameras: a name is a seed, so that every camera sees something else, and the same again after a
restart.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from fogline.common import process
from fogline.common.data.clip import write_clip


def main(argv: Sequence[str] | None = None) -> int:
    """Write the clip, or find it written; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fogline.deploy.clip", description="Paint the clip of one camera.")
    parser.add_argument("folder", type=Path, help="for the folder camera-1; made when missing")
    parser.add_argument("--name", required=True, help="of the camera; each sees something else")
    parser.add_argument("--frames", type=int, default=300, help="how many (default: 300)")
    parser.add_argument("--width", type=int, default=320, help="of a frame in pixels (default: 320)")
    parser.add_argument("--height", type=int, default=180, help="of a frame in pixels (default: 180)")
    return process.run_main(lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    seed = zlib.crc32(arguments.name.encode())
    write_clip(
        arguments.folder,
        cameras=1,
        frames=arguments.frames,
        width=arguments.width,
        height=arguments.height,
        seed=seed,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
