"""SQLite as the cloud server uses it: WAL, one writer, a schema that knows its version."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

from fogline.common.errors import CapacityError, ConfigError, FormatError


def connect(path: Path, schema: str, version: int, synchronous: Literal["NORMAL", "FULL"]) -> sqlite3.Connection:
    """Open or create a database; commits survive kill -9, and with FULL a power cut too.

    Statements autocommit; use `with transaction(db):` for more than one.
    Raises ConfigError, FormatError or CapacityError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
        if found == 0:
            db.executescript(f"BEGIN IMMEDIATE; {schema}; PRAGMA user_version={version}; COMMIT;")
    except (sqlite3.OperationalError, OSError) as error:
        if "full" in str(error):
            raise CapacityError(f"database {path}: the disk is full; make room on it") from error
        raise ConfigError(f"database {path} can't be opened: {error}; check data_dir and its owner") from error
    except sqlite3.DatabaseError as error:
        raise FormatError(f"database {path} is damaged: {error}; move it away to begin anew") from error
    if found not in (0, version):
        db.close()
        raise FormatError(f"database {path} has schema {found}, this version of Fogline has {version}; update Fogline")
    return db


class transaction:
    """`with transaction(db):` commits on success and rolls back on any error; a full disk becomes CapacityError."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> sqlite3.Connection:
        """Take the write lock at once, so that what is read inside stays true."""
        self._db.execute("BEGIN IMMEDIATE")
        return self._db

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        """Commit or roll back."""
        if kind is None:
            try:
                self._db.execute("COMMIT")
                return
            except sqlite3.OperationalError as failed:
                error = failed
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        if isinstance(error, sqlite3.OperationalError):
            if "full" in str(error):
                raise CapacityError("database: the disk is full; make room on it") from error
            if kind is None:
                raise error
