"""The trace id of the work in hand: set where work begins, carried in gRPC metadata, written by the logs."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

HEADER = "x-fogline-trace"  # gRPC metadata key

trace_id: ContextVar[str] = ContextVar("trace_id", default="")

_VALID = re.compile(r"[0-9a-f]{16}")


def new_trace() -> str:
    """Start a new trace in this context; returns its id, 16 hexadecimal digits."""
    made = secrets.token_hex(8)
    trace_id.set(made)
    return made


def adopt(received: object) -> str:
    """Take over a peer's trace id, or start a new one when it is absent or malformed (it ends up in logs)."""
    text = received.decode("ascii", "replace") if isinstance(received, bytes) else received
    if not isinstance(text, str) or not _VALID.fullmatch(text):
        return new_trace()
    trace_id.set(text)
    return text
