"""Real certificates, a real server with a small real service, and the counters of the kernel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fogline.common import pki
from fogline.common.config import TlsConfig
from fogline.common.rpc.peer import Peer

INSECURE = TlsConfig(insecure=True)
EDGE = Peer("edge-1", "edge")


class Certificates:
    """An authority, and folders of what it enrolled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = pki.Authority.create()

    def enrol(self, name: str, role: pki.Role, hosts: tuple[str, ...] = (), **when: Any) -> TlsConfig:
        folder = self.folder / f"{name}-{len(list(self.folder.iterdir()))}"
        made = self.authority.enrol(name, role, hosts, **when)
        pki.save_enrolment(made, self.authority.certificate_pem, name, folder)
        return TlsConfig(ca=folder / "ca.pem", cert=folder / f"{name}.pem", key=folder / f"{name}.key")

    def server(self, **when: Any) -> TlsConfig:
        return self.enrol("fog-1", "fog", ("127.0.0.1", "localhost"), **when)

    def edge(self, **when: Any) -> TlsConfig:
        return self.enrol("edge-1", "edge", **when)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Certificates(folder)


@pytest.fixture
def foreign(tmp_path: Path) -> Certificates:
    folder = tmp_path / "foreign"
    folder.mkdir()
    return Certificates(folder)


@dataclass
class Loop:
    """An event loop on a thread, for servers that sync clients of the same test talk to."""

    loop: asyncio.AbstractEventLoop

    def run(self, work: Awaitable[Any], timeout_s: float = 20.0) -> Any:
        async def whole() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(whole(), self.loop).result(timeout_s)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield Loop(made)
    pending = asyncio.run_coroutine_threadsafe(_rest(), made).result(10)
    made.call_soon_threadsafe(made.stop)
    thread.join(10)
    made.close()
    assert not pending, f"left behind: {pending}"


async def _rest() -> list[str]:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if others:
        _, pending = await asyncio.wait(others, timeout=5)
        return [str(task) for task in pending]
    return []


Start = Callable[..., Any]
