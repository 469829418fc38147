"""Small files that are there whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from fogline.common.errors import CapacityError, ConfigError, InternalError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file durably, replacing what was there in one step. Raises CapacityError on a full disk."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temp.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temp.unlink(missing_ok=True)
        if error.errno in FULL:
            raise CapacityError(
                f"{path} can't be written: {error.strerror}; make room on the disk", number=601
            ) from error
        raise InternalError(f"{path} can't be written: {error}; check the disk and the folder's owner") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class DirectoryLock:
    """Held by one process at a time; the kernel frees it however the process ends."""

    def __init__(self, directory: Path, who: str) -> None:
        """`who`: what works there, such as "fog node". Raises ConfigError when another process holds it."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / "lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"data_dir {directory} can't be used ({error.strerror}); choose another", number=210
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(
                f"data_dir {directory} is in use by another {who}; stop it, or give this one its own data_dir",
                number=209,
            ) from None

    def close(self) -> None:
        """Free it. Idempotent."""
        self._file.close()
