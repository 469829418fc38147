"""Where a loader finds records: files that `fogline encode` writes, an edge agent's library, or memory."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from fogline.common.blobs import read_blob
from fogline.common.errors import FormatError, InputError
from fogline.common.images.archive import MAGIC as ARCHIVE
from fogline.common.images.archive import read_archive
from fogline.common.images.container import MAGIC as RECORD
from fogline.common.images.container import MAX_RECORD_BYTES, from_bytes
from fogline.common.images.record import ImageRecord, SharedState

Entry = ImageRecord | SharedState
Source = str | os.PathLike[str] | Iterable[Entry]

_LIBRARY = "library.sqlite"
_log = logging.getLogger(__name__)


def read_source(source: Source) -> Iterator[Entry | FormatError]:
    """Yield what a source holds, shared state before the records that need it.

    A path is an archive or a single record, a folder of them (in the order of their names), an edge agent's library,
    or the agent's `data_dir`; anything else is iterated over. A record that can't be read is yielded as the FormatError
    that says why. Raises InputError for a source that holds no records, FormatError for a damaged archive.
    """
    if not isinstance(source, (str, os.PathLike)):
        for entry in source:
            if not isinstance(entry, (ImageRecord, SharedState)):
                raise InputError(f"a source of records yields {type(entry).__name__}; give ImageRecord or SharedState")
            yield entry
        return
    path = Path(source)
    if path.is_file():
        yield from _read_file(path)
    elif (library := next((f for f in (path, path / "library") if (f / _LIBRARY).is_file()), None)) is not None:
        yield from _read_library(library)
    elif path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and _magic(file) in (ARCHIVE[:3], RECORD)]
        if not files:
            raise InputError(f"{path}: neither records nor a library are in it; make some with `fogline encode`")
        for file in files:
            yield from _read_file(file)
    else:
        raise InputError(f"{path}: no such file or folder; name what `fogline encode` wrote, or a library")


def _read_file(path: Path) -> Iterator[Entry | FormatError]:
    if _magic(path) != RECORD:
        yield from read_archive(path)
        return
    try:
        with path.open("rb") as file:
            yield from_bytes(file.read(MAX_RECORD_BYTES + 1))
    except FormatError as error:
        yield FormatError(f"{path}: {error}")


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(RECORD))


def _read_library(root: Path) -> Iterator[Entry | FormatError]:
    """What an edge holds at this moment, oldest first. The agent may go on meanwhile.

    What it evicts before it was read is left out, which is logged, and what arrived since takes its place.
    """
    known: set[bytes] = set()
    gone, rows = 0, _rows(root, 0, -1)
    while rows:
        missed = 0
        for _, digest in rows:
            try:
                record = from_bytes(read_blob(root / "blobs", digest))
                states = [SharedState(d, read_blob(root / "blobs", d)) for d in record.shared if d not in known]
            except FormatError as error:
                if _holds(root, digest):
                    yield error
                else:
                    missed += 1
                continue
            known.update(state.digest for state in states)
            yield from states
            yield record
        gone += missed
        rows = _rows(root, rows[-1][0], missed) if missed else []
    if gone:
        _log.info("%s: %d records were evicted while it was read", root, gone)


def _rows(root: Path, after: int, most: int) -> list[tuple[int, bytes]]:
    """Rows and digests of a library's records after a row, oldest first, at most so many; -1: all."""
    query = "SELECT id, digest FROM records WHERE id > ? ORDER BY id LIMIT ?"
    try:
        with closing(sqlite3.connect(f"file:{root / _LIBRARY}?mode=ro", uri=True, timeout=30)) as db:
            return [(int(row), bytes(digest)) for row, digest in db.execute(query, (after, most))]
    except sqlite3.Error as error:
        raise InputError(f"{root / _LIBRARY}: not an edge agent's library ({error}); name its data_dir") from error


def _holds(root: Path, digest: bytes) -> bool:
    """A library says that it holds this record."""
    try:
        with closing(sqlite3.connect(f"file:{root / _LIBRARY}?mode=ro", uri=True, timeout=30)) as db:
            return db.execute("SELECT 1 FROM records WHERE digest = ?", (digest,)).fetchone() is not None
    except sqlite3.Error as error:
        raise InputError(f"{root / _LIBRARY}: not an edge agent's library ({error}); name its data_dir") from error
