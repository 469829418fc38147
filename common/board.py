"""Temperature, throttling, clock and power of the board that we run on, read when they are scraped; nothing elsewhere.

Sources: the kernel's thermal zones and cooling devices (Documentation/driver-api/thermal/sysfs-api.rst), hwmon
(Documentation/hwmon/sysfs-interface.rst; INA3221 power monitors of Jetson boards, `rpi_volt`), and the firmware of a
Raspberry Pi (`vcgencmd get_throttled`, `pmic_read_adc`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_MAX = 16  # values of a label: boards have fewer, and some servers a sensor for each core
_FIRMWARE_S = 1.0
# Bits of get_throttled: now; 16 higher: at any time since boot.
_REASONS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")
_PMIC = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([0-9.]+)[AV]\s*$", re.MULTILINE)

Firmware = Callable[[str], str]  # a command of vcgencmd: its output, or "" where there is none


class BoardCollector(Collector):
    """What the board tells of itself; `root` is that of its file system."""

    def __init__(self, root: Path = Path("/"), firmware: Firmware | None = None) -> None:
        self._root = root
        self._firmware = firmware or vcgencmd

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        heat = GaugeMetricFamily("fogline_board_celsius", "Temperature, by the kernel's thermal zone", labels=["zone"])
        for zone, degrees in self.temperatures().items():
            heat.add_metric([zone], degrees)
        yield heat
        now = GaugeMetricFamily("fogline_board_throttled", "1 while the board runs slower, by why", labels=["reason"])
        ever = GaugeMetricFamily(
            "fogline_board_throttled_since_boot", "1 where it ever did since it was started", labels=["reason"]
        )
        for reason, (is_now, was) in self.throttling().items():
            now.add_metric([reason], is_now)
            if was is not None:
                ever.add_metric([reason], was)
        yield now
        yield ever
        power = GaugeMetricFamily("fogline_board_power_watts", "Electrical power, by supply rail", labels=["rail"])
        for rail, watts in self.power().items():
            power.add_metric([rail], watts)
        yield power
        clock = GaugeMetricFamily("fogline_board_cpu_hertz", "Clock of the fastest core now")
        if (hertz := self.cpu_hertz()) is not None:
            clock.add_metric([], hertz)
        yield clock

    def temperatures(self) -> dict[str, float]:
        """Degrees Celsius by zone; the hottest where several have one name."""
        found: dict[str, float] = {}
        for zone in self._glob("sys/class/thermal/thermal_zone*"):
            name, milli = _text(zone / "type"), _number(zone / "temp")
            # Zones that are off read as nonsense, on Jetson as -256000.
            if name and milli is not None and -60_000 < milli < 200_000 and (name in found or len(found) < _MAX):
                found[name] = max(found.get(name, -273.0), milli / 1000)
        return found

    def throttling(self) -> dict[str, tuple[bool, bool | None]]:
        """By reason: whether the board is throttled now, and whether it ever was since boot (None: not told)."""
        found: dict[str, tuple[bool, bool | None]] = {}
        bits = self._throttled_bits()
        if bits is not None:
            for number, reason in enumerate(_REASONS):
                found[reason] = bool(bits >> number & 1), bool(bits >> (number + 16) & 1)
        else:
            for monitor in self._hwmon("rpi_volt"):
                alarm = _number(monitor / "in0_lcrit_alarm")
                if alarm is not None:
                    found["under_voltage"] = bool(alarm), None
        states = [
            state
            for device in self._glob("sys/class/thermal/cooling_device*")
            if re.search("cpufreq|processor", _text(device / "type"), re.IGNORECASE)
            and (state := _number(device / "cur_state")) is not None
        ]
        if states:
            found["cooling"] = any(states), None
        return found

    def power(self) -> dict[str, float]:
        """Watts by rail: INA3221 channels by their labels; `pmic` is the sum of a Raspberry Pi 5's."""
        found: dict[str, float] = {}
        for monitor in self._hwmon("ina3221"):
            for number in (1, 2, 3):
                label = _text(monitor / f"in{number}_label")
                milli = [_number(monitor / f"{quantity}{number}_input") for quantity in ("in", "curr")]
                known = [value for value in milli if value is not None]
                if label and label != "NC" and len(known) == 2 and len(found) < _MAX:
                    found[label] = known[0] * known[1] / 1e6  # volts by amperes
        if not found and self._is_raspberry():
            rails: dict[str, dict[str, float]] = {}
            for rail, unit, value in _PMIC.findall(self._firmware("pmic_read_adc")):
                rails.setdefault(rail, {})[unit] = float(value)
            whole = [rail for rail in rails.values() if len(rail) == 2]
            if whole:
                found["pmic"] = sum(rail["A"] * rail["V"] for rail in whole)
        return found

    def cpu_hertz(self) -> float | None:
        """Of the fastest core; None where the kernel does not tell."""
        speeds = [_number(path) for path in self._glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
        told = [speed for speed in speeds if speed]
        return max(told) * 1000.0 if told else None

    def _throttled_bits(self) -> int | None:
        for path in self._glob("sys/devices/platform/soc*/soc*:firmware/get_throttled"):
            if re.fullmatch(r"(0x)?[0-9a-fA-F]+", text := _text(path)):
                return int(text, 16)
        if not self._is_raspberry():
            return None
        told = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", self._firmware("get_throttled").strip())
        return int(told[1], 16) if told else None

    def _is_raspberry(self) -> bool:
        return "Raspberry Pi" in _text(self._root / "proc/device-tree/model")

    def _hwmon(self, name: str) -> Iterator[Path]:
        return (path for path in self._glob("sys/class/hwmon/hwmon*") if _text(path / "name") == name)

    def _glob(self, pattern: str) -> list[Path]:
        return sorted(self._root.glob(pattern))


def vcgencmd(command: str) -> str:
    """Ask the firmware of a Raspberry Pi; "" where that can't be done."""
    program = shutil.which("vcgencmd")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, command], capture_output=True, text=True, timeout=_FIRMWARE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _text(path: Path) -> str:
    """What a small file of the kernel's says; "" where it can't be read: sensors come and go."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip("\0 \n")[:64]
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None
