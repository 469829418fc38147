"""The settings at which each codec is measured: the one place to add a codec to comparisons.

A ladder is a grid: settings of the background times settings of the objects, each from coarse to fine. Neighbours in
it are what lies between them when bytes are interpolated, so steps should be small enough for that (some 3 dB), and
the whole wide enough to overlap with other codecs. A codec without a ladder is measured at its defaults alone.
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

    def rungs(self) -> Iterator[tuple[int, int, Params]]:
        """Row and column in the grid, and the parameters, of every setting."""
        for row, background in enumerate(self.backgrounds):
            for column, objects in enumerate(self.objects):
                yield row, column, {**background, **objects}

    def middle(self) -> list[tuple[int, int, Params]]:
        """One setting for each background, with the objects of the middle column."""
        return [rung for rung in self.rungs() if rung[1] == len(self.objects) // 2]


def _each(key: str, *values: float) -> tuple[Params, ...]:
    return tuple({key: value} for value in values)


LADDERS: Mapping[str, Ladder] = {
    "jpeg2": Ladder(
        _each("background_quality", 4, 7, 12, 22, 40, 65),
        _each("object_quality", 50, 75, 92),
    ),
    "avif2": Ladder(
        _each("background_quality", 1, 8, 20, 35, 50),
        _each("object_quality", 30, 50, 70),
        {"background_quality": 20},
    ),
    # Its objects have no quality of their own: more steps and finer weights raise theirs more than the background's.
    "siren": Ladder(_each("target_db", 22, 25, 28, 31, 34, 38), ({"bits": 6.0}, {"bits": 8.0, "object_steps": 2400})),
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


def ladder(codec: str) -> Ladder:
    """The codec's ladder; one setting, the codec's defaults, where it has none."""
    return LADDERS.get(codec, Ladder())
