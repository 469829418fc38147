"""The fleet registry against its own clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from fogline.cloud_server.registry import MISSES, Registry
from fogline.common.errors import CapacityError, ConfigError, FormatError, IdentityError, InputError

BEAT_MS = 1000
BEAT_US = BEAT_MS * 1000
T0 = 1_700_000_000_000_000


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "fleet.sqlite", BEAT_MS, max_devices=4)


def alive(registry: Registry, now_us: int) -> dict[str, bool]:
    return {device.name: device.alive for device in registry.devices(now_us)}


def test_alive_is_heard_from_within_three_heartbeats(registry: Registry) -> None:
    registry.join("cam", "edge", "0.1.0", "", {"cores": "4"}, T0)
    assert alive(registry, T0 + MISSES * BEAT_US) == {"cam": True}
    assert alive(registry, T0 + MISSES * BEAT_US + 1) == {"cam": False}
    registry.heartbeat("cam", {"outbox": 2.0}, T0 + 9 * BEAT_US)
    assert alive(registry, T0 + 10 * BEAT_US) == {"cam": True}
    registry.leave("cam", T0 + 10 * BEAT_US)
    assert alive(registry, T0 + 10 * BEAT_US) == {"cam": False}
    with pytest.raises(ConfigError, match="must Join"):
        registry.heartbeat("cam", {}, T0 + 11 * BEAT_US)
    registry.join("cam", "edge", "0.2.0", "", {}, T0 + 12 * BEAT_US)
    (cam,) = registry.devices(T0 + 12 * BEAT_US)
    assert (cam.alive, cam.version, cam.capabilities, cam.gauges) == (True, "0.2.0", {}, {"outbox": 2.0})


def test_counts_leave_out_who_left(registry: Registry) -> None:
    assert registry.counts(T0) == {}
    for name, role, address in (("a", "edge", ""), ("b", "edge", ""), ("c", "edge", ""), ("gate", "fog", "h:1")):
        registry.join(name, role, "1", address, {}, T0)  # type: ignore[arg-type]
    registry.leave("a", T0 + 1)
    registry.heartbeat("b", {}, T0 + 3 * BEAT_US)
    assert registry.counts(T0 + 3 * BEAT_US + 2) == {"edge": (2, 1), "fog": (1, 0)}


def test_fogs_are_the_living_ones_least_loaded_first(registry: Registry) -> None:
    for name, role, address in (("a", "fog", "10.0.0.1:7400"), ("b", "fog", "10.0.0.2:7400"), ("c", "fog", "h:1")):
        registry.join(name, role, "1", address, {}, T0)  # type: ignore[arg-type]
    registry.join("cam", "edge", "1", "", {}, T0)
    registry.heartbeat("a", {"encode_queue_images": 9, "subscribers": 1}, T0)
    registry.heartbeat("b", {"encode_queue_images": 0, "subscribers": 3}, T0)
    assert [fog.name for fog in registry.fogs(T0)] == ["c", "b", "a"]
    registry.leave("c", T0)
    assert [fog.address for fog in registry.fogs(T0)] == ["10.0.0.2:7400", "10.0.0.1:7400"]
    assert registry.fogs(T0 + 4 * BEAT_US) == []


def test_it_remembers(tmp_path: Path, registry: Registry) -> None:
    registry.join("gate", "fog", "1", "10.0.0.1:7400", {"torch": "2.13"}, T0)
    registry.heartbeat("gate", {"queue": 1.5}, T0 + 1)
    registry.close()
    (gate,) = Registry(tmp_path / "fleet.sqlite", BEAT_MS, 4).devices(T0 + 2)
    assert (gate.role, gate.address, gate.capabilities, gate.gauges) == (
        "fog", "10.0.0.1:7400", {"torch": "2.13"}, {"queue": 1.5},
    )  # fmt: skip


def test_what_is_refused(registry: Registry) -> None:
    join = registry.join
    with pytest.raises(InputError, match="33 capabilities"):
        join("a", "edge", "1", "", {str(i): "" for i in range(33)}, T0)
    with pytest.raises(InputError, match="257 characters"):
        join("a", "edge", "x" * 257, "", {}, T0)
    with pytest.raises(InputError, match=r"can't be found by edges.*port"):
        join("a", "fog", "1", "10.0.0.1:0", {}, T0)
    with pytest.raises(InputError, match="only fog nodes serve"):
        join("a", "edge", "1", "10.0.0.1:1", {}, T0)
    join("a", "edge", "1", "", {}, T0)
    with pytest.raises(IdentityError, match="registered as edge"):
        join("a", "fog", "1", "h:1", {}, T0)
    with pytest.raises(InputError, match="65 gauges"):
        registry.heartbeat("a", {str(i): 0.0 for i in range(65)}, T0)
    registry.heartbeat("a", {"loss": float("nan"), "iou": 0.5}, T0)
    assert registry.devices(T0)[0].gauges == {"iou": 0.5}
    for name in "bcd":
        join(name, "edge", "1", "", {}, T0)
    with pytest.raises(CapacityError, match="max_devices"):
        join("e", "edge", "1", "", {}, T0)
    assert len(registry.devices(T0)) == 4


def test_a_database_that_is_none_or_newer(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    path.write_bytes(b"not a database, but long enough to be taken for one " * 20)
    with pytest.raises(FormatError, match="damaged"):
        Registry(path, BEAT_MS, 4)
    path.unlink()
    registry = Registry(path, BEAT_MS, 4)
    registry._db.rows("PRAGMA user_version=99")
    registry.close()
    with pytest.raises(FormatError, match="schema 99"):
        Registry(path, BEAT_MS, 4)
    with pytest.raises(ConfigError, match="data_dir"):
        Registry(path / "below-a-file" / "fleet.sqlite", BEAT_MS, 4)


def test_tenants_are_told_apart(registry: Registry) -> None:
    for name, role, tenant in (("a", "edge", "acme"), ("b", "edge", ""), ("gate", "fog", ""), ("own", "fog", "acme")):
        registry.join(name, role, "1", "h:1" if role == "fog" else "", {}, T0, tenant)  # type: ignore[arg-type]
    with pytest.raises(IdentityError, match="registered for tenant 'acme'"):
        registry.join("a", "edge", "1", "", {}, T0)

    def seen(role: str, tenant: str) -> set[str]:
        return {device.name for device in registry.devices(T0) if device.shown_to(role, tenant)}

    assert seen("edge", "acme") == {"a", "gate", "own"}
    assert seen("edge", "") == {"b", "gate"}
    assert seen("fog", "acme") == {"a", "gate", "own"}
    assert seen("fog", "") == seen("cloud", "") == {"a", "b", "gate", "own"}
