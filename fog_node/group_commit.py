"""A database served by one thread: jobs that arrive together share one commit, and so one fsync."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from fogline.common.database import Database
from fogline.common.errors import UnavailableError

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], Any]
Entry = tuple[Job, "Future[Any]"]

MAX_JOBS_PER_COMMIT = 256


class GroupCommit:
    """Runs jobs on a database in a thread of its own. A job's result is handed out only after its commit is on disk.

    A job that raises is undone alone; the others of its commit stand. Jobs may be run twice: what they touch
    besides the connection may be done twice, and done without the commit (blobs that are to be deleted).
    """

    def __init__(self, database: Database) -> None:
        """Owns the database from now on."""
        self._database = database
        self._jobs: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="fog-database", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run `job` in the database thread. Raises CapacityError when the disk is full, else what the job raises."""
        if not self._thread.is_alive():
            raise UnavailableError("the store is closed; the fog node is stopping")
        future: Future[T] = Future()
        self._jobs.put((job, future))
        # Shielded: a caller that is cancelled must not undo, or be told apart from, what is already being committed.
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        """Finish the queued jobs and close the database. Idempotent."""
        self._jobs.put(None)
        self._thread.join()
        self._database.close()

    def _serve(self) -> None:
        closing = False
        while not closing:
            batch: list[Entry] = []
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

    def _commit(self, batch: list[Entry]) -> None:
        try:
            with self._database.transaction() as db:
                outcomes = [self._attempt(db, job) for job, _ in batch]
        except Exception as error:  # noqa: BLE001 - the root of this thread: the whole commit is undone
            if len(batch) > 1:
                # Whoever only reads, or deletes, need not suffer for one that had no room.
                for entry in batch:
                    self._commit([entry])
                return
            outcomes = [(None, error)]
        for (_, future), (result, failure) in zip(batch, outcomes, strict=True):
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

    def _attempt(self, db: sqlite3.Connection, job: Job) -> tuple[Any, Exception | None]:
        db.execute("SAVEPOINT job")
        try:
            result = job(db)
        except Exception as error:  # the root of a job: its error belongs to its caller
            if not db.in_transaction:
                raise
            db.execute("ROLLBACK TO job")
            db.execute("RELEASE job")
            return None, self._database.explain(error) if isinstance(error, sqlite3.OperationalError) else error
        db.execute("RELEASE job")
        return result, None
