"""Content-addressed files that survive kill -9: a blob is named by its SHA-256 and is there whole or not at all.

    root/ab/ab12…   blobs; they appear by rename after fsync
    root/partial/   prefixes of blobs that are still arriving; kept over a restart
    root/temp/      blobs being written; locked by their writer, so the next to open the store clears the dead ones

One process writes to a store; others may read it. Every method may be called from any thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from fogline.common.errors import CapacityError, ConfigError, FormatError, InternalError, ProtocolError
from fogline.common.files import FULL, sync_folder

DIGEST_BYTES = 32
_BLOCK = 1 << 20

Data = bytes | bytearray | memoryview


class BlobStore:
    """A folder of blobs with an optional quota in bytes.

    Every method raises CapacityError when the quota or the disk is full, FormatError for a blob that is absent or
    does not match its digest, and ProtocolError for a digest that is not 32 bytes.
    """

    def __init__(self, root: Path, capacity_bytes: int | None = None) -> None:
        self._root = root
        self._capacity = capacity_bytes
        self._lock = threading.RLock()
        self._partials = root / "partial"
        self._temps = root / "temp"
        try:
            for folder in (self._partials, self._temps):
                folder.mkdir(parents=True, exist_ok=True)
            sync_folder(root)
        except OSError as error:
            raise ConfigError(
                f"store {root} can't be opened: {error.strerror}; check path and owner", number=210
            ) from error
        self._clear_temps()
        self._blob_bytes = sum(_size(self.path(digest)) for digest in self.digests())
        # What each arriving blob will take in the end, so that two can't be promised the same room.
        self._reserved = {bytes.fromhex(path.name): _size(path) for path in self._partials.iterdir()}

    @property
    def total_bytes(self) -> int:
        """Bytes of all whole blobs."""
        return self._blob_bytes

    def put(self, data: Data) -> bytes:
        """Store `data` durably and return its digest. Storing what is already held costs one lookup."""
        digest = hashlib.sha256(data).digest()
        with self._lock:
            if self.has(digest):
                return digest
            self._check_room(len(data), digest)
            temp, handle = self._new_temp()
            try:
                _write_all(handle, data)
                os.fsync(handle)
                self._publish(temp, digest, len(data))
            except OSError as error:
                temp.unlink(missing_ok=True)
                raise self._full_or_bug(error, len(data)) from error
            finally:
                os.close(handle)
        return digest

    def get(self, digest: bytes) -> bytes:
        """Return a blob's bytes, verified against its digest."""
        return read_blob(self._root, digest)

    def path(self, digest: bytes) -> Path:
        """Return where a blob is or would be."""
        return _path(self._root, digest)

    def has(self, digest: bytes) -> bool:
        """Whether the whole blob is held."""
        return self.path(digest).is_file()

    def size(self, digest: bytes) -> int:
        """Return a blob's size in bytes."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise _absent(self._root, digest) from None

    def digests(self) -> Iterator[bytes]:
        """Yield the digest of every whole blob, in no order."""
        for folder in self._root.iterdir():
            if len(folder.name) == 2:
                yield from (bytes.fromhex(path.name) for path in folder.iterdir())

    def delete(self, digest: bytes) -> None:
        """Remove a blob; one that is not there is fine."""
        with self._lock:
            path = self.path(digest)
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                self._blob_bytes -= size

    def keep(self, named: Collection[bytes]) -> None:
        """Delete every blob that is not among `named`: after a kill, those whose row was never committed."""
        for digest in list(self.digests()):
            if digest not in named:
                self.delete(digest)

    def partial_offset(self, digest: bytes) -> int:
        """Return how many leading bytes of an arriving blob are held: where its sender should go on."""
        return _size(self._partial(digest))

    def append(self, digest: bytes, offset: int, data: Data, size: int) -> None:
        """Add bytes to an arriving blob of `size` bytes in all. Raises ProtocolError for a gap, repeat or excess."""
        with self._lock:
            held = self.partial_offset(digest)
            if offset != held:
                raise ProtocolError(
                    f"blob {digest.hex()}: bytes for offset {offset}, but {held} are held; send from there"
                )
            if offset + len(data) > size:
                raise ProtocolError(f"blob {digest.hex()}: {offset + len(data)} bytes, but {size} were announced")
            if self._reserved.get(digest, 0) < size:
                self._check_room(size, digest)
                self._reserved[digest] = size
            with self._partial(digest).open("ab", buffering=0) as file:
                try:
                    _write_all(file.fileno(), data)
                except OSError as error:
                    file.truncate(held)
                    raise self._full_or_bug(error, size - held) from error

    def commit(self, digest: bytes) -> None:
        """Turn an arriving blob into a whole one, durably.

        Raises ProtocolError when the bytes don't match the digest; they are then dropped and must be sent again.
        """
        with self._lock:
            partial = self._partial(digest)
            if self.has(digest):
                self.drop_partial(digest)
                return
            try:
                file = partial.open("rb")
            except FileNotFoundError:
                raise _absent(self._root, digest) from None
            with file:
                sha = hashlib.sha256()
                while block := file.read(_BLOCK):
                    sha.update(block)
                size = file.tell()
                if sha.digest() != digest:
                    self.drop_partial(digest)
                    raise ProtocolError(
                        f"blob {digest.hex()}: the {size} bytes received don't match it; send them again"
                    )
                try:
                    os.fsync(file.fileno())
                    self._publish(partial, digest, size)
                except OSError as error:
                    raise self._full_or_bug(error, size) from error
            self._reserved.pop(digest, None)

    def drop_partial(self, digest: bytes) -> None:
        """Forget an arriving blob; one that is not there is fine."""
        with self._lock:
            self._partial(digest).unlink(missing_ok=True)
            self._reserved.pop(digest, None)

    def drop_partials(self, idle_s: float) -> int:
        """Forget blobs that nothing was added to for `idle_s` seconds: their senders are gone. Returns how many."""
        dropped = 0
        for path in list(self._partials.iterdir()):
            with self._lock, suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > idle_s:
                    self.drop_partial(bytes.fromhex(path.name))
                    dropped += 1
        return dropped

    def _partial(self, digest: bytes) -> Path:
        return self._partials / _name(digest)

    def _publish(self, source: Path, digest: bytes, size: int) -> None:
        target = self.path(digest)
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            sync_folder(self._root)
        source.rename(target)
        sync_folder(target.parent)
        self._blob_bytes += size

    def _check_room(self, size: int, digest: bytes) -> None:
        if self._capacity is None:
            return
        promised = sum(room for other, room in self._reserved.items() if other != digest)
        if self._blob_bytes + promised + size > self._capacity:
            raise CapacityError(
                f"store {self._root}: {size} bytes don't fit: {self._blob_bytes} held and {promised} arriving of a "
                f"quota of {self._capacity}; raise the quota or delete something",
                number=602,
            )

    def _full_or_bug(self, error: OSError, size: int) -> CapacityError | InternalError:
        if error.errno in FULL:
            return CapacityError(
                f"store {self._root}: {size} bytes don't fit: the disk refused them ({error.strerror}); "
                "make room on it",
                number=601,
            )
        return InternalError(f"store {self._root} can't be written: {error}; check the disk and the folder's owner")

    def _new_temp(self) -> tuple[Path, int]:
        while True:
            path = self._temps / secrets.token_hex(8)
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise self._full_or_bug(error, 0) from error
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:
                return path, handle
            os.close(handle)  # someone who opened the store cleared it before we held its lock

    def _clear_temps(self) -> None:
        for path in self._temps.iterdir():
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def read_blob(root: Path, digest: bytes) -> bytes:
    """A blob's bytes from the store in `root`, verified; for readers, who need not open the store.

    Raises FormatError for a blob that is absent or does not match its digest.
    """
    try:
        data = _path(root, digest).read_bytes()
    except FileNotFoundError:
        raise _absent(root, digest) from None
    if hashlib.sha256(data).digest() != digest:
        raise FormatError(f"blob {digest.hex()} in {root} is damaged on disk; delete it and fetch it again")
    return data


def _absent(root: Path, digest: bytes) -> FormatError:
    return FormatError(f"blob {digest.hex()} is not in the store {root}")


def _path(root: Path, digest: bytes) -> Path:
    name = _name(digest)
    return root / name[:2] / name


def _name(digest: bytes) -> str:
    if len(digest) != DIGEST_BYTES:
        raise ProtocolError(f"digest of {len(digest)} bytes; a SHA-256 has {DIGEST_BYTES}")
    return digest.hex()


def _write_all(handle: int, data: Data) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(handle, view) :]


def _size(path: Path) -> int:
    """Bytes of a file; 0 when the writer of a store that we only read has just removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
