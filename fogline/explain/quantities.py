"""Rates and sizes on a command line."""

from __future__ import annotations

import math
import re

from fogline.common.errors import ConfigError

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([kmg]i?|)(bits?|bps|b|)(/s|)", re.IGNORECASE)


def rate(option: str, text: str) -> float:
    """Bit/s of `2MB/s`, `16Mbit/s`, `16Mbps` or a plain number, which is bit/s already. Raises ConfigError.

    A capital B is a byte, a small b a bit; prefixes are decimal, or binary as Ki, Mi, Gi.
    """
    value, unit = _split(text)
    if value is None or value <= 0 or (unit.lower() in ("bit", "bits", "b") and not text.lower().endswith("/s")):
        raise ConfigError(f"{option} {text!r} is not a rate; write it as 16Mbit/s, 2MB/s or, in bit/s, 16e6")
    return value * (8 if unit == "B" else 1)


def size(option: str, text: str) -> float:
    """Bytes of `6.4MB`, `640kB`, `12MiB` or a plain number. Raises ConfigError."""
    value, unit = _split(text)
    if value is None or value <= 0 or unit not in ("", "B") or text.endswith("/s"):
        raise ConfigError(f"{option} {text!r} is not a size; write it as 6.4MB, 640kB or, in bytes, 6400000")
    return value


def _split(text: str) -> tuple[float | None, str]:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        return None, ""
    value = float(match[1]) * _PREFIXES[match[2].lower()]
    return value if math.isfinite(value) else None, match[3]
