"""`fogline join TOKEN`: this device makes its key and has it certified; where that was done, it says so and ends."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from fogline.common.authority import join as joining
from fogline.common.authority import token
from fogline.common.errors import ConfigError

VARIABLE = "FOGLINE_JOIN_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "token", nargs="?", help=f"what `fogline ca token` printed; `-`: read it from stdin; left out: ${VARIABLE}"
    )
    parser.add_argument("--name", help="name of this device (default: its host name)")
    parser.add_argument(
        "--host", action="append", default=[], help="DNS name or IP address that it is dialled at; fog and cloud; again"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of its certificate and key")


def run(arguments: argparse.Namespace) -> int:
    """Join, and say what was written."""
    name = arguments.name or socket.gethostname().lower()
    out: Path = arguments.out
    found = joining.held(out, name)
    if found is None:
        text = arguments.token or os.environ.get(VARIABLE, "")
        if text == "-":
            text = sys.stdin.readline()
        if not text.strip():
            raise ConfigError(f"no token: give what `fogline ca token` printed, or set {VARIABLE}")
        given = token.parse(text)
        found = joining.join(given, name, tuple(arguments.host), out)
        _say(f"joined: made {out / name}.pem of the {found.who.role} {name}, valid to {found.not_after:%Y-%m-%d %H:%M}")
        _say(f"point its configuration to {out}:")
        _say(f"  tls:\n    ca: ca.pem\n    cert: {name}.pem\n    key: {name}.key\n    authority: {given.address}")
        return 0
    _say(f"joined already: {out / name}.pem is valid to {found.not_after:%Y-%m-%d %H:%M}; nothing was asked for")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
