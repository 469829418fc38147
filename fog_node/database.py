"""One SQLite file served by one thread; jobs that arrive together share one commit, and so one fsync."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from fogline.common.errors import CapacityError, ConfigError, UnavailableError

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], Any]

MAX_JOBS_PER_COMMIT = 256


class Database:
    """Runs jobs on one connection in its own thread. A job's result is handed out only after its commit is on disk.

    A job that raises is undone alone; the others of its commit stand. Jobs may be run twice: they touch nothing but
    the connection.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # WAL survives kill -9; FULL makes a commit survive a power cut, which is what "stored" promises an edge.
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            self._connection.executescript(schema)
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{path}: can't open the fog node's store: {error}; check the disk, or name another data_dir"
            ) from error
        self._jobs: queue.SimpleQueue[tuple[Job, Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="fog-database", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run `job` in the database thread. Raises CapacityError when the disk is full, else what the job raises."""
        future: Future[T] = Future()
        self._jobs.put((job, future))
        # Shielded: a caller that is cancelled must not undo, or be told apart from, what is already being committed.
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        """Finish the queued jobs, fold the WAL in and close. Idempotent."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
            self._connection.close()

    def _serve(self) -> None:
        closing = False
        while not closing:
            batch: list[tuple[Job, Future[Any]]] = []
            entry = self._jobs.get()
            while True:
                if entry is None:
                    closing = True
                    break
                batch.append(entry)
                if len(batch) == MAX_JOBS_PER_COMMIT or self._jobs.empty():
                    break
                entry = self._jobs.get()
            if batch:
                self._commit(batch)

    def _commit(self, batch: list[tuple[Job, Future[Any]]]) -> None:
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for job, _ in batch:
                outcomes.append(self._attempt(job))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            # The whole transaction is gone (a full disk rolls it back by itself): nobody may believe in his result.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if len(batch) > 1:
                # Whoever only reads, or deletes, need not suffer for one that had no room.
                for entry in batch:
                    self._commit([entry])
                return
            outcomes = [(None, self._explain(error))]
        for (_, future), (result, failure) in zip(batch, outcomes, strict=True):
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

    def _attempt(self, job: Job) -> tuple[Any, BaseException | None]:
        self._connection.execute("SAVEPOINT job")
        try:
            result = job(self._connection)
        except Exception as error:  # the root of a job: its error belongs to its caller
            if not self._connection.in_transaction and isinstance(error, sqlite3.Error):
                raise
            self._connection.execute("ROLLBACK TO job")
            self._connection.execute("RELEASE job")
            return None, self._explain(error) if isinstance(error, sqlite3.OperationalError) else error
        self._connection.execute("RELEASE job")
        return result, None

    def _explain(self, error: sqlite3.Error) -> Exception:
        if "full" in str(error):
            return CapacityError(f"{self._path}: {error}; make room on the disk")
        return UnavailableError(f"{self._path}: {error}; check the disk")
