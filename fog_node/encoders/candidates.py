"""The codecs that `auto` weighs, and what each needs. One entry for each codec; their ladders are `SEARCHED`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fogline.common.errors import ConfigError
from fogline.common.images.ladders import SEARCHED, Ladder

Rungs = tuple[int, int]  # of the background's and the objects' ladder


@dataclass(frozen=True)
class Candidate:
    """One codec. A default rung is taken where there is nothing to measure a layer by."""

    codec: str
    ladder: Ladder
    default: Rungs
    torch: bool = False
    accelerator: bool = False  # weighed only with one, or when asked for by name
    stateful: bool = False  # must see a camera's frames one after the other; has shared state

    def params(self, rungs: Rungs) -> dict[str, Any]:
        """The codec's parameters at these rungs."""
        return self.ladder.params(*rungs)


CANDIDATES: dict[str, Candidate] = {
    one.codec: one
    for one in (
        Candidate("jpeg2", SEARCHED["jpeg2"], default=(7, 27)),
        Candidate("avif2", SEARCHED["avif2"], default=(10, 19)),
        Candidate("latent", SEARCHED["latent"], default=(6, 8), torch=True, stateful=True),
        Candidate("siren", SEARCHED["siren"], default=(2, 0), torch=True, accelerator=True),
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
