"""What the certificate service remembers: its authorities, tokens, devices, certificates. SQLite, safe under kill -9.

Every function works inside a transaction of the caller's; times are whole seconds since the Unix epoch.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import msgspec

from fogline.common.pki import Identity, Role

VERSION = 1
SCHEMA = """
CREATE TABLE authorities (
    generation INTEGER PRIMARY KEY,
    file TEXT NOT NULL,              -- FILE.pem and FILE.key
    signs_from INTEGER NOT NULL,
    retires_at INTEGER               -- null: nothing follows it yet
) STRICT;
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,     -- SHA-256 of the secret
    role TEXT NOT NULL,
    tenant TEXT NOT NULL,
    names TEXT NOT NULL,             -- a name, or a pattern with * and ?
    hosts BLOB NOT NULL,             -- JSON, patterns; empty: any that nobody else has
    uses INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE TABLE token_uses (
    token INTEGER NOT NULL REFERENCES tokens (id),
    name TEXT NOT NULL,
    key BLOB NOT NULL,               -- SHA-256 of the public key
    PRIMARY KEY (token, name, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE devices (name TEXT PRIMARY KEY, role TEXT NOT NULL, tenant TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE hosts (host TEXT PRIMARY KEY, name TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY,         -- hexadecimal
    name TEXT NOT NULL,
    generation INTEGER NOT NULL,
    key BLOB NOT NULL,
    not_after INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_by_name ON certificates (name);
CREATE INDEX certificates_by_key ON certificates (key);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('revocations', 1);
"""


@dataclass(frozen=True)
class Generation:
    """One key of the authority."""

    number: int
    file: str
    signs_from: int
    retires_at: int | None


@dataclass(frozen=True)
class Token:
    """What a token allows."""

    id: int
    role: Role
    tenant: str
    names: str
    hosts: tuple[str, ...]
    uses: int
    expires_at: int


def generations(db: sqlite3.Connection) -> list[Generation]:
    """Every key of the authority, oldest first."""
    rows = db.execute("SELECT generation, file, signs_from, retires_at FROM authorities ORDER BY generation")
    return [Generation(*row) for row in rows]


def add_generation(db: sqlite3.Connection, made: Generation) -> None:
    """Add a key, or what is new about it."""
    db.execute(
        "INSERT INTO authorities VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET signs_from = excluded.signs_from,"
        " retires_at = excluded.retires_at",
        (made.number, made.file, made.signs_from, made.retires_at),
    )


def add_token(db: sqlite3.Connection, digest: bytes, token: Token) -> None:
    """Add a token (its `id` is not looked at)."""
    db.execute(
        "INSERT INTO tokens (digest, role, tenant, names, hosts, uses, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (digest, token.role, token.tenant, token.names, msgspec.json.encode(token.hosts), token.uses, token.expires_at),
    )


def find_token(db: sqlite3.Connection, digest: bytes) -> Token | None:
    """The token with this secret."""
    row = db.execute(
        "SELECT id, role, tenant, names, hosts, uses, expires_at FROM tokens WHERE digest = ?", (digest,)
    ).fetchone()
    if row is None:
        return None
    number, role, tenant, names, hosts, uses, expires_at = row
    return Token(number, role, tenant, names, msgspec.json.decode(hosts, type=tuple[str, ...]), uses, expires_at)


def forget_tokens(db: sqlite3.Connection, before: int) -> None:
    """Drop tokens that ended before a moment: they only take up room."""
    db.execute("DELETE FROM token_uses WHERE token IN (SELECT id FROM tokens WHERE expires_at < ?)", (before,))
    db.execute("DELETE FROM tokens WHERE expires_at < ?", (before,))


def used_before(db: sqlite3.Connection, token: Token, name: str, key: bytes) -> bool:
    """Whether this is the repetition of a use."""
    found = db.execute("SELECT 1 FROM token_uses WHERE token = ? AND name = ? AND key = ?", (token.id, name, key))
    return found.fetchone() is not None


def uses(db: sqlite3.Connection, token: Token) -> int:
    """How often a token was used."""
    return int(db.execute("SELECT count(*) FROM token_uses WHERE token = ?", (token.id,)).fetchone()[0])


def use(db: sqlite3.Connection, token: Token, name: str, key: bytes) -> None:
    """Count a use."""
    db.execute("INSERT OR IGNORE INTO token_uses VALUES (?, ?, ?)", (token.id, name, key))


def find_device(db: sqlite3.Connection, name: str) -> Identity | None:
    """Who has a name."""
    row = db.execute("SELECT name, role, tenant FROM devices WHERE name = ?", (name,)).fetchone()
    return Identity(*row) if row else None


def add_device(db: sqlite3.Connection, who: Identity, hosts: tuple[str, ...]) -> None:
    """Give a name away, with the hosts that go with it."""
    db.execute("INSERT OR IGNORE INTO devices VALUES (?, ?, ?)", (who.name, who.role, who.tenant))
    db.executemany("INSERT OR IGNORE INTO hosts VALUES (?, ?)", [(host, who.name) for host in hosts])


def devices(db: sqlite3.Connection) -> list[tuple[Identity, int, int | None]]:
    """Every device by name, when its newest certificate ends, and when that was revoked."""
    rows = db.execute(
        "SELECT d.name, role, tenant, max(not_after), revoked_at FROM devices d JOIN certificates c USING (name)"
        " GROUP BY d.name ORDER BY d.name"
    )
    return [(Identity(name, role, tenant), ends, revoked_at) for name, role, tenant, ends, revoked_at in rows]


def host_owner(db: sqlite3.Connection, host: str) -> str | None:
    """Who has a host name or address."""
    row = db.execute("SELECT name FROM hosts WHERE host = ?", (host,)).fetchone()
    return str(row[0]) if row else None


def has_key(db: sqlite3.Connection, name: str, key: bytes) -> bool:
    """Whether a device was ever certified with a key."""
    found = db.execute("SELECT 1 FROM certificates WHERE name = ? AND key = ?", (name, key))
    return found.fetchone() is not None


def key_revoked(db: sqlite3.Connection, key: bytes) -> bool:
    """Whether a certificate of this key was revoked."""
    found = db.execute("SELECT 1 FROM certificates WHERE key = ? AND revoked_at IS NOT NULL", (key,))
    return found.fetchone() is not None


def add_certificate(
    db: sqlite3.Connection, serial: int, name: str, generation: int, key: bytes, not_after: int
) -> None:
    """Note a certificate; one that is known is left as it is."""
    row = (f"{serial:x}", name, generation, key, not_after)
    db.execute("INSERT OR IGNORE INTO certificates VALUES (?, ?, ?, ?, ?, NULL)", row)


def valid_certificates(db: sqlite3.Connection, name: str, now: int) -> int:
    """How many certificates of a device are good now."""
    query = "SELECT count(*) FROM certificates WHERE name = ? AND not_after > ? AND revoked_at IS NULL"
    return int(db.execute(query, (name, now)).fetchone()[0])


def forget_certificates(db: sqlite3.Connection, name: str, ended_before: int) -> None:
    """Drop what ended long ago, but for the last of each key, which tells whose it is, and for what was revoked."""
    db.execute(
        "DELETE FROM certificates WHERE name = ? AND not_after < ? AND revoked_at IS NULL AND EXISTS (SELECT 1 FROM"
        " certificates n WHERE n.name = certificates.name AND n.key = certificates.key"
        " AND n.not_after > certificates.not_after)",
        (name, ended_before),
    )


def revoke(db: sqlite3.Connection, name: str, now: int, keep_key: bytes = b"") -> int:
    """Revoke what a device has, but for certificates of one key; how many were still valid and not yet revoked."""
    count = db.execute(
        "UPDATE certificates SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL AND key != ?",
        (now, name, keep_key),
    ).rowcount
    if count:
        db.execute("UPDATE counters SET value = value + 1 WHERE name = 'revocations'")
    return count


def release_hosts(db: sqlite3.Connection, name: str) -> None:
    """Let others have the hosts of a device."""
    db.execute("DELETE FROM hosts WHERE name = ?", (name,))


def revocations(db: sqlite3.Connection) -> int:
    """A number that rises whenever something was revoked."""
    return int(db.execute("SELECT value FROM counters WHERE name = 'revocations'").fetchone()[0])


def revoked(db: sqlite3.Connection, generation: int, valid_after: int) -> list[tuple[int, int]]:
    """Serial numbers, and when they were revoked, of certificates that would be valid without it."""
    rows = db.execute(
        "SELECT serial, revoked_at FROM certificates WHERE generation = ? AND revoked_at IS NOT NULL AND not_after > ?",
        (generation, valid_after),
    )
    return [(int(serial, 16), at) for serial, at in rows]


def newest_end(db: sqlite3.Connection, generation: int) -> int | None:
    """When the last certificate of an authority's key ends that was not revoked."""
    row = db.execute(
        "SELECT max(not_after) FROM certificates WHERE generation = ? AND revoked_at IS NULL", (generation,)
    ).fetchone()
    return None if row[0] is None else int(row[0])
