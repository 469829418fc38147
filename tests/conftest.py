"""Shared fixtures: certificates, free ports, real data, waiting without sleep; and no process may outlive the run."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from fogline.common import pki
from fogline.common.config import TlsConfig
from fogline.common.trace import trace_id

RUN_MARK = "FOGLINE_TEST_RUN"
ROOT = Path(__file__).resolve().parent.parent


class Certificates:
    """One authority and what it enrols, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = pki.Authority.create()
        self.authority.save(folder)

    def tls(
        self,
        name: str,
        role: pki.Role,
        *,
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        tenant: str = "",
    ) -> TlsConfig:
        """Enrol a device (again) and return its TLS settings; dates can be set to make it expired."""
        made = self.authority.enrol(name, role, hosts, not_before=not_before, not_after=not_after, tenant=tenant)
        folder = self.folder / secrets.token_hex(4)
        pki.save_enrolment(made, self.authority.certificate_pem, name, folder)
        return TlsConfig(ca=folder / "ca.pem", cert=folder / f"{name}.pem", key=folder / f"{name}.key")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The authority that every test device is enrolled with."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def other_certificates(tmp_path: Path) -> Certificates:
    """Another authority, which nobody in the test trusts."""
    return Certificates(tmp_path / "other-authority")


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago. Prefer listening on port 0 where that can be had."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own; the test is skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk of its own size can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real sequences; the test is skipped where it is absent."""
    root = Path(os.environ.get("FOGLINE_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no real sequences at {root}; set FOGLINE_DATA")
    return root


WaitUntil = Callable[..., None]


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """`wait_until(condition, deadline_s=10, what="…")`: poll until true, else fail."""

    def wait(condition: Callable[[], object], deadline_s: float = 10.0, what: str = "the condition") -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"waited {deadline_s} s for {what}")
            time.sleep(0.01)

    return wait


@pytest.fixture(autouse=True)
def _no_trace() -> None:
    """Start every test without the trace id that one before left in the context."""
    trace_id.set("")


@pytest.fixture(scope="session", autouse=True)
def _no_process_outlives_the_run() -> Iterator[None]:
    """Every process started by a test inherits a mark; whoever still carries it at the end is killed and reported."""
    mark = secrets.token_hex(8)
    os.environ[RUN_MARK] = mark
    yield
    del os.environ[RUN_MARK]
    left = _marked(mark)
    _, left = psutil.wait_procs(left, timeout=3)
    report = [f"{p.pid} {' '.join(_command(p))}" for p in left]
    for leaked in left:
        with suppress(psutil.Error):
            leaked.kill()
    if report:
        pytest.fail("processes left behind: " + "; ".join(report))


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for candidate in psutil.process_iter():
        if candidate.pid == os.getpid() or "resource_tracker" in " ".join(_command(candidate)):
            continue
        with suppress(psutil.Error, OSError):
            if candidate.environ().get(RUN_MARK) == mark:
                found.append(candidate)
    return found


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []
