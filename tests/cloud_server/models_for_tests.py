"""Small safetensors files, written by hand."""

from __future__ import annotations

import json
import struct
from typing import Any


def file_of(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def model(seed: int = 0, size: int = 400) -> bytes:
    """A valid model of about `size` bytes; other seeds, other bytes."""
    body = bytes((seed * 31 + i * 7) % 256 for i in range(size // 4 * 4))
    return file_of({"w": {"dtype": "F32", "shape": [len(body) // 4], "data_offsets": [0, len(body)]}}, body)
