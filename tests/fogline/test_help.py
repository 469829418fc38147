"""Numbered errors: every number has a page and every page a number that is raised; `fogline help` finds them."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from fogline.cli import main
from fogline.common.errors import ConfigError, FoglineError

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "errors"
ROOMS = ("common", "edge_agent", "fog_node", "cloud_server", "deploy", "fogline")


def raised() -> dict[int, set[str]]:
    """Every number in the sources, with the classes that carry it."""
    found: dict[int, set[str]] = {}
    for path in {p.resolve() for room in ROOMS for p in (ROOT / room).rglob("*.py") if "gen" not in p.parts}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                for keyword in node.keywords:
                    if keyword.arg == "number" and isinstance(keyword.value, ast.Constant):
                        found.setdefault(keyword.value.value, set()).add(node.func.id)
    return found


def test_every_number_has_a_page_and_begins_with_its_exit_code() -> None:
    errors = importlib.import_module("fogline.common.errors")
    numbers = raised()
    assert {f"FL{number}" for number in numbers} == {path.stem for path in PAGES.glob("*.md")}
    for number, classes in numbers.items():
        assert {getattr(errors, name).exit_code for name in classes} == {number // 100}, number


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_a_page_shows_the_message_and_what_to_do(page: Path) -> None:
    text = page.read_text()
    number = int(page.stem.removeprefix("FL"))
    example = re.search(rf"^    (\w+Error): .*\[FL{number}\]$", text, re.MULTILINE)
    assert example is not None
    assert example[1] in raised()[number]
    assert text.startswith(f"# {page.stem}: ")


def test_the_number_ends_the_message() -> None:
    assert str(ConfigError("no such thing", number=203)) == "no such thing [FL203]"
    assert str(FoglineError("no such thing")) == "no such thing"


@pytest.mark.parametrize("word", ["FL203", "fl203", "203", "[FL203]"])
def test_help_prints_the_page(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", word]) == 0
    assert capsys.readouterr().out == (PAGES / "FL203.md").read_text()


def test_help_lists_and_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert "FL203: a key is unknown" in capsys.readouterr().out
    assert main(["help", "FL2033"]) == ConfigError.exit_code
    assert "FL203" in capsys.readouterr().err
