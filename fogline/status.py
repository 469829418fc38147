"""`fogline status`: the fleet in the terminal, live, with every device's rates."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from fogline.checks.roles import load_role
from fogline.common import addresses, pki
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, UnavailableError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen.control_pb2_grpc import FleetServiceStub
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.retry import Backoff
from fogline.common.rpc.tls import read_pem
from fogline.fleet.sample import Rates, Sample, fetch

_ME = Peer("status", "cloud")  # said where there is no certificate
_DEADLINE_S = 5.0
_ONCE_S = 12.0  # in which devices that report every 5 s, the default, have reported twice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="of a process of the fleet: asks as that process")
    parser.add_argument("--role", choices=pki.ROLES, help="what the configuration is for")
    parser.add_argument("--cloud", metavar="HOST:PORT", help="the cloud server (default: as the configuration says)")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="with --cert and --key, instead of --config")
    parser.add_argument("--cert", type=Path, metavar="FILE")
    parser.add_argument("--key", type=Path, metavar="FILE")
    parser.add_argument("--insecure", action="store_true", help="no TLS, on loopback only")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between looks (default: 1)")
    parser.add_argument("--once", action="store_true", help="print once rates are known, and end")
    parser.add_argument("--json", action="store_true", help="the same as one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Show the fleet until Ctrl-C, or once where nobody watches."""
    if not arguments.interval > 0:
        raise ConfigError(f"--interval {arguments.interval}: give seconds above 0")
    address, tls = _target(arguments)
    if arguments.json or arguments.once or not sys.stdout.isatty():
        return _once(address, tls, arguments)
    return _live(address, tls, arguments.interval)


def _once(address: str, tls: TlsConfig, arguments: argparse.Namespace) -> int:
    rates, until = Rates(), time.monotonic() + _ONCE_S
    with connect(address, tls, meter=LinkMeter("cloud"), deadline_s=_DEADLINE_S, me=_ME) as channel:
        stub = FleetServiceStub(channel)
        sample = fetch(stub, address)
        rates.add(sample)
        while not rates.known(sample) and time.monotonic() < until:
            time.sleep(min(arguments.interval, max(0.0, until - time.monotonic())))
            sample = fetch(stub, address)
            rates.add(sample)
    if arguments.json:
        from fogline.fleet.document import document

        sys.stdout.write(json.dumps(document(address, sample, rates), indent=2) + "\n")
    else:
        _need_rich()
        from rich.console import Console

        from fogline.fleet.table import render

        Console(highlight=False).print(render(address, sample, rates))
    return 0


def _live(address: str, tls: TlsConfig, interval: float) -> int:
    _need_rich()
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from fogline.fleet.table import render

    console, rates, backoff = Console(highlight=False), Rates(), Backoff()
    last: Sample | None = None
    with Live(console=console, auto_refresh=False, screen=True) as live:
        try:
            while True:
                try:
                    with connect(address, tls, meter=LinkMeter("cloud"), deadline_s=_DEADLINE_S, me=_ME) as channel:
                        stub = FleetServiceStub(channel)
                        while True:
                            last = fetch(stub, address)
                            rates.add(last)
                            backoff.reset()
                            live.update(Group(render(address, last, rates), Text("\nCtrl-C ends", "dim")), refresh=True)
                            time.sleep(interval)
                except UnavailableError as error:
                    # The server may be restarting: what was last known stays in sight.
                    known = [] if last is None else [render(address, last, rates)]
                    live.update(Group(*known, Text(f"\n{error}; trying again", "red")), refresh=True)
                    time.sleep(backoff.delay_s())
        except KeyboardInterrupt:
            pass
    if last is not None:
        console.print(render(address, last, rates))
    return 0


def _target(arguments: argparse.Namespace) -> tuple[str, TlsConfig]:
    """Whom to ask, and as whom. Raises ConfigError."""
    if (arguments.config is None) != (arguments.role is None):
        raise ConfigError("--config and --role belong together: fogline status --config edge.yaml --role edge")
    address = arguments.cloud
    if arguments.config is None:
        if not address:
            raise ConfigError(
                "no cloud server: give --config FILE --role ROLE, or --cloud HOST:PORT with --ca, --cert, --key"
            )
        try:
            tls = TlsConfig(ca=arguments.ca, cert=arguments.cert, key=arguments.key, insecure=arguments.insecure)
        except ValueError as error:
            raise ConfigError(f"--ca, --cert, --key, --insecure: {error}") from error
    else:
        config = load_role(arguments.config, arguments.role)
        tls = config.tls
        address = address or (_own(config.listen, tls) if arguments.role == "cloud" else config.cloud)
        if not address:
            raise ConfigError(f"{arguments.config} names no cloud server; set `cloud`, or give --cloud HOST:PORT")
    return str(addresses.parse(address)), tls


def _own(listen: str, tls: TlsConfig) -> str:
    """Where a cloud server is reached that listens there: one that listens everywhere, by what it is certified for."""
    address = addresses.parse(listen, allow_any_port=True)
    if tls.insecure or address.host not in ("0.0.0.0", "::"):
        return listen
    cert = tls.files()[1]
    info = pki.inspect(read_pem("cert", cert), cert)
    name = info.identity.name if info.identity else ""
    # Its name is among its hosts, and need not resolve.
    hosts = [host for host in info.hosts if host != name] or [*info.hosts]
    return str(addresses.Address(hosts[0], address.port)) if hosts else listen


def _need_rich() -> None:
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise ConfigError("the table needs rich: pip install 'fogline[up]', or use --json") from error
