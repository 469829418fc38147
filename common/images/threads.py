"""Pieces of work side by side on a CPU, each on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def each(call: Callable[[T], None], pieces: Sequence[T], device: torch.device) -> None:
    """Call for every piece, in any order; on a CPU, pieces side by side on single threads.

    A thread team in each operation would leave numpy's work to one core, and spin for its members on a busy machine.
    """
    configured = torch.get_num_threads()
    threads = min(configured, len(pieces)) if device.type == "cpu" else 1
    inference = torch.is_inference_mode_enabled()  # of this thread, and the others may not write to its tensors without

    def in_mode(piece: T) -> None:
        with torch.inference_mode(inference):
            call(piece)

    if threads > 1:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(in_mode, pieces))
        torch.set_num_threads(configured)  # a part of the setting is the process's, not the thread's
    else:
        for piece in pieces:
            call(piece)
