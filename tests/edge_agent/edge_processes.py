"""Real processes for tests: agents, fog nodes, cloud servers."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fogline.common.config import TlsConfig


class Running:
    """One process and what it announced."""

    def __init__(self, log: Path, command: list[str]) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file)
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def ready(self, seconds: float = 60) -> dict[str, int]:
        """The ports that it announces."""
        line = self._lines.get(timeout=seconds)
        if not line.startswith(b"ready "):
            raise AssertionError(f"no ready line but {line!r}; log:\n{self.log.read_text()[-4000:]}")
        ports: dict[str, int] = json.loads(line[6:])
        return ports

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def end(self, seconds: float = 10) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(seconds)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def get(port: int, path: str) -> str:
    """A page of the metrics server."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


class Node:
    """A process that can be killed and started again with the same configuration."""

    def __init__(self, folder: Path, module: str, settings: dict[str, Any], prefix: list[str] | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(settings, default=str))
        start = prefix or [sys.executable, "-m", module]
        self._command = [*start, "--config", str(folder / "config.json")]
        self._running: Running | None = None
        self.ports: dict[str, int] = {}

    def start(self) -> None:
        """Start and wait until ready."""
        self._running = Running(self.folder / "log", self._command)
        self.ports = self._running.ready()

    def run(self, seconds: float = 30) -> tuple[int, str]:
        """Run to its end: exit code and log."""
        self._running = Running(self.folder / "log", self._command)
        code = self._running.end(seconds)
        self._running = None
        return code, (self.folder / "log").read_text()

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._running is not None
        return self._running.process.pid

    def kill(self) -> None:
        """kill -9."""
        if self._running is not None:
            self._running.kill()
            self._running = None

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._running is not None
        os.kill(self.pid, signal.SIGTERM)
        code = self._running.end()
        self._running = None
        return code

    def health(self) -> dict[str, Any]:
        """What /healthz says."""
        found: dict[str, Any] = json.loads(get(self.ports["metrics_port"], "/healthz"))
        return found


@contextmanager
def nodes() -> Iterator[list[Node]]:
    """A list of nodes that are killed at the end."""
    made: list[Node] = []
    try:
        yield made
    finally:
        for node in made:
            node.kill()


def tls(settings: TlsConfig) -> dict[str, str]:
    """As configuration."""
    return {"ca": str(settings.ca), "cert": str(settings.cert), "key": str(settings.key)}
