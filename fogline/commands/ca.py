"""`fogline ca init` and `fogline ca enrol NAME`: certificates for a deployment, as files to copy to the hosts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fogline.common import pki
from fogline.common.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="init|enrol")
    init = actions.add_parser("init", help="make the authority: ca.pem, and ca.key to keep safe")
    init.add_argument("--dir", type=Path, default=Path("ca"), help="folder of the authority (default: ca)")
    enrol = actions.add_parser("enrol", help="make a device's certificate and key")
    enrol.add_argument("name", help="name of the device, unique in the deployment: a-z 0-9 . _ -")
    enrol.add_argument("--role", choices=pki.ROLES, default="edge", help="what it is (default: edge)")
    enrol.add_argument(
        "--host", action="append", default=[], help="DNS name or IP address that it is dialled at; fog and cloud; again"
    )
    enrol.add_argument("--dir", type=Path, default=Path("ca"), help="folder of the authority (default: ca)")
    enrol.add_argument("--out", type=Path, help="folder for the new files (default: NAME)")


def run(arguments: argparse.Namespace) -> int:
    """Write the files and say which."""
    if arguments.action == "init":
        pki.Authority.create().save(arguments.dir)
        _say(f"made {arguments.dir / 'ca.pem'}, valid for {pki.AUTHORITY_DAYS // 365} years")
        _say(f"keep {arguments.dir / 'ca.key'} safe and off the devices: who has it can enrol anything")
        return 0
    if arguments.role != "edge" and not arguments.host:
        raise ConfigError(
            f"{arguments.name} is a {arguments.role} and others dial it: give every name and address with --host, "
            "such as --host gateway.local --host 192.168.1.10"
        )
    authority = pki.Authority.load(arguments.dir)
    enrolment = authority.enrol(arguments.name, arguments.role, tuple(arguments.host))
    out: Path = arguments.out or Path(arguments.name)
    pki.save_enrolment(enrolment, authority.certificate_pem, arguments.name, out)
    until = pki.inspect(enrolment.cert_pem).not_after
    _say(
        f"made {out / arguments.name}.pem and .key for the {arguments.role} {arguments.name}, valid to {until:%Y-%m-%d}"
    )
    _say(f"copy {out} to the device and point its configuration there:")
    _say(f"  tls:\n    ca: ca.pem\n    cert: {arguments.name}.pem\n    key: {arguments.name}.key")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
