"""Receive: what others captured, from the fog node into the library."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fogline.common import trace
from fogline.common.errors import CapacityError, FoglineError, InternalError, UnavailableError
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.retry import Backoff
from fogline.common.rpc.status import translate
from fogline.edge_agent.arrivals import Arrivals, OnNew
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.config import FilterConfig
from fogline.edge_agent.fog import FogLink, FogSession
from fogline.edge_agent.intake import MAX_WAITING, Announced, Intake
from fogline.edge_agent.library import Library
from fogline.edge_agent.workers import Stop

_log = logging.getLogger(__name__)
STALL_S = 120.0  # without a byte while blobs are asked for


@dataclass
class ReceiveState:
    """What outlives a connection, and what health tells."""

    head: int = 0  # newest cursor of the fog node
    full: str = ""  # why nothing can be stored now
    gone: int = 0  # records that the fog node no longer held
    failures: Counter[bytes] = field(default_factory=Counter)  # transfers that went wrong, by digest


class Receiver:
    """The receiving task."""

    def __init__(
        self,
        link: FogLink,
        library: Library,
        clock: FogClock,
        wanted: FilterConfig,
        stop: Stop,
        on_new: OnNew = lambda record, size, delay_s: None,
    ) -> None:
        """`on_new` is told of every image that was not held before."""
        self._link, self._library, self._clock, self._wanted, self._stop = link, library, clock, wanted, stop
        self._on_new = on_new
        self.state = ReceiveState()
        self._disk = Backoff(1.0, 30.0)

    def want(self, wanted: FilterConfig) -> None:
        """The filter of the next subscription."""
        self._wanted = wanted

    def run(self) -> None:
        """Until the order to stop."""
        while not self._stop:
            session: FogSession | None = None
            try:
                session = self._link.session()
                trace.new_trace()
                _Subscription(
                    session, self._link, self._library, self._clock, self._wanted, self._stop, self.state, self._on_new
                ).run()
            except CapacityError as error:
                if not self.state.full:
                    _log.error("receiving pauses: %s", error)
                self.state.full = str(error)
                self._disk.wait(self._stop.event)
            except FoglineError as error:
                self._link.failed(session, error)


class _Subscription:
    """One Subscribe call and one Fetch call. gRPC writes requests from a thread of its own."""

    def __init__(
        self, session: FogSession, link: FogLink, library: Library, clock: FogClock, wanted: FilterConfig, stop: Stop,
        state: ReceiveState, on_new: OnNew,
    ) -> None:  # fmt: skip
        self._session, self._link, self._stop, self._state = session, link, stop, state
        self._changed = threading.Condition(threading.RLock())
        store_id = session.limits.store_id
        cursor = library.attach(store_id)
        self._intake = Intake(cursor)
        self._arrivals = Arrivals(self._intake, library, clock, state, self._on_stored, on_new)
        self._request = pb.SubscribeRequest(
            cursor=cursor, filter=pb.Filter(labels=wanted.labels, cameras=wanted.cameras), store_id=store_id
        )
        self._alive = time.monotonic()  # when bytes last came, or nothing was asked for
        self._ended = False
        self._failure: FoglineError | None = None
        self._calls: list[Any] = []

    def run(self) -> None:
        """Until either call ends. Raises an error of the tree."""
        images = self._session.images
        reader = threading.Thread(target=self._read_announcements, name="announcements", daemon=True)
        try:
            with translate(self._session.address):
                fetched = images.Fetch(self._requests())
                self._calls = [fetched, images.Subscribe(self._request)]
                with self._stop.calling(self._cancel):
                    reader.start()
                    for response in fetched:
                        with self._changed:
                            self._alive = time.monotonic()
                            try:
                                self._arrivals.take(response)
                            except BaseException:
                                # The machine is ahead of the disk now: nobody may save its cursor.
                                self._ended = True
                                raise
                            self._changed.notify_all()
            raise UnavailableError(f"{self._session.address} ended the transfer")
        except FoglineError as error:
            raise self._failure or error from error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._cancel()
            if reader.ident is not None:
                reader.join()

    def _cancel(self) -> None:
        for call in self._calls:
            call.cancel()

    def _on_stored(self) -> None:
        self._state.full = ""
        self._link.progressed()

    def _abort(self, failure: FoglineError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._ended = True
        self._cancel()

    def _read_announcements(self) -> None:
        try:
            with translate(self._session.address):
                for response in self._calls[1]:
                    with self._changed:
                        self._intake.announce(map(_announced, response.published), response.head)
                        self._state.head = max(self._state.head, response.head)
                        self._changed.notify_all()
                        # Not reading on is the back-pressure: gRPC's flow control stops the fog node.
                        while self._intake.waiting > MAX_WAITING and not self._ended:
                            self._changed.wait(1.0)  # records that are known go without anybody telling
            self._abort(UnavailableError(f"{self._session.address} ended the subscription"))
        except FoglineError as error:
            self._abort(error)
        except Exception as error:  # noqa: BLE001 - a thread's root: the other call must not wait for it for ever
            _log.exception("reading announcements failed unexpectedly; please report it")
            self._abort(InternalError(f"reading announcements failed: {error}"))

    def _requests(self) -> Iterator[pb.FetchRequest]:
        while True:
            with self._changed:
                if self._ended or self._stop:
                    return
                if not self._intake.coming:
                    self._alive = time.monotonic()
                elif time.monotonic() - self._alive > STALL_S:
                    self._abort(UnavailableError(f"{self._session.address} sent nothing for {STALL_S:.0f} s"))
                    return
                try:
                    items = self._arrivals.plan()
                except FoglineError as error:
                    self._abort(error)
                    return
                if not items:
                    self._changed.wait(1.0)
                    continue
            yield pb.FetchRequest(items=items)


def _announced(published: pb.Published) -> Announced:
    shared = tuple((blob.digest, blob.size) for blob in published.shared)
    return Announced(published.cursor, published.size, published.digest, shared)
