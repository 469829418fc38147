"""The code of the tutorials runs as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

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
