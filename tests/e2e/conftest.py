"""Real clusters on tiny clips, run by the command that users type."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fogline.common.data.clip import write_clip


@dataclass(frozen=True)
class Up:
    """A finished `fogline up`."""

    out: Path
    code: int
    text: str

    @property
    def report(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return loaded


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two cameras, ten frames each, of 160x96."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip", cameras=2, frames=10, width=160, height=96)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], Up]], Up]:
    """`once(name, run)`: the run of this name, which one of the processes that test makes for all of them."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, run: Callable[[], Up]) -> Up:
        kept = shared / f"{name}.json"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                made = run()
                kept.write_text(json.dumps([str(made.out), made.code, made.text]))
        out, code, text = json.loads(kept.read_text())
        return Up(Path(out), code, text)

    return get


@pytest.fixture(scope="session")
def fogline_up(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Up]:
    """`fogline_up(*arguments)`: run it to its end in a process of its own."""

    def run(*arguments: object) -> Up:
        out = tmp_path_factory.mktemp("up") / "out"
        command = [sys.executable, "-m", "fogline", "up", "--out", str(out), *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400)
        return Up(out, done.returncode, done.stdout)

    return run
