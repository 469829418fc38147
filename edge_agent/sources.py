"""Where images come from: replayed sequences, and folders that are watched."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fogline.common.boxes import Box
from fogline.common.data import AnnotatedSequence, Frame, load_sequence
from fogline.common.errors import InputError
from fogline.common.images.container import MAX_CAMERA_BYTES
from fogline.edge_agent.config import Frames

_log = logging.getLogger(__name__)
_SETTLED_S = 2.0  # a file untouched for this long is not being written
_LOADED = "object"  # the label that the loader gives to boxes whose format has none


@dataclass(frozen=True)
class Shot:
    """One image to be captured."""

    source: str  # with `key`, its durable name: it is captured once
    key: str
    path: Path
    camera: str
    boxes: tuple[Box, ...]


class SequenceSource:
    """A run of an annotated sequence, in order. Frames count as in the folder, refused ones included."""

    def __init__(self, run: Frames, camera: str, label: str) -> None:
        """Raises InputError when the folder is no annotated sequence."""
        self._sequence = load_sequence(run.path)
        self._run = run
        self._label = label
        self.camera = camera or short(self._sequence.name)
        self.name = f"sequence:{run.path.resolve()}"
        self.refused = [str(error) for error in self._sequence.refused]

    def shots(self, captured: set[str]) -> Iterator[Shot]:
        """What is left to capture."""
        for frame in frames_of(self._sequence, self._run):
            if str(frame.index) not in captured:
                yield Shot(self.name, str(frame.index), frame.path, self.camera, labelled(frame.boxes, self._label))


class FolderSource:
    """A folder of annotated JPEGs: what is there, then what appears. Files still being written wait."""

    def __init__(self, run: Frames, camera: str, label: str) -> None:
        self._path, self._label = run.path, label
        self.camera = camera or short(run.path.resolve().name)
        self.name = f"folder:{run.path.resolve()}"
        self.refused: list[str] = []  # every message once
        self._seen: dict[Path, tuple[int, int]] = {}  # files of the last scan: size, mtime
        self._loaded: dict[Path, tuple[int, int]] = {}  # files of the last load

    def scan(self, look_up: Callable[[], set[str]]) -> list[Shot]:
        """What is new since the last scan and settled, in order of file names; `look_up` says what was captured."""
        before, self._seen = self._seen, _files(self._path)
        unsettled = {path for path, stat in self._seen.items() if before.get(path) != stat and not _old(stat)}
        settled = {path: stat for path, stat in self._seen.items() if path not in unsettled}
        if settled == self._loaded:
            return []
        self._loaded = settled
        try:
            sequence = load_sequence(self._path)
        except InputError as error:
            self._refuse(error)
            return []
        for refusal in sequence.refused:
            if not unsettled:  # else it may only be half written
                self._refuse(refusal)
        captured = look_up()
        return [
            Shot(self.name, frame.path.name, frame.path, self.camera, labelled(frame.boxes, self._label))
            for frame in sequence.frames
            if frame.path not in unsettled and frame.path.name not in captured
        ]

    def _refuse(self, error: InputError) -> None:
        if str(error) not in self.refused:
            self.refused.append(str(error))


def frames_of(sequence: AnnotatedSequence, run: Frames) -> list[Frame]:
    """The usable frames of a run."""
    stop = run.stop
    return [frame for frame in sequence.frames if frame.index >= run.start and (stop is None or frame.index < stop)]


def labelled(boxes: tuple[Box, ...], label: str) -> tuple[Box, ...]:
    """Boxes with the configured label where their format carries none."""
    return tuple(replace(box, label=label) if box.label == _LOADED else box for box in boxes)


def short(name: str) -> str:
    """A folder's name as a camera's: what a record has room for."""
    return name.encode()[:MAX_CAMERA_BYTES].decode(errors="ignore")


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and mtime of every file in a folder and its direct subfolders."""
    found = {}
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        try:
            stat = path.stat()
        except OSError:
            continue  # gone between listing and looking
        if path.is_file():
            found[path] = (stat.st_size, stat.st_mtime_ns)
    return found


def _old(stat: tuple[int, int]) -> bool:
    return time.time() - stat[1] / 1e9 > _SETTLED_S
