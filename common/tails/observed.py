"""What a remote tail tells the metrics of the program that it runs in."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fogline.common.metrics import SplitMetrics
from fogline.common.rpc.tensor_client import Timing
from fogline.common.wire.tensors import TensorHeader

CALLS = frozenset({"forward", "backward", "forward_loss"})  # operations that a step waits for


class Observed:
    """Tells nothing where there are no metrics. `whole`: nobody above counts the calls."""

    def __init__(self, metrics: SplitMetrics | None, *, whole: bool = True) -> None:
        self.metrics, self._whole = metrics, whole
        self.codec = "raw"

    @contextmanager
    def part(self, operation: str, part: str) -> Iterator[None]:
        """A part of a step takes as long as this context."""
        began = time.perf_counter()
        yield
        if self.metrics is not None:
            self.metrics.seconds.labels(operation, part).observe(time.perf_counter() - began)

    def timing(self, timing: Timing) -> None:
        """An operation was answered."""
        if self.metrics is not None and timing.kind in CALLS:
            parts = ("link", timing.link_s), ("queue", timing.queued_s), ("tail", timing.compute_s)
            for part, seconds in parts:
                self.metrics.seconds.labels(timing.kind, part).observe(seconds)

    def moved(self, direction: str, headers: Iterable[TensorHeader]) -> None:
        """Tensors are sent or were received."""
        if self.metrics is not None:
            for header in headers:
                self.metrics.tensor_bytes.labels(direction, self.codec).inc(header.coded_bytes)
                self.metrics.raw_bytes.labels(direction, self.codec).inc(header.raw_bytes)

    def called(self, cut: str | None) -> None:
        """The host was called at a cut."""
        if self.metrics is not None and self._whole:
            self.metrics.calls.labels(cut or "input", self.codec, "host").inc()

    def connected(self, remote: object) -> None:
        """`connected` of this object is told from now on, as long as it lives."""
        if self.metrics is not None and self._whole:
            reference = weakref.ref(remote)
            self.metrics.connected.set_function(lambda: float(getattr(reference(), "connected", False)))
