"""A camera's painted clip: its own, and the same again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fogline.common.data.load import load_sequence
from fogline.deploy.clip import main


def test_cameras_see_different_things_and_each_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def paint(folder: str, name: str, frames: str = "2") -> int:
        return main([str(tmp_path / folder), "--name", name, "--frames", frames, "--width", "96", "--height", "64"])

    assert paint("a", "edge-a") == paint("again", "edge-a") == paint("b", "edge-b") == 0
    first, again, other = (load_sequence(tmp_path / name / "camera-1").frames for name in ("a", "again", "b"))
    assert len(first) == 2
    assert [frame.path.read_bytes() for frame in first] == [frame.path.read_bytes() for frame in again]
    assert first[0].path.read_bytes() != other[0].path.read_bytes()
    assert paint("a", "edge-a") == 0  # a second start finds it
    assert paint("a", "edge-a", frames="3") != 0
    assert "something other than this clip" in capsys.readouterr().err
