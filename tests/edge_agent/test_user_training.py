"""A user's own trainer, as the agent's child runs it: a real process, its lines, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import hashlib  # noqa: E402

import numpy as np  # noqa: E402
from edge_helpers import jpeg  # noqa: E402

from fogline.common.errors import ConfigError, FoglineError  # noqa: E402
from fogline.common.images.codec import SourceImage  # noqa: E402
from fogline.common.images.container import to_bytes  # noqa: E402
from fogline.common.images.jpeg2 import build_jpeg2  # noqa: E402
from fogline.common.images.record import ImageRecord  # noqa: E402
from fogline.edge_agent.library import Library  # noqa: E402

PROGRAM = """
import torch
import fogline

def train(job: fogline.Training) -> None:
    assert not job.wait_for(images=3)
    weight = torch.zeros(3)
    for epoch in range(2):
        for images, targets in job.loader(size=(64, 48), batch_size=1):
            weight += images.mean(dim=(0, 2, 3))
            job.report(epoch + 1, loss=float(weight.sum()))
    (job.folder / "weight").write_text(str(weight.tolist()))
    job.publish({"weight": weight})
    job.report(2, score=0.5)
    print("epoch 2 ...", end="", flush=True)  # a line of its own it is not

def endless(job):
    job.report(1)
    while not job.wait(60):
        pass
    (job.folder / "saved").write_text("yes")

def fails(job):
    raise ZeroDivisionError("no images")
"""


def start(tmp_path: Path, function: str) -> subprocess.Popen[str]:
    data = tmp_path / "data"
    library = Library(data / "library", 1 << 20)
    for seed in (1, 2, 3):
        pixels = np.full((48, 64, 3), 10 * seed, np.uint8)
        encoded = build_jpeg2({}, "cpu").encode([SourceImage(pixels, ())])[0]
        record = ImageRecord(hashlib.sha256(jpeg(seed)).digest(), 5, "cam", (64, 48), (64, 48), (), encoded.layers)
        library.add(
            record, library.blobs.put(to_bytes(record)), len(to_bytes(record)), at=seed, cursor=seed, received_us=9
        )
    library.close()
    (tmp_path / "mytrainer.py").write_text(PROGRAM)
    settings: dict[str, Any] = {"name": "cam", "data_dir": str(data), "fog": "127.0.0.1:9", "tls": {"insecure": True}}
    path = tmp_path / "edge.json"
    path.write_text(json.dumps(settings | {"train": {"trainer": f"mytrainer:{function}"}}))
    command = [sys.executable, "-m", "fogline.edge_agent.train_process", "--config", str(path), "--parent"]
    path_variable = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*command, str(os.getpid())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": path_variable, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_it_learns_from_the_library_reports_publishes_and_is_done(tmp_path: Path) -> None:
    with start(tmp_path, "train") as child:
        assert child.stdout is not None
        lines = [json.loads(line) for line in child.stdout]
        assert child.stderr is not None
        assert child.wait(10) == 0, child.stderr.read()
    assert [line["step"] for line in lines[:7]] == [0, 1, 1, 1, 2, 2, 2]
    assert lines[1]["pool"] == 3
    assert any(line.get("published") for line in lines)
    assert (lines[-1]["done"], lines[-1]["score"]) == (True, 0.5)
    assert not any(line.get("done") for line in lines[:-1])
    weight = json.loads((tmp_path / "data" / "train" / "own" / "weight").read_text())
    assert weight == pytest.approx([2 * 60 / 255] * 3, rel=0.05)
    (sent,) = (tmp_path / "data" / "train" / "outgoing").glob("*.safetensors")
    from safetensors.torch import load_file

    assert load_file(sent)["weight"].tolist() == pytest.approx(weight)


def test_the_end_of_the_agent_lets_it_save(tmp_path: Path) -> None:
    with start(tmp_path, "endless") as child:
        assert child.stdout is not None
        while json.loads(child.stdout.readline())["step"] != 1:
            pass
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert '"done":true' not in child.stdout.read()
    assert (tmp_path / "data" / "train" / "own" / "saved").read_text() == "yes"


@pytest.mark.parametrize(
    ("function", "code", "says"),
    [
        ("fails", FoglineError.exit_code, "ZeroDivisionError: no images; it is started again"),
        ("trian", ConfigError.exit_code, "mytrainer has no 'trian'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, function: str, code: int, says: str) -> None:
    with start(tmp_path, function) as child:
        _, errors = child.communicate(timeout=60)
    assert child.returncode == code
    assert says in errors
