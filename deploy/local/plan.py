"""Who captures what: sequences cut into a shared and a held-out part, and the shared part dealt out to edges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from fogline.common.data.sequence import AnnotatedSequence, Frame
from fogline.common.data.split import split_runs, split_train_eval


@dataclass(frozen=True)
class PlannedImage:
    """One captured frame and its identity."""

    content_id: bytes  # SHA-256 of the JPEG
    size: int  # bytes
    frame: Frame
    camera: str


@dataclass(frozen=True)
class EdgePlan:
    """What one edge captures."""

    name: str
    runs: tuple[AnnotatedSequence, ...]
    images: tuple[PlannedImage, ...]

    @cached_property
    def content_ids(self) -> frozenset[bytes]:
        """Of everything that this edge captures; the same bytes twice count once."""
        return frozenset(image.content_id for image in self.images)


@dataclass(frozen=True)
class Plan:
    """The whole job."""

    edges: tuple[EdgePlan, ...]
    shared: tuple[AnnotatedSequence, ...]
    held_out: tuple[AnnotatedSequence, ...]

    @cached_property
    def images(self) -> dict[bytes, PlannedImage]:
        """Every different image of the job by its content id."""
        return {image.content_id: image for edge in self.edges for image in edge.images}

    def expected(self, name: str) -> frozenset[bytes]:
        """What the edge `name` must hold in the end: everything that others captured and it did not."""
        own = next(edge.content_ids for edge in self.edges if edge.name == name)
        return frozenset(self.images) - own

    @property
    def metric(self) -> str:
        """How a detector is judged on these frames: `iou` where none has several objects, else `ap50`."""
        return "iou" if all(len(frame.boxes) <= 1 for frame in self._frames()) else "ap50"

    @property
    def labels(self) -> tuple[str, ...]:
        """What a detector tells apart; nothing where there is one object at most."""
        if self.metric == "iou":
            return ()
        return tuple(sorted({box.label for frame in self._frames() for box in frame.boxes}))

    @property
    def trainable(self) -> bool:
        """Whether there are objects to learn and to be judged by."""
        return all(any(frame.boxes for s in part for frame in s.frames) for part in (self.shared, self.held_out))

    def _frames(self) -> Iterator[Frame]:
        for sequence in (*self.shared, *self.held_out):
            yield from sequence.frames


def make_plan(sequences: Sequence[AnnotatedSequence], edges: int, train_fraction: float) -> Plan:
    """Cut and deal out. Raises InputError when there are too few frames for so many edges, or to hold some back."""
    parts = [split_train_eval(sequence, train_fraction) for sequence in sequences]
    shared = tuple(first for first, _ in parts)
    digits = max(2, len(str(edges)))
    planned = [
        EdgePlan(f"edge-{number:0{digits}}", tuple(runs), tuple(_images(runs)))
        for number, runs in enumerate(split_runs(shared, edges), start=1)
    ]
    return Plan(tuple(planned), shared, tuple(rest for _, rest in parts))


def _images(runs: Sequence[AnnotatedSequence]) -> Iterator[PlannedImage]:
    for run in runs:
        for frame in run.frames:
            data = frame.path.read_bytes()
            yield PlannedImage(hashlib.sha256(data).digest(), len(data), frame, run.name)
