"""The host's end of the tensor plane: sessions that outlive their connections, executed apart from the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fogline.common.errors import (
    CapacityError,
    ConfigError,
    FoglineError,
    IdentityError,
    InternalError,
    ProtocolError,
    UnavailableError,
)
from fogline.common.rpc import peer as peers
from fogline.common.rpc import tensor_messages as messages
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.gen import tensors_pb2_grpc
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.slots import Slots
from fogline.common.rpc.tensor_execution import Executor, Started, run
from fogline.common.rpc.tensor_stream import Response
from fogline.common.wire.memory import PayloadMemory
from fogline.common.wire.session_client import Opened
from fogline.common.wire.session_host import HostSession, Reply
from fogline.common.wire.tensors import Chunk, Frame, Limits, Start

log = logging.getLogger(__name__)

T = TypeVar("T")

READ_AHEAD = 4 << 20  # bytes; for the server of this service: 40 MB/s over a link of 0.1 s
PROGRESS_S = 2.0  # how often a client hears that an operation goes on
MAX_PADDING = 256 * 1024
MAX_SETUP = 1 << 20
OPENERS = 4  # sessions that are made at once
SWEEP_S = 30.0
OPEN_S = 30.0  # for the first message of a stream


@dataclass
class _Live:
    """A session in memory."""

    peer: Peer
    host: HostSession
    started: Started
    thread: ThreadPoolExecutor
    # One for each of those who wait, so that a step wakes nobody for nothing.
    work: asyncio.Event = field(default_factory=asyncio.Event)  # something to execute
    answers: asyncio.Event = field(default_factory=asyncio.Event)  # something to send
    room: asyncio.Event = field(default_factory=asyncio.Event)  # something was executed
    task: asyncio.Task[None] | None = None
    stream: asyncio.Task[Any] | None = None  # of the connection that it has
    detached: float = 0.0  # since when it has none, by the monotonic clock
    moved: float = 0.0  # when something last came from its client, or went to it
    writing: bool = False  # a message of an answer that the client does not take yet
    executing: int = 0
    progress: bool = False  # the client is to hear that it goes on
    arrived: dict[int, float] = field(default_factory=dict)
    over: FoglineError | None = None


class TensorService(tensors_pb2_grpc.TensorServiceServicer):
    """Serves sessions. `close` ends them; their checkpoints stay."""

    def __init__(
        self,
        executor: Executor,
        limits: Limits,
        *,
        slots: Slots | None = None,
        max_sessions: int = 64,
        max_sessions_per_peer: int = 16,
        max_kept_bytes: int = 2 << 30,
        ttl_s: float = 600.0,
        stall_s: float = 30.0,
        observe: Any = None,
    ) -> None:
        self._executor, self._limits = executor, limits
        self._slots = slots or Slots(1)
        self._max_sessions, self._max_per_peer, self._max_kept = max_sessions, max_sessions_per_peer, max_kept_bytes
        self._ttl_s, self._stall_s = ttl_s, stall_s
        self._observe = observe
        self._memory = PayloadMemory()  # of all sessions
        self._live: dict[bytes, _Live] = {}
        self._opening: dict[bytes, tuple[asyncio.Lock, int]] = {}  # by session: with how many that hold or await it
        self._starting: Counter[Peer] = Counter()  # sessions that the executor is making
        # Models that are slow to load must not take the threads that all else is answered from.
        self._openers = ThreadPoolExecutor(OPENERS, thread_name_prefix="open-session")
        self._starts: dict[bytes, asyncio.Task[tuple[_Live, bool]]] = {}
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def sessions(self) -> int:
        """Sessions in memory."""
        return len(self._live)

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:
        """Say whether a model may be used here."""
        if request.protocol != messages.PROTOCOL:
            raise ProtocolError(f"protocol {request.protocol} was asked for, this host speaks {messages.PROTOCOL}")
        found = await asyncio.to_thread(self._executor.describe, request.model[:512])
        found.protocol = messages.PROTOCOL
        found.limits.CopyFrom(messages.limits_message(self._limits))
        found.sessions, found.queued = len(self._live), sum(live.host.waiting for live in self._live.values())
        found.load = found.queued / self._slots.count
        return found

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        """Padding for padding."""
        if max(request.want, len(request.padding)) > MAX_PADDING:
            raise ProtocolError(f"a probe of {max(request.want, len(request.padding))} bytes; at most {MAX_PADDING}")
        return pb.ProbeResponse(padding=bytes(request.want))

    async def Session(  # type: ignore[override]  # writes to the context, since answers come when they will
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Any
    ) -> None:
        """One connection of a session."""
        peer = peers.peer(context)
        try:
            first = await asyncio.wait_for(anext(request_iterator), OPEN_S)
        except (StopAsyncIteration, asyncio.TimeoutError):
            raise ProtocolError("a session stream that opens no session") from None
        if first.WhichOneof("message") != "open" or len(first.open.setup) > MAX_SETUP:
            raise ProtocolError(f"a session begins with its opening, of at most {MAX_SETUP} bytes")
        messages.opening(first.open)
        session = first.open.session
        async with self._alone(session):
            live, fresh = await self._while_telling(context, self._attach(peer, first.open))
            live.stream = asyncio.current_task()
        closed = False
        try:
            said = live.host.attach(messages.opening(first.open))
            log.info("session attached", extra={"device": peer.name, "session": session.hex(), "fresh": fresh})
            await context.write(pb.SessionResponse(opened=_opened(said, fresh, self._limits)))
            await self._serve(live, request_iterator, context)
            closed = live.over is None
        finally:
            if live.stream is asyncio.current_task():
                live.stream, live.detached = None, time.monotonic()
                live.host.detach()
            # Closed by its client; or broken and of no use to anybody, however its stream ended.
            if (closed or live.over is not None) and self._live.get(session) is live:
                await self._forget(session, forget=closed)

    async def _while_telling(self, context: Any, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which a client that waits for it hears of."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=PROGRESS_S))[0]:
                await context.write(pb.SessionResponse(progress=pb.Progress()))
        except BaseException:
            task.cancel()
            raise
        return task.result()

    @asynccontextmanager
    async def _alone(self, session: bytes) -> AsyncIterator[None]:
        """One stream at a time attaches to a session; a slow start of one is not felt by the others."""
        lock, users = self._opening.get(session) or (asyncio.Lock(), 0)
        self._opening[session] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._opening[session]
            if users == 1:
                del self._opening[session]
            else:
                self._opening[session] = (lock, users - 1)

    async def _attach(self, peer: Peer, message: pb.OpenSession) -> tuple[_Live, bool]:
        """The session that a client asks for, with this stream as its only connection."""
        live = self._live.get(message.session)
        if live is not None and live.peer != peer:
            raise IdentityError(f"session {message.session.hex()} is not of {peer.name}; open one of your own")
        if live is not None and live.stream is not None:
            live.stream.cancel()  # the client has given that connection up
            await asyncio.wait({live.stream}, timeout=5.0)
        if live is not None and (message.rollback_to or live.over is not None):
            await self._forget(message.session, forget=False)
        held = self._live.get(message.session)  # which may have been closed meanwhile
        if held is not None:
            return held, False
        # A start goes on when its stream ends: the next one of the session finds it, made or half made.
        start = self._starts.get(message.session)
        if start is None:
            start = self._starts[message.session] = asyncio.create_task(self._start(peer, message))
            start.add_done_callback(partial(self._started, message.session))
        made, fresh = await asyncio.shield(start)
        if made.peer != peer:
            raise IdentityError(f"session {message.session.hex()} is not of {peer.name}; open one of your own")
        return made, fresh

    def _started(self, session: bytes, start: asyncio.Task[tuple[_Live, bool]]) -> None:
        del self._starts[session]
        if not start.cancelled() and (error := start.exception()) is not None:
            log.info("no session was made", extra={"session": session.hex(), "error_text": str(error)})

    async def _start(self, peer: Peer, message: pb.OpenSession) -> tuple[_Live, bool]:
        await self._drop_expired()
        self._make_room(peer)
        self._starting[peer] += 1
        try:
            open_session = partial(self._executor.open, peer, message)
            started = await asyncio.get_running_loop().run_in_executor(self._openers, open_session)
        finally:
            self._starting[peer] -= 1
            self._starting += Counter()  # forgets those at zero
        if started is None:
            raise ConfigError(
                f"session {message.session.hex()} is not known here any more, nor a checkpoint of it; connect anew"
            )
        host = HostSession(self._limits, executed=started.executed, answers=started.answers, memory=self._memory)
        host.checkpointed(started.executed)
        thread = ThreadPoolExecutor(1, thread_name_prefix="session")
        live = self._live[message.session] = _Live(peer, host, started, thread)
        live.detached = time.monotonic()
        live.task = asyncio.create_task(self._execute(message.session, live))
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep())
        return live, started.executed == 0

    def _make_room(self, peer: Peer) -> None:
        """Raises CapacityError without room for another session."""
        own = sum(live.peer == peer for live in self._live.values()) + self._starting[peer]
        total = len(self._live) + self._starting.total()
        if own >= self._max_per_peer or total >= self._max_sessions:
            raise CapacityError(
                f"{total} sessions are open here, {own} of {peer.name}; at most {self._max_sessions} and "
                f"{self._max_per_peer}. Close one, try again later, or raise tensors.max_sessions"
            )

    async def _sweep(self) -> None:
        """Drop sessions that lost their client for longer than `ttl_s`; their checkpoints stay."""
        while self._live:
            await asyncio.sleep(min(SWEEP_S, self._ttl_s / 4 + 0.01))
            await self._drop_expired()
            if time.monotonic() - max((live.moved for live in self._live.values()), default=0.0) > SWEEP_S:
                self._memory.clear()
        self._memory.clear()

    async def _drop_expired(self) -> None:
        now = time.monotonic()
        for session, live in list(self._live.items()):
            if live.stream is None and now - live.detached > self._ttl_s and self._live.get(session) is live:
                log.info("session dropped", extra={"device": live.peer.name, "session": session.hex()})
                await self._forget(session, forget=False)

    async def _serve(self, live: _Live, requests: AsyncIterator[pb.SessionRequest | Chunk], context: Any) -> None:
        """Read and write until the client closes the session. Raises when the stream breaks or stalls."""
        live.writing, live.progress, live.moved = False, False, time.monotonic()
        reader = asyncio.create_task(self._read(live, requests))
        writer = asyncio.create_task(self._write(live, context))
        watch = asyncio.create_task(self._watch(live))
        tasks = (writer, reader, watch)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            next(task for task in tasks if task.done()).result()
        finally:
            for task in tasks:
                task.cancel()
            if not writer.done():
                # gRPC hangs when a call is aborted while a write of it is under way.
                await asyncio.wait({writer}, timeout=2.0)
            for task in tasks:
                with suppress(asyncio.CancelledError, Exception):
                    task.exception()

    async def _read(self, live: _Live, requests: AsyncIterator[pb.SessionRequest | Chunk]) -> None:
        """Returns when the client closes the session; raises UnavailableError when it only goes away."""
        host = live.host
        async for message in requests:
            live.moved = time.monotonic()
            held = host.held
            if isinstance(message, Chunk):
                host.chunk(message)
            elif message.HasField("chunk"):
                host.chunk(messages.chunk_of(message.chunk))
            elif message.HasField("operation"):
                await self._room(live, message.operation)
                host.operation(messages.operation(message.operation), message.operation.answered_through)
            elif message.HasField("acknowledge"):
                host.acknowledge(message.acknowledge.answered_through)
            elif message.HasField("close"):
                return
            else:
                raise ProtocolError("a session request of a kind that is unknown here; update the older end")
            if host.held != held:
                live.arrived[host.held] = time.monotonic()
                live.work.set()
            while host.full:
                live.room.clear()
                await live.room.wait()
        raise UnavailableError("the client went away without closing its session")

    async def _room(self, live: _Live, operation: pb.Operation) -> None:
        """Wait until an operation fits in, before anything is allocated for it. Raises CapacityError."""
        more = sum(header.coded_bytes for header in operation.tensors)
        while (kept := self.kept_bytes) and kept + more > self._max_kept:
            if not live.host.waiting:  # it is others who hold so much
                raise CapacityError(
                    f"sessions here hold {kept} bytes and {more} more were to come, at most {self._max_kept}; try "
                    "again later, or raise tensors.max_kept_bytes"
                )
            live.room.clear()
            await live.room.wait()

    async def _write(self, live: _Live, context: Any) -> None:
        while True:
            live.answers.clear()
            message = live.host.next()
            if message is not None:
                item: Response = Reply(message, live.host.durable) if isinstance(message, Start) else message
                live.writing = True
                await context.write(item)
                del item  # and with it the answer's memory
                live.writing, live.moved = False, time.monotonic()
            elif live.over is not None:
                return
            elif live.progress:
                live.progress = False
                await context.write(pb.SessionResponse(progress=pb.Progress(seq=live.executing or live.host.held + 1)))
            else:
                await live.answers.wait()

    async def _watch(self, live: _Live) -> None:
        """Let the client hear of progress, which is that something is executed or comes in: what it has sent may be in
        buffers on the way. Raise UnavailableError when it is in the middle of a frame, either way, and nothing moves.
        Between frames it may be silent for as long as it likes.
        """
        told = live.moved
        while True:
            silent = time.monotonic() - live.moved
            if silent > self._stall_s and (live.writing or (live.host.receiving and not live.host.full)):
                raise UnavailableError(f"nothing moved for {silent:.0f} s in the middle of a frame")
            await asyncio.sleep(min(PROGRESS_S, self._stall_s / 4))
            if live.executing or (live.host.receiving and live.moved != told):
                live.progress, told = True, live.moved
                live.answers.set()

    async def _execute(self, session: bytes, live: _Live) -> None:
        """Execute what comes, also while there is no connection."""
        try:
            while live.over is None:
                frame = live.host.take()
                if frame is None:
                    live.work.clear()
                    await live.work.wait()
                else:
                    await self._execute_one(session, live, frame)
                del frame  # its memory may be used again
        except Exception:  # the root of the task: the client must not wait for ever
            log.exception("a session failed by a mistake of ours", extra={"session": session.hex()})
            live.over = InternalError("the session failed; see the log of the host")
            live.answers.set()
            live.room.set()

    async def _execute_one(self, session: bytes, live: _Live, frame: Frame) -> None:
        live.executing = frame.seq
        arrived = live.arrived.pop(frame.seq, time.monotonic())
        # The thread lets go of its work only after it was told that it is done, so it takes the frame out of a box.
        work = partial(run, live.started.hosted, [frame], live.host.answers, arrived, self._slots)
        answer, saved = await asyncio.get_running_loop().run_in_executor(live.thread, work)
        live.executing = 0
        if saved:
            live.host.checkpointed(frame.seq)
        live.host.done(answer)
        body: Any = answer.body
        if body.HasField("failure") and body.failure.fatal:
            live.over = ProtocolError(body.failure.detail)
            log.warning("session broke", extra={"session": session.hex(), "error_text": body.failure.detail})
        if self._observe is not None:
            self._observe(frame, answer)
        live.answers.set()
        live.room.set()

    @property
    def kept_bytes(self) -> int:
        """Payload in memory: operations that come, wait or are executed, and answers that were not acknowledged."""
        return sum(live.host.kept_bytes for live in self._live.values())

    async def _forget(self, session: bytes, *, forget: bool) -> None:
        live = self._live.pop(session, None)
        if live is None:
            return
        await asyncio.shield(self._end(live, forget))  # also where the stream that asked for it goes away

    async def _end(self, live: _Live, forget: bool) -> None:
        if live.task is not None:
            live.task.cancel()
            await asyncio.wait({live.task})
        if live.executing:
            live.started.hosted.interrupt()
        await asyncio.get_running_loop().run_in_executor(live.thread, lambda: live.started.hosted.close(forget=forget))
        live.thread.shutdown(wait=False)

    async def close(self) -> None:
        """End every session; checkpoints stay."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._starts:
            self._executor.interrupt()
            await asyncio.wait(self._starts.values())
        for session in list(self._live):
            await self._forget(session, forget=False)
        self._openers.shutdown(wait=False)


def _opened(said: Opened, fresh: bool, limits: Limits) -> pb.SessionOpened:
    return pb.SessionOpened(
        fresh=fresh,
        held_through=said.held_through,
        partial_operation=said.partial_operation,
        partial_bytes=said.partial_bytes,
        durable_through=said.durable_through,
        limits=messages.limits_message(limits),
    )
