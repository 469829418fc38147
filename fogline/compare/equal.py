"""Bytes at equal quality, codec by codec against one of them, on one folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fogline.common.images.ladders import grid
from fogline.compare.curves import Cost, Ratio
from fogline.compare.run import Point, fronts

STEP_DB = 2  # between the levels that are shown


@dataclass(frozen=True)
class Level:
    """A background quality, and the cost of it with each codec or why there is none."""

    background_db: float
    usual: bool  # what the reference gives in its ordinary use; else a round number
    costs: Mapping[str, Cost | str]

    def ratio(self, codec: str, reference: str) -> float | None:
        """A codec's bytes over the reference's; an upper bound where its cost is `at_most`."""
        own, other = self.costs[codec], self.costs[reference]
        return own.bytes / other.bytes if isinstance(own, Cost) and isinstance(other, Cost) else None


@dataclass(frozen=True)
class Equal:
    """All levels of a folder, and each codec's ratio to the reference over all that both have measured."""

    folder: str
    reference: str
    object_db: float
    levels: tuple[Level, ...]
    ratios: Mapping[str, Ratio | None]

    @property
    def usual(self) -> Level | None:
        """The level of the reference's ordinary use, where it was measured and objects reach the wanted quality."""
        return next((level for level in self.levels if level.usual), None)


def compare(points: Sequence[Point], reference: str, object_db: float) -> Equal | None:
    """Compare the codecs of one folder's points at levels within the reference's front; None where that is empty."""
    found = fronts(points, object_db)
    if reference not in found or not found[reference].places:
        return None
    first, last = (found[reference].places[i].background_db for i in (0, -1))
    at = {float(level): False for level in range(math.ceil(first), math.floor(last) + 1) if level % STEP_DB == 0}
    usual = _usual_db(points, reference)
    if usual is not None and first <= usual <= last:
        at[usual] = True
    levels = tuple(Level(db, at[db], {name: front.at(db) for name, front in found.items()}) for db in sorted(at))
    ratios = {name: front.against(found[reference]) for name, front in found.items() if name != reference}
    return Equal(points[0].folder, reference, object_db, levels, ratios)


def _usual_db(points: Sequence[Point], reference: str) -> float | None:
    usual = grid(reference).usual
    for point in points:
        if usual and point.codec == reference and point.measured is not None and usual.items() <= point.params.items():
            return point.measured.background_db
    return None
