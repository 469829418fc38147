from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `rpc_helpers`, under --import-mode=importlib

from rpc_helpers import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop on its own thread; servers that are started on it are stopped at the end."""
    made = Loop()
    yield made
    made.close()
