"""Wheels of Fogline and of what it needs, for one platform, so that an install asks nobody."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT

AARCH64 = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64")
X86_64 = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")


def wheelhouse(folder: Path, platforms: tuple[str, ...], python: str = "3.11") -> Path:
    """Fill a folder with wheels, or skip where pip can't have them."""
    tools, source, wheels = folder / "tools", folder / "source", folder / "wheels"
    venv.create(tools, with_pip=True)
    _copy(source)
    pip = [str(tools / "bin" / "pip"), "-q", "--disable-pip-version-check"]
    _run([*pip, "wheel", "--no-deps", "-w", str(wheels), str(source)])
    (made,) = wheels.glob("fogline-*.whl")
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for name in platforms:
        target += ["--platform", name]
    _run([*pip, "download", *target, "-c", str(ROOT / "constraints.txt"), "-d", str(wheels), f"{made}[camera]"])
    return wheels


def _copy(to: Path) -> None:
    """What belongs to the project, as it is now."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout: no list of the project's files")
    to.mkdir()
    names = b"\0".join(name for name in listed.stdout.split(b"\0") if name and (ROOT / name.decode()).exists())
    command = ["tar", "--null", "-T", "-", "-cf", "-"]
    archive = subprocess.run(command, cwd=ROOT, input=names, capture_output=True, check=True)
    subprocess.run(["tar", "-xf", "-", "-C", str(to)], input=archive.stdout, check=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        pytest.skip(f"pip can't have the wheels: {done.stderr[-400:]} ({sys.version_info.major})")
