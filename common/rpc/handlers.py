"""What surrounds every server handler: byte accounting, the caller's trace id, and errors turned into gRPC status."""

from __future__ import annotations

import inspect
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from fogline.common import trace
from fogline.common.errors import FoglineError, InternalError, ProtocolError
from fogline.common.rpc.accounting import Connection
from fogline.common.rpc.status import to_status

log = logging.getLogger(__name__)

MAX_PEERS = 4096  # connections remembered, to tell a new one from an old one


class Malformed:
    """Stands for a request that could not be parsed."""

    def __init__(self, method: str, size: int) -> None:
        self.error = ProtocolError(f"{method}: {size} bytes that are not a valid request; update the older end")


class Handlers(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Wraps every handler of a server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._peers: OrderedDict[str, None] = OrderedDict()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called by gRPC for every call."""
        inner: Any = await continuation(handler_call_details)
        if inner is None:
            return inner
        method = str(handler_call_details.method)
        deserialize = self._deserializer(inner.request_deserializer, method, inner.request_streaming)
        serialize = self._serializer(inner.response_serializer)
        if inner.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if inner.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._streaming(inner.stream_stream or inner.unary_stream, method), deserialize, serialize)
        make = grpc.stream_unary_rpc_method_handler if inner.request_streaming else grpc.unary_unary_rpc_method_handler
        return make(self._unary(inner.stream_unary or inner.unary_unary, method), deserialize, serialize)

    def _unary(self, handler: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
        async def unary(request: Any, context: Any) -> Any:
            self._begin(method, context)
            try:
                return await handler(_checked(request), context)
            except (FoglineError, Exception) as error:  # noqa: BLE001 - the root of a call's task
                await _abort(context, method, error)

        return unary

    def _streaming(self, handler: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
        if not inspect.isasyncgenfunction(handler):
            return self._unary(handler, method)  # writes its responses to the context

        async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
            self._begin(method, context)
            try:
                async for response in handler(_checked(request), context):
                    yield response
            except Exception as error:  # noqa: BLE001 - the root of a call's task
                await _abort(context, method, error)

        return streaming

    def _begin(self, method: str, context: Any) -> None:
        metadata = tuple(context.invocation_metadata() or ())
        trace.adopt(next((value for key, value in metadata if key == trace.HEADER), None))
        peer = context.peer()
        if peer not in self._peers:
            self._peers[peer] = None
            self._connection.opened(peer)
            if len(self._peers) > MAX_PEERS:
                self._connection.forget(self._peers.popitem(last=False)[0])
        self._connection.call(method, metadata, peer)

    def _deserializer(self, inner: Callable[[bytes], Any], method: str, streaming: bool) -> Callable[[bytes], Any]:
        def deserialize(data: bytes) -> Any:
            try:
                message = inner(data)
            except Exception as error:
                bad = Malformed(method, len(data))
                if streaming:
                    raise bad.error from error
                message = (
                    bad  # gRPC parses a unary request before the handler runs, where nobody could turn it into a status
                )
            self._connection.received(message, len(data))
            return message

        return deserialize

    def _serializer(self, inner: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def serialize(message: Any) -> bytes:
            data = inner(message)
            self._connection.sent(message, len(data))
            return data

        return serialize


def _checked(request: Any) -> Any:
    if isinstance(request, Malformed):
        raise request.error
    return request


async def _abort(context: Any, method: str, error: Exception) -> None:
    if isinstance(error, (grpc.aio.AbortError, grpc.aio.UsageError)):
        raise error
    if isinstance(error, FoglineError):
        log.warning("call failed", extra={"method": method, "peer": context.peer(), "error_text": str(error)})
    else:
        log.exception("call failed by a mistake of ours", extra={"method": method, "peer": context.peer()})
        error = InternalError(f"{method} failed; the log of the server has the trace {trace.trace_id.get()}")
    await context.abort(*to_status(error))
