"""What a decoder keeps of shared state: parsed while an image needs it, decoded as far as a budget of bytes goes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

DEFAULT_BYTES = 256 << 20  # 372 decoded pictures of 640x360, or 41 of 1920x1080

T = TypeVar("T")


class Sized(Protocol):
    """A tensor or an array."""

    @property
    def nbytes(self) -> int:
        """Its size in memory."""


S = TypeVar("S", bound=Sized)


class SharedCache:
    """Both halves may be used from any thread; what two of them want at once is made once."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        """`max_bytes` bounds what is decoded; the least recently used goes first. With 0, nothing is kept decoded."""
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._parsed: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._decoded: OrderedDict[Hashable, Sized] = OrderedDict()
        self._turns: dict[Hashable, threading.Lock] = {}
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of what is kept decoded."""
        return self._bytes

    def parsed(self, key: Hashable, parse: Callable[[], T]) -> T:
        """What `parse` made for this key; forgotten when nobody else holds it."""
        found = self._parsed.get(key)
        if found is None:
            with self._lock:  # parsing is short: it decodes nothing
                found = self._parsed.get(key)
                if found is None:
                    found = self._parsed[key] = parse()
        return cast(T, found)

    def decoded(self, key: Hashable, decode: Callable[[], S]) -> S:
        """What `decode` made for this key, now or before. It may be larger than the budget; then it is not kept."""
        with self._lock:
            if (found := self._found(key)) is not None:
                return cast(S, found)
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if (found := self._found(key)) is not None:
                    return cast(S, found)
            try:
                made = decode()
                with self._lock:
                    self._keep(key, made)
            finally:
                with self._lock:
                    self._turns.pop(key, None)
        return made

    def _found(self, key: Hashable) -> Sized | None:
        found = self._decoded.get(key)
        if found is not None:
            self._decoded.move_to_end(key)
        return found

    def _keep(self, key: Hashable, made: Sized) -> None:
        if made.nbytes > self.max_bytes:
            return
        if (old := self._decoded.pop(key, None)) is not None:
            self._bytes -= old.nbytes
        self._decoded[key] = made
        self._bytes += made.nbytes
        while self._bytes > self.max_bytes:
            _, gone = self._decoded.popitem(last=False)
            self._bytes -= gone.nbytes
