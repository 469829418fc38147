"""This process's certificate: chain, dates, key, file modes, role, names."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

from fogline.checks.finding import Finding, Fix
from fogline.common import addresses, pki
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, FoglineError

_SOON = timedelta(days=30)
_CHECK = "certificates"


def certificates(tls: TlsConfig, role: pki.Role, served_at: tuple[str, ...]) -> list[Finding]:
    """Check what the configuration points to. `served_at`: addresses (host:port) that peers dial this process at."""
    if tls.insecure:
        advice = "fine for a trial on this host; for more, make certificates with `fogline ca`"
        return [Finding(_CHECK, "warn", "insecure: no encryption and no identity", advice)]
    try:
        ca, cert, key = tls.files()
        pems = [_read(path) for path in (ca, cert, key)]
        identity = pki.check(pems[1], pems[0], pems[2], origin=cert)
        info = pki.inspect(pems[1], cert)
    except FoglineError as error:
        return [Finding(_CHECK, "fail", str(error), "`fogline ca enrol` makes the three files that belong together")]
    text = f"{cert}: {identity.role} {identity.name}, valid to {info.not_after:%Y-%m-%d}"
    findings = [Finding(_CHECK, "ok", text)]
    if identity.role != role:
        advice = f"enrol this device with --role {role}"
        findings.append(Finding(_CHECK, "fail", f"{cert} is of a {identity.role}, this is a {role}", advice))
    # Where a certificate service renews them, certificates are short-lived: only the last third is late.
    left, life = info.not_after - datetime.now(timezone.utc), info.not_after - info.not_before
    if left < (life / 4 if tls.authority else _SOON):
        advice = f"is {tls.authority} within reach? It was to be renewed by now" if tls.authority else "enrol again"
        findings.append(Finding(_CHECK, "warn", f"{cert} expires on {info.not_after:%Y-%m-%d %H:%M} UTC", advice))
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        fix = Fix(f"chmod 600 {key}", partial(key.chmod, 0o600))
        text = f"{key} can be read by others (mode {mode:o})"
        findings.append(Finding(_CHECK, "warn", text, "make it readable by its owner alone", fix))
    for address in served_at:
        host = addresses.parse(address, allow_any_port=True).host
        if host not in (*info.hosts, "0.0.0.0", "::"):
            advice = f"enrol again with --host {host} if peers dial it by that name"
            findings.append(Finding(_CHECK, "warn", f"{cert} is not for {host} (only {', '.join(info.hosts)})", advice))
    return findings


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
