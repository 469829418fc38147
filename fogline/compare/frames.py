"""The frames of a folder as every codec is given them: at the coded size, in order, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fogline.common.data import AnnotatedSequence, Frame
from fogline.common.errors import InputError
from fogline.common.images.codec import EncodedImage, SourceImage
from fogline.common.images.container import MAX_CAMERA_BYTES
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.record import ImageRecord
from fogline.common.images.sizes import coded_size

MAX_BYTES = 4 << 30  # of one folder's pixels in memory
BATCH_PIXELS = 32 * 1280 * 720  # of a batch of frames; decoded to floats it takes twelve times as many bytes


@dataclass(frozen=True)
class Captured:
    """A frame of the folder: what is encoded, and what its record says besides."""

    frame: Frame
    source: SourceImage
    content_id: bytes  # SHA-256 of the JPEG
    source_bytes: int

    def record(self, encoded: EncodedImage) -> ImageRecord:
        """The record that a fog node would publish."""
        height, width = self.source.pixels.shape[:2]
        return ImageRecord(
            content_id=self.content_id,
            capture_time_us=0,
            camera=self.source.camera.encode()[:MAX_CAMERA_BYTES].decode(errors="ignore"),
            source_size=(self.frame.width, self.frame.height),
            size=(width, height),
            boxes=self.frame.boxes,
            layers=encoded.layers,
            shared=tuple(state.digest for state in encoded.shared),
        )


@dataclass(frozen=True)
class Folder:
    """An annotated folder, loaded."""

    name: str
    path: Path
    frames: tuple[Captured, ...]

    def batches(self, most: int) -> Iterator[Sequence[Captured]]:
        """Consecutive frames, at most `most` at once and fewer where they are huge."""
        batch: list[Captured] = []
        pixels = 0
        for captured in self.frames:
            area = captured.source.pixels.shape[0] * captured.source.pixels.shape[1]
            if batch and (len(batch) == most or pixels + area > BATCH_PIXELS):
                yield batch
                batch, pixels = [], 0
            batch.append(captured)
            pixels += area
        if batch:
            yield batch


def load(
    sequence: AnnotatedSequence, path: Path, width: int, count: int | None, refuse: Callable[[str], None]
) -> Folder:
    """Load the first `count` frames of a sequence (None: all) at a coded width, never enlarged.

    `refuse` is told of every frame that can't be used. Raises InputError when none can, or all are too large together.
    """
    frames: list[Captured] = []
    total = 0
    for frame in sequence.frames[:count]:
        try:
            captured = _load(frame, sequence.name, width)
        except (InputError, OSError) as error:
            refuse(f"{frame.path}: {error}")
            continue
        total += captured.source.pixels.nbytes
        if total > MAX_BYTES:
            raise InputError(
                f"{path}: its frames take more than {MAX_BYTES >> 30} GiB at a width of {width}; "
                f"give a smaller --width, or --frames {len(frames)}"
            )
        frames.append(captured)
    if not frames:
        raise InputError(f"{path}: none of its frames can be decoded; see what was said of each")
    return Folder(sequence.name, path, tuple(frames))


def _load(frame: Frame, camera: str, width: int) -> Captured:
    data = frame.path.read_bytes()
    size = coded_size(frame.width, frame.height, width)
    scaled = (box.scaled(size[0] / frame.width, size[1] / frame.height) for box in frame.boxes)
    boxes = tuple((box.x, box.y, box.w, box.h) for box in scaled)
    return Captured(
        frame, SourceImage(resize(decode_jpeg(data), *size), boxes, camera), hashlib.sha256(data).digest(), len(data)
    )
