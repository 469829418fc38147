"""Forwards of a session whose backward is still to come, and the memory that they hold at the host.

What autograd keeps is read from its graph once a forward is done: every tensor that a node saved, by storage, so that
what several share counts once, without the weights. (Hooks on saved tensors would tell as much, and would take away
autograd's own check that nothing was changed in place.)
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from torch import Tensor

from fogline.common.errors import CapacityError, InputError

MAX_GRAPHS = 64


@dataclass
class Graph:
    """A forward whose backward is still to come."""

    inputs: list[Tensor]  # leaves
    wanted: list[bool]  # whether the client wants the gradient
    outputs: list[Tensor]
    # Gradients of inputs, as they came: autograd would copy them into another layout.
    caught: dict[int, Tensor] = field(default_factory=dict)

    def held_bytes(self, but: Iterable[Tensor]) -> int:
        """Bytes of memory that stay until the backward. `but`: the weights, which are there anyway."""
        known = {tensor.untyped_storage().data_ptr() for tensor in but}
        total = 0
        for tensor in (*self.inputs, *self.outputs, *_saved(self.outputs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                total += storage.nbytes()
        return total


def _saved(outputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """What the nodes behind `outputs` hold."""
    waiting: list[Any] = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        for name in _fields(cast(Hashable, type(node))):
            with suppress(RuntimeError):  # of one that was changed in place since: its backward will say so
                value = getattr(node, name)
                yield from (t for t in (value if isinstance(value, (tuple, list)) else (value,)) if _is_tensor(t))
        for further, _ in node.next_functions:
            if further is not None and further not in seen:
                seen.add(further)
                waiting.append(further)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


@lru_cache(maxsize=1024)
def _fields(kind: Hashable) -> tuple[str, ...]:
    """Attributes of a kind of node in which it saves tensors; a user's own functions have them in `saved_tensors`."""
    return tuple(name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors")


class GraphMemory:
    """Bytes of all sessions of a host, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self.held = 0

    def take(self, size: int) -> None:
        """Raises CapacityError where that is too much."""
        with self._lock:
            if self.held + size > self._limit:
                raise CapacityError(
                    f"forwards that wait for their backward hold {self.held} bytes here and {size} more are over the "
                    f"{self._limit} of tensors.max_graph_bytes; call backward on some of them, send smaller batches, "
                    "or raise it"
                )
            self.held += size

    def give(self, size: int) -> None:
        """They are free again."""
        with self._lock:
            self.held -= size


class Graphs:
    """Those of one session, by the number of their forward."""

    def __init__(self, memory: GraphMemory) -> None:
        self._memory = memory
        self._graphs: dict[int, tuple[Graph, int]] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def check(self) -> None:
        """Raise CapacityError when there are too many for another forward, before it is run."""
        if len(self) >= MAX_GRAPHS:
            raise CapacityError(f"{len(self)} forwards wait for their backward; call backward on some of them")
        self._memory.take(0)

    def add(self, seq: int, graph: Graph, weights: Iterable[Tensor]) -> None:
        """Keep a graph. Raises CapacityError where it holds too much."""
        size = graph.held_bytes(weights)
        self._memory.take(size)
        self._graphs[seq] = graph, size

    def get(self, seq: int) -> Graph:
        """Raises InputError for one that is not there."""
        found = self._graphs.get(seq)
        if found is None:
            raise InputError(
                f"operation {seq} has no graph: its backward came already, or it was not run with gradients; "
                "call backward once for each forward (retain_graph is not possible here)"
            )
        return found[0]

    def drop(self, seq: int) -> None:
        """Let a graph go, if it is there."""
        if (found := self._graphs.pop(seq, None)) is not None:
            self._memory.give(found[1])

    def clear(self) -> None:
        """Let all go."""
        for seq in list(self._graphs):
            self.drop(seq)
