"""What an `AdaptiveModel` knows of its host: one session, kept up in the background, and an estimate of the link.

One thread opens the session, and another one where the first can't be gone on with; it sees when the connection breaks
and when it is back. A second one probes. Nobody who asks for an answer waits for either.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from torch import Tensor

from fogline.common.errors import CapacityError, FoglineError, InternalError, UnavailableError
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.gen import tensors_pb2_grpc
from fogline.common.rpc.retry import Backoff
from fogline.common.rpc.tensor_client import Timing
from fogline.common.split.link import LinkEstimator
from fogline.common.split.live import LiveLoad
from fogline.common.split.options import Option
from fogline.common.split.planner import Planner, Ticket
from fogline.common.split.policies.base import Choice
from fogline.common.split.structure import tensors
from fogline.common.tails.remote import RemoteTail
from fogline.common.wire.session_client import LOG_BYTES

log = logging.getLogger(__name__)

POLL_S = 0.03
TINY_PROBES = 5  # for the round trip, after one that pays for the connection
FIRST_PROBE = 4096  # bytes, once a host is there
MOST_UNDER_WAY = 8  # answers that are waited for, or that nobody waits for any more
MOST_BYTES = LOG_BYTES // 2  # of them: the session's log never becomes so full that sending has to wait

Observe = Callable[[Timing], None]


@dataclass(frozen=True)
class Sent:
    """What is on its way. `broken` is done as soon as the connection is."""

    answer: Future[Any]
    broken: Future[None]
    ticket: Ticket
    at: float  # when it was handed to the link


class _Session:
    """One remote tail, and what its answers took."""

    def __init__(self) -> None:
        self.timings: deque[tuple[float, Timing]] = deque()  # of answers that were not accounted for yet, with the time
        self.remote: RemoteTail
        self.failure: FoglineError | None = None
        self.broken: Future[None] = Future()
        self.under_way = self.bytes_under_way = self.answered = 0

    def observe(self, timing: Timing) -> None:
        """For the remote tail, which calls it before the answer is told."""
        self.timings.append((time.monotonic(), timing))


class HostLink:
    """See the module. `lock` guards the estimate, the load and whatever planners are built upon them."""

    def __init__(
        self, connect: Callable[[Observe], RemoteTail], channel: Callable[[], grpc.Channel], link: LinkEstimator
    ) -> None:
        """`connect` opens a session and `channel` a connection for probes. Nothing is done before `start`."""
        self.lock = threading.RLock()
        self.link, self.live = link, LiveLoad()
        self.planner: Planner | None = None  # that of the last request: tells which probes are of use
        self.trouble: FoglineError | None = None  # why there is no session
        self._connect, self._channel = connect, channel
        self._session: _Session | None = None
        self._probes: grpc.Channel | None = None
        self._prober = ThreadPoolExecutor(1, thread_name_prefix="adaptive-probes")
        self._probing: Future[None] | None = None
        self._known = threading.Event()  # the link was measured since the connection was made
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="adaptive-link", daemon=True)

    def start(self) -> None:
        """Connect, in the background."""
        self._keeper.start()

    @property
    def connected(self) -> bool:
        """Whether something can be sent now."""
        session = self._session
        return session is not None and session.failure is None and session.remote.connected

    def wait_known(self, timeout_s: float) -> None:
        """Wait for a host and the first figures of the link. Raises why there are none."""
        end = time.monotonic() + timeout_s
        # A connection that broke may still count as known, until the thread that watches it has seen that.
        while self._known.wait(max(0.0, end - time.monotonic())) and not self.connected and time.monotonic() < end:
            time.sleep(POLL_S / 3)
        if not (self._known.is_set() and self.connected):
            raise self.trouble or UnavailableError(f"no host took the session within {timeout_s} s; is it running?")

    def send(self, args: tuple[Any, ...], kwargs: dict[str, Any], at: str | None, planner: Planner, to: Choice) -> Sent:
        """Hand what crosses a cut to the session, without waiting. Raises FoglineError where that can't be."""
        size = sum(f.tensor.numel() * f.tensor.element_size() for f in tensors([args, kwargs]))
        with self.lock:
            session = self._session
            if session is None or session.failure is not None or not session.remote.connected:
                raise UnavailableError("the connection is broken")
            full = session.under_way >= MOST_UNDER_WAY or session.bytes_under_way + size > MOST_BYTES
            if session.under_way and full:
                raise CapacityError("too much is under way that was not answered yet")
            answer = session.remote.submit(*args, at=at, **kwargs)
            # After it was coded, and where the session refuses it, nothing was put on the link.
            now = time.monotonic()
            ticket = planner.sending(now, to)
            session.under_way += 1
            session.bytes_under_way += size
            # Within the lock, so that answers are accounted for in their order.
            sent = Sent(answer, session.broken, ticket, now)
            answer.add_done_callback(lambda _: self._answered(session, sent, size, planner, to.option))
            return sent

    def close(self) -> None:
        """End the session. Idempotent."""
        self._stop.set()
        self._drop_probes()
        if self._keeper.is_alive():
            self._keeper.join(10.0)
        self._prober.shutdown(wait=False)

    def _answered(self, session: _Session, sent: Sent, size: int, planner: Planner, option: Option) -> None:
        error = sent.answer.exception()
        with self.lock:
            session.under_way -= 1
            session.bytes_under_way -= size
            if error is not None:
                # Also where only one operation failed: a host that can't do what the device can is asked anew, later.
                session.failure = error if isinstance(error, FoglineError) else InternalError(repr(error))
                self._break(session)
                return
            session.answered += 1
            now, timing = session.timings.popleft()
            if sent.broken.done():
                return  # sent again over another connection: its times are those of the outage
            planner.answered(now, sent.ticket, timing.compute_s + timing.queued_s)
            self.live.computed(1, timing.compute_s, option.hosts_s[1])
            self.live.waited(1, timing.queued_s)

    # -- the session

    def _keep(self) -> None:
        backoff = Backoff(base_s=0.2, cap_s=5.0)
        try:
            while not self._stop.is_set():
                if self._serve_one():
                    backoff.reset()
                if self.trouble is not None and not self._stop.is_set():
                    log.warning("no session with the tail host", extra={"error_text": str(self.trouble)})
                backoff.wait(self._stop)
        except Exception as error:
            log.exception("the link to the tail host failed by a mistake of ours; everything is computed here")
            self.trouble = InternalError(f"the link to the tail host failed: {error!r}")

    def _serve_one(self) -> bool:
        """Open a session and stay with it until it can't be gone on with; whether it was of use."""
        session = _Session()
        try:
            session.remote = self._connect(session.observe)
        except FoglineError as error:
            self.trouble = error
            return False
        session.timings.clear()  # of the weights
        try:
            with self.lock:
                self._session, self.trouble = session, None
            self._watch(session)
        finally:
            with self.lock:
                self._session, self.trouble = None, session.failure
                self._break(session)
            session.remote.close()
        return session.answered > 0

    def _watch(self, session: _Session) -> None:
        connected = False
        while not self._stop.wait(POLL_S):
            session.failure = session.failure or session.remote.failure
            if session.failure is not None:
                return
            before, connected = connected, session.remote.connected
            if before and not connected:
                with self.lock:
                    self._break(session)
                self._drop_probes()
            elif not before and connected:
                with self.lock:
                    session.broken = Future()
                self._probe(self._first)
            elif connected:
                self._probe_if_due()

    def _probe_if_due(self) -> None:
        now = time.monotonic()
        with self.lock:
            size, again, trip = None, False, False
            if not self._known.is_set():
                again = now >= self.link.soonest_probe
            elif self.planner is not None:
                size = self.planner.probe_due(now)
                trip = size is None and self.planner.trip_due(now)
        if again:
            self._probe(self._first)
        elif size is not None:
            self._probe(lambda: self._padding(size))
        elif trip:
            self._probe(self._trip)

    def _break(self, session: _Session) -> None:
        """The connection is gone: what was on it is not waited for. Under the lock."""
        self._known.clear()
        self.link.lost(time.monotonic())
        if not session.broken.done():
            session.broken.set_result(None)

    # -- probes

    def _probe(self, job: Callable[[], None]) -> None:
        if self._probing is None or self._probing.done():
            self._probing = self._prober.submit(self._probed, job)

    def _probed(self, job: Callable[[], None]) -> None:
        try:
            job()
        except (FoglineError, grpc.RpcError, ValueError) as error:  # ValueError: of a channel that was closed
            log.info("a probe failed", extra={"error_text": str(error)})
            with self.lock:
                self.link.lost(time.monotonic())
                self.link.probe_failed()
            self._drop_probes()

    def _first(self) -> None:
        """The round trip, then a little of the rate."""
        with self.lock:
            self.link.probing(time.monotonic())
        for number in range(TINY_PROBES + 1):
            seconds = self._exchange(1)
            if number:
                with self.lock:
                    self.link.round_trip(seconds, time.monotonic())
        self._padding(FIRST_PROBE)
        self._known.set()

    def _trip(self) -> None:
        seconds = self._exchange(1)
        with self.lock:
            self.link.round_trip(seconds, time.monotonic())

    def _padding(self, size: int) -> None:
        with self.lock:
            now = time.monotonic()
            self.link.probing(now)
            number = self.link.begin(now, size)
        self._exchange(size)
        with self.lock:
            self.link.acknowledge(time.monotonic(), number)
            self.live.waited(1, 0.0)  # or a host that was once busy would never be asked again

    def _exchange(self, size: int) -> float:
        channel = self._probes
        if channel is None:
            channel = self._probes = self._channel()
            if self._stop.is_set():
                self._drop_probes()
        before = time.monotonic()
        tensors_pb2_grpc.TensorServiceStub(channel).Probe(pb.ProbeRequest(padding=bytes(size)))
        return time.monotonic() - before

    def _drop_probes(self) -> None:
        channel, self._probes = self._probes, None
        if channel is not None:
            with suppress(grpc.RpcError):
                channel.close()


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many samples a call has: the first dimension of its first tensor, else 1."""
    first: Tensor | None = next((f.tensor for f in tensors([args, kwargs])), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1
