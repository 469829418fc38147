"""The records of a loader: parsed once, kept compressed, with their boxes side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fogline.common.errors import FormatError, InputError
from fogline.common.images.decode import BatchDecoder, PreparedImage
from fogline.common.images.record import SharedState
from fogline.common.loader.source import Source, read_source
from fogline.common.models.detection import Target, flat, to_target


@dataclass(frozen=True)
class Annotation(Target):
    """What is known of one image of a batch: the boxes and labels in view, and which image it is.

    `boxes` float32 (n, 4) as x0, y0, x1, y1 in 0..1 of the view, `labels` int64 (n) index the loader's labels.
    """

    index: int  # in the dataset
    camera: str
    content_id: bytes


class RecordDataset(Sequence[PreparedImage]):
    """Records in order of the source. `boxes` of all of them lie in one tensor; those of image i from `first[i]` on."""

    def __init__(
        self,
        source: Source,
        decoder: BatchDecoder,
        labels: Sequence[str],
        shared: Mapping[bytes, bytes] | None,
        skip_damaged: bool,
    ) -> None:
        """Read and parse everything. Raises InputError where nothing is found, FormatError for a damaged record.

        One after the other: entropy decoding holds the interpreter's lock, and threads were no faster.
        """
        known = dict(shared or {})
        targets: list[Target] = []
        self.refused: list[FormatError] = []  # records that were left out, and why
        self._images: list[PreparedImage] = []
        self.cameras: list[str] = []
        self.content_ids: list[bytes] = []
        self.labels = tuple(labels)
        for entry in read_source(source):
            if isinstance(entry, SharedState):
                known[entry.digest] = entry.data
                continue
            try:
                if isinstance(entry, FormatError):
                    raise entry
                image = decoder.prepare(entry, known)
            except FormatError as error:
                if not skip_damaged:
                    raise
                self.refused.append(error)
                continue
            boxes = [box for box in entry.boxes if not labels or box.label in labels]
            self._images.append(image)
            self.cameras.append(entry.camera)
            self.content_ids.append(entry.content_id)
            targets.append(to_target(boxes, *entry.source_size, labels))
        if not self._images:
            raise InputError(f"no usable record among {len(self.refused)}; the source must hold at least one")
        self.boxes, _ = flat(targets)
        self.kinds: Tensor = torch.cat([target.labels for target in targets])
        counts = torch.tensor([0, *(len(target.labels) for target in targets)], dtype=torch.int64)
        self.first: Tensor = counts.cumsum(0)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> PreparedImage:  # type: ignore[override]  # no slices
        return self._images[index]

    def boxes_of(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (n, 4) and labels (n) of images `indices` (B), and the place in the batch of each one's image (n)."""
        start, counts = self.first[indices], self.first[indices + 1] - self.first[indices]
        owner = torch.repeat_interleave(torch.arange(len(indices)), counts)
        rows = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner] + start[owner]
        return self.boxes[rows], self.kinds[rows], owner

    def fingerprint(self) -> str:
        """Names these images in this order, as hexadecimal digits."""
        return hashlib.sha256(b"".join(self.content_ids)).hexdigest()[:16]
