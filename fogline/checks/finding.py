"""What a check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Fix:
    """What the doctor can do itself, when asked: safe to do twice, and nothing is deleted."""

    text: str  # the command that a person would type
    apply: Callable[[], object]  # raises OSError


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    check: str
    status: Status
    text: str
    advice: str = ""  # what to do; empty when all is well
    fix: Fix | None = None
