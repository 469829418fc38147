"""Which agent this is, where two may have one identity: the same over restarts, another on another host.

It is made of a number that the data folder keeps and of the boot of the host: a copied disk brings the first along and
not the second.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from fogline.common.errors import ConfigError
from fogline.common.files import replace_file

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def instance(data_dir: Path, boot_file: Path = _BOOT) -> str:
    """Return 16 hexadecimal digits. Raises ConfigError, CapacityError or InternalError where the folder is no good."""
    path = data_dir / "instance"
    try:
        own = path.read_bytes()
    except FileNotFoundError:
        own = secrets.token_bytes(16)
        replace_file(path, own)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; check its owner, or delete it") from error
    try:
        boot = boot_file.read_bytes()
    except OSError:  # not Linux: copies on two hosts look like one agent
        boot = b""
    return hashlib.sha256(own + boot).hexdigest()[:16]
