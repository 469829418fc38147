"""Quality ladders of image codecs: the one place that says at which settings a codec is tried or measured.

A ladder has settings of backgrounds and of objects, each from coarse to fine. The two are independent: an object layer
does not touch the pixels outside the boxes, and the quality of a background is measured only there.

`GRIDS` are what comparisons measure, every background with every objects. Neighbours in one are what lies between
them when bytes are interpolated, so steps should be small enough for that (some 3 dB), and the whole wide enough to
overlap with other codecs. `SEARCHED` are what `auto` searches for the coarsest rung that is good enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Params = dict[str, Any]


@dataclass(frozen=True)
class Ladder:
    """Parameters of backgrounds and of objects, coarse to fine; `usual` is the background in ordinary use."""

    backgrounds: tuple[Params, ...] = ({},)
    objects: tuple[Params, ...] = ({},)
    usual: Mapping[str, Any] = field(default_factory=dict)

    def params(self, row: int, column: int) -> Params:
        """The codec's parameters with the background of this row and the objects of this column."""
        return {**self.backgrounds[row], **self.objects[column]}

    def rungs(self) -> Iterator[tuple[int, int, Params]]:
        """Row and column in the grid, and the parameters, of every setting."""
        for row in range(len(self.backgrounds)):
            for column in range(len(self.objects)):
                yield row, column, self.params(row, column)

    def middle(self) -> list[tuple[int, int, Params]]:
        """One setting for each background, with the objects of the middle column."""
        return [rung for rung in self.rungs() if rung[1] == len(self.objects) // 2]


def _each(key: str, *values: float) -> tuple[Params, ...]:
    return tuple({key: value} for value in values)


# About half a decibel apart where backgrounds and objects lie.
_FINE = (*range(1, 5), *range(6, 16, 2), *range(17, 27, 3), *range(30, 91, 4), 93, 95)
_FINE_PAIR = Ladder(_each("background_quality", *_FINE), _each("object_quality", *_FINE))
# Objects of `siren` have no quality of their own: more steps and finer weights raise theirs more than the background's.
_SIREN_OBJECTS = {"bits": 8.0, "object_steps": 2400}

SEARCHED: Mapping[str, Ladder] = {
    "jpeg2": _FINE_PAIR,
    "avif2": _FINE_PAIR,
    # Of fewer rungs, since each try encodes a run of frames at several times the effort of `avif2`.
    "latent": Ladder(
        _each("background_quality", 8, 12, 16, 20, 23, 26, 29, 32, 35, 38, 42, 46, 50, 56, 62),
        _each("object_quality", 34, 38, 42, 45, 48, 51, 54, 57, 60, 63, 66, 70, 74, 80, 86),
    ),
    "siren": Ladder(_each("target_db", 24.0, 26.0, 27.0, 28.0, 29.0, 31.0, 34.0, 38.0), ({}, _SIREN_OBJECTS)),
}

GRIDS: Mapping[str, Ladder] = {
    "jpeg2": Ladder(
        _each("background_quality", 4, 7, 12, 22, 40, 65),
        _each("object_quality", 50, 75, 92),
    ),
    "avif2": Ladder(
        _each("background_quality", 1, 8, 20, 35, 50),
        _each("object_quality", 30, 50, 70),
        {"background_quality": 20},
    ),
    "siren": Ladder(_each("target_db", 22, 25, 28, 31, 34, 38), ({"bits": 6.0}, _SIREN_OBJECTS)),
    "latent": Ladder(_each("background_quality", 5, 20, 35, 50), _each("object_quality", 25, 40, 60)),
    # Each setting is a training of one to several minutes of a core, so there are few, and all frames are one run.
    "nerv": Ladder(
        (
            {"channels": 10, "grid": 6, "latents": 4, "quality": 22, "steps": 5000, "group": 1024},
            {"channels": 16, "grid": 8, "latents": 6, "quality": 30, "steps": 7000, "group": 1024},
        ),
        _each("object_quality", 55),
    ),
    "av1-video": Ladder(_each("crf", 63, 56, 49, 42, 35, 28, 21, 14)),
    "av1-video2": Ladder(_each("crf", 63, 56, 49, 42, 35, 28), _each("object_crf", 44, 32, 20)),
}


def grid(codec: str) -> Ladder:
    """What comparisons measure of a codec; one setting, the codec's defaults, where it has no grid."""
    return GRIDS.get(codec, Ladder())
