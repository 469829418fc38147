"""Reference pages say what is true of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from fogline.common import errors

ROOT = Path(__file__).resolve().parents[2]


def test_generated_parts_are_fresh() -> None:
    script = str(ROOT / "docs" / "generate.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_exit_code_is_documented() -> None:
    text = (ROOT / "docs" / "exit-codes.md").read_text()
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.FoglineError)]
    with_codes = [cls for cls in classes if "exit_code" in vars(cls)]
    assert len(with_codes) == 9
    for cls in with_codes:
        if cls is not errors.FoglineError:
            assert f"| {cls.exit_code} | `{cls.__name__}` |" in text


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in metadata.requires("fogline") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name is not None
        assert re.search(rf"\b{re.escape(name[0])}\b", text, re.IGNORECASE), f"{name[0]} is not in docs/dependencies.md"
