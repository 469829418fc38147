"""Where the job stands, computed from what the processes count. No sockets, no clock: `Watch` is told the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_STALL_S = 180.0
_STALL_ENCODING_S = 900.0  # one batch of a neural codec takes minutes on a small host


@dataclass(frozen=True)
class EdgeProgress:
    """One edge agent, as far as it got."""

    name: str
    running: bool
    to_capture: int
    captured: int
    capture_done: bool
    waiting: int  # in its outbox
    to_hold: int
    held: int  # records in its library
    to_train: int  # steps; 0 where this edge does not train
    step: int
    loss: float | None
    iou: float | None
    sent: float  # bytes
    received: float  # bytes

    @property
    def missing(self) -> str | None:
        """What this edge still has to do, or None when it is done."""
        if not self.capture_done:
            return f"has captured {self.captured} of {self.to_capture} images"
        if self.waiting:
            return f"has {self.waiting} images in its outbox that the fog node does not hold yet"
        if self.held != self.to_hold:
            return f"holds {self.held} of the {self.to_hold} images of the other edges"
        if self.step < self.to_train:
            return f"has trained {self.step} of {self.to_train} steps"
        return None


@dataclass(frozen=True)
class FogProgress:
    """The fog node, as far as it got."""

    running: bool
    images: int  # that will come
    stored: int
    published: int

    @property
    def missing(self) -> str | None:
        """What the fog node still has to do, or None when it is done."""
        if self.stored < self.images:
            return f"holds {self.stored} of {self.images} images"
        if self.published < self.images:
            return f"has published {self.published} of {self.images} images"
        return None


@dataclass(frozen=True)
class Progress:
    """The whole job at one moment."""

    fog: FogProgress
    edges: tuple[EdgeProgress, ...]

    @property
    def missing(self) -> dict[str, str]:
        """Who still has what to do, by process name; empty when the job is done."""
        everyone = {"fog": self.fog.missing, **{edge.name: edge.missing for edge in self.edges}}
        return {name: what for name, what in everyone.items() if what is not None}

    @property
    def _mark(self) -> tuple[object, ...]:
        edges = tuple((e.captured, e.capture_done, e.waiting, e.held, e.step) for e in self.edges)
        return (self.fog.stored, self.fog.published, edges)


class Watch:
    """Notices that nothing moves any more."""

    def __init__(self, stall_s: float | None = None) -> None:
        self._stall_s, self._stall_encoding_s = stall_s or _STALL_S, stall_s or _STALL_ENCODING_S
        self._mark: tuple[object, ...] | None = None
        self._since = 0.0

    def stalled_for(self, progress: Progress, now: float) -> float | None:
        """Seconds without any progress once they are too many, else None."""
        if progress._mark != self._mark:
            self._mark, self._since = progress._mark, now
        encoding = progress.fog.stored > progress.fog.published
        quiet = now - self._since
        return quiet if quiet > (self._stall_encoding_s if encoding else self._stall_s) else None


def who_is_stuck(missing: Mapping[str, str]) -> str:
    """One line per process that has something left to do."""
    return "\n".join(f"  {name} {what}" for name, what in missing.items())
