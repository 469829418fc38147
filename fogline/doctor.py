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
from fogline.checks.roles import ROLES, ProcessRole, load_role
from fogline.common import addresses
from fogline.common.errors import ConfigError, FoglineError

SCHEMA = 1
FAILED = 1  # exit code when any check failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="the process's configuration, to check it as well")
    parser.add_argument("--role", choices=ROLES, help="what the configuration is for; tail: of `fogline split serve`")
    parser.add_argument("--fix", action="store_true", help="mend what can be mended safely, and say what was done")
    parser.add_argument("--json", action="store_true", help="print {schema, ok, findings} instead of lines")


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and return 0 unless something failed."""
    if (arguments.config is None) != (arguments.role is None):
        raise ConfigError("--config and --role belong together: fogline doctor --config edge.yaml --role edge")
    findings: list[Finding] = []
    for found in _examine(arguments.config, arguments.role):
        finding = _mended(found) if arguments.fix else found
        findings.append(finding)
        if not arguments.json:
            _show(finding)
    ok = all(finding.status != "fail" for finding in findings)
    if arguments.json:
        report = {"schema": SCHEMA, "ok": ok, "findings": [_document(finding) for finding in findings]}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    elif any(finding.fix for finding in findings):
        sys.stdout.write("`--fix` does what stands after `fix`.\n")
    return 0 if ok else FAILED


def _examine(path: Path | None, role: ProcessRole | None) -> Iterator[Finding]:
    yield from host.versions()
    yield from host.clock()
    yield from host.image_formats()
    yield from host.torch(required=role in ("fog", "tail"))
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

    serving = {"gRPC": config.listen} if role in ("fog", "cloud") else {}
    if role == "tail" or (role != "edge" and config.tensors.enabled):
        serving["tensors"] = config.tensors.listen
    dialled = [getattr(config, "advertise", "") or address for address in serving.values()]
    yield from certificates(config.tls, config.role if role == "tail" else role, tuple(dialled))
    for what, text in serving.items():
        address = addresses.parse(text, allow_any_port=True)
        yield from network.port(what, address.host, address.port)
    if "tensors" in serving:
        yield from host.models(config.tensors.models)
    metrics = config.tensors.metrics if role == "tail" else config.metrics
    yield from network.port("metrics", metrics.host, metrics.port)
    if config.tls.authority:
        yield from network.authority(config.tls.authority)
    if role == "tail":
        return
    me = network.identity(config.tls, role)
    if role == "edge" and config.fog != "discover":
        yield from network.fog(config.fog, config.tls, me)
    if role != "cloud" and config.cloud:
        yield from network.cloud(config.cloud, config.tls, me)


def _mended(finding: Finding) -> Finding:
    """The finding after its fix was tried."""
    if finding.fix is None:
        return finding
    try:
        finding.fix.apply()
    except OSError as error:
        return dataclasses.replace(finding, text=f"{finding.text}; `{finding.fix.text}` failed: {error}", fix=None)
    return Finding(finding.check, "ok", f"{finding.text}: mended with `{finding.fix.text}`")


def _document(finding: Finding) -> dict[str, str | None]:
    """`fix`: the command that `--fix` stands for, or null."""
    fields = {"check": finding.check, "status": finding.status, "text": finding.text, "advice": finding.advice}
    return fields | {"fix": None if finding.fix is None else finding.fix.text}


def _allowed_bytes(config: Any, role: ProcessRole) -> int:
    if role == "tail":
        return int(config.tensors.checkpoint_bytes)
    if role == "edge":
        return int(config.outbox.max_bytes + config.library.max_bytes)
    return int(config.capacity_bytes or 0) if role == "fog" else int(config.models.quota_bytes)


def _show(finding: Finding) -> None:
    advice = f"\n{'':20}→ {finding.advice}" if finding.advice else ""
    advice += f"\n{'':20}fix: {finding.fix.text}" if finding.fix else ""
    sys.stdout.write(f"{finding.status:<6}{finding.check:<14}{finding.text}{advice}\n")
    sys.stdout.flush()
