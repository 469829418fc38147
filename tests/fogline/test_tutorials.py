"""The code of the tutorials runs as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every block, in order; neighbours of one language together."""
    text = (TUTORIALS / page).read_text(encoding="utf-8")
    return re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_training_on_records(tmp_path: Path) -> None:
    script = ["import subprocess, sys"]
    for language, text in blocks("training-on-records.md"):
        if language == "python":
            script.append(text)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "fogline"
            script.append(f"subprocess.run([sys.executable, '-m', 'fogline', *{arguments!r}], check=True)")
    (tmp_path / "tutorial.py").write_text("\n".join(script), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "tutorial.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("(8, 3, 96, 160) torch.float32 ") for line in lines)
    before, after = map(float, re.findall(r"loss ([\d.]+) -> ([\d.]+)", done.stdout)[0])
    assert after < 0.7 * before, "it learns"
    assert "4 ['boxes', 'labels']" in lines


def test_splitting_training(tmp_path: Path, free_port: int) -> None:
    text = (TUTORIALS / "splitting-training.md").read_text(encoding="utf-8").replace("7443", str(free_port))
    found = re.findall(r"^```(sh|python|yaml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    python = [block for language, block in found if language == "python"]
    (settings,) = (block for language, block in found if language == "yaml")
    (command,) = (block for language, block in found if language == "sh")
    (tmp_path / "mymodels.py").write_text(python[0], encoding="utf-8")
    (tmp_path / "host.yaml").write_text(settings, encoding="utf-8")
    (tmp_path / "script.py").write_text("\n".join(python[1:]), encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    program, *arguments = shlex.split(command)
    assert program == "fogline"
    with subprocess.Popen(
        [sys.executable, "-m", "fogline", *arguments], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as host:
        try:
            assert host.stdout is not None
            assert host.stdout.readline().startswith("ready ")
            script = [sys.executable, "-W", "error", "script.py"]
            done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        finally:
            host.terminate()
    assert host.returncode == 0
    assert done.returncode == 0, done.stderr
    before, after = map(float, re.findall(r"loss ([\d.]+) -> ([\d.]+)", done.stdout)[0])
    assert after < 0.5 * before, "it learns"
    assert re.search(r"^2 +2x16x16x16 ", done.stdout, re.MULTILINE), "the table has the cut"
    assert "learning rate 0.0125" in done.stdout
    assert float(re.findall(r"accuracy ([\d.]+)", done.stdout)[0]) > 0.9


def test_your_own_detector(tmp_path: Path, free_port: int, wait_until: Callable[..., None]) -> None:
    text = (TUTORIALS / "your-own-detector.md").read_text(encoding="utf-8")
    text = text.replace("127.0.0.1:7400", f"127.0.0.1:{free_port}").replace("port: 9100", "port: 0")
    found = re.findall(r"^```(sh|python|yaml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    program, painting = (block for language, block in found if language == "python")
    (tmp_path / "mytrainer.py").write_text(program, encoding="utf-8")
    yaml = [block for language, block in found if language == "yaml"]
    for name, block in zip(("fog", "camera", "learner"), yaml, strict=True):
        (tmp_path / f"{name}.yaml").write_text(block, encoding="utf-8")
    commands = [
        shlex.split(line.removesuffix("&")) for kind, block in found if kind == "sh" for line in block.splitlines()
    ]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    modules = {"fog-node": ["-m", "fogline.fog_node"], "edge-agent": ["-m", "fogline.edge_agent"]}
    modules |= {"fogline": ["-m", "fogline"], "python": ["-c"]}

    def start(words: list[str]) -> subprocess.Popen[str]:
        command = [sys.executable, *modules[words[0]], *words[1:]]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def healthz(port: int) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.loads(error.read()))

    *processes, export = commands
    with start(["python", painting]) as painter:
        assert painter.wait(60) == 0
    running = []
    try:
        port = 0
        for words in processes:
            running.append(start(words))
            assert running[-1].stdout is not None
            port = json.loads(running[-1].stdout.readline().removeprefix("ready "))["metrics_port"]
        wait_until(lambda: healthz(port)["train"]["state"] == "done", 100, "the tutorial's training")
        train = healthz(port)["train"]
    finally:
        for process in reversed(running):
            process.terminate()
        ended = [process.communicate(timeout=20)[1] for process in reversed(running)]
    assert train["step"] >= 120, ended[0]
    assert train["loss"] < 0.01
    assert (tmp_path / "learner" / "train" / "own" / "checkpoint.pt").exists()
    with start(export) as exporting:
        assert exporting.wait(60) == 0
    assert len(list((tmp_path / "received" / "labels").iterdir())) == 32


def test_writing_a_codec(tmp_path: Path) -> None:
    text = (TUTORIALS / "writing-a-codec.md").read_text(encoding="utf-8")
    codec, script = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (project,) = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "mycodec.py").write_text(codec, encoding="utf-8")
    # What `pip install .` leaves in an environment of this `pyproject.toml`.
    (group, name, value) = re.findall(r'entry-points\."([\w.]+)"\]\n(\w+) = "(\w+)"', project)[0]
    metadata = tmp_path / "mycodec-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mycodec\nVersion: 0.1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n", encoding="utf-8")
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "32.0 times fewer bytes\n"
