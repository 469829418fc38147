"""Follows the log file of a process: finds its ready line, and keeps the last lines for error messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Ready:
    """The ports that a process says it serves on."""

    port: int | None  # gRPC; None for an edge agent
    metrics_port: int | None


def parse_ready(line: str) -> Ready | None:
    """The ready announcement in one line (`ready {json}`), or None when the line is something else."""
    if not line.startswith("ready {"):
        return None
    try:
        ports: Any = json.loads(line.removeprefix("ready "))
    except ValueError:
        return None
    return Ready(_port(ports.get("port")), _port(ports.get("metrics_port")))


def _port(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 65536 else None


class LogTail:
    """Reads what one incarnation of a process appended to its log file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def new_lines(self) -> list[str]:
        """Complete lines written since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_READ_AT_ONCE)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]


def last_lines(path: Path, count: int = 12) -> str:
    """The end of a log, shortened to what a person can read in an error message."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16384))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return "(no log was written)"
    return "\n".join("    " + _readable(line) for line in text.splitlines()[-count:]) or "(the log is empty)"


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
        return f"{entry['level']:<7} {entry['logger']}: {entry['msg']}"[:400]
    except (ValueError, KeyError, TypeError):
        return line[:400]
