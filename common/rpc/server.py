"""The grpc.aio server of fog node and cloud server: mTLS, health, limits, typed errors, traces and byte accounting."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fogline.common import addresses, pki
from fogline.common.authority.keeper import Keeper, ensure
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError
from fogline.common.rpc import tls as certificates
from fogline.common.rpc.accounting import Connection, LinkMeter
from fogline.common.rpc.channel import KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS, MAX_MESSAGE
from fogline.common.rpc.guard import Guard
from fogline.common.rpc.handlers import Handlers
from fogline.common.rpc.overhead import Wire
from fogline.common.rpc.presence import Presence
from fogline.common.rpc.revocations import Revocations

MAX_CONNECTIONS = 1024
MAX_STREAMS = 64  # per connection; an edge agent uses about four

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 10_000),
)

# The generated `add_…Servicer_to_server` function and the servicer that it adds.
Service = tuple[Callable[[Any, Any], None], Any]


class RpcServer:
    """A running server. Health says NOT_SERVING until `set_ready(True)`."""

    def __init__(
        self, server: grpc.aio.Server, monitor: Any, names: Sequence[str], guard: Guard, keeper: Keeper | None
    ) -> None:
        self._server, self._health, self._names = server, monitor, names
        self._keeper, self._guard = keeper, guard
        self._sweeping = asyncio.create_task(guard.run())

    @property
    def trouble(self) -> str:
        """Why our certificate is not renewed, or revocations are not heard of; empty when all is well."""
        return self._keeper.trouble if self._keeper is not None else ""

    async def set_ready(self, ready: bool, service: str | None = None) -> None:
        """What the health service answers, for one service by its full name or for all and the whole ("")."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names) if service is None else (service,):
            await self._health.set(name, status)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Say NOT_SERVING, refuse new calls, give running ones `grace_s` seconds, end."""
        self._sweeping.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.close)

    async def wait(self) -> None:
        """Until stopped."""
        await self._server.wait_for_termination()


async def aio_server(
    listen: str,
    tls: TlsConfig,
    meter: LinkMeter,
    services: Sequence[Service],
    *,
    read_ahead: int | None = None,
    anonymous: Callable[[], certificates.Material] | None = None,
    max_message: int = MAX_MESSAGE,
    presence: Presence | None = None,
) -> tuple[RpcServer, int]:
    """Start serving on `listen` (host:port, port 0: any free one); returns the server and its port.

    `anonymous`: our certificate of the moment, in place of `tls`, on a server that asks no client for one.
    `presence`: notices two agents with one identity; None: as long as a call of one of them runs.
    `read_ahead`: bytes of a stream that gRPC may hold before its handler reads them; None: what it estimates to keep a
    link busy, which grows to many times a tensor's chunks where a sender outruns the handler.
    Handlers raise errors of `common/errors.py`; clients get the same from `status.translate`.
    Raises ConfigError (port in use, files missing) or IdentityError (certificate expired or foreign).
    """
    address = addresses.parse(listen, allow_any_port=True)
    keeper: Keeper | None = None
    revocations = Revocations()
    if anonymous is None and not tls.insecure and tls.authority:
        await asyncio.to_thread(ensure, tls)
        keeper = Keeper(tls, revocations)
    own = certificates.load(tls, address) if anonymous is None else anonymous()
    wire = Wire(own is not None, str(address), own.der_size if own else 0, client=False)
    tenant = pki.identity(own.cert).tenant if own is not None and anonymous is None else ""
    guard = Guard(revocations, presence, tenant)
    handlers = Handlers(lambda: Connection(meter, wire), guard)
    options = (*OPTIONS, ("grpc.max_receive_message_length", max_message))
    if read_ahead is not None:
        options = (*options, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", read_ahead))
    server = grpc.aio.server(interceptors=(handlers,), options=options)
    monitor: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]  # not in the stubs
    health_pb2_grpc.add_HealthServicer_to_server(monitor, server)
    recorder = _Recorder(server)
    for add, servicer in services:
        add(servicer, recorder)
    if keeper is not None:
        keeper.start()
    result = RpcServer(server, monitor, recorder.names, guard, keeper)
    await result.set_ready(False)
    try:
        if own is None:
            port = server.add_insecure_port(str(address))
        else:
            if anonymous is None:
                credentials = certificates.Fresh(tls, address, own).credentials()
            else:
                credentials = certificates.anonymous_server(own, anonymous)
            port = server.add_secure_port(str(address), credentials)
        await server.start()
    except RuntimeError as error:
        await result.stop(0)
        raise ConfigError(await asyncio.to_thread(_why_not, address), number=208) from error
    return result, port


class _Recorder:
    """Passes services on to a server and keeps their names, which health needs."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self.names += [handler.service_name() for handler in handlers if isinstance(handler, grpc.ServiceRpcHandler)]
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, methods: dict[str, Any]) -> None:
        register: Any = self._server.add_registered_method_handlers  # type: ignore[attr-defined]  # newer than the stubs
        register(service, methods)


def _why_not(address: addresses.Address) -> str:
    """gRPC says only that binding failed; try it ourselves."""
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {address.port} of {address.host} is in use; stop the process that holds it or choose another"
        return f"can't listen on {address}: {error.strerror or error}; choose an address of this host"
    return f"can't listen on {address}; try again or choose another port"
