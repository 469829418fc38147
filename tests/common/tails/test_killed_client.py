"""A training script that is killed and started again, as a process, computes what the unsplit one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tail_parts import HERE, OPTIMIZERS, HostProcess, Unsplit, fresh

STEPS = 50


def start(host: HostProcess, folder: Path, optimizer: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", ""), *sys.path])
    return subprocess.Popen(
        [sys.executable, str(HERE / "training_script.py"), host.address, str(folder), str(STEPS), "8", optimizer],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_fifty_steps_in_four_processes(hosts: Callable[..., HostProcess], tmp_path: Path, optimizer: str) -> None:
    """Killed before its first checkpoint, between two, and once together with the host."""
    host = hosts()
    folder = tmp_path / "script"
    folder.mkdir()
    firsts = []
    for end in (5, 21, 38, None):
        script = start(host, folder, optimizer)
        assert script.stdout is not None
        with script.stdout:
            seen = []
            for line in script.stdout:
                seen.append(int(line.split()[1]))
                if seen[-1] == end:
                    script.send_signal(signal.SIGKILL)
                    if end == 38:
                        host.restart()
                    break
        assert script.wait(60) == (-signal.SIGKILL if end else 0)
        firsts.append(seen[0])
    assert firsts == [0, 0, 16, 32]
    found = torch.load(folder / "result", weights_only=True)
    whole = Unsplit(fresh(), OPTIMIZERS[optimizer], STEPS)
    assert (found["losses"], found["norms"]) == (whole.losses, whole.norms)
    assert torch.equal(found["random"], whole.random)
    assert found["state"].keys() == whole.model.state_dict().keys()
    assert all(torch.equal(found["state"][name], tensor) for name, tensor in whole.model.state_dict().items())
