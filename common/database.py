"""SQLite as every tier uses it: WAL, one connection that threads share behind one lock, a schema with a version."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from fogline.common.errors import CapacityError, ConfigError, FormatError, UnavailableError

# The write-ahead log is given its room in advance and used anew long before that is spent: on a full disk rows can
# still be deleted, and with them the files that fill it.
_LOG_BYTES = 400_000
_LOG_PAGES = 50  # of 4096 bytes
_MAKE_ROOM = f"""
BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS _room (data BLOB); INSERT INTO _room VALUES (zeroblob({_LOG_BYTES}));
COMMIT; DROP TABLE _room; PRAGMA wal_checkpoint(PASSIVE);
"""


class Database:
    """One file. `transaction()` is the only way to write; it commits all or nothing, also under kill -9."""

    def __init__(
        self,
        path: Path,
        schema: str,
        version: int,
        synchronous: Literal["NORMAL", "FULL"] = "FULL",
        upgrades: Mapping[int, str] | None = None,
    ) -> None:
        """Open or create. With FULL, commits survive a power cut too.

        `upgrades[v]` is the script that makes a file of version v one of v + 1.

        Raises ConfigError when it can't be opened, FormatError when it is damaged or of another version, and
        CapacityError on a full disk.
        """
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"database {path} can't be opened: {error}; check data_dir and its owner", number=210
            ) from error
        try:
            self._prepare(schema, version, synchronous, upgrades or {})
        except BaseException:
            self._db.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; what is read inside stays true. Raises what `explain` makes of a disk that fails."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                self._rollback()
                raise self.explain(error) from error
            except BaseException:
                self._rollback()
                raise

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Read."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def explain(self, error: sqlite3.OperationalError) -> CapacityError | UnavailableError:
        """The error of the tree for what the disk did to a statement."""
        if "full" in str(error):
            return CapacityError(f"{self.path}: {error}; make room on the disk")
        return UnavailableError(f"{self.path}: {error}; check the disk")

    def close(self) -> None:
        """Fold the log in and close; later calls fail. Idempotent."""
        with self._lock:
            self._db.close()

    def _prepare(self, schema: str, version: int, synchronous: str, upgrades: Mapping[int, str]) -> None:
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={synchronous}")
            self._db.execute("PRAGMA foreign_keys=ON")
            self._db.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if found == 0:
                self._db.executescript(f"BEGIN IMMEDIATE; {schema}; PRAGMA user_version={version}; COMMIT;")
            while found in upgrades and found < version:
                self._db.executescript(f"BEGIN IMMEDIATE; {upgrades[found]}; PRAGMA user_version={found + 1}; COMMIT;")
                found += 1
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise self.explain(error) from error
            raise ConfigError(
                f"database {self.path} can't be opened: {error}; check data_dir and its owner", number=210
            ) from error
        except sqlite3.DatabaseError as error:
            raise FormatError(f"database {self.path} is damaged: {error}; move it away to begin anew") from error
        if found not in (0, version):
            raise FormatError(
                f"database {self.path} has schema {found}, this version of Fogline has {version}; update Fogline, or"
                " move it away to begin anew"
            )
        with suppress(sqlite3.OperationalError):  # full already: then it is as good as it gets
            self._db.executescript(_MAKE_ROOM)
        self._rollback()

    def _rollback(self) -> None:
        # A full disk often has done it already.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
