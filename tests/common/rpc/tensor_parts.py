"""A tail host without torch, whose state is easy to follow, and a line that can be cut, stalled and damaged."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from rpc_helpers import EDGE, INSECURE, Loop

from fogline.common import errors
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.server import RpcServer, aio_server
from fogline.common.rpc.tensor_client import Answered, TensorClient
from fogline.common.rpc.tensor_execution import BrokenSessionError, Done, Started
from fogline.common.rpc.tensor_service import TensorService
from fogline.common.rpc.tensor_stream import add_service
from fogline.common.wire.session_client import ClientSession
from fogline.common.wire.tensors import Dtype, Frame, Limits, Role, TensorHeader

SESSION = bytes(range(16))


def tensor(data: bytes) -> TensorHeader:
    return TensorHeader(Role.ACTIVATION, Dtype.UINT8, (len(data),), len(data))


class Hashing:
    """A session whose state is the chain of hashes of what it was sent."""

    def __init__(self, disk: dict[int, tuple[bytes, int, tuple[Frame, ...]]], state: bytes = b"") -> None:
        self.disk, self.state, self.executed = disk, state, 0
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False
        self.last: weakref.ref[Frame]

    def execute(self, body: Any, frame: Frame) -> Done:
        assert self.gate.wait(20)
        self.last = weakref.ref(frame)
        match body:
            case pb.ScaleGradients(factor=13.0):
                raise errors.InputError("thirteen is refused; send another")
            case pb.ScaleGradients(factor=666.0):
                self.state += b"half"
                raise BrokenSessionError(errors.FormatError("it fell apart"))
            case pb.ScaleGradients(factor=7.0):
                raise ZeroDivisionError
        self.executed += 1
        self.state = hashlib.sha256(self.state + b"".join(frame.parts)).digest()
        size = len(frame.parts[0]) if frame.parts else 0
        back = self.state * (size // 32 + 1)
        return Done((tensor(back),), (back,))

    def save(self, through: int, answers: Sequence[Frame]) -> None:
        self.disk[through] = (self.state, through, tuple(answers))

    def interrupt(self) -> None:
        """Nothing waits for another host."""

    def close(self, *, forget: bool) -> None:
        self.closed = True


class Host:
    """An executor with a disk that outlives it."""

    def __init__(self, disk: dict[int, tuple[bytes, int, tuple[Frame, ...]]] | None = None) -> None:
        self.disk = {} if disk is None else disk
        self.hosted: list[Hashing] = []
        self.gate = threading.Event()
        self.gate.set()
        self.opening = threading.Event()

    def describe(self, model: str) -> pb.DescribeResponse:
        return pb.DescribeResponse(allowed=model == "a:b", detail="" if model == "a:b" else f"{model!r} is not allowed")

    def interrupt(self) -> None:
        """Nothing waits for another host."""

    def open(self, peer: Peer, message: pb.OpenSession) -> Started | None:
        self.opening.set()
        assert self.gate.wait(20)
        if message.setup == b"refuse":
            raise errors.ConfigError("this model is not allowed here")
        wanted = message.rollback_to or max(self.disk, default=0)
        if wanted and wanted in self.disk:
            state, executed, answers = self.disk[wanted]
            made = Hashing(self.disk, state)
            self.hosted.append(made)
            return Started(made, False, executed, answers)
        if message.rollback_to or (message.answered_through and not self.disk and not message.setup):
            return None
        self.hosted.append(Hashing(self.disk))
        return Started(self.hosted[-1], False)


class Serving:
    """A service on a loop, and clients of it."""

    def __init__(self, loop: Loop, tls: Any = INSECURE, listen: str = "127.0.0.1:0", **options: Any) -> None:
        self.loop, self.tls, self.options = loop, tls, options
        self.host = Host()
        self.server: RpcServer
        self.service: TensorService
        self.port = 0
        self.start(listen)

    def start(self, listen: str) -> None:
        async def run() -> None:
            limits = Limits(max_frame_bytes=8 << 20, window=4)
            self.service = TensorService(self.host, limits, **self.options)
            add = add_service
            services = [(add, self.service)]
            self.server, self.port = await aio_server(listen, self.tls, LinkMeter("edge-fog"), services)

        self.loop.run(run())

    def stop(self) -> None:
        async def run() -> None:
            await self.server.stop(0)
            await self.service.close()

        self.loop.run(run())

    def restart(self) -> None:
        """As after a kill: only the disk is left."""
        self.stop()
        self.host = Host(self.host.disk)
        self.start(f"127.0.0.1:{self.port}")

    def client(self, port: int | None = None, **options: Any) -> TensorClient:
        session = options.pop("session", None) or ClientSession(durable_answers=False, chunk_bytes=10_000)
        fields: dict[str, Any] = {
            "session_id": SESSION,
            "mode": pb.SESSION_MODE_TRAINING,
            "setup": b"{}",
            "meter": LinkMeter("edge-fog"),
            "me": EDGE,
            "stall_s": 10.0,
            "give_up_s": 20.0,
            "connect_s": 5.0,
        }
        address = f"127.0.0.1:{port or self.port}"
        return TensorClient(address, options.pop("tls", INSECURE), session, **{**fields, **options})


def send(client: TensorClient, data: bytes, body: Any = None) -> Future[Answered]:
    return client.submit(body or pb.Forward(), (tensor(data),), (data,))


def chain(payloads: Sequence[bytes]) -> bytes:
    """The state after these."""
    state = b""
    for payload in payloads:
        state = hashlib.sha256(state + payload).digest()
    return state


class Line:
    """A TCP relay to a port. `cut()` drops its connections; after `budget` bytes from the client it cuts by itself,
    or with `stall` forwards nothing more, or with `damage` flips a bit once."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.budget: int | None = None
        self.stall = self.damage = False
        self.rate: float | None = None  # bytes per second from the client
        self.connections = 0
        self._pace = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self.connections += 1
            self._sockets += [near, far]
            self._start(self._pump, near, far, True)
            self._start(self._pump, far, near, False)

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(8192):
                if up and self.rate is not None:
                    self._pace.wait(len(data) / self.rate)
                if up and self.budget is not None:
                    self.budget -= len(data)
                    if self.budget < 0:
                        self.budget = None
                        if self.stall:
                            self.stall = False
                            return
                        if self.damage:
                            self.damage = False
                            data = data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
                        else:
                            self.cut()
                            return
                sink.sendall(data)
        except OSError:
            pass
        if up is False or self.budget is not None:
            self._shut(source, sink)

    def _shut(self, *sockets: socket.socket) -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Drop every connection."""
        dropped, self._sockets = self._sockets, []
        self._shut(*dropped)
        for each in dropped:
            each.close()

    def close(self) -> None:
        self._listener.close()
        self._pace.set()
        self.cut()
