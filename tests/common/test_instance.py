"""An agent knows itself again after a restart, and its copy elsewhere is another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fogline.common.errors import ConfigError
from fogline.common.instance import instance


def test_restarts_copies_and_other_hosts(tmp_path: Path) -> None:
    here, there = tmp_path / "boot-1", tmp_path / "boot-2"
    here.write_text("1")
    there.write_text("2")
    first = instance(tmp_path / "data", here)
    assert instance(tmp_path / "data", here) == first
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert instance(tmp_path / "copy", there) != first
    assert instance(tmp_path / "another", here) != first
    assert instance(tmp_path / "data", tmp_path / "none") != first
    (tmp_path / "bad" / "instance").mkdir(parents=True)
    with pytest.raises(ConfigError, match="delete it"):
        instance(tmp_path / "bad", here)
