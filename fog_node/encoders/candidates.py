"""The codecs that `auto` weighs: their quality knobs as ladders, and what they need. One entry for each codec.

A rung is a set of parameters; quality rises with it. Background and object ladders are independent: an object layer
does not touch the pixels outside the boxes, and the quality of a background is measured only there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fogline.common.errors import ConfigError

Rung = Mapping[str, Any]
Rungs = tuple[int, int]  # of the background's and the objects' ladder

# About half a decibel apart where backgrounds and objects lie.
_QUALITIES = (*range(1, 5), *range(6, 16, 2), *range(17, 27, 3), *range(30, 91, 4), 93, 95)


def _pair(knob: str, qualities: tuple[int, ...] = _QUALITIES) -> tuple[Rung, ...]:
    return tuple({knob: quality} for quality in qualities)


@dataclass(frozen=True)
class Candidate:
    """One codec's ladders. A default rung is taken where there is nothing to measure a layer by."""

    codec: str
    background: tuple[Rung, ...]
    objects: tuple[Rung, ...] = ({},)
    default: Rungs = (0, 0)
    fixed: Rung = field(default_factory=dict)  # parameters that are the same on all rungs
    torch: bool = False
    accelerator: bool = False  # weighed only with one, or when asked for by name
    stateful: bool = False  # must see a camera's frames one after the other; has shared state

    def params(self, rungs: Rungs) -> dict[str, Any]:
        """The codec's parameters at these rungs."""
        return {**self.fixed, **self.background[rungs[0]], **self.objects[rungs[1]]}


CANDIDATES: dict[str, Candidate] = {
    one.codec: one
    for one in (
        Candidate("jpeg2", _pair("background_quality"), _pair("object_quality"), default=(7, 27)),
        Candidate("avif2", _pair("background_quality"), _pair("object_quality"), default=(10, 19)),
        # Of fewer rungs, since each try encodes a run of frames at several times the effort of `avif2`.
        Candidate(
            "latent",
            _pair("background_quality", (8, 12, 16, 20, 23, 26, 29, 32, 35, 38, 42, 46, 50, 56, 62)),
            _pair("object_quality", (34, 38, 42, 45, 48, 51, 54, 57, 60, 63, 66, 70, 74, 80, 86)),
            default=(6, 8),
            torch=True,
            stateful=True,
        ),
        Candidate(
            "siren",
            tuple({"target_db": db} for db in (24.0, 26.0, 27.0, 28.0, 29.0, 31.0, 34.0, 38.0)),
            ({}, {"bits": 8.0, "object_steps": 2400}),  # its objects have no quality of their own
            default=(2, 0),
            torch=True,
            accelerator=True,
        ),
    )
}


def chosen(names: tuple[str, ...] | None) -> tuple[Candidate, ...]:
    """The candidates of these names, or all that suit this host. Raises ConfigError; does not import torch."""
    torch = importlib.util.find_spec("torch") is not None
    if names is None:
        return tuple(one for one in CANDIDATES.values() if torch or not one.torch)
    for name in names:
        if name not in CANDIDATES:
            raise ConfigError(f"codec auto: candidate {name!r} is unknown; known: {', '.join(CANDIDATES)}")
        if CANDIDATES[name].torch and not torch:
            raise ConfigError(f"codec auto: candidate {name} needs torch; install fogline[torch] or leave it out")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"codec auto: candidates are {list(names)}; name each codec once, at least one")
    return tuple(CANDIDATES[name] for name in names)


def suited(candidates: tuple[Candidate, ...], named: bool, device: str) -> Iterator[Candidate]:
    """Leave out what is only worth trying with an accelerator, where there is none and nobody named it."""
    return (one for one in candidates if named or not one.accelerator or device.startswith("cuda"))
