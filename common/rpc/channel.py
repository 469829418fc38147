"""Connecting to a peer: one attempt that ends in a ready channel or in an error that says why.

A channel that was ready reconnects by itself; but when a call raises UnavailableError, close it, wait on the peer's
`Backoff` and call `connect` again: only `connect` finds out that a certificate, not the network, is the reason.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from fogline.common import addresses
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError
from fogline.common.rpc import tls as certificates
from fogline.common.rpc.accounting import Connection, LinkMeter
from fogline.common.rpc.diagnose import diagnose
from fogline.common.rpc.metered import Metadata, MeteredAioChannel, MeteredChannel
from fogline.common.rpc.overhead import Wire
from fogline.common.rpc.peer import INSTANCE_HEADER, Peer

KEEPALIVE_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
MAX_MESSAGE = 4 << 20  # bytes; gRPC's default, stated so that both ends agree

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_reconnect_backoff_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1),  # a channel is a connection of its own: no other's back-off, and countable
    ("grpc.enable_http_proxy", 0),  # devices talk to each other directly, whatever the environment says
    ("grpc.enable_retries", 0),  # what to repeat is decided above, by the state machines of common/wire
)

_READY, _FAILED = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE


def connect(
    address: str, tls: TlsConfig, *, meter: LinkMeter, deadline_s: float = 20.0, me: Peer | None = None
) -> grpc.Channel:
    """A ready channel to `address` (host:port), tried once for at most `deadline_s` seconds.

    `deadline_s` is also the default timeout of unary calls. `me` is who we say we are where there is no certificate.
    Raises ConfigError, IdentityError (do not retry) or UnavailableError (retry with a `Backoff`).
    """
    prepared = _Prepared(address, tls, meter, me, aio=False)
    until = time.monotonic() + deadline_s
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    inner = prepared.open(grpc)

    def watch(state: grpc.ChannelConnectivity) -> None:
        if state is _READY:
            prepared.connection.opened()
        states.put(state)

    inner.subscribe(watch, try_to_connect=True)
    try:
        while (state := states.get(timeout=max(0.0, until - time.monotonic()))) is not _READY:
            if state is _FAILED:
                break
    except queue.Empty:
        pass
    else:
        if state is _READY:
            unwatch = partial(_unwatch, inner, watch)
            return MeteredChannel(inner, prepared.connection, prepared.metadata, deadline_s, unwatch)
    _unwatch(inner, watch)
    inner.close()
    raise diagnose(prepared.address, prepared.own, max(1.0, until - time.monotonic()))


async def aio_connect(
    address: str, tls: TlsConfig, *, meter: LinkMeter, deadline_s: float = 20.0, me: Peer | None = None
) -> grpc.aio.Channel:
    """`connect` on an event loop."""
    prepared = _Prepared(address, tls, meter, me, aio=True)
    until = time.monotonic() + deadline_s
    inner = prepared.open(grpc.aio)
    try:
        state = inner.get_state(try_to_connect=True)
        while state not in (_READY, _FAILED):
            await asyncio.wait_for(inner.wait_for_state_change(state), max(0.0, until - time.monotonic()))
            state = inner.get_state(try_to_connect=True)
    except asyncio.TimeoutError:
        pass
    except BaseException:
        await inner.close()
        raise
    else:
        if state is _READY:
            prepared.connection.opened()
            watcher = asyncio.create_task(_watch(inner, prepared.connection))
            unwatch = partial(watcher.cancel, None)
            return MeteredAioChannel(inner, prepared.connection, prepared.metadata, deadline_s, unwatch)
    await inner.close()
    raise await asyncio.to_thread(diagnose, prepared.address, prepared.own, max(1.0, until - time.monotonic()))


class _Prepared:
    """What both kinds of channels need, checked."""

    def __init__(self, address: str, tls: TlsConfig, meter: LinkMeter, me: Peer | None, aio: bool) -> None:
        self.address = addresses.parse(address)
        self.own = certificates.load(tls, self.address)
        if self.own is None and me is None:
            raise ConfigError("tls.insecure: there is no certificate to tell who we are; pass `me` to connect()")
        self.metadata: Metadata = me.metadata() if self.own is None and me is not None else ()
        if me is not None and me.instance:
            self.metadata = (*self.metadata, (INSTANCE_HEADER, me.instance))
        wire = Wire(self.own is not None, str(self.address), self.own.der_size if self.own else 0, aio=aio)
        self.connection = Connection(meter, wire)

    def open(self, module: Any) -> Any:
        """An unconnected channel of `grpc` or `grpc.aio`."""
        if self.own is None:
            return module.insecure_channel(str(self.address), OPTIONS)
        return module.secure_channel(str(self.address), self.own.client(), OPTIONS)


def _unwatch(inner: Any, watch: Callable[[grpc.ChannelConnectivity], None]) -> None:
    """Stop watching, and wait for gRPC's polling thread: it ends with a traceback when the channel closes under it."""
    inner.unsubscribe(watch)
    until = time.monotonic() + 1.0
    while inner._connectivity_state.polling and time.monotonic() < until:
        time.sleep(0.005)


async def _watch(inner: grpc.aio.Channel, connection: Connection) -> None:
    """Count the connections that the channel makes after its first."""
    state = _READY
    while state is not grpc.ChannelConnectivity.SHUTDOWN:
        await inner.wait_for_state_change(state)
        state = inner.get_state()
        if state is _READY:
            connection.opened()
