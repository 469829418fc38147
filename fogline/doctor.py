"""`fogline doctor`: checks a host, and with `--config` what a process on it needs; each line says what to do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fogline.checks import host
from fogline.checks.finding import Finding
from fogline.checks.roles import load_role
from fogline.common import addresses, pki
from fogline.common.errors import ConfigError, FoglineError

SCHEMA = 1
FAILED = 1  # exit code when any check failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="the process's configuration, to check it as well")
    parser.add_argument("--role", choices=pki.ROLES, help="what the configuration is for")
    parser.add_argument("--json", action="store_true", help="print {schema, ok, findings} instead of lines")


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and return 0 unless something failed."""
    if (arguments.config is None) != (arguments.role is None):
        raise ConfigError("--config and --role belong together: fogline doctor --config edge.yaml --role edge")
    findings: list[Finding] = []
    for finding in _examine(arguments.config, arguments.role):
        findings.append(finding)
        if not arguments.json:
            _show(finding)
    ok = all(finding.status != "fail" for finding in findings)
    if arguments.json:
        report = {"schema": SCHEMA, "ok": ok, "findings": [dataclasses.asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if ok else FAILED


def _examine(path: Path | None, role: pki.Role | None) -> Iterator[Finding]:
    yield from host.versions()
    yield from host.clock()
    yield from host.image_formats()
    yield from host.torch(required=role == "fog")
    if path is None or role is None:
        yield from host.disk(Path.cwd())
        return
    try:
        config = load_role(path, role)
    except FoglineError as error:
        yield Finding("configuration", "fail", str(error), "`--print-config` of the process explains every key")
        return
    yield Finding("configuration", "ok", f"{path} is valid for the role {role}")
    yield from host.disk(config.data_dir, _allowed_bytes(config, role))
    # gRPC is not needed before, and takes a while to import on a small board.
    from fogline.checks import network
    from fogline.checks.certificates import certificates

    served = () if role == "edge" else tuple(filter(None, (getattr(config, "advertise", "") or config.listen,)))
    yield from certificates(config.tls, role, served)
    if role != "edge":
        address = addresses.parse(config.listen, allow_any_port=True)
        yield from network.port("gRPC", address.host, address.port)
    yield from network.port("metrics", config.metrics.host, config.metrics.port)
    me = network.identity(config.tls, role)
    if role == "edge" and config.fog != "discover":
        yield from network.fog(config.fog, config.tls, me)
    if role != "cloud" and config.cloud:
        yield from network.cloud(config.cloud, config.tls, me)


def _allowed_bytes(config: Any, role: pki.Role) -> int:
    if role == "edge":
        return int(config.outbox.max_bytes + config.library.max_bytes)
    return int(config.capacity_bytes or 0) if role == "fog" else int(config.models.quota_bytes)


def _show(finding: Finding) -> None:
    advice = f"\n{'':20}→ {finding.advice}" if finding.advice else ""
    sys.stdout.write(f"{finding.status:<6}{finding.check:<14}{finding.text}{advice}\n")
    sys.stdout.flush()
