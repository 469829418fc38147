"""The fleet: who joined, who was heard from lately, and what they said of themselves. Durable over kill -9."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fogline.common import addresses
from fogline.common.database import Database
from fogline.common.errors import CapacityError, ConfigError, IdentityError, InputError

DeviceRole = Literal["edge", "fog"]

# A device is given up after this many silent heartbeats: one may be lost, and a receiver's event loop stalls
# for a good part of a second while something large arrives.
MISSES = 3

MAX_CAPABILITIES = 32
MAX_GAUGES = 64
MAX_TEXT = 256

# What a fog node reports that makes it a worse choice for the next edge, most telling first.
LOAD_GAUGES = ("encode_queue_images", "subscribers")

_SCHEMA = """
CREATE TABLE devices (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    version TEXT NOT NULL,
    address TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    gauges TEXT NOT NULL,
    last_seen_us INTEGER NOT NULL,
    joined INTEGER NOT NULL,
    tenant TEXT NOT NULL DEFAULT ''
) STRICT
"""

_UPGRADES = {1: "ALTER TABLE devices ADD COLUMN tenant TEXT NOT NULL DEFAULT ''"}


@dataclass(frozen=True)
class Device:
    """A device as the registry knows it. Times are by the server's clock."""

    name: str
    role: DeviceRole
    version: str
    address: str  # host:port of a fog node, empty for an edge
    capabilities: Mapping[str, str]
    gauges: Mapping[str, float]
    last_seen_us: int
    alive: bool
    tenant: str = ""

    def shown_to(self, role: str, tenant: str) -> bool:
        """Whether a caller may know of it: of its own tenant, and of fog nodes that serve all.

        Fog nodes and cloud servers without a tenant are the operator's, and see everything.
        """
        everything = role != "edge" and not tenant
        return everything or self.tenant == tenant or (self.role == "fog" and not self.tenant)


class Registry:
    """The table of devices. Every method takes the time, so that tests own the clock; any thread may call."""

    def __init__(self, path: Path, heartbeat_ms: int, max_devices: int) -> None:
        # NORMAL: a heartbeat is not worth an fsync; after a power cut devices join again.
        self._db = Database(path, _SCHEMA, 2, "NORMAL", _UPGRADES)
        self._silence_us = MISSES * heartbeat_ms * 1000
        self._max_devices = max_devices

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def join(
        self,
        name: str,
        role: DeviceRole,
        version: str,
        address: str,
        capabilities: Mapping[str, str],
        now_us: int,
        tenant: str = "",
    ) -> None:
        """Register a device, or what is new about it. Raises InputError, IdentityError or CapacityError."""
        _check_texts(name, version, address, capabilities)
        if role == "fog":
            _check_address(name, address)
        elif address:
            raise InputError(f"edge {name} gives the address {address!r}; only fog nodes serve, leave it empty")
        with self._db.transaction() as db:
            known = db.execute("SELECT role, tenant FROM devices WHERE name = ?", (name,)).fetchone()
            if known is None and self._count(db) >= self._max_devices:
                raise CapacityError(f"the registry holds {self._max_devices} devices; raise max_devices")
            if known is not None and known[0] != role:
                raise IdentityError(f"{name} is registered as {known[0]} and joins as {role}; give it another name")
            if known is not None and known[1] != tenant:
                raise IdentityError(f"{name} is registered for tenant {known[1]!r} and joins for {tenant!r}; rename it")
            db.execute(
                "INSERT INTO devices VALUES (?, ?, ?, ?, ?, '{}', ?, 1, ?) ON CONFLICT (name) DO UPDATE SET "
                "version = excluded.version, address = excluded.address, capabilities = excluded.capabilities, "
                "last_seen_us = excluded.last_seen_us, joined = 1",
                (name, role, version, address, json.dumps(dict(capabilities)), now_us, tenant),
            )

    def heartbeat(self, name: str, gauges: Mapping[str, float], now_us: int) -> None:
        """Note that a device lives. Raises ConfigError for one that did not join, InputError for bad gauges."""
        if len(gauges) > MAX_GAUGES or any(len(key) > MAX_TEXT for key in gauges):
            raise InputError(
                f"{name} reports {len(gauges)} gauges; at most {MAX_GAUGES}, names up to {MAX_TEXT} characters"
            )
        # NaN and infinity are not JSON, and nobody can draw them.
        finite = {key: value for key, value in gauges.items() if math.isfinite(value)}
        with self._db.transaction() as db:
            updated = db.execute(
                "UPDATE devices SET gauges = ?, last_seen_us = ? WHERE name = ? AND joined = 1",
                (json.dumps(finite), now_us, name),
            ).rowcount
        if not updated:
            raise ConfigError(f"{name} is not registered here; it must Join before it sends heartbeats")

    def leave(self, name: str, now_us: int) -> None:
        """Note that a device ended on purpose: it is not alive from now on. Unknown ones are fine."""
        with self._db.transaction() as db:
            db.execute("UPDATE devices SET joined = 0, last_seen_us = ? WHERE name = ?", (now_us, name))

    def devices(self, now_us: int) -> list[Device]:
        """Return every device, by name."""
        rows = self._db.rows(
            "SELECT name, role, version, address, capabilities, gauges, last_seen_us, joined, tenant"
            " FROM devices ORDER BY name"
        )
        return [
            Device(
                name, role, version, address, json.loads(capabilities), json.loads(gauges), seen,
                bool(joined) and now_us - seen <= self._silence_us, tenant,
            )
            for name, role, version, address, capabilities, gauges, seen, joined, tenant in rows
        ]  # fmt: skip

    def counts(self, now_us: int) -> dict[str, tuple[int, int]]:
        """By role, how many devices joined and did not leave, and how many of them are alive."""
        rows = self._db.rows(
            "SELECT role, count(*), sum(? - last_seen_us <= ?) FROM devices WHERE joined GROUP BY role",
            now_us,
            self._silence_us,
        )
        return {role: (known, alive) for role, known, alive in rows}

    def fogs(self, now_us: int) -> list[Device]:
        """Return the fog nodes that live, least loaded first."""
        alive = [device for device in self.devices(now_us) if device.role == "fog" and device.alive]
        return sorted(alive, key=lambda fog: (*(fog.gauges.get(gauge, 0.0) for gauge in LOAD_GAUGES), fog.name))

    @staticmethod
    def _count(db: sqlite3.Connection) -> int:
        return int(db.execute("SELECT count(*) FROM devices").fetchone()[0])


def _check_texts(name: str, version: str, address: str, capabilities: Mapping[str, str]) -> None:
    if len(capabilities) > MAX_CAPABILITIES:
        raise InputError(f"{name} reports {len(capabilities)} capabilities; at most {MAX_CAPABILITIES}")
    for text in (name, version, address, *capabilities, *capabilities.values()):
        if len(text) > MAX_TEXT:
            raise InputError(
                f"{name[:64]} reports a text of {len(text)} characters ({text[:32]!r}…); at most {MAX_TEXT}"
            )


def _check_address(name: str, address: str) -> None:
    try:
        addresses.parse(address)
    except ConfigError as error:
        raise InputError(f"fog {name} can't be found by edges: {error}") from error
