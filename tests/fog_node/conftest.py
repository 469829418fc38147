from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `fog_helpers`, under --import-mode=importlib

from fog_helpers import Device, Fog


@pytest.fixture
def start_fog(tmp_path: Path, certificates: Any) -> Iterator[Callable[..., Fog]]:
    """`start_fog(**settings)`: a running fog node process; settings are dotted keys with `__` for dots."""
    started: list[Fog] = []

    def start(**settings: object) -> Fog:
        fog = Fog(tmp_path / "fog", certificates.tls("fog", "fog"), settings)
        started.append(fog)
        fog.start()
        return fog

    yield start
    for fog in started:
        fog.kill()


@pytest.fixture
def device(certificates: Any) -> Iterator[Callable[..., Device]]:
    """`device(fog, name, role="edge")`: an enrolled device that is connected to a fog node."""
    made: list[Device] = []

    def connect(fog: Fog, name: str, role: str = "edge") -> Device:
        made.append(Device(fog.address, name, certificates.tls(name, role)))
        return made[-1]

    yield connect
    for one in made:
        one.close()
