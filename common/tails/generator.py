"""The random numbers of a session: one stream of its own, whatever else draws from the process's generators.

Models draw from torch's default generators, which a process has once. So whoever runs a model that draws holds the lock
and puts the session's state in for that time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from fogline.common.errors import ProtocolError

STATE_BYTES = 5056  # of the CPU's Mersenne twister


class Generator(Protocol):
    """Whose numbers head and tail draw one after the other: what travels is its state."""

    def get(self) -> Tensor:
        """The state."""

    def set(self, state: Tensor) -> None:
        """Go on from this state. Raises ProtocolError for what is none."""


class DefaultGenerator:
    """The CPU's default one, which a training script draws from."""

    def get(self) -> Tensor:
        """The state."""
        return torch.get_rng_state()

    def set(self, state: Tensor) -> None:
        """Go on from this state. Raises ProtocolError for what is none."""
        set_state(state)


class SessionGenerator:
    """The state between runs; `lock` is the process's."""

    def __init__(self, seed: int, device: torch.device, lock: threading.Lock) -> None:
        self._device, self._lock = device, lock
        self.cpu = torch.Generator().manual_seed(seed).get_state()
        self.cuda: Tensor | None = None
        if device.type == "cuda":
            self.cuda = torch.Generator(device).manual_seed(seed).get_state()

    def get(self) -> Tensor:
        """The state of the CPU's generator, for whoever draws further up."""
        return self.cpu

    def set(self, state: Tensor) -> None:
        """What it is after that. Raises ProtocolError for what is no state."""
        _check(state)
        try:
            self.cpu = torch.Generator().set_state(state.clone()).get_state()
        except RuntimeError as error:
            raise _refused(error) from error

    @contextmanager
    def drawing(self, given: Tensor | None = None) -> Iterator[None]:
        """Draw from the session's stream, or go on from the `given` state of the CPU's generator.

        `cpu` is the state afterwards, also after an error with the state before it. Raises ProtocolError for no state.
        """
        with self._lock:
            before, before_cuda = torch.get_rng_state(), None
            if self.cuda is not None:
                before_cuda = torch.cuda.get_rng_state(self._device)
            try:
                set_state(self.cpu if given is None else given)
                if self.cuda is not None:
                    torch.cuda.set_rng_state(self.cuda, self._device)
                yield
                self.cpu = torch.get_rng_state()
                if self.cuda is not None:
                    self.cuda = torch.cuda.get_rng_state(self._device)
            finally:
                torch.set_rng_state(before)
                if before_cuda is not None:
                    torch.cuda.set_rng_state(before_cuda, self._device)


def set_state(state: Tensor) -> None:
    """Set the CPU's default generator. Raises ProtocolError for what is no state of it."""
    _check(state)
    try:
        torch.set_rng_state(state.clone())
    except RuntimeError as error:
        raise _refused(error) from error


def _check(state: Tensor) -> None:
    if state.dtype != torch.uint8 or state.ndim != 1 or state.numel() != torch.get_rng_state().numel():
        raise ProtocolError(f"a generator's state of {state.numel()} {state.dtype}; it has {STATE_BYTES} bytes")


def _refused(error: RuntimeError) -> ProtocolError:
    return ProtocolError(f"a generator's state that torch refuses: {str(error).splitlines()[0]}")
