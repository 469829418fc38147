"""Starts processes, restarts those that die unexpectedly with back-off, and stops them in order.

It does here what systemd does on a board. One thread drives it by calling `tick`; it must be the thread that made
the first `start` (Linux ties a child's parent-death signal to the thread that forked it).
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fogline.common.errors import ConfigError, InternalError
from fogline.deploy.local.logtail import LogTail, Ready, last_lines, parse_ready

_BACKOFF_FIRST_S = 0.25
_BACKOFF_MAX_S = 5.0
_MAX_FAILURES = 8  # deaths in a row, each before it was ready
_USAGE_ERRORS = {2, 7}  # a wrong setting or certificate: no restart will help before it was ready once


@dataclass(frozen=True)
class ProcessSpec:
    """One process of the cluster."""

    name: str
    tier: str  # edge, fog or cloud
    module: str
    config: Path
    log: Path


@dataclass
class Child:
    """A process and its history."""

    spec: ProcessSpec
    popen: subprocess.Popen[bytes] | None = None
    tail: LogTail | None = None
    ready: Ready | None = None
    was_ready: bool = False
    failures: int = 0
    restarts: int = 0
    start_again_at: float | None = None
    cpu_reaped_s: float = 0.0  # of incarnations that ended
    cpu_live_s: float = 0.0  # what the living one last reported, its children included
    exit_codes: list[int] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self.popen is not None

    @property
    def cpu_seconds(self) -> float:
        """User and system time of every incarnation so far."""
        return self.cpu_reaped_s + self.cpu_live_s


class Supervisor:
    """Keeps a set of named processes running."""

    def __init__(
        self, environment: Mapping[str, str] | None = None, *, on_ready: Callable[[Child], None] = lambda child: None
    ) -> None:
        self.children: dict[str, Child] = {}
        self._environment = {**os.environ, **(environment or {})}
        self._on_ready = on_ready

    def start(self, spec: ProcessSpec) -> Child:
        """Start a process for the first time."""
        child = self.children[spec.name] = Child(spec)
        self._launch(child)
        return child

    def _launch(self, child: Child) -> None:
        spec = child.spec
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        child.tail, child.ready, child.start_again_at = LogTail(spec.log), None, None
        argv = [sys.executable, "-m", "fogline.deploy.local.child", spec.module, "--config", str(spec.config)]
        with spec.log.open("ab") as log:
            # Its own session: Ctrl-C reaches the launcher alone, which then stops everything in order.
            child.popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def tick(self) -> None:
        """Read ready lines, reap the dead and restart what is due.

        Raises ConfigError or InternalError with the end of the log when a process can't be kept running.
        """
        now = time.monotonic()
        for child in self.children.values():
            if child.popen is not None:
                self._read(child)
                was_ready = child.ready is not None
                code = self._reap(child)
                if code is not None:
                    self._died(child, code, was_ready, now)
            elif child.start_again_at is not None and now >= child.start_again_at:
                self._launch(child)

    def _read(self, child: Child) -> None:
        if child.ready is not None or child.tail is None:
            return
        for line in child.tail.new_lines():
            ready = parse_ready(line)
            if ready is not None:
                child.ready, child.was_ready = ready, True
                self._on_ready(child)
                return

    def _reap(self, child: Child) -> int | None:
        if child.popen is None:
            return None
        before = _children_cpu_s()
        code = child.popen.poll()
        if code is None:
            return None
        # The kernel knows what the process and the children it waited for used; its own last report also counts
        # those that nobody waited for. The larger one is nearer to the truth.
        child.cpu_reaped_s += max(_children_cpu_s() - before, child.cpu_live_s)
        child.cpu_live_s, child.popen, child.ready = 0.0, None, None
        child.exit_codes.append(code)
        return code

    def _died(self, child: Child, code: int, was_ready: bool, now: float) -> None:
        child.failures = 0 if was_ready else child.failures + 1
        problem = (
            f"{child.spec.name} ended {_meaning(code)}; the end of {child.spec.log}:\n{last_lines(child.spec.log)}"
        )
        if not child.was_ready and code in _USAGE_ERRORS:
            raise ConfigError(problem)
        if child.failures > _MAX_FAILURES:
            raise InternalError(f"{child.spec.name} died {child.failures} times in a row. {problem}")
        child.restarts += 1
        delay = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2**child.failures)
        child.start_again_at = now + delay

    def wait_ready(self, names: Sequence[str], timeout_s: float) -> None:
        """Tick until every named process has announced itself. Raises InternalError naming the ones that did not."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.tick()
            missing = [name for name in names if self.children[name].ready is None]
            if not missing:
                return
            if time.monotonic() > deadline:
                logs = "\n".join(f"{name}:\n{last_lines(self.children[name].spec.log)}" for name in missing)
                raise InternalError(f"not ready after {timeout_s:.0f} s: {', '.join(missing)}\n{logs}")
            time.sleep(0.05)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop every process, edges first, then fog, then cloud: SIGTERM, and SIGKILL for what does not listen."""
        for tier in ("edge", "fog", "cloud"):
            members = [child for child in self.children.values() if child.spec.tier == tier]
            for child in members:
                child.start_again_at = None
                if child.popen is not None:
                    child.popen.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + timeout_s
            while any(child.alive for child in members) and time.monotonic() < deadline:
                for child in members:
                    self._reap(child)
                time.sleep(0.02)
            for child in members:
                if child.popen is not None:
                    child.popen.kill()
                    while self._reap(child) is None:
                        time.sleep(0.005)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _meaning(code: int) -> str:
    if code < 0:
        try:
            return f"by signal {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"
    return f"with exit code {code}"
