"""The client's end of the tensor plane: a session over one stream, connected again whenever the connection breaks.

Synchronous, for edges. Three threads serve it: one connects and reads, gRPC's own writes, one watches for progress.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from fogline.common import errors
from fogline.common.config import TlsConfig
from fogline.common.errors import FoglineError, InternalError, ProtocolError, UnavailableError
from fogline.common.rpc import tensor_messages as messages
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.gen import tensors_pb2_grpc
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.retry import Backoff
from fogline.common.rpc.status import translate
from fogline.common.wire.session_client import Ack, ClientSession, Step
from fogline.common.wire.tensors import Buffer, Frame, Limits, TensorHeader

log = logging.getLogger(__name__)

MAX_BROKEN = 3  # streams in a row that the host ended as wrong, and on which nothing was answered

# What a host may say of a failed operation.
_FAILURES: dict[str, type[FoglineError]] = {
    name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, FoglineError)
}


@dataclass(frozen=True)
class Answered:
    """The answer to an operation."""

    body: pb.Answer
    frame: Frame


@dataclass(frozen=True)
class Timing:
    """What an answered operation took, for estimates of the link and profiles of the host. Seconds, bytes."""

    sent_bytes: int
    received_bytes: int
    total_s: float
    compute_s: float
    queued_s: float


class TensorClient:
    """One session with a tail host. Close it, or use it in `with`.

    `give_up_s`: how long to try without any progress before what waits fails with UnavailableError. Errors that trying
    again does not mend fail it at once.
    """

    def __init__(
        self,
        address: str,
        tls: TlsConfig,
        session: ClientSession,
        *,
        session_id: bytes,
        mode: pb.SessionMode.ValueType,
        setup: bytes,
        meter: LinkMeter,
        me: Peer | None = None,
        limits: Limits | None = None,
        connect_s: float = 20.0,
        stall_s: float = 30.0,
        give_up_s: float = 120.0,
        observe: Callable[[Timing], None] | None = None,
    ) -> None:
        self._address, self._tls, self._session = address, tls, session
        self._hello = pb.OpenSession(session=session_id, protocol=messages.PROTOCOL, mode=mode, setup=setup)
        self._meter, self._me, self._limits = meter, me, limits or Limits()
        self._connect_s, self._stall_s, self._give_up_s = connect_s, stall_s, give_up_s
        self._observe = observe
        self._changed = threading.Condition()
        self._futures: dict[int, Future[Answered]] = {}
        self._begun: dict[int, tuple[float, int]] = {}
        self._number = 0  # of the newest connection
        self._stream = 0  # number of the connection that may send
        self._call: Any = None
        self._heard = time.monotonic()
        self._failure: FoglineError | None = None
        self._closing = self._closed = False
        self._opened = threading.Event()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="tensor-session", daemon=True),
            threading.Thread(target=self._watch, name="tensor-watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # -- use

    def wait_open(self, timeout_s: float | None = None) -> None:
        """Wait until the host has taken the session once. Raises what went wrong, or UnavailableError after a while."""
        if not self._opened.wait(timeout_s):
            raise UnavailableError(f"{self._address} did not take the session within {timeout_s} s; is it running?")
        if self._failure is not None:
            raise self._failure

    def submit(
        self, body: Any, tensors: tuple[TensorHeader, ...] = (), parts: tuple[Buffer, ...] = ()
    ) -> Future[Answered]:
        """Append an operation. Its buffers stay unchanged until it is answered and durable.

        Raises what broke the session, CapacityError when the log is full, ProtocolError for what no host takes.
        """
        future: Future[Answered] = Future()
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._closing:
                raise UnavailableError("this session was closed; connect anew")
            if not self._session.under_way:
                self._heard = time.monotonic()  # silence counts from here
            seq = self._session.submit(body, tensors, parts)
            self._futures[seq] = future
            self._begun[seq] = (time.monotonic(), sum(header.coded_bytes for header in tensors))
            self._changed.notify_all()
        return future

    @property
    def session(self) -> ClientSession:
        """The log, to be looked at only."""
        return self._session

    @property
    def connected(self) -> bool:
        """Whether a host has the session now."""
        return self._stream > 0

    def close(self, timeout_s: float = 5.0) -> None:
        """End the session at the host, after what is under way was answered or `timeout_s` is over."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.wait_for(
                lambda: not self._futures or self._failure is not None or not self._stream, timeout_s
            )
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._stream, min(timeout_s, 2.0))
        self._end(UnavailableError("this session was closed; connect anew"))
        for thread in self._threads:
            thread.join(self._connect_s + 5.0)

    def abandon(self) -> None:
        """Leave without ending the session: another client can go on with it from a checkpoint."""
        self._closed = True
        self._end(UnavailableError("this session was left; connect anew"))
        for thread in self._threads:
            thread.join(self._connect_s + 5.0)

    def __enter__(self) -> TensorClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- connection

    def _run(self) -> None:
        try:
            self._keep_connected()
        except FoglineError as error:
            self._end(error)
        except Exception as error:
            log.exception("tensor session failed by a mistake of ours")
            self._end(InternalError(f"session with {self._address} failed: {error!r}"))

    def _keep_connected(self) -> None:
        backoff, broken, since = Backoff(base_s=0.1, cap_s=5.0), 0, time.monotonic()
        while not self._stop.is_set():
            answered = self._session.answered
            try:
                self._connection(backoff)
                return
            except UnavailableError as error:
                if isinstance(error, _LostError):
                    raise UnavailableError(str(error)) from error
                trouble: FoglineError = error
            except ProtocolError as error:
                broken += 1
                if broken >= MAX_BROKEN and self._session.answered == answered:
                    raise
                trouble = error
            if self._stop.is_set():
                return
            if self._session.answered != answered:
                broken, since = 0, time.monotonic()
            log.warning("tensor session lost its connection", extra={"peer": self._address, "error_text": str(trouble)})
            if time.monotonic() - since > self._give_up_s:
                raise trouble
            backoff.wait(self._stop)

    def _connection(self, backoff: Backoff) -> None:
        """Serve one connection. Returns when the session was closed; raises why it ended otherwise."""
        channel = connect(self._address, self._tls, meter=self._meter, deadline_s=self._connect_s, me=self._me)
        try:
            stub = tensors_pb2_grpc.TensorServiceStub(channel)
            with self._changed:
                self._number = number = self._number + 1
                self._heard = time.monotonic()
            ready = threading.Event()
            call: Any = stub.Session(self._requests(number, ready))
            self._call = call
            try:
                with translate(self._address):
                    self._read(call, number, ready, backoff)
            finally:
                with self._changed:
                    self._stream, self._call = 0, None
                    self._session.lost()
                    self._changed.notify_all()
                ready.set()
                call.cancel()
        finally:
            channel.close()

    def _read(self, call: Any, number: int, ready: threading.Event, backoff: Backoff) -> None:
        for message in call:
            with self._changed:
                self._heard = time.monotonic()
                match message.WhichOneof("message"):
                    case "opened":
                        self._take_opened(message.opened, number)
                        backoff.reset()
                        ready.set()
                        frame = None
                    case "answer":
                        frame = self._session.answer(messages.answer(message.answer), message.answer.durable_through)
                    case "chunk":
                        frame = self._session.chunk(messages.chunk_of(message.chunk))
                    case _:
                        frame = None
                if frame is not None:
                    self._deliver(frame)
        with self._changed:
            if self._closing:
                return
        raise UnavailableError(f"{self._address} ended the stream; connecting again")

    def _take_opened(self, message: pb.SessionOpened, number: int) -> None:
        try:
            self._session.opened(messages.opened(message), messages.limits_of(message.limits, self._limits))
        except UnavailableError as error:
            raise _LostError(str(error)) from error
        self._stream = number
        self._opened.set()
        self._changed.notify_all()

    def _requests(self, number: int, ready: threading.Event) -> Iterator[pb.SessionRequest]:
        """What gRPC's own thread sends."""
        with self._changed:
            opening = self._session.opening()
        hello = pb.OpenSession()
        hello.CopyFrom(self._hello)
        hello.answered_through, hello.rollback_to = opening.answered_through, opening.rollback_to
        hello.partial_answer, hello.partial_bytes = opening.partial_answer, opening.partial_bytes
        yield pb.SessionRequest(open=hello)
        ready.wait()
        while True:
            with self._changed:
                while True:
                    if self._stream != number:
                        return
                    message = self._session.next()
                    if message is not None:
                        break
                    if self._closing:
                        self._changed.notify_all()
                        yield pb.SessionRequest(close=pb.CloseSession())
                        return
                    self._changed.wait()
            if isinstance(message, Step):
                yield messages.request(message)
            elif isinstance(message, Ack):
                yield pb.SessionRequest(acknowledge=pb.Acknowledge(answered_through=message.answered_through))
            else:
                yield pb.SessionRequest(chunk=messages.chunk(message))

    def _deliver(self, frame: Frame) -> None:
        future = self._futures.pop(frame.seq, None)
        began, sent = self._begun.pop(frame.seq, (time.monotonic(), 0))
        self._changed.notify_all()
        if future is None:
            return
        body: Any = frame.body
        if body.HasField("failure"):
            cls = _FAILURES.get(body.failure.error, InternalError)
            error = cls(body.failure.detail)
            future.set_exception(error)
            if body.failure.fatal:
                self._fail(error)
            return
        if self._observe is not None:
            total = time.monotonic() - began
            self._observe(Timing(sent, frame.size, total, body.compute_us / 1e6, body.queued_us / 1e6))
        future.set_result(Answered(body, frame))

    def _watch(self) -> None:
        """Give a connection up on which something waits and nothing comes."""
        while not self._stop.wait(min(1.0, self._stall_s / 4)):
            with self._changed:
                waits = self._call is not None and (self._session.under_way > 0 or not self._stream)
                silent = time.monotonic() - self._heard
                call = self._call if waits and silent > self._stall_s else None
            if call is not None:
                log.warning("no progress", extra={"peer": self._address, "silent_s": round(silent, 1)})
                call.cancel()

    def _end(self, error: FoglineError) -> None:
        with self._changed:
            self._fail(error)
        call = self._call
        if call is not None:
            with suppress(grpc.RpcError):
                call.cancel()

    def _fail(self, error: FoglineError) -> None:
        """With the lock: everything that waits fails, and whatever is submitted later."""
        self._failure = self._failure or error
        waiting, self._futures = self._futures, {}
        for future in waiting.values():
            future.set_exception(error)
        self._stop.set()
        self._opened.set()
        self._changed.notify_all()


class _LostError(UnavailableError):
    """The host no longer has what it would need to go on: trying again does not help."""
