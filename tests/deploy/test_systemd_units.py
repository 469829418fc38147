"""The systemd units: accepted without a word, sandboxed, and of programs, settings and folders that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
BIN = Path(sys.executable).parent
MAX_EXPOSURE = 3.0


@pytest.fixture(params=UNITS, ids=lambda path: path.stem)
def unit(request: pytest.FixtureRequest) -> Path:
    """One of the units."""
    path: Path = request.param
    return path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze, or skip."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)


def settings(unit: Path) -> dict[str, list[str]]:
    """Every key with its values, in order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def test_there_is_one_for_every_role() -> None:
    names = [path.stem for path in UNITS]
    assert names == ["fogline-authority", "fogline-cloud", "fogline-edge", "fogline-fog"]


def test_systemd_takes_it_without_a_warning(unit: Path, tmp_path: Path) -> None:
    # Its programs are looked for; where they will be installed they are not yet.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text(encoding="utf-8").replace("/opt/fogline/bin", str(BIN)), encoding="utf-8")
    done = analyze("verify", str(copy))
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_sandboxed(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(unit))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MAX_EXPOSURE


@pytest.mark.parametrize("role", ["edge", "fog", "cloud"])
def test_what_a_jetson_needs_keeps_it_sandboxed(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "deploy" / "systemd" / f"fogline-{role}.service").read_text(encoding="utf-8")
    unit = tmp_path / f"fogline-{role}.service"
    unit.write_text(text.replace("/opt/fogline/bin", str(BIN)), encoding="utf-8")
    added = tmp_path / f"{unit.name}.d"
    added.mkdir()
    shutil.copy(ROOT / "deploy" / "systemd" / "jetson.conf", added / "10-board.conf")
    monkeypatch.setenv("SYSTEMD_UNIT_PATH", f"{tmp_path}:")
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stderr) == (0, "")
    done = analyze("security", "--offline=true", "--no-pager", str(unit))
    assert "PrivateTmp=" in done.stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= MAX_EXPOSURE


def test_it_is_watched_restarted_and_limited(unit: Path) -> None:
    found = settings(unit)
    assert found["Type"] == ["notify"]
    assert found["Restart"] == ["always"]
    assert 0 < int(found["WatchdogSec"][0]) <= 60
    assert {"MemoryMax", "TasksMax", "LimitNOFILE"} <= found.keys()
    # Keys lie in the state folder; nobody else may look into it.
    assert found["StateDirectoryMode"] == ["0700"]
    assert found["UMask"] == ["0077"]
    assert found["WorkingDirectory"] == [f"/var/lib/{found['StateDirectory'][0]}"]


def test_its_program_is_installed(unit: Path) -> None:
    (command,) = settings(unit)["ExecStart"]
    assert shutil.which(Path(command.split()[0]).name, path=str(BIN))
