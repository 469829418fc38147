"""The library as the trainer's pool: records parsed on arrival, decoded in batches. Imported by the child only."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fogline.common.blobs import BlobStore
from fogline.common.boxes import Box
from fogline.common.errors import FormatError
from fogline.common.images.container import from_bytes
from fogline.common.images.decode import BatchDecoder, PreparedImage
from fogline.common.models.augment import Cuts, cut, views_of
from fogline.common.models.detection import Target, to_target

_log = logging.getLogger(__name__)


@dataclass
class _Slot:
    id: int  # of the library's row
    image: PreparedImage
    target: Target
    pixels: torch.Tensor | None = None  # uint8 (3, H, W), while there is room for it


class LibraryPool:
    """An `ImagePool` over what the agent receives. The place of an evicted image is taken by the next that arrives."""

    def __init__(
        self, library: Path, decoder: BatchDecoder, size: tuple[int, int], labels: tuple[str, ...], cache_bytes: int
    ) -> None:
        """`size` is (width, height); where `labels` are given, boxes with other labels are left out."""
        self._db = sqlite3.connect(f"file:{library / 'library.sqlite'}?mode=ro", uri=True, timeout=30)
        self._blobs = BlobStore(library / "blobs", None)
        self._decoder, self._size, self._labels = decoder, size, labels
        self._room = cache_bytes
        self._slots: list[_Slot] = []
        self._last = 0  # id of the newest row looked at
        self._shared: dict[bytes, bytes] = {}
        self.damaged = 0  # records that turned out not to be decodable

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def refresh(self) -> int:
        """Take in what has arrived; how many."""
        rows = self._db.execute("SELECT id, digest FROM records WHERE id > ? ORDER BY id", (self._last,)).fetchall()
        if not rows:
            return 0
        alive = {row[0] for row in self._db.execute("SELECT id FROM records")}
        free = [index for index, slot in enumerate(self._slots) if slot.id not in alive]
        added = 0
        for row_id, digest in rows:
            self._last = row_id
            slot = self._prepare(row_id, digest)
            if slot is None:
                continue
            added += 1
            if free:
                index = free.pop(0)
                if self._slots[index].pixels is not None:
                    self._room += self._image_bytes
                self._slots[index] = slot
            else:
                self._slots.append(slot)
        self._shared.clear()
        return added

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that images are decoded at."""
        return self._size

    def views(self, indices: Sequence[int], cuts: Cuts, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        """What `cuts` show of images, at `size` (w, h): float32 (B, 3, h, w) in [0, 1] on the device.

        Cut from what is kept decoded. Of what there is no room to keep, only what a view shows is decoded.
        """
        full = self._room < self._image_bytes
        direct = [place for place, i in enumerate(indices) if full and self._slots[i].pixels is None]
        if direct:
            images, some = [self._slots[indices[place]].image for place in direct], cuts.of(direct)
            try:
                decoded = self._decoder.decode(images, size, views=views_of([i.size for i in images], some))
            except FormatError:
                direct = []  # the way over whole images finds out which one it is
        if not direct:
            return cut(self.images(indices).to(device), cuts, size)
        out = torch.empty((len(indices), 3, size[1], size[0]), device=device)
        out[direct] = decoded.to(device)
        if kept := sorted(set(range(len(indices))) - set(direct)):
            out[kept] = cut(self.images([indices[place] for place in kept]).to(device), cuts.of(kept), size)
        return out

    def images(self, indices: Sequence[int]) -> torch.Tensor:
        """Float32 (B, 3, H, W) in [0, 1]; what is not kept decoded is decoded in one batch."""
        slots = [self._slots[index] for index in indices]
        fresh = {id(slot): slot for slot in slots if slot.pixels is None}
        decoded: dict[int, torch.Tensor] = {}
        if fresh:
            batch = self._decode(list(fresh.values()))
            rounded = (batch.cpu() * 255).round().to(torch.uint8)
            for pixels, slot in zip(rounded, fresh.values(), strict=True):
                decoded[id(slot)] = pixels
                if self._room >= self._image_bytes:
                    self._room -= self._image_bytes
                    slot.pixels = pixels.clone()
        return torch.stack([s.pixels if s.pixels is not None else decoded[id(s)] for s in slots]).float() / 255

    def target(self, index: int) -> Target:
        """The objects in an image."""
        return self._slots[index].target

    def _decode(self, slots: Sequence[_Slot]) -> torch.Tensor:
        try:
            return self._decoder.decode([slot.image for slot in slots], self._size)
        except FormatError:
            # One of them lied about what it is; some codecs notice only now.
            return torch.cat([self._decode_alone(slot).cpu() for slot in slots])

    def _decode_alone(self, slot: _Slot) -> torch.Tensor:
        try:
            return self._decoder.decode([slot.image], self._size)
        except FormatError as error:
            _log.warning("not learned from: record %d can't be decoded: %s", slot.id, error)
            self.damaged += 1
        for other in self._slots:
            if other is not slot and other.image is not slot.image:
                with suppress(FormatError):
                    pixels = self._decoder.decode([other.image], self._size)
                    slot.image, slot.target = other.image, other.target  # learned from twice, in its place
                    return pixels
        slot.target = to_target([], 1, 1, self._labels)
        return torch.zeros((1, 3, self._size[1], self._size[0]))

    @property
    def _image_bytes(self) -> int:
        return 3 * self._size[0] * self._size[1]

    def _prepare(self, row_id: int, digest: bytes) -> _Slot | None:
        try:
            record = from_bytes(self._blobs.get(digest))
            for needed in record.shared:
                if needed not in self._shared:
                    self._shared[needed] = self._blobs.get(needed)
            image = self._decoder.prepare(record, self._shared)
        except FormatError as error:
            # Evicted between the row and the file, or of a codec that this build does not know.
            _log.warning("not learned from: record %d: %s", row_id, error)
            return None
        boxes = known(record.boxes, self._labels)
        return _Slot(row_id, image, to_target(boxes, *record.source_size, self._labels))


def known(boxes: Sequence[Box], labels: Sequence[str]) -> list[Box]:
    """Boxes with a label among `labels`; with none given, all."""
    return [box for box in boxes if not labels or box.label in labels]
