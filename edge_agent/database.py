"""SQLite as the agent uses it: WAL, synced on commit, one connection shared by threads behind one lock."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fogline.common.errors import CapacityError, ConfigError


class Database:
    """One file. `transaction()` is the only way to write; it commits all or nothing, also under kill -9."""

    def __init__(self, path: Path, schema: str, version: int) -> None:
        self.lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, version):
                raise ConfigError(f"{path} is of format {found}, this version writes {version}; move the file away")
            with self.transaction() as db:
                for statement in schema.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={version}")
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigError(f"{path} is no usable database ({error}); move it away to start afresh") from error
        except BaseException:
            self._db.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises CapacityError when the disk is full."""
        with self.lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                self._rollback()
                if "disk is full" in str(error):
                    raise CapacityError(f"the disk of the agent's data_dir is full ({error}); make room") from error
                raise
            except BaseException:
                self._rollback()
                raise

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Read."""
        with self.lock:
            return self._db.execute(query, values).fetchall()

    def close(self) -> None:
        """Close; later calls fail."""
        with self.lock:
            self._db.close()

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
