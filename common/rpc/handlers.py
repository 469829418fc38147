"""What surrounds every server handler: byte accounting, the caller's trace id, and errors turned into gRPC status."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from fogline.common import trace
from fogline.common.errors import FoglineError, InternalError, ProtocolError
from fogline.common.rpc.accounting import Connection
from fogline.common.rpc.guard import Call, Guard
from fogline.common.rpc.status import to_status

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096  # remembered, to tell a new one from an old one

# Whose call this task serves: gRPC calls (de)serialisers without saying.
_serving: ContextVar[Connection] = ContextVar("fogline_serving")


@dataclass(frozen=True)
class Parsed:
    """A unary request. gRPC parses it before the handler runs, where an error could not be turned into a status."""

    message: Any  # or the ProtocolError that it is none
    size: int  # bytes


class Handlers(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Wraps every handler of a server. `connect` makes the accounting of a new connection, `guard` judges callers."""

    def __init__(self, connect: Callable[[], Connection], guard: Guard) -> None:
        self._connect, self._guard = connect, guard
        self._connections: OrderedDict[str, Connection] = OrderedDict()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called by gRPC for every call."""
        inner = await continuation(handler_call_details)
        if inner is None:
            return inner
        method = str(handler_call_details.method)
        unary = not (inner.request_streaming or inner.response_streaming)
        deserialize = _deserializer(inner.request_deserializer, method, inner.request_streaming)
        serialize = _serializer(inner.response_serializer, unary)
        if inner.response_streaming:
            handler = self._streaming(inner.stream_stream or inner.unary_stream, method)
            if inner.request_streaming:
                return grpc.stream_stream_rpc_method_handler(handler, deserialize, serialize)
            return grpc.unary_stream_rpc_method_handler(handler, deserialize, serialize)
        handler = self._single(inner.stream_unary or inner.unary_unary, method, unary)
        if inner.request_streaming:
            return grpc.stream_unary_rpc_method_handler(handler, deserialize, serialize)
        return grpc.unary_unary_rpc_method_handler(handler, deserialize, serialize)

    def _single(self, handler: Callable[[Any, Any], Any], method: str, unary: bool) -> Callable[[Any, Any], Any]:
        async def single(request: Any, context: Any) -> Any:
            with self._guard.call() as call:
                try:
                    return await handler(self._begin(method, request, context, unary, call), context)
                except asyncio.CancelledError:
                    if call.ended is None:
                        raise
                    await _abort(context, method, call.ended)
                except Exception as error:  # noqa: BLE001 - the root of a call's task
                    await _abort(context, method, error)

        return single

    def _streaming(self, handler: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
        if not inspect.isasyncgenfunction(handler):
            return self._single(handler, method, unary=False)  # writes its responses to the context

        async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._guard.call() as call:
                try:
                    async for response in handler(self._begin(method, request, context, False, call), context):
                        yield response
                except asyncio.CancelledError:
                    if call.ended is None:
                        raise
                    await _abort(context, method, call.ended)
                except Exception as error:  # noqa: BLE001 - the root of a call's task
                    await _abort(context, method, error)

        return streaming

    def _begin(self, method: str, request: Any, context: Any, unary: bool, call: Call) -> Any:
        metadata = tuple(context.invocation_metadata() or ())
        trace.adopt(next((value for key, value in metadata if key == trace.HEADER), None))
        connection = self._connection(context)
        _serving.set(connection)
        connection.call(method, metadata, deadline=context.time_remaining() is not None, unary=unary)
        if isinstance(request, Parsed):
            connection.received(request.message, request.size, unary=unary)
        self._guard.admit(call, method, context)
        if not isinstance(request, Parsed):
            return request
        if isinstance(request.message, ProtocolError):
            raise request.message
        return request.message

    def _connection(self, context: Any) -> Connection:
        peer = context.peer()
        connection = self._connections.get(peer)
        if connection is None:
            connection = self._connections[peer] = self._connect()
            certificates = context.auth_context().get("x509_pem_cert", ())
            connection.opened(_der_size(certificates[0]) if certificates else None)
            if len(self._connections) > MAX_CONNECTIONS:
                self._connections.popitem(last=False)
        else:
            self._connections.move_to_end(peer)
        return connection


def _deserializer(inner: Callable[[bytes], Any], method: str, streaming: bool) -> Callable[[bytes], Any]:
    def deserialize(data: bytes) -> Any:
        message: Any
        try:
            message = inner(data)
        except DecodeError as error:
            refusal = ProtocolError(f"{method}: {len(data)} bytes that are not a request; update the older end")
            if streaming:
                raise refusal from error
            message = refusal
        if not streaming:
            return Parsed(message, len(data))
        _serving.get().received(message, len(data))
        return message

    return deserialize


def _serializer(inner: Callable[[Any], bytes], unary: bool) -> Callable[[Any], bytes]:
    def serialize(message: Any) -> bytes:
        data = inner(message)
        _serving.get().sent(message, len(data), unary=unary)
        return data

    return serialize


def _der_size(pem: bytes) -> int:
    body = b"".join(line for line in pem.splitlines() if not line.startswith(b"-"))
    return len(body) * 3 // 4 - body.count(b"=")


async def _abort(context: Any, method: str, error: Exception) -> None:
    if isinstance(error, (grpc.aio.AbortError, grpc.aio.UsageError)):
        raise error
    if isinstance(error, FoglineError):
        told = {"error_text": str(error), "error_class": type(error).__name__}
        log.warning("call failed", extra={"method": method, "peer": context.peer()} | told)
    else:
        log.error("call failed by a mistake of ours", exc_info=error, extra={"method": method, "peer": context.peer()})
        error = InternalError(f"{method} failed; the log of the server has the trace {trace.trace_id.get()}")
    await context.abort(*to_status(error))
