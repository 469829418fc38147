"""What a subscriber is told and when. Pure logic: pages of the log and times in, updates out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fogline.fog_node.store import Notice

HEAD_INTERVAL_S = 0.5  # news that concern a device in no other way than by moving its cursor come at most this often


@dataclass(frozen=True)
class Filter:
    """Which images a device wants; an empty set admits all."""

    labels: frozenset[str] = frozenset()
    cameras: frozenset[str] = frozenset()

    def admits(self, notice: Notice) -> bool:
        """Whether a device with this filter is told of a record: never of its own images."""
        return not notice.own and not notice.foreign and self.wants(notice.camera, notice.labels)

    def wants(self, camera: str, labels: frozenset[str]) -> bool:
        """Whether it lets through what others captured with this camera and these labels."""
        return (not self.labels or not self.labels.isdisjoint(labels)) and (not self.cameras or camera in self.cameras)


@dataclass(frozen=True)
class Update:
    """One message to a subscriber. Everything up to `head` that concerns it was in this or an earlier message."""

    notices: tuple[Notice, ...]
    head: int


class Subscription:
    """Walks one device through the log from its cursor."""

    def __init__(self, wanted: Filter, cursor: int) -> None:
        self._filter = wanted
        self.scanned = cursor  # everything up to here was looked at
        self._told: int | None = None  # the head in the last update
        self._told_at = float("-inf")

    def scan(self, page: Sequence[Notice], now: float) -> Update | None:
        """Take the next page of the log; what concerns the device is told at once."""
        if page:
            self.scanned = page[-1].cursor
        notices = tuple(notice for notice in page if self._filter.admits(notice))
        return self._tell(notices, now) if notices else None

    def head_due_at(self) -> float | None:
        """When to call `head_update`, or None while the device knows how far we are."""
        if self._told == self.scanned:
            return None
        return self._told_at + HEAD_INTERVAL_S

    def head_update(self, now: float) -> Update:
        """Tell how far we are: the device may move its cursor there. The first one also says "you are up to date"."""
        return self._tell((), now)

    def _tell(self, notices: tuple[Notice, ...], now: float) -> Update:
        self._told, self._told_at = self.scanned, now
        return Update(notices, self.scanned)
