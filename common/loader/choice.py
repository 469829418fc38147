"""Which cache is fastest on this host: decoding against reading from each, timed on some of the images themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from fogline.common.errors import CapacityError, ConfigError
from fogline.common.loader.pixels import PixelCache, Place, cache_bytes, room
from fogline.common.loader.render import Renderer
from fogline.common.models.augment import Cuts

Cache = Literal["none", "device", "ram", "disk"]
CACHES: tuple[Cache, ...] = ("none", "device", "ram", "disk")

_SHARE = 0.5  # of what is free: the rest is left to the training, and to others
_WORTH = 1.2  # what holds more, or holds it where it is dearer, must be this much faster
_PREFERRED: tuple[Cache, ...] = ("none", "ram", "disk", "device")  # among those that are about as fast
_REPEATS = 4


@dataclass(frozen=True)
class Candidate:
    """One cache, measured: `images_per_s` is None where it was not, for the reason in `note`."""

    cache: Cache
    bytes: int  # for all images of the loader
    images_per_s: float | None
    note: str = ""


def choose(
    renderer: Renderer,
    sample: Sequence[int],
    cuts: Cuts | None,
    cache_dir: Path | None,
    limit: int | None,
) -> tuple[Cache, tuple[Candidate, ...]]:
    """The cache to use, and what was measured, on one batch: images `sample`, seen as `cuts`.

    It is the fastest that has room, or one about as fast that takes less.

    A cache may take half of what is free, or `limit` bytes. The disk is read cold, as it is once the images are more
    than the memory that is left. Where the training device is the CPU, `device` and `ram` are the same: only the
    latter is a candidate. Takes a second or two on a CPU; images that fail to decode must not be in the sample.
    """
    device = renderer.decoder.device
    sizes = renderer.sizes(cuts is not None)
    total = cache_bytes(sizes)
    found = [Candidate("none", 0, _rate(lambda: renderer.render(sample, cuts), len(sample), device))]
    places: tuple[Place, ...] = ("device", "ram", "disk") if device.type == "cuda" else ("ram", "disk")
    for place in places:
        try:
            allowed = min(limit if limit is not None else total, int(_SHARE * room(place, device, cache_dir)))
        except OSError as error:
            found.append(Candidate(place, total, None, f"{cache_dir}: {error.strerror}"))
            continue
        if total > allowed:
            found.append(Candidate(place, total, None, f"{total} bytes of images, {allowed} may be used"))
            continue
        try:
            found.append(Candidate(place, total, _measure(renderer, place, sample, cuts, cache_dir)))
        except (CapacityError, ConfigError) as error:
            found.append(Candidate(place, total, None, str(error)))
    rates = {c.cache: c.images_per_s for c in found if c.images_per_s is not None}
    enough = max(rates.values()) / _WORTH
    return next(cache for cache in _PREFERRED if rates.get(cache, -1.0) >= enough), tuple(found)


def _measure(
    renderer: Renderer, place: Place, sample: Sequence[int], cuts: Cuts | None, cache_dir: Path | None
) -> float:
    """Images per second from a cache that holds the sample alone."""
    own = range(len(sample))
    images = [renderer.images[index] for index in sample]
    some = Renderer(images, renderer.decoder, renderer.size)
    some.cache = PixelCache(place, some.sizes(cuts is not None), renderer.decoder.device, cache_dir)
    some.render(own, cuts)  # fills it
    return _rate(lambda: some.render(own, cuts), len(sample), renderer.decoder.device, some.cache.evict)


def _rate(
    call: Callable[[], object], images: int, device: torch.device, before: Callable[[], None] | None = None
) -> float:
    taken = []
    for repeat in range(_REPEATS + 1):
        if before is not None:
            before()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat:  # the first pays for what is made once
            taken.append(time.perf_counter() - start)
    return images / min(taken)  # what others do on the machine only ever adds


def describe(candidates: Sequence[Candidate]) -> str:
    """One line for a log."""
    return ", ".join(
        f"{c.cache} {c.images_per_s:.0f} images/s" if c.images_per_s is not None else f"{c.cache} not ({c.note})"
        for c in (replace(c, note=c.note[:80]) for c in candidates)
    )
