"""The encoder `auto`: each camera gets the codec that wins on its own frames, for its receivers and the measured links.

After a camera's first frames, every `every` frames, and when what it sees has changed, each candidate is tried on a few
of its frames, as long as trials have not taken more than their share of the time: camera names come from strangers, and
each costs seconds to judge. The planner chooses among the figures, and chooses again, without a trial, when receivers
or links change.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fogline.common.errors import FormatError
from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.common.images.planning import Choice, Decision, Dropped, Link, Situation, decide
from fogline.fog_node.encoders.allowance import Allowance
from fogline.fog_node.encoders.auto_params import AutoParams
from fogline.fog_node.encoders.candidates import CANDIDATES, Candidate, chosen, suited
from fogline.fog_node.encoders.rendering import record_bytes
from fogline.fog_node.encoders.trial import Limits, Trial, judge, run_trial

log = logging.getLogger(__name__)

SAMPLE = 3  # frames of a trial
RUN = 8  # of a stateful codec's, one after the other
LASTS = 4  # a blob of shared state that outlasts a trial is expected to last for so many times its frames
SOON = 8  # images after which a trial on fewer frames than that is repeated
SETTLE = 32  # images between trials at least, however much a camera's frames change
REST = 8  # trials in which a candidate that was dropped is left out
CHECK = 16  # images between two looks at what a camera's records have become
DRIFT_DB = 1.0  # a check this far below what the trial promised calls for another
DRIFT_BYTES = 1.5  # so do records this many times larger or smaller
MAX_CAMERAS = 1024  # remembered at once; names come from strangers
MAX_ENCODERS = 256
MAX_BLOBS = 64  # counted before it begins anew

Key = tuple[str, int, int]  # camera, coded width and height: at another size a camera is judged anew


@dataclass
class _Camera:
    """What is known of a camera. The counters below `images` are since the last check."""

    trials: dict[str, Trial] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    decision: Decision | None = None
    rounds: int = 0  # of trials
    sample: int = 0  # frames of the last trial
    images: int = 0  # since the last trial, or the first image
    drifted: bool = False
    checked: int = 0
    record_bytes: int = 0
    lifetimes: dict[str, float] = field(default_factory=dict)  # images to a blob of shared state, as seen in use
    job: _Job | None = None  # since its last change:
    job_images: int = 0
    blobs: set[bytes] = field(default_factory=set)

    def use(self, job: _Job) -> None:
        """What its images are encoded with from now on."""
        if job != self.job:
            self.job, self.job_images, self.blobs = job, 0, set()

    def book(self, encoded: Sequence[EncodedImage]) -> None:
        """Find out how long a blob of shared state lasts: a trial is too short for that."""
        self.job_images += len(encoded)
        self.blobs.update(state.digest for image in encoded for state in image.shared)
        if self.job is not None and self.blobs and self.job_images >= CHECK:
            lasts, expected = self.job_images / len(self.blobs), self.lifetimes.get(self.job.codec, 0.0)
            self.lifetimes[self.job.codec] = lasts if len(self.blobs) > 1 else max(LASTS * lasts, expected)
            if len(self.blobs) > MAX_BLOBS:
                self.job_images, self.blobs = 0, set()

    def due(self, frames: Sequence[SourceImage], first: int, every: int) -> bool:
        """Whether the candidates are to be tried on these frames."""
        if not self.rounds:
            return self.images + len(frames) >= first
        if self.images >= every:
            return True
        if any(trial.figures.object_db is None for trial in self.trials.values()) and any(f.boxes for f in frames):
            return True  # the first boxes: nothing is known of object layers yet
        if self.sample < min(SAMPLE, len(frames)) and self.images >= SOON:
            return True
        return (self.drifted or not self.trials) and self.images >= SETTLE


class AutoEncoder(ImageEncoder):
    """Holds the trials of every camera, and an encoder for each codec and parameters in use."""

    def __init__(self, params: AutoParams, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowance = Allowance(params.trial_share, clock)
        self._params, self._device = params, device
        known = chosen(params.candidates)
        self._candidates = tuple(suited(known, params.candidates is not None, device))
        self._situation = Situation()
        self._cameras: OrderedDict[Key, _Camera] = OrderedDict()
        self._encoders: OrderedDict[_Job, ImageEncoder] = OrderedDict()
        self._news: list[Choice] = []
        self._trial_seconds = 0.0

    def inform(self, situation: Situation) -> None:
        """What holds from the next `encode` on."""
        self._situation = situation

    def news(self) -> tuple[list[Choice], float]:
        """Since the last call: what was chosen, or chosen for other reasons, and the seconds that trials took."""
        news = self._news, self._trial_seconds
        self._news, self._trial_seconds = [], 0.0
        return news

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """See ImageEncoder.encode. Images of one camera must come in the order of capture."""
        groups: dict[Key, list[int]] = {}
        for index, image in enumerate(images):
            height, width = image.pixels.shape[:2]
            groups.setdefault((image.camera, width, height), []).append(index)
        jobs: dict[_Job, list[int]] = {}
        for key, indices in groups.items():
            job = self._job(key, [images[i] for i in indices])
            self._cameras[key].use(job)
            jobs.setdefault(job, []).extend(indices)
        out: dict[int, EncodedImage] = {}
        for job, indices in jobs.items():
            indices.sort()
            out.update(zip(indices, self._run(job, [images[i] for i in indices]), strict=True))
        for key, indices in groups.items():
            self._watch(self._cameras[key], [images[i] for i in indices], [out[i] for i in indices])
        while len(self._cameras) > MAX_CAMERAS:
            self._cameras.popitem(last=False)
        return [out[index] for index in range(len(images))]

    def _job(self, key: Key, frames: Sequence[SourceImage]) -> _Job:
        """What encodes these frames of one camera, after a trial where one is due."""
        camera = self._cameras.setdefault(key, _Camera())
        self._cameras.move_to_end(key)
        params = self._params
        tried = not self._situation.cautious and camera.due(frames, params.trial_after, params.every)
        tried = tried and self._allowance.any
        if tried:
            self._try(camera, frames)
        self._decide(key, camera, tried)
        if camera.decision is None:
            fallback = self._fallback()
            return _Job.of(fallback, fallback.params(fallback.default), key)
        return _Job.of(CANDIDATES[camera.decision.codec], camera.decision.params, key)

    def _fallback(self) -> Candidate:
        """What encodes while nothing is known: a codec of pictures where there is one."""
        return min(self._candidates, key=lambda one: (one.torch, self._candidates.index(one)))

    def _try(self, camera: _Camera, frames: Sequence[SourceImage]) -> None:
        began = time.perf_counter()
        trials: dict[str, Trial] = {}
        dropped: dict[str, str] = {}
        for one in self._candidates:
            if one.codec in camera.dropped and camera.rounds % REST:
                dropped[one.codec] = camera.dropped[one.codec]
                continue
            taken = sample_of(frames, one)
            lasts = camera.lifetimes.get(one.codec, min(LASTS * len(taken), self._params.every))
            limits = Limits(self._params.max_encode_s, lasts)
            before = camera.trials.get(one.codec)
            start = None if before is None else before.rungs
            found = run_trial(one, taken, self._params.goal, limits, self._device, start)
            if isinstance(found, Trial):
                trials[one.codec] = found
            else:
                dropped[one.codec] = found.reason
        camera.trials, camera.dropped = trials, dropped
        camera.rounds += 1
        if camera.rounds % REST == 0:
            camera.lifetimes.clear()  # of another scene perhaps
        camera.sample = min(SAMPLE, len(frames))
        camera.images = camera.checked = camera.record_bytes = 0
        camera.drifted = False
        seconds = time.perf_counter() - began
        self._allowance.spend(seconds)
        self._trial_seconds += seconds

    def _decide(self, key: Key, camera: _Camera, tried: bool) -> None:
        situation, params, before = self._situation, self._params, camera.decision
        link = Link(
            situation.receivers.get(key[0], 1),
            params.downlink_bit_s or situation.downlink_bit_s,
            params.uplink_bit_s or situation.uplink_bit_s,
        )
        camera.decision = decide(
            params.goal,
            link,
            [trial.figures for trial in camera.trials.values()],
            [Dropped(codec, reason) for codec, reason in camera.dropped.items()],
            None if before is None else before.codec,
        )
        now = camera.decision
        if now is None:
            return
        changed = before is None or (before.codec, before.params) != (now.codec, now.params)
        if changed or tried or before is None or before.link.receivers != link.receivers:
            self._news.append(Choice(*key, now, changed))

    def _run(self, job: _Job, images: Sequence[SourceImage]) -> list[EncodedImage]:
        try:
            encoder = self._encoders.get(job)
            if encoder is None:
                encoder = self._encoders[job] = job.build(self._device)
                if len(self._encoders) > MAX_ENCODERS:
                    self._encoders.popitem(last=False)
            self._encoders.move_to_end(job)
            return encoder.encode(images)
        except Exception as error:
            # The batch is given again; by then these cameras have another codec.
            for key in {(image.camera, *image.pixels.shape[1::-1]) for image in images}:
                camera = self._cameras.get(key)
                if camera is not None and camera.decision is not None:
                    camera.decision = None
                    camera.trials.pop(job.codec, None)
                    camera.dropped[job.codec] = f"it failed: {type(error).__name__}: {error}"[:300]
            raise

    def _watch(self, camera: _Camera, frames: Sequence[SourceImage], encoded: Sequence[EncodedImage]) -> None:
        """Count, and look now and then whether the trial's figures still hold."""
        camera.book(encoded)
        camera.images += len(frames)
        camera.checked += len(frames)
        camera.record_bytes += sum(_size(frame, image) for frame, image in zip(frames, encoded, strict=True))
        if camera.decision is None or camera.checked < CHECK:
            return
        figures, goal = camera.trials[camera.decision.codec].figures, self._params.goal
        lasts = min(figures.shared_frames, camera.lifetimes.get(figures.codec, figures.shared_frames))
        delivered = camera.record_bytes / camera.checked + figures.shared_bytes / lasts
        ratio = delivered / figures.delivered_bytes
        camera.checked = camera.record_bytes = 0
        shared = {state.digest: state.data for state in encoded[-1].shared}
        try:
            now = judge(frames[-1:], encoded[-1:], shared, self._device)
        except FormatError as error:
            log.error("a record of %s can't be decoded: %s; trying the codecs anew", figures.codec, error)
            camera.drifted = True
            return
        pairs = (
            (now.background, figures.background_db, goal.background_db),
            (now.object, figures.object_db, goal.object_db),
        )
        worse = any(a is not None and b is not None and a < min(b, asked) - DRIFT_DB for a, b, asked in pairs)
        camera.drifted = camera.drifted or worse or not 1 / DRIFT_BYTES <= ratio <= DRIFT_BYTES


@dataclass(frozen=True)
class _Job:
    """An encoder in use: a codec with its parameters; a stateful one for one camera alone."""

    codec: str
    params: str  # JSON, so that it can be a key
    camera: Key | None

    @classmethod
    def of(cls, candidate: Candidate, params: Mapping[str, Any], key: Key) -> _Job:
        text = json.dumps(dict(params), sort_keys=True)
        return cls(candidate.codec, text, key if candidate.stateful else None)

    @classmethod
    def of_decision(cls, decision: Decision, key: Key) -> _Job:
        return cls.of(CANDIDATES[decision.codec], decision.params, key)

    def build(self, device: str) -> ImageEncoder:
        from fogline.fog_node.encoders import build_encoder

        return build_encoder(self.codec, json.loads(self.params), device)


def _size(frame: SourceImage, image: EncodedImage) -> int:
    try:
        return record_bytes(frame, image)
    except FormatError:  # whoever makes the record will say so, of this image alone
        return sum(len(layer.payload) for layer in image.layers)


def sample_of(frames: Sequence[SourceImage], candidate: Candidate) -> list[SourceImage]:
    """The frames of a trial, those with boxes preferred: spread out, or one after the other for a stateful codec."""
    if candidate.stateful:
        first = next((i for i, frame in enumerate(frames) if frame.boxes), 0)
        return list(frames[first : first + RUN])
    usable = [frame for frame in frames if frame.boxes] or list(frames)
    if len(usable) <= SAMPLE:
        return usable
    return [usable[round(i * (len(usable) - 1) / (SAMPLE - 1))] for i in range(SAMPLE)]
