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
