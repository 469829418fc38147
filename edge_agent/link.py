"""A connection that several threads share: opened by whoever needs it first, dropped by whoever sees it fail."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

import grpc

from fogline.common.errors import FoglineError
from fogline.common.rpc.retry import Backoff
from fogline.edge_agent.workers import Stop

_log = logging.getLogger(__name__)
_STEADY_S = 10.0  # a connection that lived so long was a good one: what comes after it is a new trouble


class Session(Protocol):
    """One open connection."""

    @property
    def channel(self) -> grpc.Channel:
        """Closing it cancels every call."""


S = TypeVar("S", bound=Session)


class Link(ABC, Generic[S]):
    """Threads that use one peer share its connection, and when it breaks they wait together."""

    def __init__(self, peer: str, stop: Stop) -> None:
        self._peer, self._stop = peer, stop
        self._backoff = Backoff(cap_s=10.0)
        self._lock = threading.Lock()
        self._session: S | None = None
        self._opened = 0.0
        self.error = "not connected yet"  # empty while connected

    @abstractmethod
    def _open(self) -> S:
        """One attempt to connect. Raises an error of the tree that says why not."""

    def session(self) -> S:
        """The connection; made when there is none, by one attempt. Raises what `_open` raises."""
        with self._lock:
            if self._session is None:
                try:
                    self._session = self._open()
                except FoglineError as error:
                    self._complain(error)
                    raise
                self.error = ""
                self._opened = time.monotonic()
            return self._session

    def failed(self, session: S | None, error: FoglineError) -> None:
        """A call on `session` (None: opening one) failed: close it, say why, and sleep until the next attempt."""
        with self._lock:
            # Whoever else used the same connection comes here too; only the first may close it and say so.
            if session is not None and session is self._session:
                self._complain(error)
                if time.monotonic() - self._opened > _STEADY_S:
                    self._backoff.reset()
                self._session = None
                session.channel.close()
        self._backoff.wait(self._stop.event)

    def _complain(self, error: FoglineError) -> None:
        if not self._stop:
            if str(error) != self.error:
                _log.warning("%s: %s; trying again", self._peer, error)
            self.error = str(error) or type(error).__name__

    def progressed(self) -> None:
        """The peer did something useful: the next trouble starts with a short wait again."""
        self._backoff.reset()

    def reconnect(self) -> None:
        """Our certificate was renewed: have the next use connect with it. What runs begins anew, where it stood."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.channel.close()

    def close(self) -> None:
        """Cancel what runs and disconnect."""
        # Without the lock: whoever is connecting holds it, for as long as that takes.
        session, self._session = self._session, None
        if session is not None:
            session.channel.close()
