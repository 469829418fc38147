"""`fogline ca`: the authority of a deployment: its files, its tokens, its service, and what it takes back."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import socket
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from fogline.common import addresses, logs, pki
from fogline.common.authority import registrar
from fogline.common.authority.token import JoinToken
from fogline.common.config import LogConfig, MetricsConfig
from fogline.common.errors import ConfigError

PORT = 7200
_FOLDER = "folder of the authority (default: ca)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="init|enrol|token|serve|list|revoke|rotate")
    init = actions.add_parser("init", help="make the authority: ca.pem, and ca.key to keep safe")
    init.add_argument("--dir", type=Path, default=Path("ca"), help=_FOLDER)

    enrol = actions.add_parser("enrol", help="make a device's certificate and key, to be copied to it")
    enrol.add_argument("name", help="name of the device, unique in the deployment: a-z 0-9 . _ -")
    enrol.add_argument("--role", choices=pki.ROLES, default="edge", help="what it is (default: edge)")
    enrol.add_argument(
        "--host", action="append", default=[], help="DNS name or IP address that it is dialled at; fog and cloud; again"
    )
    enrol.add_argument("--tenant", default="", help="whose device it is (default: nobody's in particular)")
    enrol.add_argument("--dir", type=Path, default=Path("ca"), help=_FOLDER)
    enrol.add_argument("--out", type=Path, help="folder for the new files (default: NAME)")

    token = actions.add_parser("token", help="make a token with which a device enrols itself (`fogline join`)")
    token.add_argument("--role", choices=pki.ROLES, default="edge", help="what joins with it (default: edge)")
    names = token.add_mutually_exclusive_group()
    names.add_argument("--name", help="the one device that may join; it may be one that replaces another")
    names.add_argument("--names", default="*", help="pattern of names that may join, such as 'cam-*' (default: any)")
    token.add_argument("--uses", type=int, default=1, help="how many devices may join with it (default: 1)")
    token.add_argument("--expires", default="24h", help="how long it is good: 30m, 24h, 7d (default: 24h)")
    token.add_argument("--tenant", default="", help="whose devices they are (default: nobody's in particular)")
    token.add_argument(
        "--host",
        action="append",
        default=[],
        help="name, address or pattern that it may serve at; fog and cloud; again",
    )
    token.add_argument("--at", help=f"HOST[:PORT] of the service (default: this host's name and {PORT})")
    token.add_argument("--dir", type=Path, default=Path("ca"), help=_FOLDER)

    serve = actions.add_parser("serve", help="run the certificate service: enrolment, renewal, revocation list")
    serve.add_argument("--dir", type=Path, default=Path("ca"), help=_FOLDER)
    serve.add_argument("--listen", default=f"0.0.0.0:{PORT}", help=f"host:port (default: 0.0.0.0:{PORT})")
    serve.add_argument("--lifetime", default="7d", help="how long a certificate is good: 24h, 7d (default: 7d)")
    serve.add_argument("--metrics-host", default="127.0.0.1", help="address of /healthz (default: 127.0.0.1)")
    serve.add_argument("--metrics-port", type=int, default=0, help="port of /healthz; 0: any free one, -1: none")

    listing = actions.add_parser("list", help="tell every device, and how long its certificate is good")
    listing.add_argument("--dir", type=Path, default=Path("ca"), help=_FOLDER)

    revoke = actions.add_parser("revoke", help="take back every certificate of a device")
    revoke.add_argument("name", help="name of the device, as enrolled")
    revoke.add_argument("--cert", type=Path, help="its certificate, where it was enrolled before there was a register")
    revoke.add_argument("--dir", type=Path, default=Path("ca"), help=_FOLDER)

    rotate = actions.add_parser("rotate", help="replace the authority's key, under a deployment that goes on")
    rotate.add_argument("--overlap", default="7d", help="how long devices have to hear of the new one (default: 7d)")
    rotate.add_argument(
        "--compromised", action="store_true", help="the old key is known to others: it ends now, and all join again"
    )
    rotate.add_argument("--dir", type=Path, default=Path("ca"), help=_FOLDER)


def run(arguments: argparse.Namespace) -> int:
    """Do it, and say what was done."""
    action = {
        "init": _init,
        "enrol": _enrol,
        "token": _token,
        "serve": _serve,
        "list": _list,
        "revoke": _revoke,
        "rotate": _rotate,
    }[arguments.action]
    action(arguments)
    return 0


def _init(arguments: argparse.Namespace) -> None:
    pki.Authority.create().save(arguments.dir)
    _say(f"made {arguments.dir / 'ca.pem'}, valid for {pki.AUTHORITY_DAYS // 365} years")
    _say(f"keep {arguments.dir / 'ca.key'} safe and off the devices: who has it can enrol anything")


def _enrol(arguments: argparse.Namespace) -> None:
    if arguments.role != "edge" and not arguments.host:
        raise ConfigError(
            f"{arguments.name} is a {arguments.role} and others dial it: give every name and address with --host, "
            "such as --host gateway.local --host 192.168.1.10"
        )
    with registrar.opened(arguments.dir) as register:
        enrolment, trusted = register.enrol_by_hand(
            arguments.name, arguments.role, tuple(arguments.host), _now(), arguments.tenant
        )
    out: Path = arguments.out or Path(arguments.name)
    pki.save_enrolment(enrolment, trusted, arguments.name, out)
    until = pki.inspect(enrolment.cert_pem).not_after
    _say(
        f"made {out / arguments.name}.pem and .key for the {arguments.role} {arguments.name}, valid to {until:%Y-%m-%d}"
    )
    _say(f"copy {out} to the device and point its configuration there:")
    _say(f"  tls:\n    ca: ca.pem\n    cert: {arguments.name}.pem\n    key: {arguments.name}.key")


def _token(arguments: argparse.Namespace) -> None:
    place = arguments.at or socket.gethostname()
    address = addresses.parse(place if re.search(r"(^[^:]+|\]):\d+$", place) else f"{place}:{PORT}")
    now = _now()
    with registrar.opened(arguments.dir) as register:
        secret = register.issue_token(
            arguments.role,
            arguments.name or arguments.names,
            now,
            tenant=arguments.tenant,
            hosts=tuple(arguments.host),
            uses=arguments.uses,
            expires=duration(arguments.expires, "--expires"),
        )
        der = register.known_to_all(now).certificate.public_bytes(Encoding.DER)
    _say(str(JoinToken(address, hashlib.sha256(der).digest(), secret)))


def _serve(arguments: argparse.Namespace) -> None:
    from fogline.common.authority import service

    if not -1 <= arguments.metrics_port <= 65535:
        raise ConfigError(f"--metrics-port {arguments.metrics_port} is no port; use -1 to 65535")
    logs.setup(LogConfig(), "authority")
    metrics = MetricsConfig(host=arguments.metrics_host, port=arguments.metrics_port)
    lifetime = duration(arguments.lifetime, "--lifetime")
    asyncio.run(service.serve(arguments.dir, arguments.listen, lifetime, metrics))


def _list(arguments: argparse.Namespace) -> None:
    now = _now()
    with registrar.opened(arguments.dir) as register:
        for who, ends, revoked in register.devices():
            state = f"good until {ends:%Y-%m-%d %H:%M}" if now < ends else f"ended on {ends:%Y-%m-%d %H:%M}"
            if revoked is not None:
                state = f"revoked on {revoked:%Y-%m-%d %H:%M}"
            _say(f"{who.name:<24} {who.role:<6} {who.tenant or '-':<16} {state}")


def _revoke(arguments: argparse.Namespace) -> None:
    with registrar.opened(arguments.dir) as register:
        if arguments.cert is not None:
            try:
                given = arguments.cert.read_bytes()
            except OSError as error:
                raise ConfigError(f"--cert {arguments.cert} can't be read: {error.strerror}") from error
            found = pki.identity(given, arguments.cert)
            if found.name != arguments.name:
                raise ConfigError(
                    f"{arguments.cert} is of {found.name!r}, not of {arguments.name!r}; nothing was revoked"
                )
            register.record(given, _now())
        count = register.revoke(arguments.name, _now())
    _say(f"revoked {count} certificates of {arguments.name}; servers that know the service refuse it within a minute")


def _rotate(arguments: argparse.Namespace) -> None:
    now = _now()
    with registrar.opened(arguments.dir) as register:
        overlap = duration(arguments.overlap, "--overlap")
        begins, ends = register.rotate(now, overlap, compromised=arguments.compromised)
    if arguments.compromised:
        _say("made a new authority; the old one is trusted no more: every device must join again with a new token")
        return
    _say(f"made a new authority; it is trusted from now on, and signs from {begins:%Y-%m-%d %H:%M} UTC on")
    _say(f"the old one is trusted until {ends:%Y-%m-%d %H:%M} UTC, when the last of its certificates has run out")
    _say("devices hear of it from `fogline ca serve`; to those without `tls.authority`, copy a new ca.pem by hand")


def duration(text: str, flag: str) -> timedelta:
    """Read `90s`, `30m`, `24h` or `7d`. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not match or not int(match[1]):
        raise ConfigError(f"{flag} {text!r} is no duration; write it as 90s, 30m, 24h or 7d")
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return timedelta(**{unit: int(match[1])})


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
