"""`fogline split serve --config FILE`: a tail host alone."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from fogline.common import config, logs
from fogline.common.errors import ConfigError
from fogline.common.tails import supervisor
from fogline.common.tails.config import TailHostConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration in YAML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key: section.key")
    parser.add_argument("--print-config", action="store_true", help="print every key with its default and end")


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError."""
    if arguments.print_config:
        sys.stdout.write(config.describe(TailHostConfig))
        return
    overrides: dict[str, str] = {}
    for item in arguments.set:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {item!r} is not KEY=VALUE; write it as --set tensors.listen=127.0.0.1:7443")
        overrides[key] = value
    settings = config.load(TailHostConfig, arguments.config, os.environ, overrides)
    logs.setup(settings.log, "tail-host")
    supervisor.check(settings)
    if not settings.tensors.models:
        raise ConfigError("tensors.models is empty, so that nothing could be run; list package.module:function")
    from fogline.common.tails.host import serve

    asyncio.run(serve(settings))
