"""Small files that are there whole or not at all."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fogline.common.errors import ConfigError


def replace_file(path: Path, data: bytes) -> None:
    """Write a file durably, replacing what was there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temp.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temp.replace(path)


class DirectoryLock:
    """Held by one process at a time; the kernel frees it however the process ends."""

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError when another process holds it."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / "lock").open("w")
        except OSError as error:
            raise ConfigError(f"data_dir {directory} can't be used ({error.strerror}); choose another") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigError(
                f"data_dir {directory} is in use by another agent; stop it, or give this one its own data_dir"
            ) from None

    def close(self) -> None:
        """Free it."""
        self._file.close()
