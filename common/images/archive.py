"""Many image records in one file: what `fogline encode` writes and `fogline decode` reads.

    file    = "FGA" version(u8 = 1) entry* end
    entry   = kind(u8: 1 shared state, 2 record) length(u32) crc32(u32) bytes
    end     = 0(u8) entries(u32)

Little-endian. Shared state stands before the records that need it. Reading refuses another magic or version, an
unknown kind, a length above its limit, a wrong checksum, a wrong count, a missing end, and bytes after it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fogline.common.errors import ConfigError, FormatError
from fogline.common.images.container import MAX_RECORD_BYTES, from_bytes, to_bytes
from fogline.common.images.record import ImageRecord, SharedState

MAGIC = b"FGA\x01"
MAX_SHARED_BYTES = 256 << 20

_END, _SHARED, _RECORD = 0, 1, 2
_LIMITS = {_SHARED: MAX_SHARED_BYTES, _RECORD: MAX_RECORD_BYTES}
_ENTRY = struct.Struct("<BII")
_CLOSE = struct.Struct("<BI")


class ArchiveWriter:
    """`with ArchiveWriter(path) as archive`: the file gets its name once all is in it."""

    def __init__(self, path: Path) -> None:
        self._path, self._temp = path, path.with_name(f".{path.name}.part")
        try:
            self._file: BinaryIO = self._temp.open("wb")
        except OSError as error:
            raise ConfigError(f"{path} can't be written: {error.strerror}; choose another -o") from error
        self._file.write(MAGIC)
        self._entries = 0
        self._shared: set[bytes] = set()

    def add_shared(self, state: SharedState) -> None:
        """Add what later records need; once is enough."""
        if state.digest not in self._shared:
            self._shared.add(state.digest)
            self._add(_SHARED, state.data)

    def add(self, record: ImageRecord) -> int:
        """Add a record and return its size in bytes."""
        data = to_bytes(record)
        self._add(_RECORD, data)
        return len(data)

    def _add(self, kind: int, data: bytes) -> None:
        self._file.write(_ENTRY.pack(kind, len(data), zlib.crc32(data)) + data)
        self._entries += 1

    def __enter__(self) -> ArchiveWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Finish the file, or leave nothing behind after an error."""
        with self._file:
            if kind is None:
                self._file.write(_CLOSE.pack(_END, self._entries))
                self._file.flush()
                os.fsync(self._file.fileno())
                self._temp.replace(self._path)
                return
        with suppress(FileNotFoundError):
            self._temp.unlink()


def read_archive(path: Path) -> Iterator[SharedState | ImageRecord]:
    """Yield what is in an archive, in order. Raises ConfigError for no file, FormatError for a malformed one."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise FormatError(f"{path} is no archive of image records of version 1; make one with `fogline encode`")
        count = 0
        while (kind := _take(file, 1, path)[0]) != _END:
            if kind not in _LIMITS:
                raise FormatError(f"{path}: entry {count} is of the unknown kind {kind}; the file is damaged, or newer")
            size, checksum = struct.unpack("<II", _take(file, 8, path))
            if size > _LIMITS[kind]:
                raise FormatError(f"{path}: entry {count} has {size} bytes; at most {_LIMITS[kind]}")
            data = _take(file, size, path)
            if zlib.crc32(data) != checksum:
                raise FormatError(f"{path}: entry {count} is damaged (checksum); copy or encode it again")
            count += 1
            yield SharedState(hashlib.sha256(data).digest(), data) if kind == _SHARED else from_bytes(data)
        (written,) = struct.unpack("<I", _take(file, 4, path))
        if written != count or file.read(1):
            raise FormatError(f"{path}: {count} entries, {written} announced, or bytes after the end; copy it again")


def _take(file: BinaryIO, size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise FormatError(f"{path} ends in the middle; it was cut off: copy or encode it again")
    return data
