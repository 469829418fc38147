"""Annotated sequences: what a camera saw, in order, with the boxes of the objects in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fogline.common.boxes import Box
from fogline.common.errors import InputError


@dataclass(frozen=True)
class Frame:
    """One JPEG on disk, its size in pixels, and its boxes in 0-based pixels of that size."""

    path: Path
    boxes: tuple[Box, ...]
    index: int  # position in the folder, counted before anything was refused
    width: int
    height: int


@dataclass(frozen=True)
class AnnotatedSequence:
    """A camera's frames in the order of their file names."""

    name: str
    frames: tuple[Frame, ...]
    refused: tuple[InputError, ...] = ()  # one for each frame that was left out, naming file, line and value

    def part(self, start: int, stop: int, name: str | None = None) -> AnnotatedSequence:
        """The frames `start` to `stop` (by position among the usable ones), under their own or another name."""
        return AnnotatedSequence(name or self.name, self.frames[start:stop])
