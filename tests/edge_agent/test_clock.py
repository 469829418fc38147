"""The fog node's clock as a device with a wrong clock knows it."""

from __future__ import annotations

import logging

import pytest

from fogline.edge_agent.clock import FogClock, Stamp

YEAR = 365 * 86_400 * 1_000_000
FOG = 1_800_000_000_000_000  # the fog node's clock when the test begins


class Device:
    """Clocks of a device that a test moves."""

    def __init__(self, wrong_by: int) -> None:
        self.elapsed = 0
        self.wrong_by = wrong_by

    def wall(self) -> int:
        return FOG + self.elapsed + self.wrong_by

    def boot(self) -> int:
        return 77_000_000 + self.elapsed


@pytest.mark.parametrize("wrong_by", [YEAR, -YEAR, 0])
def test_capture_times_are_right_with_a_wrong_clock(wrong_by: int, caplog: pytest.LogCaptureFixture) -> None:
    device = Device(wrong_by)
    clock = FogClock(device.wall, device.boot)
    before = clock.stamp()
    device.elapsed += 1_000_000
    sent = clock.stamp()
    device.elapsed += 40_000
    with caplog.at_level(logging.WARNING):
        clock.measured(sent, FOG + 1_020_000, clock.stamp())
    assert bool(caplog.records) == bool(wrong_by)
    assert clock.offset_us == -wrong_by
    assert clock.fog_us(before) == FOG
    assert clock.fog_us(clock.stamp()) == FOG + 1_040_000


def test_a_stepping_clock_moves_nothing_and_an_earlier_boot_uses_the_wall_clock() -> None:
    device = Device(-YEAR)
    clock = FogClock(device.wall, device.boot)
    clock.measured(clock.stamp(), FOG, clock.stamp())
    old = clock.stamp()
    device.wrong_by = 0  # NTP sets the clock
    device.elapsed += 5_000_000
    assert clock.fog_us(old) == FOG
    assert clock.fog_us(clock.stamp()) == FOG + 5_000_000
    clock.measured(clock.stamp(), FOG + 5_000_000, clock.stamp())
    assert clock.fog_us(Stamp(FOG - 9, 5, "an earlier boot")) == FOG - 9
    assert clock.fog_us(Stamp(-5, 5, "an earlier boot")) == 0
