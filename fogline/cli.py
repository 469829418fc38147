"""The `fogline` command. A subcommand's module is imported only when it is the one asked for."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from fogline import __version__
from fogline.common import process
from fogline.common.errors import ConfigError

# name: (module, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("fogline.up", "run the whole job on a local cluster and write a report"),
    "encode": ("fogline.commands.encode", "encode a folder of annotated images into one file"),
    "decode": ("fogline.commands.decode", "decode such a file into images"),
    "explain": ("fogline.commands.explain", "tell which image codec a camera should have, and why"),
    "compare": ("fogline.commands.compare", "measure image codecs on the same frames: bytes, quality, speed"),
    "split": ("fogline.commands.split", "plan where a model is cut between a device and a host, and compare policies"),
    "ca": ("fogline.commands.ca", "make the authority and the devices' certificates"),
    "join": ("fogline.commands.join", "enrol this device with a token of `fogline ca token`"),
    "status": ("fogline.status", "show the fleet, live, with every device's rates"),
    "help": ("fogline.commands.help", "explain an error by its number, such as FL203"),
    "doctor": ("fogline.doctor", "check this host and say what to do"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code (docs/exit-codes.md)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return process.run_main(lambda: _run(words[0], words[1:]))
    parser = argparse.ArgumentParser(
        prog="fogline",
        description="Fogline: learning across edge, fog and cloud.",
        epilog="commands:\n" + "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fogline {__version__}")
    parser.add_argument("command", help="one of those below; `fogline COMMAND --help` explains it")
    if not words:
        parser.print_help()
        return ConfigError.exit_code
    if not words[0].startswith("-"):
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        parser.error(f"no command {words[0]!r}; " + (f"did you mean `{close[0]}`?" if close else "see fogline --help"))
    parser.parse_args(words)
    return 0


def _run(name: str, words: Sequence[str]) -> int:
    module_name, text = COMMANDS[name]
    module: Any = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(prog=f"fogline {name}", description=text[0].upper() + text[1:] + ".")
    module.add_arguments(parser)
    result = module.run(parser.parse_args(words))
    return result if isinstance(result, int) else 0
