"""What holds a connection can't be copied, written down, or used by a process that was forked from its own."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from torch import nn

from fogline.common.errors import InputError


class Connected(nn.Module):
    """A module that says so."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    @property
    def _ours(self) -> bool:
        return self._process == os.getpid()

    def _check_process(self) -> None:
        """Raise InputError in a forked process: the threads that serve the connection are not there."""
        if not self._ours:
            raise InputError(
                f"this {type(self).__name__} was connected by process {self._process}, of which process {os.getpid()} "
                "is a fork, and connections do not come along; connect in the process that uses it (a DataLoader's "
                "worker_init_fn), or set num_workers=0"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Raises InputError."""
        raise InputError(
            f"a {type(self).__name__} holds a connection and can't be copied; copy the head alone, and connect again "
            "for another session"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Raises InputError: of pickle, torch.save, copy.copy and processes that are spawned."""
        raise InputError(
            f"a {type(self).__name__} holds a connection and can't be pickled; save the head's state_dict() and what "
            "checkpoint() or weights() returns, and connect in the process that uses it"
        )
