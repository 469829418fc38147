"""The ways of moving a tensor that `tensor_transport` compares: a raw socket, bare gRPC, the tensor plane.

    python -m fogline.benchmarks.tensor_ways WAY (receive|send) --folder DIR [--address A] [--size N]

A receiver and a sender for each, a process per side. All gRPC ends have the options and the certificates of the tensor
plane's own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np

from fogline.benchmarks.tensor_side import Received, new_loop, receive, send
from fogline.common.addresses import parse
from fogline.common.config import TlsConfig
from fogline.common.rpc import channel, server, tls
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.tensor_client import Answered, TensorClient
from fogline.common.rpc.tensor_execution import Done, Started
from fogline.common.rpc.tensor_service import READ_AHEAD, TensorService
from fogline.common.rpc.tensor_stream import add_service
from fogline.common.wire import tensors
from fogline.common.wire.session_client import ClientSession
from fogline.common.wire.tensors import CHUNK_BYTES, Dtype, Frame, Limits, Role, TensorHeader

HEAD = struct.Struct("<Q")
ECHO = 100 * 1024


def payload(size: int) -> Any:
    """Random float32 of `size` bytes: the same in every process."""
    return np.random.default_rng(7).standard_normal(size // 4, np.float32)


def certificates(folder: Path, name: str) -> TlsConfig:
    """Those that the benchmark made."""
    return TlsConfig(ca=folder / "ca.pem", cert=folder / f"{name}.pem", key=folder / f"{name}.key")


def without_checksum() -> None:
    """Take the CRC-32 out of the tensor plane, in this process: to measure what it costs."""
    vars(tensors)["zlib"] = SimpleNamespace(crc32=lambda data, value=0: 0)


# -- raw socket


def tcp_receive(folder: Path) -> None:
    """Fill one buffer from a socket."""
    listener, received = socket.create_server(("127.0.0.1", 0)), Received()

    def one(near: socket.socket, size: int) -> None:
        view, at = memoryview(bytearray(size)), 0
        while at < size:
            at += near.recv_into(view[at:])
        received(view)

    def run() -> None:
        near, _ = listener.accept()
        while head := near.recv(HEAD.size, socket.MSG_WAITALL):
            one(near, HEAD.unpack(head)[0])
            near.sendall(b"k")

    threading.Thread(target=run, daemon=True).start()
    receive(f"127.0.0.1:{listener.getsockname()[1]}", received, new_loop())


def tcp_send(folder: Path, address: str, size: int) -> None:
    """Write one buffer to a socket."""
    data, near = memoryview(payload(size)).cast("B"), socket.create_connection(("127.0.0.1", parse(address).port))

    def once(size: int) -> None:
        near.sendall(HEAD.pack(size))
        near.sendall(data[:size])
        near.recv(1)

    send(once)


# -- bare gRPC


class _Bare(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
    """A stream of chunks into one buffer, and echoes; nothing is checked and nothing counted."""

    def __init__(self, received: Received) -> None:
        self._received = received

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Called by gRPC for every call."""
        coders = pb.PayloadChunk.FromString, pb.PayloadChunk.SerializeToString
        match details.method:
            case "/bare/Push":
                return grpc.stream_unary_rpc_method_handler(self._push, *coders)
            case "/bare/Echo":
                return grpc.unary_unary_rpc_method_handler(self._echo, *coders)
            case "/bare/Echoes":
                return grpc.stream_stream_rpc_method_handler(self._echoes, *coders)
        return None

    async def _push(self, requests: AsyncIterator[pb.PayloadChunk], context: Any) -> pb.PayloadChunk:
        buffer = bytearray()
        async for chunk in requests:
            if not buffer:
                buffer = bytearray(chunk.seq)  # the first says how long the whole is
            data = chunk.data
            buffer[chunk.offset : chunk.offset + len(data)] = data
        self._received(buffer)
        return pb.PayloadChunk()

    async def _echo(self, request: pb.PayloadChunk, context: Any) -> pb.PayloadChunk:
        return pb.PayloadChunk(data=request.data)

    async def _echoes(self, requests: AsyncIterator[pb.PayloadChunk], context: Any) -> AsyncIterator[pb.PayloadChunk]:
        async for request in requests:
            yield pb.PayloadChunk(data=request.data)


async def _bare(folder: Path, received: Received) -> int:
    own = tls.load(certificates(folder, "fog-1"), parse("127.0.0.1:1"))
    assert own is not None
    made = grpc.aio.server(options=server.OPTIONS)
    made.add_generic_rpc_handlers((_Bare(received),))
    port: int = made.add_secure_port("127.0.0.1:0", own.server())
    await made.start()
    _KEPT.append(made)
    return port


_KEPT: list[Any] = []  # servers and services of this process, which end with it


def bare_receive(folder: Path) -> None:
    """Serve `_Bare` on an event loop."""
    received, loop = Received(), new_loop()
    port = asyncio.run_coroutine_threadsafe(_bare(folder, received), loop).result()
    receive(f"127.0.0.1:{port}", received, loop)


def _bare_channel(folder: Path, address: str) -> grpc.Channel:
    own = tls.load(certificates(folder, "edge-1"), parse(address))
    assert own is not None
    return grpc.secure_channel(address, own.client(), channel.OPTIONS)


def bare_send(folder: Path, address: str, size: int) -> None:
    """One client stream of chunks per tensor, on one connection."""
    view = memoryview(payload(size)).cast("B")
    push: Any = _bare_channel(folder, address).stream_unary(
        "/bare/Push", pb.PayloadChunk.SerializeToString, pb.PayloadChunk.FromString
    )

    def chunks(size: int) -> Iterator[pb.PayloadChunk]:
        for at in range(0, size, CHUNK_BYTES):
            yield pb.PayloadChunk(seq=size, offset=at, data=bytes(view[at : at + CHUNK_BYTES]))

    send(lambda size: push(chunks(size)))


# -- the tensor plane


class _Sink:
    """Takes what comes, or sends it back."""

    def __init__(self, received: Received, echo: bool) -> None:
        self._received, self._echo = received, echo

    def execute(self, body: Any, frame: Frame) -> Done:
        if self._echo:
            return Done(frame.tensors, frame.parts)
        self._received(frame.parts[0])
        return Done()

    def save(self, through: int, answers: Sequence[Frame]) -> None:
        raise NotImplementedError

    def interrupt(self) -> None:
        """Nothing waits for another host."""

    def close(self, *, forget: bool) -> None:
        """Nothing to free."""


class _Host:
    """Sessions of sinks."""

    def __init__(self, received: Received, echo: bool) -> None:
        self._received, self._echo = received, echo

    def describe(self, model: str) -> pb.DescribeResponse:
        return pb.DescribeResponse()

    def interrupt(self) -> None:
        """Nothing waits for another host."""

    def open(self, peer: Peer, message: pb.OpenSession) -> Started:
        return Started(_Sink(self._received, self._echo), durable_answers=True)


async def _plane(folder: Path, received: Received, echo: bool) -> int:
    service = TensorService(_Host(received, echo), Limits())
    made, port = await server.aio_server(
        "127.0.0.1:0",
        certificates(folder, "fog-1"),
        LinkMeter("edge-fog"),
        [(add_service, service)],
        read_ahead=READ_AHEAD,
    )
    _KEPT.extend((made, service))
    return port


def plane_receive(folder: Path) -> None:
    """Serve `TensorService` on an event loop, with an executor that does nothing."""
    received, loop = Received(), new_loop()
    port = asyncio.run_coroutine_threadsafe(_plane(folder, received, echo=False), loop).result()
    receive(f"127.0.0.1:{port}", received, loop)


def _plane_client(folder: Path, address: str) -> TensorClient:
    client = TensorClient(
        address,
        certificates(folder, "edge-1"),
        ClientSession(durable_answers=True),
        session_id=os.urandom(16),
        mode=pb.SESSION_MODE_INFERENCE,
        setup=b"{}",
        meter=LinkMeter("edge-fog"),
    )
    client.wait_open(20)
    return client


def _submit(client: TensorClient, array: Any) -> Future[Answered]:
    header = TensorHeader(Role.ACTIVATION, Dtype.FLOAT32, array.shape, array.nbytes)
    return client.submit(pb.Forward(), (header,), (memoryview(array).cast("B"),))


def plane_send(folder: Path, address: str, size: int) -> None:
    """One operation per tensor, in one session."""
    client, array = _plane_client(folder, address), payload(size)
    send(lambda size: _submit(client, array[: size // 4]).result())


# -- round trips


def echo_receive(folder: Path) -> None:
    """Both servers on one event loop."""
    received, loop = Received(), new_loop()
    ports = [
        asyncio.run_coroutine_threadsafe(made, loop).result()
        for made in (_bare(folder, received), _plane(folder, received, echo=True))
    ]
    receive(",".join(f"127.0.0.1:{port}" for port in ports), received, loop)


def echo_send(folder: Path, address: str, size: int) -> None:
    """Round trips of a unary call, of a stream and of an operation, in turns."""
    bare_address, plane_address = address.split(",")
    array = payload(ECHO)
    data = array.tobytes()
    bare = _bare_channel(folder, bare_address)
    coders = pb.PayloadChunk.SerializeToString, pb.PayloadChunk.FromString
    unary: Any = bare.unary_unary("/bare/Echo", *coders)
    stream = _Stream(bare.stream_stream("/bare/Echoes", *coders))
    client = _plane_client(folder, plane_address)

    def one() -> None:
        assert len(_submit(client, array).result().frame.parts[0]) == ECHO

    calls: dict[str, Callable[[], object]] = {
        "unary": lambda: unary(pb.PayloadChunk(data=data)).data,
        "stream": lambda: stream(pb.PayloadChunk(data=data)).data,
        "ours": one,
    }

    def rounds(count: int) -> dict[str, Any]:
        taken: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for number in range(count):
            for name in names if number % 2 else reversed(names):
                began = time.perf_counter()
                calls[name]()
                taken[name].append(time.perf_counter() - began)
        return {
            name: {"median_s": statistics.median(times), "p90_s": statistics.quantiles(times, n=10)[8]}
            for name, times in taken.items()
        }

    send(lambda size: None, rounds=rounds)


class _Stream:
    """A bidirectional stream as a function from request to response."""

    def __init__(self, method: Any) -> None:
        self._ready = threading.Condition()
        self._next: pb.PayloadChunk | None = None
        self._call = method(self._requests())

    def _requests(self) -> Iterator[pb.PayloadChunk]:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._next is not None)
                message, self._next = self._next, None
            assert message is not None
            yield message

    def __call__(self, message: pb.PayloadChunk) -> Any:
        with self._ready:
            self._next = message
            self._ready.notify()
        return next(self._call)


RECEIVERS: dict[str, Callable[[Path], None]] = {
    "tcp": tcp_receive,
    "bare": bare_receive,
    "ours": plane_receive,
    "ours_no_crc": plane_receive,
    "echo": echo_receive,
}
SENDERS: dict[str, Callable[[Path, str, int], None]] = {
    "tcp": tcp_send,
    "bare": bare_send,
    "ours": plane_send,
    "ours_no_crc": plane_send,
    "echo": echo_send,
}


def main() -> None:
    """Be one side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("way", choices=list(RECEIVERS))
    parser.add_argument("side", choices=["receive", "send"])
    parser.add_argument("--folder", type=Path, required=True, help="certificates")
    parser.add_argument("--address", default="")
    parser.add_argument("--size", type=int, default=64 << 20, help="bytes")
    options = parser.parse_args()
    if options.way == "ours_no_crc":
        without_checksum()
    if options.side == "receive":
        RECEIVERS[options.way](options.folder)
    else:
        SENDERS[options.way](options.folder, options.address, options.size)


if __name__ == "__main__":
    main()
