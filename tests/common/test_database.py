"""The database that every tier uses: all or nothing, versions, and disks that fail."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from fogline.common.database import Database
from fogline.common.errors import CapacityError, ConfigError, FormatError, UnavailableError

SCHEMA = "CREATE TABLE t (data BLOB)"


def test_a_database_that_can_not_grow_is_a_capacity_error_and_changes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite", SCHEMA, 1)
    database.rows("PRAGMA max_page_count=20")

    def insert(*sizes: int) -> None:
        with database.transaction() as db:
            db.executemany("INSERT INTO t VALUES (?)", [(bytes(size),) for size in sizes])

    with pytest.raises(CapacityError, match="full"):
        insert(10, 1 << 20)
    assert database.rows("SELECT COUNT(*) FROM t") == [(0,)]
    insert(10)
    database.close()


def test_an_error_of_the_caller_undoes_what_it_did_and_stays_what_it_was(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite", SCHEMA, 1)
    with pytest.raises(ZeroDivisionError), database.transaction() as db:
        db.execute("INSERT INTO t VALUES (?)", (1 / len(db.execute("INSERT INTO t VALUES (1)").fetchall()),))
    with pytest.raises(UnavailableError, match="no such table"), database.transaction() as db:
        db.execute("INSERT INTO nowhere VALUES (1)")
    assert database.rows("SELECT COUNT(*) FROM t") == [(0,)]
    database.close()


def test_threads_share_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite", SCHEMA, 1)

    def add() -> None:
        for _ in range(20):
            with database.transaction() as db:
                db.execute("INSERT INTO t SELECT COUNT(*) FROM t")

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row[0] for row in database.rows("SELECT data FROM t")) == list(range(80))
    database.close()
    database.close()


def test_what_can_not_be_opened_says_why(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"not a database, but long enough to be taken for one " * 20)
    with pytest.raises(FormatError, match=r"damaged.*begin anew"):
        Database(path, SCHEMA, 1)
    path.unlink()
    Database(path, SCHEMA, 1).close()
    Database(path, SCHEMA, 1).close()
    with pytest.raises(FormatError, match="schema 1, this version of Fogline has 2"):
        Database(path, SCHEMA, 2)
    with pytest.raises(ConfigError, match="data_dir"):
        Database(path / "below-a-file", SCHEMA, 1)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version=0")
    other.close()
    with pytest.raises(ConfigError, match="already exists"):
        Database(path, SCHEMA, 1)


def test_an_older_file_is_brought_up_to_date_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    old = Database(path, SCHEMA, 1)
    with old.transaction() as db:
        db.execute("INSERT INTO t VALUES ('kept')")
    old.close()
    steps = {1: "ALTER TABLE t ADD COLUMN more INTEGER NOT NULL DEFAULT 7", 2: "CREATE TABLE u (x)"}
    with pytest.raises(FormatError, match="schema 1, this version of Fogline has 3"):
        Database(path, SCHEMA, 3, upgrades={2: steps[2]})
    new = Database(path, SCHEMA, 3, upgrades=steps)
    assert new.rows("SELECT * FROM t") == [("kept", 7)]
    assert new.rows("SELECT * FROM u") == []
    new.close()
    Database(path, SCHEMA, 3, upgrades=steps).close()
    with pytest.raises(FormatError, match="schema 3, this version of Fogline has 2"):
        Database(path, SCHEMA, 2, upgrades=steps)
