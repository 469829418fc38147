"""Versions, clock, disk, torch, image formats: what does not need a configuration."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from fogline import __version__
from fogline.checks.finding import Finding, Fix

_PACKAGES = (
    "grpcio",
    "protobuf",
    "numpy",
    "pillow",
    "msgspec",
    "cryptography",
    "prometheus-client",
    "psutil",
    "pyyaml",
)
_LOW_DISK = 100 << 20
_TORCH_TIMEOUT_S = 180.0  # a cold import from an SD card takes a minute

_TORCH_PROBE = """
import json, torch
found = {"version": torch.__version__, "threads": torch.get_num_threads(), "device": "cpu"}
if torch.cuda.is_available():
    found["device"] = "cuda " + torch.cuda.get_device_name()
torch.ones(64, 64, device=found["device"].split()[0]) @ torch.ones(64, 64, device=found["device"].split()[0])
print(json.dumps(found))
"""


def versions() -> list[Finding]:
    """Python and every package that we need."""
    python = platform.python_version()
    text = f"Fogline {__version__}, Python {python}, {platform.machine()}, {os.cpu_count()} cores"
    findings = [Finding("versions", "ok", text)]
    found: list[str] = []
    for requirement in metadata.requires("fogline") or []:
        name, least = _least(requirement)
        if name not in _PACKAGES:
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            findings.append(Finding("versions", "fail", f"{name} is not installed", "install fogline again with pip"))
            continue
        found.append(f"{name} {version}")
        if _numbers(version) < _numbers(least):
            advice = f"pip install --upgrade '{name}>={least}'"
            findings.append(Finding("versions", "fail", f"{name} {version} is older than {least}", advice))
    findings.append(Finding("packages", "ok", ", ".join(found)))
    return findings


def clock() -> list[Finding]:
    """Whether the kernel says that something keeps the clock right."""
    if time.time() < 1_700_000_000:
        text = f"this host thinks it is {time.strftime('%Y-%m-%d', time.gmtime())}"
        return [Finding("clock", "fail", text, "set the clock; certificates are refused until then")]
    if sys.platform != "linux":
        return [Finding("clock", "ok", "not checked on this system")]
    unsynchronised = 5  # TIME_ERROR of adjtimex(2)
    if ctypes.CDLL(None).ntp_adjtime(ctypes.create_string_buffer(512)) == unsynchronised:
        advice = "install chrony or systemd-timesyncd; capture times are corrected by the fog node, logs are not"
        fix = None
        if shutil.which("timedatectl") and os.geteuid() == 0:
            words = ["timedatectl", "set-ntp", "true"]
            fix = Fix(" ".join(words), partial(_command, words))
        return [Finding("clock", "warn", "the kernel's clock is not synchronised", advice, fix)]
    return [Finding("clock", "ok", "synchronised")]


def torch(required: bool) -> list[Finding]:
    """Whether torch works here; tried in a child, since a wheel for another processor dies by a signal."""
    advice = "pip install 'fogline[torch]'; on a Jetson install NVIDIA's own build first"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=_TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [
            Finding("torch", "fail", f"did not start in {_TORCH_TIMEOUT_S:.0f} s", "look at this host's load and disk")
        ]
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        text = f"torch {found['version']} on {found['device']}, {found['threads']} threads"
        return [Finding("torch", "ok", text)]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        text = f"torch dies by {name} on this {platform.machine()} processor"
        return [Finding("torch", "fail", text, "install another build: torch 2.5.1 runs on older ARM cores")]
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if "ModuleNotFoundError" in last and "torch" in last:
        text = "not installed: this host can capture, upload and receive, but not decode, train or encode"
        return [Finding("torch", "fail" if required else "warn", text, advice)]
    return [Finding("torch", "fail", f"does not work: {last}", advice)]


def models(names: Sequence[str]) -> list[Finding]:
    """Whether the packages of the allowed models are installed; they are not imported."""
    if not names:
        advice = "list what devices may run under tensors.models: package.module:function"
        return [Finding("models", "warn", "no model is allowed on this host", advice)]
    findings = []
    for name in names:
        package = name.partition(":")[0].partition(".")[0]
        if importlib.util.find_spec(package) is None:
            findings.append(Finding("models", "fail", f"{name}: no package {package} here", "install it on this host"))
        else:
            findings.append(Finding("models", "ok", f"{name}: {package} is installed"))
    return findings


def image_formats() -> list[Finding]:
    """Whether Pillow was built with what the codecs need."""
    from PIL import features

    if not features.check("jpg"):
        return [Finding("images", "fail", "Pillow has no JPEG", "pip install --force-reinstall pillow")]
    if not features.check("avif"):
        advice = "pip install --upgrade 'pillow>=11.3' if records of codec avif2 are in use"
        return [Finding("images", "warn", "Pillow reads JPEG, but no AVIF", advice)]
    return [Finding("images", "ok", "Pillow reads and writes JPEG and AVIF")]


def disk(folder: Path, wanted_bytes: int = 0) -> list[Finding]:
    """Whether a data folder can be written, lasts, and has room for `wanted_bytes` in all (0: not limited)."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = f"make {folder} and give it to the user that runs the process, or change data_dir"
        return [Finding("disk", "fail", f"{existing} can't be written: {error.strerror}", advice)]
    findings = []
    if not folder.exists():
        fix: Fix | None = Fix(
            f"mkdir -p -m 700 {folder}", partial(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        )
        if existing.stat().st_uid != os.geteuid():  # root's folder would keep out the process that is to use it
            fix = None
        advice = "the process makes it at its first start, as the user that it then has"
        findings.append(Finding("disk", "warn", f"{folder} is not there yet", advice, fix))
    free = shutil.disk_usage(existing).free
    text, held = f"{folder}: {_size(free)} free", 0
    if wanted_bytes:
        held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        text += f", {_size(held)} held, {_size(wanted_bytes)} allowed by the configuration"
    if free < _LOW_DISK:
        findings.append(Finding("disk", "fail", text, "make room, or point data_dir to another disk"))
    elif free + held < wanted_bytes:
        findings.append(Finding("disk", "warn", text, "make room or lower the quotas; a full disk stops uploads"))
    else:
        findings.append(Finding("disk", "ok", text))
    if _file_system(existing) in ("tmpfs", "ramfs"):
        advice = "point data_dir to a disk unless losing it at the next reboot is fine"
        findings.append(Finding("disk", "warn", f"{folder} is in memory ({_file_system(existing)})", advice))
    return findings


def _command(words: list[str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{words[0]} does not end") from error
    if done.returncode:
        raise OSError(done.stderr.strip() or f"{words[0]} ends with {done.returncode}")


def _least(requirement: str) -> tuple[str, str]:
    """Return name and least version of `grpcio<2,>=1.85.1`."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    least = re.search(r">=\s*([0-9.]+)", requirement)
    return (name[0].lower() if name and "extra ==" not in requirement else "", least[1] if least else "0")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def _file_system(path: Path) -> str:
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
