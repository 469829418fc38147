"""The Session stream with its payload copied once on each side: what a protobuf library writes, written here.

A library copies the bytes of a chunk into its message, and that into the serialised form; parsing copies them twice
again. Here a message that carries payload is joined from its few other fields and a view of the tensor, and read as a
view of what gRPC received. Whatever is not exactly of that shape goes through the library, so both ends of the contract
hold for any peer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from fogline.common.rpc import tensor_messages as messages
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.gen import tensors_pb2_grpc
from fogline.common.wire.session_client import Ack, Step
from fogline.common.wire.session_host import Reply
from fogline.common.wire.tensors import Buffer, Chunk

SERVICE = "fogline.v1.TensorService"
SESSION = f"/{SERVICE}/Session"

# Tags (field number and wire type) of the contract, serialised.
_STARTS = b"\x12"  # SessionRequest.operation, SessionResponse.answer
_CHUNK = b"\x1a"  # SessionRequest.chunk, SessionResponse.chunk
_DATA = b"\xaa\x01"  # Operation.data, Answer.data
_CRC = b"\x25"  # PayloadChunk.crc32


Request = pb.SessionRequest | Step | Chunk | Ack
Response = pb.SessionResponse | Reply | Chunk


def write_request(item: Request) -> bytes:
    """Serialise what a client sends."""
    if isinstance(item, Chunk):
        return _write_chunk(item)
    if isinstance(item, Step):
        return _write_start(messages.operation_of(item), item.start.data)
    if isinstance(item, Ack):
        item = pb.SessionRequest(acknowledge=pb.Acknowledge(answered_through=item.answered_through))
    return item.SerializeToString()


def write_response(item: Response) -> bytes:
    """Serialise what a host sends."""
    if isinstance(item, Chunk):
        return _write_chunk(item)
    if isinstance(item, Reply):
        return _write_start(messages.answer_of(item.start, item.durable_through), item.start.data)
    return item.SerializeToString()


def read_request(data: bytes) -> pb.SessionRequest | Chunk:
    """Parse what a client sent; raises protobuf's DecodeError."""
    return _read_chunk(data) or pb.SessionRequest.FromString(data)


def read_response(data: bytes) -> pb.SessionResponse | Chunk:
    """Parse what a host sent; raises protobuf's DecodeError."""
    return _read_chunk(data) or pb.SessionResponse.FromString(data)


def session_method(channel: grpc.Channel | grpc.aio.Channel) -> Callable[..., Any]:
    """The Session method of a channel, which takes and gives the items above."""
    made: Callable[..., Any] = channel.stream_stream(SESSION, write_request, read_response)
    return made


def add_service(servicer: Any, server: Any) -> None:
    """What the generated `add_TensorServiceServicer_to_server` does, with the Session method of this module."""
    replacing: Any = _Replacing(server)
    tensors_pb2_grpc.add_TensorServiceServicer_to_server(servicer, replacing)


class _Replacing:
    """Passes the service on to a server with another Session method."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Only `add_registered_method_handlers` has the methods by name; both name the service."""
        self._handlers = handlers

    def add_registered_method_handlers(self, service: str, methods: dict[str, Any]) -> None:
        session = methods["Session"].stream_stream
        replaced = {**methods, "Session": grpc.stream_stream_rpc_method_handler(session, read_request, write_response)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, replaced),))
        self._server.add_registered_method_handlers(service, replaced)


def _write_start(message: pb.Operation | pb.Answer, data: Buffer) -> bytes:
    head = message.SerializeToString()
    if not len(data):
        return b"".join((_STARTS, _varint(len(head)), head))
    size = _varint(len(data))
    whole = len(head) + len(_DATA) + len(size) + len(data)
    return b"".join((_STARTS, _varint(whole), head, _DATA, size, data))


def _write_chunk(chunk: Chunk) -> bytes:
    head = b"\x08" + _varint(chunk.seq) + (b"\x10" + _varint(chunk.offset) if chunk.offset else b"")
    head += b"\x1a" + _varint(len(chunk.data))
    tail = b"" if chunk.crc32 is None else _CRC + chunk.crc32.to_bytes(4, "little")
    return b"".join((_CHUNK, _varint(len(head) + len(chunk.data) + len(tail)), head, chunk.data, tail))


def _read_chunk(data: bytes) -> Chunk | None:
    """The chunk, when `data` is one as written above; else None, and the library finds out what it is."""
    try:
        if data[0] != _CHUNK[0]:
            return None
        size, at = _read_varint(data, 1)
        if at + size != len(data) or data[at] != 0x08:
            return None
        seq, at = _read_varint(data, at + 1)
        offset = 0
        if data[at] == 0x10:
            offset, at = _read_varint(data, at + 1)
        if data[at] != 0x1A:
            return None
        length, at = _read_varint(data, at + 1)
        end = at + length
        if end == len(data):
            crc = None
        elif end + 5 == len(data) and data[end] == _CRC[0]:
            crc = int.from_bytes(data[end + 1 :], "little")
        else:
            return None
    except IndexError:
        return None
    return Chunk(seq, offset, memoryview(data)[at:end], crc)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Longer than nine bytes is none of ours."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 56:
            raise IndexError
