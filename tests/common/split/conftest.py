"""A profile of round numbers: a network of four cuts that halves what crosses at each, 100 ms on the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fogline.common.split.profile import INPUT, SCHEMA, CodecFigures, CutFigures, Profile

ELEMENTS = 100_000
CUTS = {INPUT: (1.0, 0.0), "a": (1.5, 0.2), "b": (0.5, 0.4), "c": (0.5, 0.6), "d": (0.05, 0.9)}
CODECS = {"raw": (4.0, 0.0, 0.0), "int8": (1.0, 0.002, 0.0), "jpeg-input": (0.1, 0.002, 0.05)}
BATCHES = (1, 4, 8)


@pytest.fixture
def make_profile() -> Callable[..., Profile]:
    """`make_profile(seconds=0.1, batches=(1, 4, 8))`: everything in proportion to the batch size."""

    def make(seconds: float = 0.1, batches: tuple[int, ...] = BATCHES, **changes: object) -> Profile:
        def by(value: float) -> dict[int, float]:
            return {size: size * value for size in batches}

        cuts = tuple(
            CutFigures(
                name,
                ratio,
                by(share * seconds),
                by((1 - share) * seconds),
                tuple(
                    CodecFigures(codec, by(width * ratio * ELEMENTS), by(code_s), by(code_s), drop)
                    for codec, (width, code_s, drop) in CODECS.items()
                    if codec != "jpeg-input" or name == INPUT
                ),
            )
            for name, (ratio, share) in CUTS.items()
        )
        fields: dict[str, object] = {
            "schema": SCHEMA,
            "model": "models:halving",
            "architecture": "a" * 64,
            "hardware": "a processor",
            "torch": "2.13.0",
            "threads": 1,
            "input_elements": ELEMENTS,
            "whole_s": by(seconds),
            "cuts": cuts,
        }
        return Profile(**{**fields, **changes})  # type: ignore[arg-type]

    return make
