from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "rpc")]  # `tail_parts` and `tensor_parts`, under --import-mode=importlib

import torch  # noqa: E402
from tail_parts import HostProcess  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A tail host that tests share, since its start takes seconds; none of them ends it."""
    made = HostProcess(tmp_path_factory.mktemp("host"))
    yield made
    made.kill()  # its end in order is what tests of nodes show


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., HostProcess]]:
    """Starts tail hosts that end with the test."""
    started: list[HostProcess] = []

    def start(**options: object) -> HostProcess:
        started.append(HostProcess(tmp_path / f"host-{len(started)}", **options))
        return started[-1]

    yield start
    for each in started:
        each.kill()
