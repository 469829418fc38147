"""docs/tutorials/ten-cameras.md as it stands: ten real agents, twice."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "ten-cameras.md"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_cameras(tmp_path: Path) -> None:
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for language, block in found:
        commands = [["-c", block]] if language == "python" else [["-m", *shlex.split(ln)] for ln in block.splitlines()]
        for command in commands:
            done = subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    reports: list[dict[str, Any]] = [
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("bench-avif2", "bench-roi")
    ]
    for report in reports:
        assert (report["devices"], report["receivers_per_image"]) == (10, 9)
        assert (report["images_lost"], report["images_duplicated"]) == (0, 0)
        assert report["images"] > 80
    assert reports[1]["bytes"]["uplink"] < 0.7 * reports[0]["bytes"]["uplink"]
    assert (tmp_path / "compare.json").exists()
