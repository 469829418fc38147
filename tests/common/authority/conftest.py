from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `authority_parts`, under --import-mode=importlib
sys.path.insert(0, str(Path(__file__).parents[2] / "edge_agent"))  # `edge_processes`

from authority_parts import Service

from fogline.common import pki
from fogline.common.authority.registrar import Registrar


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    """A registrar of a new authority, whose folder is `tmp_path / "ca"`."""
    pki.Authority.create().save(tmp_path / "ca")
    made = Registrar(tmp_path / "ca")
    yield made
    made.close()


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """`start_service(*flags)`: a running `fogline ca serve` process of a new authority, or of the same one again."""
    started: list[Service] = []

    def start(*flags: str) -> Service:
        folder = tmp_path / "ca"
        if not folder.exists():
            pki.Authority.create().save(folder)
        started.append(Service(folder, flags, started[-1].port if started else 0))
        return started[-1]

    yield start
    for service in started:
        service.kill()
