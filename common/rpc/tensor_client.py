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
from fogline.common.errors import CapacityError, FoglineError, InternalError, ProtocolError, UnavailableError
from fogline.common.rpc import tensor_messages as messages
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.retry import Backoff
from fogline.common.rpc.status import translate
from fogline.common.rpc.tensor_stream import Request, session_method
from fogline.common.wire.session_client import ClientSession
from fogline.common.wire.tensors import CHUNK_BYTES, Buffer, Chunk, Frame, Limits, TensorHeader

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
    kind: str = ""  # the operation, as in the contract

    @property
    def link_s(self) -> float:
        """What was neither computing nor waiting for its turn there: the link both ways, and waiting for it here."""
        return max(0.0, self.total_s - self.compute_s - self.queued_s)


class TensorClient:
    """One session with a tail host. Close it, or use it in `with`.

    `stall_s`: a connection on which something is awaited and nothing comes or goes for so long is given up.
    `give_up_s`: how long to connect again and again without any progress before what waits fails. Errors that trying
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
        lock = threading.RLock()
        self._changed = threading.Condition(lock)  # for who waits for room, or for the end
        self._sendable = threading.Condition(lock)  # for the thread that sends: it wakes only where it has to
        self._futures: dict[int, Future[Answered]] = {}
        self._begun: dict[int, tuple[float, int, str]] = {}
        self._checkpoints: set[int] = set()  # under way
        self._number = 0  # of the newest connection
        self._stream = 0  # number of the connection that may send
        self._call: Any = None
        self._moved = time.monotonic()  # when something last came or went
        self._held = (0, 0)  # by the host, when it last said so: operations, and bytes of the next
        self._idle = False  # when the last connection broke, nothing was under way
        self._lost = 0.0  # when the last connection broke that a host had opened
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
        self,
        body: Any,
        tensors: tuple[TensorHeader, ...] = (),
        parts: tuple[Buffer, ...] = (),
        *,
        wait_s: float | None = None,
    ) -> Future[Answered]:
        """Append an operation. Its buffers stay unchanged until it is answered and durable.

        Where the log is full of what answers that are under way will free, waits for those, at most `wait_s`. The
        future can't be cancelled: what is in the log is executed.
        Raises what broke the session, CapacityError when the log is full, ProtocolError for what no host takes.
        """
        future: Future[Answered] = Future()
        future.set_running_or_notify_cancel()
        until = None if wait_s is None else time.monotonic() + wait_s
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._closing:
                    raise UnavailableError("this session was closed; connect anew")
                try:
                    seq = self._session.submit(body, tensors, parts)
                    break
                except CapacityError:
                    left = None if until is None else until - time.monotonic()
                    if not self._frees() or (left is not None and left <= 0):
                        raise
                    self._changed.wait(left)
            if not self._futures:
                self._moved = time.monotonic()  # silence counts from here
            self._futures[seq] = future
            size = sum(header.coded_bytes for header in tensors)
            self._begun[seq] = (time.monotonic(), size, messages.BODIES.get(type(body), ""))
            if isinstance(body, pb.Checkpoint):
                self._checkpoints.add(seq)
            self._sendable.notify_all()
        return future

    def _notify(self) -> None:
        self._changed.notify_all()
        self._sendable.notify_all()

    def _frees(self) -> bool:
        """Whether an answer that is under way makes room in the log."""
        return bool(self._checkpoints or (self._hello.mode == pb.SESSION_MODE_INFERENCE and self._futures))

    @property
    def session(self) -> ClientSession:
        """The log, to be looked at only."""
        return self._session

    @property
    def connected(self) -> bool:
        """Whether a host has the session now."""
        return self._stream > 0

    @property
    def failure(self) -> FoglineError | None:
        """What ended the session for good, if something did."""
        return self._failure

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
            self._notify()
            self._changed.wait_for(lambda: not self._stream, min(timeout_s, 2.0))
        self._end(UnavailableError("this session was closed; connect anew"))
        for thread in self._threads:
            thread.join(self._connect_s + 5.0)

    def interrupt(self, error: FoglineError) -> None:
        """Have what waits fail with `error`, and all that is to come. From any thread; `abandon` it all the same."""
        self._end(error)

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
        backoff, broken = Backoff(base_s=0.1, cap_s=5.0), 0
        since, seen = time.monotonic(), self._progress
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._connection()
                return
            except _LostError as error:
                raise UnavailableError(str(error)) from error
            except (UnavailableError, CapacityError) as error:
                if isinstance(error, CapacityError) and not self._opened.is_set():
                    raise
                trouble: FoglineError = error
            except (ProtocolError, InternalError) as error:  # damage on the way looks like either
                broken += 1
                trouble = error
            if self._stop.is_set():
                return
            now = time.monotonic()
            # A connection on which nothing was asked for was good if it lasted.
            if self._progress != seen or (self._idle and self._lost - began > self._stall_s):
                since, seen, broken = now, self._progress, 0
                backoff.reset()
            elif broken >= MAX_BROKEN or now - since > self._patience_s:
                raise trouble
            elif now - self._moved > self._stall_s / 2:
                self._session.limit_chunks(self._session.chunk_bytes // 4)  # too slow a link for one to pass in time
            log.warning("tensor session lost its connection", extra={"peer": self._address, "error_text": str(trouble)})
            backoff.wait(self._stop)

    @property
    def _patience_s(self) -> float:
        """A host that was never reached is rather a wrong address than a lost link."""
        return self._give_up_s if self._opened.is_set() else min(self._give_up_s, self._connect_s)

    @property
    def _progress(self) -> tuple[int, ...]:
        """What was answered, and what the host held when it last said so."""
        return self._session.answered, *self._held

    def _connection(self) -> None:
        """Serve one connection. Returns when the session was closed; raises why it ended otherwise."""
        channel = connect(self._address, self._tls, meter=self._meter, deadline_s=self._connect_s, me=self._me)
        try:
            with self._changed:
                self._number = number = self._number + 1
                self._moved = time.monotonic()
            ready = threading.Event()
            call: Any = session_method(channel)(self._requests(number, ready))
            with self._changed:
                self._call = call
                if self._stop.is_set():  # who ended the session found no call to cancel
                    call.cancel()
            try:
                with translate(self._address):
                    self._read(call, number, ready)
            finally:
                with self._changed:
                    if self._stream:
                        self._lost, self._idle = time.monotonic(), not self._session.under_way
                    self._stream, self._call = 0, None
                    self._session.lost()
                    self._notify()
                ready.set()
                call.cancel()
        finally:
            channel.close()

    def _read(self, call: Any, number: int, ready: threading.Event) -> None:
        for message in call:
            self._take(message, number, ready)
            del message  # or its payload is held until the next comes
        with self._changed:
            if self._closing:
                return
        raise UnavailableError(f"{self._address} ended the stream; connecting again")

    def _take(self, message: pb.SessionResponse | Chunk, number: int, ready: threading.Event) -> None:
        frame = None
        with self._changed:
            self._moved = time.monotonic()
            kind = "chunk" if isinstance(message, Chunk) else message.WhichOneof("message")
            if kind in ("answer", "chunk", "opened") and (kind == "opened") == (self._stream == number):
                what = "opened the session twice" if kind == "opened" else "spoke before it opened the session"
                raise ProtocolError(f"{self._address} {what}")
            if isinstance(message, Chunk):
                frame = self._session.chunk(message)
            elif kind == "answer":
                frame = self._session.answer(messages.answer(message.answer), message.answer.durable_through)
            elif kind == "chunk":
                frame = self._session.chunk(messages.chunk_of(message.chunk))
            elif kind == "opened":
                self._take_opened(message.opened, number)
                ready.set()
        if frame is not None:
            self._deliver(frame)

    def _take_opened(self, message: pb.SessionOpened, number: int) -> None:
        try:
            self._session.opened(messages.opened(message), messages.limits_of(message.limits, self._limits))
        except UnavailableError as error:
            raise _LostError(str(error)) from error
        self._session.limit_chunks(message.limits.max_chunk_bytes or CHUNK_BYTES)
        self._held = (message.held_through, message.partial_bytes)
        self._stream = number
        self._opened.set()
        self._notify()

    def _requests(self, number: int, ready: threading.Event) -> Iterator[Request]:
        """What gRPC's own thread sends."""
        with self._changed:
            opening = self._session.opening()
        hello = pb.OpenSession()
        hello.CopyFrom(self._hello)
        hello.answered_through, hello.rollback_to = opening.answered_through, opening.rollback_to
        hello.partial_answer, hello.partial_bytes = opening.partial_answer, opening.partial_bytes
        hello.max_chunk_bytes = opening.chunk_bytes
        yield pb.SessionRequest(open=hello)
        ready.wait()
        while True:
            with self._changed:
                while True:
                    if self._stream != number:
                        return
                    message = self._session.next()
                    if message is not None or self._closing:
                        break
                    self._sendable.wait()
                self._moved = time.monotonic()  # gRPC asks for more: what came before is on its way
            if message is None:
                yield pb.SessionRequest(close=pb.CloseSession())
                return
            yield message

    def _deliver(self, frame: Frame) -> None:
        """Without the lock: what is told may do as it likes."""
        with self._changed:
            future = self._futures.pop(frame.seq, None)
            began, sent, kind = self._begun.pop(frame.seq, (time.monotonic(), 0, ""))
            self._checkpoints.discard(frame.seq)
            self._changed.notify_all()
            if self._session.ready:
                self._sendable.notify_all()
        if future is None:
            return
        body: Any = frame.body
        if body.HasField("failure"):
            cls = _FAILURES.get(body.failure.error, InternalError)
            error = cls(body.failure.detail)
            if body.failure.fatal:
                self._end(error)
            future.set_exception(error)
            return
        if self._observe is not None:
            total = time.monotonic() - began
            self._observe(Timing(sent, frame.size, total, body.compute_us / 1e6, body.queued_us / 1e6, kind))
        future.set_result(Answered(body, frame))

    def _watch(self) -> None:
        """Give a connection up on which something waits and nothing comes."""
        while not self._stop.wait(min(1.0, self._stall_s / 4)):
            with self._changed:
                waits = self._call is not None and (self._session.under_way > 0 or not self._stream)
                silent = time.monotonic() - self._moved
                call = self._call if waits and silent > self._stall_s else None
            if call is not None:
                log.warning("no progress", extra={"peer": self._address, "silent_s": round(silent, 1)})
                call.cancel()

    def _end(self, error: FoglineError) -> None:
        """Everything that waits fails, and whatever is submitted later."""
        with self._changed:
            self._failure = self._failure or error
            waiting, self._futures = self._futures, {}
            self._stop.set()
            self._opened.set()
            self._notify()
            call = self._call
        if call is not None:
            with suppress(grpc.RpcError):
                call.cancel()
        for future in waiting.values():
            future.set_exception(error)


class _LostError(UnavailableError):
    """The host no longer has what it would need to go on: trying again does not help."""
