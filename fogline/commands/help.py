"""`fogline help FL203`: the page of a numbered error."""

from __future__ import annotations

import argparse
import difflib
import sys
from importlib import resources

from fogline.common.errors import ConfigError

_PAGES = "error_pages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("number", nargs="?", help="as at the end of an error's message, such as FL203; none: list them")


def run(arguments: argparse.Namespace) -> int:
    """Print a page, or the list of pages."""
    pages = {
        path.name.removesuffix(".md"): path
        for path in resources.files("fogline").joinpath(_PAGES).iterdir()
        if path.name.endswith(".md")
    }
    if arguments.number is None:
        for _, path in sorted(pages.items()):
            sys.stdout.write(path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") + "\n")
        return 0
    name = f"FL{arguments.number.strip('[]').upper().removeprefix('FL')}"
    if name not in pages:
        close = difflib.get_close_matches(name, pages, n=1)
        raise ConfigError(
            f"no error {name}; " + (f"did you mean {close[0]}?" if close else "`fogline help` lists them")
        )
    sys.stdout.write(pages[name].read_text(encoding="utf-8"))
    return 0
