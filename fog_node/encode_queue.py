"""Which images are encoded together, and what happens to a batch that fails. Pure logic: no clock, no disk, no process.

A batch that fails twice is cut in halves, so one image that kills the encoder ends alone; alone it gets three more
tries, because the encoder may have been killed by someone else, and is then set aside with its reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from fogline.common.images.sizes import coded_size as coded_size
from fogline.fog_node.store import QueuedImage
from fogline.fog_node.tenants import stream

TRIES_TOGETHER = 2
TRIES_ALONE = 3
_Key = tuple[tuple[int, int], str]  # coded size, camera


def size_of(image: QueuedImage, target_width: int) -> tuple[int, int]:
    """Width and height in which a queued image is coded: never larger than what was uploaded of it."""
    held_width = image.width if image.upload is None else image.upload.width
    return coded_size(image.width, image.height, min(target_width, held_width))


@dataclass(frozen=True)
class Batch:
    """Images to encode together; `failures` is how often exactly these have failed."""

    images: tuple[QueuedImage, ...]
    failures: int = 0


@dataclass(frozen=True)
class Rejected:
    """An image that can't be encoded."""

    image: QueuedImage
    reason: str


class EncodeQueue:
    """Images grouped by coded size, and by camera where asked, oldest first; failed batches before new ones."""

    def __init__(self, batch: int, max_wait_s: float, target_width: int, *, by_camera: bool = False) -> None:
        self._batch = batch
        self._max_wait_s = max_wait_s
        self._target_width = target_width
        self._by_camera = by_camera
        self._groups: dict[_Key, deque[tuple[float, QueuedImage]]] = {}
        self._retries: deque[Batch] = deque()
        self._since: dict[bytes, float] = {}  # when what is not done yet was queued, oldest first

    def __len__(self) -> int:
        waiting = sum(len(group) for group in self._groups.values())
        return waiting + sum(len(batch.images) for batch in self._retries)

    def add(self, images: Iterable[QueuedImage], now: float) -> None:
        """Queue images at time `now`, in seconds of any steady clock."""
        for image in images:
            key = size_of(image, self._target_width), stream(image.tenant, image.camera) if self._by_camera else ""
            self._groups.setdefault(key, deque()).append((now, image))
            self._since.setdefault(image.content_id, now)

    def done(self, images: Iterable[QueuedImage]) -> None:
        """These were published or set aside: nothing more is to be done for them."""
        for image in images:
            self._since.pop(image.content_id, None)

    def oldest_s(self, now: float) -> float:
        """For how long the oldest image that is not done has been here; 0 without any."""
        return now - next(iter(self._since.values()), now)

    def take(self, now: float) -> Batch | None:
        """The next batch: one that failed before, else the group whose head waited longest, when it is full or due."""
        if self._retries:
            return self._retries.popleft()
        ready = [
            (group[0][0], key)
            for key, group in self._groups.items()
            if len(group) >= self._batch or now >= group[0][0] + self._max_wait_s
        ]
        if not ready:
            return None
        _, key = min(ready)
        group = self._groups[key]
        images = tuple(group.popleft()[1] for _ in range(min(self._batch, len(group))))
        if not group:
            del self._groups[key]
        return Batch(images)

    def due_at(self) -> float | None:
        """When `take` next has a batch if nothing is added; None when the queue is empty."""
        if self._retries:
            return float("-inf")
        due = [
            float("-inf") if len(group) >= self._batch else group[0][0] + self._max_wait_s
            for group in self._groups.values()
        ]
        return min(due, default=None)

    def give_back(self, batch: Batch) -> None:
        """Return a batch that failed through no fault of its own (no room, shutdown): it is next again."""
        self._retries.appendleft(batch)

    def failed(self, batch: Batch, reason: str) -> Rejected | None:
        """A batch raised or killed the encoder. Queues what is to be tried again; the culprit is returned."""
        failures = batch.failures + 1
        alone = len(batch.images) == 1
        if failures < (TRIES_ALONE if alone else TRIES_TOGETHER):
            self._retries.append(Batch(batch.images, failures))
            return None
        if alone:
            return Rejected(batch.images[0], reason)
        middle = len(batch.images) // 2
        self._retries.extend([Batch(batch.images[:middle]), Batch(batch.images[middle:])])
        return None
