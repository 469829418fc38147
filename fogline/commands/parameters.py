"""Codec parameters on a command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from fogline.common.errors import ConfigError


def parse(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The values of `option K=V`, each in YAML. Raises ConfigError."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"{option} {pair!r} is not K=V; write it as {option} background_quality=30")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} {pair!r}: {value!r} is not a YAML value: {error}") from error
    return found
