"""Measuring a candidate on a few frames of a camera, at the cheapest parameters that meet the stated quality."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fogline.common.images import quality
from fogline.common.images.codec import EncodedImage, SourceImage
from fogline.common.images.planning import Dropped, Figures, Goal
from fogline.common.images.quality import Quality
from fogline.fog_node.encoders.candidates import Candidate, Rungs
from fogline.fog_node.encoders.ladder import LadderSearch
from fogline.fog_node.encoders.rendering import record_bytes, render

REPEATS = 2  # of a short measurement, for its times
SHORT_S = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What came of one candidate, and the rungs at which that was."""

    figures: Figures
    rungs: Rungs


@dataclass(frozen=True)
class Limits:
    """What a trial may take, and over how many images a blob of shared state that outlasts it should be spread."""

    encode_s: float  # for one image
    shared_frames: float


def run_trial(
    candidate: Candidate,
    frames: Sequence[SourceImage],
    goal: Goal,
    limits: Limits,
    device: str = "cpu",
    start: Rungs | None = None,
) -> Trial | Dropped:
    """Search a candidate's ladders on frames of one size and one camera; they follow one another if it is stateful.

    It is dropped when it raises anything, or takes longer than `limits.encode_s` for an image twice in a row: once may
    be the warming up of a device.
    """
    try:
        return _search(candidate, frames, goal, limits, device, start)
    except Exception as error:  # the root of a candidate's trial: the others must not suffer from it
        log.warning("candidate %s is dropped", candidate.codec, exc_info=True)
        return Dropped(candidate.codec, f"it failed: {type(error).__name__}: {error}"[:300])


def _search(
    candidate: Candidate, frames: Sequence[SourceImage], goal: Goal, limits: Limits, device: str, start: Rungs | None
) -> Trial | Dropped:
    first = start or (None, None)
    background = LadderSearch(len(candidate.ladder.backgrounds), first[0])
    objects = LadderSearch(len(candidate.ladder.objects), first[1])
    tried: dict[Rungs, Figures] = {}
    slow = 0
    while True:
        rungs = (background.rung, objects.rung)
        if rungs in tried and not _step_up(tried[rungs], goal, rungs, background, objects):
            return Trial(_timed_again(candidate, rungs, frames, tried[rungs], device), rungs)
        rungs = (background.rung, objects.rung)
        figures = tried[rungs] = measure(candidate, rungs, frames, limits.shared_frames, device)
        slow = slow + 1 if figures.encode_s > limits.encode_s else 0
        if slow == 2:
            return Dropped(
                candidate.codec, f"too slow: {figures.encode_s:.2g} s an image; at most {limits.encode_s:g} are given"
            )
        # What these frames have nothing of, the next may have.
        if figures.background_db is None:
            background.settle(candidate.default[0])
        else:
            background.tell(figures.background_db >= goal.background_db)
        if figures.object_db is None:
            objects.settle(candidate.default[1])
        else:
            objects.tell(figures.object_db >= goal.object_db)


def _step_up(figures: Figures, goal: Goal, rungs: Rungs, background: LadderSearch, objects: LadderSearch) -> bool:
    """Settle a rung higher where the answer is not good enough after all, and the ladder goes on.

    In a codec that weighs both kinds of layer against each other, each rung passed beside another one.
    """
    before = (background.rung, objects.rung)
    if figures.background_db is not None and figures.background_db < goal.background_db:
        background.settle(min(rungs[0] + 1, background.top))
    if figures.object_db is not None and figures.object_db < goal.object_db:
        objects.settle(min(rungs[1] + 1, objects.top))
    return (background.rung, objects.rung) != before


def _timed_again(
    candidate: Candidate, rungs: Rungs, frames: Sequence[SourceImage], figures: Figures, device: str
) -> Figures:
    """The same figures with the least times of a few runs: on a busy host one run may take many times what it needs."""
    for _ in range(REPEATS if figures.encode_s * len(frames) < SHORT_S else 0):
        again = measure(candidate, rungs, frames, 1, device)
        figures = replace(
            figures,
            encode_s=min(figures.encode_s, again.encode_s),
            decode_s=min(figures.decode_s or 0.0, again.decode_s or 0.0),
        )
    return figures


def measure(
    candidate: Candidate, rungs: Rungs, frames: Sequence[SourceImage], shared_frames: float, device: str = "cpu"
) -> Figures:
    """Encode and decode frames of one size with a fresh encoder. Raises what the codec raises.

    Where the frames needed several blobs of shared state, one after the other, they show themselves how long one lasts.
    """
    from fogline.fog_node.encoders import build_encoder

    params = candidate.params(rungs)
    encoder = build_encoder(candidate.codec, params, device)
    began = time.perf_counter()
    encoded = encoder.encode(frames)
    encode_s = (time.perf_counter() - began) / len(frames)
    shared = {state.digest: state.data for image in encoded for state in image.shared}
    sizes = [record_bytes(frame, image) for frame, image in zip(frames, encoded, strict=True)]
    began = time.perf_counter()
    found = judge(frames, encoded, shared, device)
    return Figures(
        codec=candidate.codec,
        params=params,
        frames=len(frames),
        record_bytes=sum(sizes) / len(sizes),
        encode_s=encode_s,
        background_db=found.background,
        object_db=found.object,
        decode_s=(time.perf_counter() - began) / len(frames),
        shared_bytes=sum(map(len, shared.values())) / max(1, len(shared)),
        shared_frames=len(frames) / len(shared) if len(shared) > 1 else shared_frames if shared else 1.0,
    )


def judge(
    frames: Sequence[SourceImage], encoded: Sequence[EncodedImage], shared: dict[bytes, bytes], device: str = "cpu"
) -> Quality:
    """The mean quality of encoded frames of one size."""
    pictures = render(frames, encoded, shared, device)
    return quality.mean(
        [quality.measure(frame.pixels, picture, frame.boxes) for frame, picture in zip(frames, pictures, strict=True)]
    )
