"""Channels that count every byte of every call, carry the trace id, and leave no unary call without a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from fogline.common import trace
from fogline.common.errors import ProtocolError
from fogline.common.rpc.accounting import Connection

Metadata = tuple[tuple[str, str], ...]


class Method:
    """One method of a stub: a sync or aio multi-callable of gRPC whose calls are counted."""

    def __init__(
        self, inner: Any, name: str, connection: Connection, own: Metadata, *, unary: bool, deadline_s: float
    ) -> None:
        self._inner, self._name, self._connection, self._own = inner, name, connection, own
        self._unary, self._deadline_s = unary, deadline_s

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Start a call, as gRPC's own multi-callable does."""
        return self._inner(*args, **self._prepare(kwargs))

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        """Sync unary responses only: the response and its call."""
        return self._inner.with_call(*args, **self._prepare(kwargs))

    def future(self, *args: Any, **kwargs: Any) -> Any:
        """Sync unary responses only: the call as a future."""
        return self._inner.future(*args, **self._prepare(kwargs))

    def _prepare(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        given: Sequence[tuple[str, str]] = kwargs.get("metadata") or ()
        header = (trace.HEADER, trace.trace_id.get() or trace.new_trace())
        kwargs["metadata"] = metadata = (*given, *self._own, header)
        if self._unary:
            kwargs.setdefault("timeout", self._deadline_s)
        deadline = kwargs.get("timeout") is not None
        self._connection.call(self._name, metadata, deadline=deadline, unary=self._unary)
        return kwargs


class _NoAnswer:
    """Stands for an answer that can't be parsed: reading any field of it raises ProtocolError.

    gRPC would swallow an error that is raised while it parses, and give an aio caller None.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        raise ProtocolError(self._reason)


class _Stubs:
    """What the sync and the aio channel share: the four kinds of methods."""

    def __init__(
        self, inner: Any, connection: Connection, own: Metadata, deadline_s: float, unwatch: Callable[[], object]
    ) -> None:
        self._inner, self._connection, self._own, self._deadline_s = inner, connection, own, deadline_s
        self._unwatch = unwatch
        self._lock, self._closing = threading.Lock(), False

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method(self._inner.unary_unary, method, True, *args, **kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method(self._inner.unary_stream, method, False, *args, **kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method(self._inner.stream_unary, method, False, *args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method(self._inner.stream_stream, method, False, *args, **kwargs)

    def _method(
        self,
        make: Callable[..., Any],
        method: str,
        unary: bool,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        _registered_method: bool = False,
    ) -> Method:
        def serialize(message: Any) -> bytes:
            data = request_serializer(message)
            self._connection.sent(message, len(data), unary=unary)
            return data

        def deserialize(data: bytes) -> Any:
            try:
                message = response_deserializer(data)
            except DecodeError:
                return _NoAnswer(f"{method}: {len(data)} bytes that are not an answer; update the older end")
            self._connection.received(message, len(data), unary=unary)
            return message

        # gRPC registers a method with a channel that another thread may have freed, and crashes. Where it is not
        # registered, the call says that the channel is closed.
        with self._lock:
            made = make(method, serialize, deserialize, _registered_method=_registered_method and not self._closing)
        return Method(made, method, self._connection, self._own, unary=unary, deadline_s=self._deadline_s)

    def _close(self) -> None:
        """Before the channel is closed: from here on its methods are not registered."""
        self._unwatch()
        with self._lock:
            self._closing = True


class MeteredChannel(_Stubs, grpc.Channel):
    """A sync channel. Close it, or use it in `with`."""

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """Watch connectivity, as gRPC's channel does."""
        self._inner.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Stop watching."""
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        """Cancel every call and close the connection."""
        self._close()
        self._inner.close()
        self._connection.closed()

    def __enter__(self) -> MeteredChannel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MeteredAioChannel(_Stubs, grpc.aio.Channel):
    """An aio channel. Close it, or use it in `async with`."""

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The connectivity now."""
        state: grpc.ChannelConnectivity = self._inner.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the connectivity is another."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until connected."""
        await self._inner.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """End every call, after `grace` seconds, and close the connection."""
        self._close()
        await self._inner.close(grace)
        self._connection.closed()

    async def __aenter__(self) -> MeteredAioChannel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
