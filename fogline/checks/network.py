"""Ports that this process will serve on, and the peers that it will dial."""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil

from fogline.checks.finding import Finding
from fogline.common import addresses, pki
from fogline.common.clock import now_us
from fogline.common.config import TlsConfig
from fogline.common.errors import FoglineError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import control_pb2, control_pb2_grpc, images_pb2, images_pb2_grpc
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.status import translate

_DEADLINE_S = 5.0
_CLOCK_WARN_S = 5.0
_OURS = ("fog-node", "cloud-server", "edge-agent", "fogline")


def port(what: str, host: str, number: int) -> list[Finding]:
    """Whether `host:number` can be served on; held by a running process of ours is fine."""
    if number <= 0:
        return []
    address = addresses.Address(host, number)
    try:
        family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, number))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            text = f"{what} address {address} can't be served on: {error.strerror or error}"
            return [Finding("ports", "fail", text, "choose an address of this host, and a port above 1023")]
        holder = _holder(number)
        if any(Path(word).name in _OURS or word.startswith("fogline.") for word in holder.split()[:4]):
            return [Finding("ports", "ok", f"{what} port {number} is held by {holder}")]
        advice = f"stop it, or choose another {what} port"
        return [Finding("ports", "fail", f"{what} port {number} is in use by {holder or 'another process'}", advice)]
    return [Finding("ports", "ok", f"{what} port {number} is free")]


def fog(address: str, tls: TlsConfig, me: Peer) -> list[Finding]:
    """Whether the fog node answers, and how far our clocks are apart."""
    try:
        with connect(address, tls, meter=LinkMeter("edge-fog"), deadline_s=_DEADLINE_S, me=me) as channel, translate():
            sent = time.monotonic()
            request = images_pb2.HelloRequest(protocol=1, client_time_us=now_us())
            answer = images_pb2_grpc.ImageServiceStub(channel).Hello(request)
            took_s = time.monotonic() - sent
            ahead_s = (now_us() - answer.server_time_us) / 1e6 - took_s / 2
    except FoglineError as error:
        return [Finding("fog", "fail", str(error), f"start the fog node, and check {address} and the firewall")]
    found = Finding("fog", "ok", f"{address} answers in {took_s * 1000:.0f} ms")
    text = f"this host is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the fog node"
    if abs(ahead_s) > _CLOCK_WARN_S:
        advice = "run a time service on both; capture times are corrected meanwhile"
        return [found, Finding("clock", "warn", text, advice)]
    return [found, Finding("clock", "ok", text)]


def cloud(address: str, tls: TlsConfig, me: Peer) -> list[Finding]:
    """Whether the cloud server answers. Joining is left to the process itself: it would count as alive."""
    try:
        with (
            connect(address, tls, meter=LinkMeter("edge-cloud"), deadline_s=_DEADLINE_S, me=me) as channel,
            translate(),
        ):
            found = control_pb2_grpc.FleetServiceStub(channel).FindFogs(control_pb2.FindFogsRequest()).fogs
    except FoglineError as error:
        return [Finding("cloud", "fail", str(error), f"start the cloud server, and check {address} and the firewall")]
    nodes = ", ".join(f"{node.name} at {node.address}" for node in found) or "none"
    return [Finding("cloud", "ok", f"{address} answers; fog nodes alive: {nodes}")]


def authority(address: str) -> list[Finding]:
    """Whether the certificate service answers; without it certificates end and revoked devices are not noticed."""
    advice = f"start `fogline ca serve` there, and check {address} and the firewall; certificates are good meanwhile"
    try:
        at = addresses.parse(address)
        with socket.create_connection((at.host, at.port), timeout=_DEADLINE_S):
            pass
    except FoglineError as error:
        return [Finding("authority", "fail", str(error), "mend tls.authority")]
    except OSError as error:
        return [Finding("authority", "fail", f"{address}: {error.strerror or error}", advice)]
    return [Finding("authority", "ok", f"{address} answers")]


def identity(tls: TlsConfig, role: pki.Role) -> Peer:
    """Who we are to a peer; a stand-in where there is no certificate."""
    if tls.cert is not None:
        with suppress(FoglineError, OSError):
            found = pki.identity(tls.cert.read_bytes(), tls.cert)
            return Peer(found.name, found.role)
    return Peer("doctor", role)


def _holder(number: int) -> str:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listening and listening.port == number and connection.pid:
                return f"{' '.join(psutil.Process(connection.pid).cmdline())[:120]} (pid {connection.pid})"
    return ""
