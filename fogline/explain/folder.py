"""Measuring every candidate on sampled frames of a folder, as `auto` does on a camera's."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fogline.common.data import AnnotatedSequence, Frame
from fogline.common.errors import InputError
from fogline.common.images import uplink
from fogline.common.images.codec import SourceImage
from fogline.common.images.forms import Form, Qualities
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.planning import Dropped, Figures, Goal
from fogline.common.images.sizes import coded_size
from fogline.fog_node.encoders.auto import LASTS
from fogline.fog_node.encoders.candidates import Candidate
from fogline.fog_node.encoders.trial import Limits, Trial, run_trial

RUN = 16  # frames, one after the other, that a stateful codec is tried on, at least


@dataclass(frozen=True)
class Measured:
    """What a folder's frames showed; sizes are means over the sampled frames."""

    camera: str
    size: tuple[int, int]  # coded width and height
    frames: int  # sampled
    left_out: int  # frames of another coded size
    source_bytes: float  # m: of a JPEG as captured
    uploaded_bytes: float  # beta m: of what goes up for it
    figures: tuple[Figures, ...]
    dropped: tuple[Dropped, ...]


def measure(
    sequence: AnnotatedSequence,
    candidates: Sequence[Candidate],
    goal: Goal,
    *,
    width: int,
    frames: int,
    form: Form,
    max_encode_s: float,
    device: str,
    tell: Callable[[str], object],
) -> Measured:
    """Try the candidates on `frames` frames, spread over the sequence.

    With a stateful codec among them all are tried on a run of frames from its middle: that codec on each, the others on
    `frames` spread over the run, so that they are judged by the same.

    Shared state that outlasts the frames it was tried on is expected to last `LASTS` times as long. Raises InputError
    when a frame can't be read.
    """
    sizes = Counter(coded_size(frame.width, frame.height, width) for frame in sequence.frames)
    size = sizes.most_common(1)[0][0]
    usable = [frame for frame in sequence.frames if coded_size(frame.width, frame.height, width) == size]
    run = usable
    if any(candidate.stateful for candidate in candidates):
        length = max(frames, RUN)
        start = max(0, len(usable) - length) // 2
        run = usable[start : start + length]
    chosen = spread(run, frames)
    spread_out = [_load(frame, sequence.name, size) for frame in chosen]
    uploaded = [_uploaded(frame, form, width) for frame in chosen]
    figures, dropped = [], []
    for candidate in candidates:
        tell(f"{sequence.name}: {candidate.codec}")
        taken = spread_out
        if candidate.stateful:
            taken = [_load(frame, sequence.name, size) for frame in run]
        found = run_trial(candidate, taken, goal, Limits(max_encode_s, min(LASTS * len(taken), len(usable))), device)
        if isinstance(found, Trial):
            figures.append(found.figures)
        else:
            dropped.append(found)
    return Measured(
        camera=sequence.name,
        size=size,
        frames=len(chosen),
        left_out=len(sequence.frames) - len(usable),
        source_bytes=_mean([frame.path.stat().st_size for frame in chosen]),
        uploaded_bytes=_mean(uploaded),
        figures=tuple(figures),
        dropped=tuple(dropped),
    )


def spread(frames: Sequence[Frame], count: int) -> list[Frame]:
    """`count` frames, evenly spaced, those with boxes preferred; all where there are fewer."""
    usable = [frame for frame in frames if frame.boxes] or list(frames)
    if len(usable) <= count:
        return usable
    return [usable[(2 * i + 1) * len(usable) // (2 * count)] for i in range(count)]


def _load(frame: Frame, camera: str, size: tuple[int, int]) -> SourceImage:
    try:
        pixels = decode_jpeg(frame.path.read_bytes())
    except InputError as error:
        raise InputError(f"{frame.path}: {error}") from error
    boxes = [box.scaled(size[0] / frame.width, size[1] / frame.height) for box in frame.boxes]
    return SourceImage(resize(pixels, *size), tuple((b.x, b.y, b.w, b.h) for b in boxes), camera)


def _uploaded(frame: Frame, form: Form, width: int) -> int:
    data = frame.path.read_bytes()
    if form is Form.ORIGINAL:
        return len(data)
    return len(uplink.encode(form, data, hashlib.sha256(data).digest(), frame.boxes, width, Qualities()))


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)
