"""The model registry: safetensors files by name and version, durable over kill -9 and power cuts.

A model arrives in pieces (`begin`, `append`, `finish`), each of which may be the last before a crash: `begin` then says
where to go on. A version exists once its row does; the bytes are on disk before that. Each tenant has names of its
own, and nobody gets at another's bytes by knowing their digest.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fogline.cloud_server.config import ModelsConfig
from fogline.cloud_server.safetensors_header import check_safetensors
from fogline.common.blobs import DIGEST_BYTES, BlobStore
from fogline.common.database import Database
from fogline.common.errors import InputError

MAX_QUERY = 64  # names in one heartbeat
PARTIAL_IDLE_S = 86_400.0  # a publisher silent for a day starts over

_NAME = re.compile(r"[a-z0-9._-]{1,64}")
_COLUMNS = "name, version, digest, size, device, time_us"

_SCHEMA = """
CREATE TABLE versions (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    digest BLOB NOT NULL,
    size INTEGER NOT NULL,
    device TEXT NOT NULL,
    time_us INTEGER NOT NULL,
    PRIMARY KEY (name, version),
    UNIQUE (name, digest)
) STRICT
"""


@dataclass(frozen=True)
class Version:
    """One version of one model. `time_us`: when it was stored, by the server's clock; `device`: who published it."""

    name: str
    version: int
    digest: bytes
    size: int
    device: str
    time_us: int


class ModelStore:
    """Versions in SQLite, bytes in a blob store. Any thread may call."""

    def __init__(self, folder: Path, config: ModelsConfig) -> None:
        self._config = config
        self._blobs = BlobStore(folder / "blobs", config.quota_bytes)
        self._db = Database(folder / "models.sqlite", _SCHEMA, 1)
        self._senders: dict[bytes, str | None] = {}  # tenants whose uploads began since we started
        self._finishing = threading.Lock()  # no byte is an orphan between its commit and its row
        self._drop_orphans()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def begin(self, name: str, digest: bytes, size: int, tenant: str = "") -> Version | int:
        """Return the version that these bytes already are, or the offset to send them from.

        Raises InputError for an offer that can never be stored, CapacityError for one that does not fit now.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"model name {name[:80]!r} is not allowed; use 1 to 64 of a-z, 0-9, '.', '_' and '-'")
        if len(digest) != DIGEST_BYTES:
            raise InputError(f"model {name}: digest of {len(digest)} bytes; a SHA-256 has {DIGEST_BYTES}")
        if not 0 < size <= self._config.max_bytes:
            raise InputError(
                f"model {name} of {size} bytes: 1 to {self._config.max_bytes} are allowed (models.max_bytes)"
            )
        if found := self._find(_key(name, tenant), digest):
            return found
        self._keep_apart(name, digest, tenant)
        if self._blobs.has(digest):
            if self._blobs.size(digest) != size:
                raise InputError(f"model {name}: {digest.hex()} has {self._blobs.size(digest)} bytes, not {size}")
            return size  # nothing to send: held under another name
        self._blobs.drop_partials(PARTIAL_IDLE_S)
        offset = self._blobs.partial_offset(digest)
        if offset > size:
            raise InputError(f"model {name}: {offset} bytes of {digest.hex()} are held and {size} are announced")
        self._blobs.append(digest, offset, b"", size)  # reserves the room
        return offset

    def append(self, digest: bytes, offset: int, data: bytes, size: int) -> None:
        """Store a piece. Raises ProtocolError for one out of order, CapacityError for a full disk."""
        self._blobs.append(digest, offset, data, size)

    def finish(self, name: str, digest: bytes, device: str, now_us: int, tenant: str = "") -> Version:
        """Make the next version of `name` from bytes that are all here.

        Raises ProtocolError when they don't match the digest, InputError when they are no safetensors file; they are
        dropped in both cases.
        """
        with self._finishing:
            self._senders.pop(digest, None)
            return _public(self._finish(_key(name, tenant), digest, device, now_us))

    def _finish(self, name: str, digest: bytes, device: str, now_us: int) -> Version:
        if not self._blobs.has(digest):
            self._blobs.commit(digest)
        try:
            check_safetensors(self._blobs.path(digest))
        except InputError:
            self._blobs.delete(digest)
            raise
        size = self._blobs.size(digest)
        with self._db.transaction() as db:
            row = db.execute(
                f"SELECT {_COLUMNS} FROM versions WHERE name = ? AND digest = ?", (name, digest)
            ).fetchone()
            if row is not None:
                return Version(*row)
            newest = db.execute("SELECT coalesce(max(version), 0) FROM versions WHERE name = ?", (name,)).fetchone()[0]
            made = Version(name, newest + 1, digest, size, device, now_us)
            db.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)", (name, newest + 1, digest, size, device, now_us)
            )
            oldest_kept = made.version - self._config.keep_versions + 1
            db.execute("DELETE FROM versions WHERE name = ? AND version < ?", (name, oldest_kept))
        self._drop_orphans()
        return made

    def latest(self, name: str, tenant: str = "") -> Version | None:
        """Return the newest version of a model, None where there is none."""
        query = f"SELECT {_COLUMNS} FROM versions WHERE name = ? ORDER BY version DESC LIMIT 1"
        found = self._db.rows(query, _key(name, tenant)) if _NAME.fullmatch(name) else []
        return _public(Version(*found[0])) if found else None

    def newer(self, held: Mapping[str, int], tenant: str = "") -> list[Version]:
        """Return the newest versions of the named models that are newer than those held (name to version)."""
        if len(held) > MAX_QUERY:
            raise InputError(f"a heartbeat names {len(held)} models; at most {MAX_QUERY}")
        found = (self.latest(name, tenant) for name in sorted(held))
        return [version for version in found if version is not None and version.version > held[version.name]]

    def open_for_reading(self, digest: bytes, tenant: str = "") -> tuple[Path, int]:
        """Return path and size of a model's bytes. Raises InputError when no version of this tenant has them."""
        if digest not in self._digests(tenant):
            raise InputError(f"no model has the digest {digest.hex()[:64]}; ask for the latest version again")
        return self._blobs.path(digest), self._blobs.size(digest)

    def totals(self) -> tuple[int, int]:
        """Return how many versions are held, and their bytes."""
        ((count,),) = self._db.rows("SELECT count(*) FROM versions")
        return int(count), self._blobs.total_bytes

    def _find(self, name: str, digest: bytes) -> Version | None:
        found = self._db.rows(f"SELECT {_COLUMNS} FROM versions WHERE name = ? AND digest = ?", name, digest)
        return _public(Version(*found[0])) if found else None

    def _digests(self, tenant: str) -> set[bytes]:
        rows = self._db.rows("SELECT name, digest FROM versions")
        return {digest for name, digest in rows if name.rpartition("/")[0] == tenant}

    def _keep_apart(self, name: str, digest: bytes, tenant: str) -> None:
        """Let nothing that another tenant sent of these bytes be of help. Raises InputError when they are all its."""
        with self._finishing:
            if digest not in self._digests(tenant):
                if self._db.rows("SELECT 1 FROM versions WHERE digest = ?", digest):
                    raise InputError(f"model {name}: {digest.hex()[:16]}… is held for another tenant; train your own")
                if self._senders.setdefault(digest, self._unknown_sender()) != tenant:
                    self._blobs.drop_partial(digest)
                    self._blobs.delete(digest)
            self._senders[digest] = tenant

    def _unknown_sender(self) -> str | None:
        """Whose bytes are there that came before we started: the default tenant's, where there is no other."""
        rows = self._db.rows("SELECT DISTINCT name FROM versions")
        return None if any("/" in name for (name,) in rows) else ""

    def _drop_orphans(self) -> None:
        """Delete bytes that no version names: of versions no longer kept, or from a crash just before the row."""
        self._blobs.keep({digest for (digest,) in self._db.rows("SELECT DISTINCT digest FROM versions")})


def _key(name: str, tenant: str) -> str:
    """A model's name among those of all tenants; a name has no slash."""
    return f"{tenant}/{name}" if tenant else name


def _public(version: Version) -> Version:
    return replace(version, name=version.name.rpartition("/")[2])
