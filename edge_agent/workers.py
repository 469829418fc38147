"""The agent's threads: started together, restarted with back-off when one fails, stopped together."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fogline.common.errors import FoglineError

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0  # a worker that ran this long starts again with the shortest pause
STUCK_S = 600.0  # trying every fog node that may be known takes half of it


class Stop:
    """The order to stop: an event to wait on, and calls that end waits elsewhere (of an RPC, say).

    Whoever works looks at it at every turn. So it also knows who has not for long and does not wait either: who hangs.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._calls: list[Callable[[], object]] = []
        self._looked: dict[int, float] = {}  # by watched thread, when it last did; infinite while it waits

    def set(self) -> None:
        """Give the order."""
        with self._lock:
            self.event.set()
            calls = list(self._calls)
        for call in calls:
            call()

    def __bool__(self) -> bool:
        self._look(time.monotonic())
        return self.event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, at most until the order; whether it was given."""
        self._look(time.monotonic() + seconds)
        given = self.event.wait(seconds)
        self._look(time.monotonic())
        return given

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While inside, `stuck_s` tells of this thread."""
        me = threading.get_ident()
        self._looked[me] = time.monotonic()
        try:
            yield
        finally:
            del self._looked[me]

    def stuck_s(self, thread: int | None) -> float:
        """For how many seconds a watched thread neither looked at the order nor waited; 0 for others."""
        return max(0.0, time.monotonic() - self._looked.get(thread or 0, math.inf))

    def _look(self, moment: float) -> None:
        me = threading.get_ident()
        if self._looked.get(me, math.inf) != math.inf:
            self._looked[me] = moment

    @contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        """While inside, the order also makes this call (at once when it was given before), and waiting is no hang."""
        me = threading.get_ident()
        before = self._looked.get(me, math.inf)
        self._look(math.inf)
        with self._lock:
            given = self.event.is_set()
            self._calls.append(call)
        try:
            if given:
                call()
            yield
        finally:
            with self._lock:
                self._calls.remove(call)
            if before != math.inf:
                self._looked[me] = time.monotonic()


@dataclass
class Worker:
    """One task of the agent. `run` returns when its work is done or the order to stop is given."""

    name: str
    run: Callable[[], None]
    error: str = ""  # the last failure, until it ran steadily again
    failures: int = 0
    alive: bool = False
    thread: threading.Thread | None = field(default=None, repr=False)


class Supervisor:
    """Runs workers, each in its thread."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.workers: list[Worker] = []

    def add(self, name: str, run: Callable[[], None]) -> Worker:
        """Start a worker."""
        worker = Worker(name, run)
        self.workers.append(worker)
        worker.thread = threading.Thread(target=self._root, args=(worker,), name=name, daemon=True)
        worker.thread.start()
        return worker

    def join(self, seconds: float) -> list[str]:
        """Wait for all workers; the names of those that did not end in time."""
        deadline = time.monotonic() + seconds
        for worker in self.workers:
            if worker.thread is not None:
                worker.thread.join(max(0.0, deadline - time.monotonic()))
        return [w.name for w in self.workers if w.thread is not None and w.thread.is_alive()]

    def stuck(self) -> dict[str, float]:
        """Workers that hang, and for how many seconds; see `Stop`."""
        found = {w.name: self._stop.stuck_s(w.thread.ident) for w in self.workers if w.thread is not None}
        return {name: seconds for name, seconds in found.items() if seconds > STUCK_S}

    def _root(self, worker: Worker) -> None:
        with self._stop.watched():
            self._run(worker)

    def _run(self, worker: Worker) -> None:
        pause = 0.5
        while not self._stop:
            started = time.monotonic()
            worker.alive = True
            try:
                worker.run()
                worker.error = ""
                return
            except FoglineError as error:
                worker.error = str(error)
                _log.error("%s: %s", worker.name, error)
            except Exception as error:  # noqa: BLE001 - a task's root: whatever it was, the agent goes on
                worker.error = f"{type(error).__name__}: {error}"
                _log.exception("%s failed unexpectedly; please report it", worker.name)
            finally:
                worker.alive = False
            worker.failures += 1
            if time.monotonic() - started > _STEADY_S:
                pause = 0.5
            self._stop.wait(pause)
            pause = min(_LONGEST_PAUSE_S, pause * 2)
