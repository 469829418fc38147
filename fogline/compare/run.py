"""All codecs at all their settings over one folder after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fogline.common.errors import FoglineError
from fogline.common.images.ladders import Params, grid
from fogline.compare.curves import Front
from fogline.compare.frames import Folder
from fogline.compare.measure import Measured, measure
from fogline.compare.subjects import build_subject


@dataclass(frozen=True)
class Point:
    """A codec at a setting on a folder: what it gave, or why it gave nothing."""

    folder: str
    codec: str
    row: int  # in the codec's ladder
    column: int
    params: Params
    measured: Measured | None = None
    error: FoglineError | None = None
    views: torch.Tensor | None = field(default=None, repr=False, compare=False)  # what a detector is trained on


def check(codecs: Sequence[str], device: str) -> None:
    """Build every codec once, so that what is wrong is said before hours of work. Raises ConfigError."""
    for codec in codecs:
        _, _, params = next(grid(codec).rungs())
        build_subject(codec, params, device)


def run(
    folder: Folder,
    codecs: Sequence[str],
    device: str,
    tell: Tell,
    view: tuple[int, int] | None = None,
    coarsest: Mapping[str, int] | None = None,
) -> Iterator[Point]:
    """Measure a folder. With `view`, a size, the points of the middle of each ladder keep their decoded images.

    Of a codec in `coarsest` only so many of its backgrounds are measured, from the coarsest on.

    A codec that fails at a setting gives a point with the error, and the rest goes on.
    """
    for codec in codecs:
        rows = (coarsest or {}).get(codec)
        rungs = [rung for rung in grid(codec).rungs() if rows is None or rung[0] < rows]
        shown = {(row, column) for row, column, _ in grid(codec).middle()}
        for number, (row, column, params) in enumerate(rungs, 1):
            name = f"{folder.name}: {codec} {number} of {len(rungs)} ({describe(params)})"
            clock = _Clock(tell, name, len(folder.frames))
            try:
                wanted = view if (row, column) in shown else None
                measured, views = measure(folder, build_subject(codec, params, device), clock, wanted)
            except FoglineError as error:
                tell.line(f"{name}: {type(error).__name__}: {error}")
                yield Point(folder.name, codec, row, column, params, error=error)
                continue
            tell.line(f"{name}: {measured.delivered_bytes:,.0f} bytes an image, {clock.seconds:.1f} s")
            yield Point(folder.name, codec, row, column, params, measured, views=views)


def fronts(points: Sequence[Point], object_db: float) -> dict[str, Front]:
    """The front of every codec among the points of one folder."""
    grids: dict[str, dict[tuple[int, int], Any]] = {point.codec: {} for point in points}
    for point in points:
        if point.measured is not None:
            grids[point.codec][point.row, point.column] = point.measured.rung
    return {codec: Front(grid, object_db) for codec, grid in grids.items()}


def describe(params: Params) -> str:
    """Parameters as they are shown: `background_quality 20, object_quality 55`."""
    return ", ".join(f"{key} {value}" for key, value in params.items()) or "defaults"


class Tell:
    """Progress on stderr: whole lines, and on a terminal a passing line with what goes on."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._passing = 0
        self._next = 0.0

    def line(self, text: str) -> None:
        """A line that stays."""
        self._put(text + "\n")
        self._passing = 0

    def passing(self, text: str) -> None:
        """A line that the next one replaces; every 30 seconds one that stays where there is no terminal."""
        if self._live:
            self._put(text)
            self._passing = len(text)
        elif time.monotonic() >= self._next:
            if self._next:
                self.line(text)
            self._next = time.monotonic() + 30

    def _put(self, text: str) -> None:
        blank = "\r" + " " * self._passing + "\r" if self._passing else ""
        sys.stderr.write(blank + text)
        sys.stderr.flush()


class _Clock:
    def __init__(self, tell: Tell, name: str, images: int) -> None:
        self._tell, self._name, self._images, self._began = tell, name, images, time.monotonic()

    def __call__(self, done: int) -> None:
        left = self.seconds / done * (self._images - done)
        self._tell.passing(f"{self._name}: {done} of {self._images} images, {left:.0f} s left")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
