"""What boards tell of themselves, from file trees as their kernels lay them out. No board was at hand to record one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fogline.common.board import BoardCollector, vcgencmd

THERMAL = "sys/class/thermal"
PI = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
    f"{THERMAL}/thermal_zone0/type": "cpu-thermal\n",
    f"{THERMAL}/thermal_zone0/temp": "61832\n",
    f"{THERMAL}/cooling_device0/type": "cpufreq-cpu0\n",
    f"{THERMAL}/cooling_device0/cur_state": "0\n",
    "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1500000\n",
}
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    f"{THERMAL}/thermal_zone0/type": "cpu-thermal",
    f"{THERMAL}/thermal_zone0/temp": "48250",
    f"{THERMAL}/thermal_zone1/type": "gpu-thermal",
    f"{THERMAL}/thermal_zone1/temp": "47500",
    f"{THERMAL}/thermal_zone2/type": "cv0-thermal",
    f"{THERMAL}/thermal_zone2/temp": "-256000",
    f"{THERMAL}/cooling_device3/type": "cpufreq-cpu0",
    f"{THERMAL}/cooling_device3/cur_state": "2",
    "sys/class/hwmon/hwmon0/name": "pwmfan",
    "sys/class/hwmon/hwmon3/name": "ina3221",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon3/in1_input": "5072",
    "sys/class/hwmon/hwmon3/curr1_input": "1200",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon3/in2_input": "5064",
    "sys/class/hwmon/hwmon3/curr2_input": "376",
    "sys/class/hwmon/hwmon3/in3_label": "NC",
    "sys/class/hwmon/hwmon3/in3_input": "0",
    "sys/class/hwmon/hwmon3/curr3_input": "0",
}
PMIC = """ 3V7_WL_SW_A current(0)=0.08980840A
   3V3_SYS_A current(1)=0.50000000A
  3V7_WL_SW_V volt(8)=3.70000000V
    3V3_SYS_V volt(9)=3.30000000V
      EXT5V_V volt(24)=5.15268000V
"""


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def exported(board: BoardCollector) -> set[str]:
    registry = CollectorRegistry()
    registry.register(board)
    lines = generate_latest(registry).decode().splitlines()
    return {line.removeprefix("fogline_board_") for line in lines if not line.startswith("#")}


def silent(command: str) -> str:
    return ""


def test_a_raspberry_pi_with_its_firmware(tmp_path: Path) -> None:
    asked: list[str] = []

    def firmware(command: str) -> str:
        asked.append(command)
        return {"get_throttled": "throttled=0x50005\n", "pmic_read_adc": ""}[command]

    assert exported(BoardCollector(tree(tmp_path, PI), firmware)) == {
        'celsius{zone="cpu-thermal"} 61.832',
        'throttled{reason="under_voltage"} 1.0',
        'throttled{reason="frequency_capped"} 0.0',
        'throttled{reason="throttled"} 1.0',
        'throttled{reason="soft_temperature_limit"} 0.0',
        'throttled{reason="cooling"} 0.0',
        'throttled_since_boot{reason="under_voltage"} 1.0',
        'throttled_since_boot{reason="frequency_capped"} 0.0',
        'throttled_since_boot{reason="throttled"} 1.0',
        'throttled_since_boot{reason="soft_temperature_limit"} 0.0',
        "cpu_hertz 1.5e+09",
    }
    assert "get_throttled" in asked


def test_a_raspberry_pi_whose_firmware_can_not_be_asked(tmp_path: Path) -> None:
    board = BoardCollector(tree(tmp_path, PI), silent)
    assert board.throttling() == {"under_voltage": (True, None), "cooling": (False, None)}
    tree(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "80008\n"})
    assert board.throttling()["soft_temperature_limit"] == (True, True)
    assert board.throttling()["under_voltage"] == (False, False)


def test_the_power_of_a_raspberry_pi_5(tmp_path: Path) -> None:
    board = BoardCollector(tree(tmp_path, PI), lambda command: PMIC)
    assert board.power() == {"pmic": pytest.approx(0.0898084 * 3.7 + 0.5 * 3.3)}


def test_a_jetson(tmp_path: Path) -> None:
    assert exported(BoardCollector(tree(tmp_path, ORIN), silent)) == {
        'celsius{zone="cpu-thermal"} 48.25',
        'celsius{zone="gpu-thermal"} 47.5',
        'throttled{reason="cooling"} 1.0',
        'power_watts{rail="VDD_IN"} 6.0864',
        'power_watts{rail="VDD_CPU_GPU_CV"} 1.904064',
    }


def test_a_machine_that_tells_nothing_exports_nothing(tmp_path: Path) -> None:
    assert exported(BoardCollector(tmp_path, lambda command: "throttled=0x1")) == set()


def test_sensors_that_are_broken_or_many_do_no_harm(tmp_path: Path) -> None:
    files: dict[str, str] = {}
    for number in range(40):
        zone = f"{THERMAL}/thermal_zone{number}"
        files |= {f"{zone}/type": f"zone{number}", f"{zone}/temp": "40000"}
    files[f"{THERMAL}/thermal_zone0/temp"] = ""
    files[f"{THERMAL}/thermal_zone1/temp"] = "hot"
    files[f"{THERMAL}/thermal_zone2/type"] = ""
    files |= {"sys/devices/platform/soc/soc:firmware/get_throttled": "bits"}
    board = BoardCollector(tree(tmp_path, files), silent)
    assert len(board.temperatures()) == 16
    assert not {"zone0", "zone1", "zone2"} & board.temperatures().keys()
    assert board.throttling() == {}
    (tmp_path / THERMAL / "thermal_zone3" / "temp").unlink()
    (tmp_path / THERMAL / "thermal_zone3" / "temp").mkdir()
    assert "zone3" not in board.temperatures()


def test_the_firmware_is_asked_by_its_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert vcgencmd("get_throttled") == ""
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x0 || exit 1\n')
    program.chmod(0o755)
    assert vcgencmd("get_throttled") == "throttled=0x0\n"
    assert vcgencmd("pmic_read_adc") == ""
