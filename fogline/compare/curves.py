"""Bytes at equal quality: between what was measured, never beyond it.

A codec's settings form a grid (`ladders.py`). Along each of its lines, bytes are interpolated log-linearly over the
PSNR of the objects to find where they reach the wanted one; these places and the settings that reach it anyway are
candidates. Those that no other beats in both bytes and background make the *front*, along which bytes are interpolated
log-linearly over the PSNR of the background. Log-linear, because rate grows about exponentially with PSNR: 6 dB a bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

GRID_DB = 0.1  # step at which two fronts are compared over a range


@dataclass(frozen=True)
class Rung:
    """What one setting gave: mean bytes and mean PSNR over a folder's images. None: no such pixels."""

    bytes: float
    background_db: float | None
    object_db: float | None


@dataclass(frozen=True)
class Place:
    """A background quality and the bytes of an image that has it and objects of the wanted quality."""

    background_db: float
    bytes: float


@dataclass(frozen=True)
class Cost:
    """Bytes of an image for a wanted quality. `at_most`: the codec's cheapest setting is finer than what was asked."""

    bytes: float
    at_most: bool = False


@dataclass(frozen=True)
class Ratio:
    """Bytes relative to another codec, the geometric mean over all background qualities that both fronts have."""

    ratio: float
    from_db: float
    to_db: float


class Front:
    """The least bytes for each background quality, with objects of at least `object_db`."""

    def __init__(self, grid: Mapping[tuple[int, int], Rung], object_db: float) -> None:
        """Take the rungs by (row, column). Rungs without a background are left out: boxes cover those frames."""
        known = {
            at: _Known(rung.bytes, rung.background_db, math.inf if rung.object_db is None else rung.object_db)
            for at, rung in grid.items()
            if rung.background_db is not None
        }
        self._object_db, self._measured = object_db, bool(grid)
        self._best_object = max((rung.object_db for rung in known.values()), default=None)
        reaching = [Place(r.background_db, r.bytes) for r in known.values() if r.object_db >= object_db]
        self.places: tuple[Place, ...] = tuple(_unbeaten([*reaching, *_crossings(known, object_db)]))

    @property
    def gap(self) -> str:
        """Why the front is empty."""
        if self._best_object is None:
            return "no frame has a background" if self._measured else "nothing was measured"
        return f"objects reach {self._best_object:.2f} dB, not {self._object_db:g}"

    def at(self, background_db: float) -> Cost | str:
        """What a background of this quality costs, or why that is unknown."""
        if not self.places:
            return self.gap
        first, last = self.places[0], self.places[-1]
        if background_db > last.background_db:
            return f"background reaches {last.background_db:.1f} dB"
        if background_db < first.background_db:
            return Cost(first.bytes, at_most=True)
        for low, high in pairwise(self.places):
            if background_db <= high.background_db:
                share = (background_db - low.background_db) / (high.background_db - low.background_db)
                return Cost(_between(low.bytes, high.bytes, share))
        return Cost(last.bytes)  # a front of one place, hit exactly

    def against(self, reference: Front) -> Ratio | None:
        """Bytes relative to another front where both have measured ground; None where they don't overlap."""
        if len(self.places) < 2 or len(reference.places) < 2:
            return None
        low = max(self.places[0].background_db, reference.places[0].background_db)
        high = min(self.places[-1].background_db, reference.places[-1].background_db)
        if high - low < GRID_DB:
            return None
        steps = round((high - low) / GRID_DB)
        logs = []
        for step in range(steps + 1):
            level = min(high, low + (high - low) * step / steps)
            own, other = self.at(level), reference.at(level)
            if isinstance(own, Cost) and isinstance(other, Cost):
                logs.append(math.log(own.bytes / other.bytes))
        return Ratio(math.exp(sum(logs) / len(logs)), low, high) if logs else None


@dataclass(frozen=True)
class _Known:
    bytes: float
    background_db: float
    object_db: float  # infinite without objects, so that any wanted quality is reached


def _crossings(grid: Mapping[tuple[int, int], _Known], object_db: float) -> Iterator[Place]:
    """Where objects reach the wanted quality between two neighbours of the grid."""
    for (row, column), rung in grid.items():
        for other in (grid.get((row + 1, column)), grid.get((row, column + 1))):
            if other is None:
                continue
            low, high = sorted((rung, other), key=lambda r: r.object_db)
            if low.object_db < object_db < high.object_db < math.inf:
                share = (object_db - low.object_db) / (high.object_db - low.object_db)
                background = low.background_db + share * (high.background_db - low.background_db)
                yield Place(background, _between(low.bytes, high.bytes, share))


def _unbeaten(candidates: Sequence[Place]) -> list[Place]:
    """The places that none beats in bytes at an equal or better background, worst background first."""
    kept: list[Place] = []
    for place in sorted(candidates, key=lambda p: (-p.background_db, p.bytes)):
        if not kept or (place.bytes < kept[-1].bytes and place.background_db < kept[-1].background_db):
            kept.append(place)
    return kept[::-1]


def _between(low: float, high: float, share: float) -> float:
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
