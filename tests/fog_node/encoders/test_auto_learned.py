"""`auto` with codecs that have shared state or need an accelerator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from auto_parts import AVIF2, JPEG2, LIMITS, auto, codecs, frame, frames

from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.common.images.planning import Goal
from fogline.common.images.record import SharedState
from fogline.fog_node import encoders
from fogline.fog_node.encoders import auto as auto_module
from fogline.fog_node.encoders import build_encoder
from fogline.fog_node.encoders.auto import LASTS, RUN, SAMPLE, SETTLE, AutoEncoder
from fogline.fog_node.encoders.candidates import CANDIDATES
from fogline.fog_node.encoders.trial import Trial, run_trial


class Referring(ImageEncoder):
    """Another encoder whose frames need a blob, as those of a stateful codec do; one lasts for so many frames."""

    def __init__(self, inner: ImageEncoder, lasts: int, size: int) -> None:
        self.inner, self.lasts, self.size, self.seen = inner, lasts, size, 0

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        out = []
        for image in self.inner.encode(images):
            data = (self.seen // self.lasts).to_bytes(4, "big") * (self.size // 4)
            out.append(replace(image, shared=(SharedState(hashlib.sha256(data).digest(), data),)))
            self.seen += 1
        return out


def refer(monkeypatch: pytest.MonkeyPatch, lasts: int, size: int) -> None:
    """Make `avif2` a stateful codec with a blob of this size."""
    real = encoders.build_encoder

    def build(codec: str, params: Mapping[str, Any], device: str = "cpu") -> ImageEncoder:
        encoder = real(codec, params, device)
        return Referring(encoder, lasts, size) if codec == "avif2" else encoder

    monkeypatch.setattr(encoders, "build_encoder", build)
    monkeypatch.setitem(CANDIDATES, "avif2", replace(CANDIDATES["avif2"], stateful=True))


def test_shared_state_that_lasts_is_spread_over_the_frames_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    refer(monkeypatch, lasts=10_000, size=4000)
    encoder = auto()
    assert codecs(encoder.encode(frames(10))) == {AVIF2}
    ((choice,), _) = encoder.news()
    figures = next(one.figures for one in choice.decision.weighed if one.figures.codec == "avif2")
    assert figures.frames == RUN  # one after the other
    assert (figures.shared_bytes, figures.shared_frames) == (4000, LASTS * RUN)
    assert figures.delivered_bytes == figures.record_bytes + 4000 / (LASTS * RUN)
    for _ in range(12):
        encoded = encoder.encode(frames(8))
    assert codecs(encoded) == {AVIF2}
    assert encoder.news() == ([], 0.0)


def test_shared_state_that_does_not_last_is_found_out_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    refer(monkeypatch, lasts=RUN, size=16_000)  # just as long as a trial
    encoder = auto()
    assert codecs(encoder.encode(frames(8))) == {AVIF2}
    for _ in range(SETTLE // 8 + 1):
        encoded = encoder.encode(frames(8))
    assert codecs(encoded) == {JPEG2}
    choice = encoder.news()[0][-1]
    figures = next(one.figures for one in choice.decision.weighed if one.figures.codec == "avif2")
    assert figures.shared_frames == pytest.approx(RUN, rel=0.3)
    for _ in range(8):
        encoded = encoder.encode(frames(8))
    assert codecs(encoded) == {JPEG2}  # it is remembered, and does not come and go


def test_shared_state_that_changes_within_a_trial_is_charged_as_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    refer(monkeypatch, lasts=2, size=4000)
    trial = run_trial(CANDIDATES["avif2"], frames(8), Goal(), LIMITS)
    assert isinstance(trial, Trial)
    assert (trial.figures.shared_bytes, trial.figures.shared_frames) == (4000, 2)


def test_siren_is_weighed_with_an_accelerator_or_by_name() -> None:
    from fogline.fog_node.encoders.candidates import suited

    every = tuple(CANDIDATES.values())
    assert "siren" not in {one.codec for one in suited(every, False, "cpu")}
    assert "siren" in {one.codec for one in suited(every, False, "cuda")}
    assert "siren" in {one.codec for one in suited(every, True, "cpu")}


def test_siren_by_name_is_measured_like_the_others() -> None:
    encoder = build_encoder("auto", {"candidates": ["siren", "jpeg2"], "max_encode_s": 60.0, "trial_after": 1})
    assert isinstance(encoder, AutoEncoder)
    encoder.encode([frame(size=(48, 32), boxes=((4.0, 4.0, 12.0, 12.0),), detail=4)])
    ((choice,), _) = encoder.news()
    siren = next(one.figures for one in choice.decision.weighed if one.figures.codec == "siren")
    assert siren.background_db is not None
    assert siren.background_db > 20
    assert siren.encode_s > 0


def test_latent_is_tried_on_a_run_of_frames_and_keeps_its_reference_afterwards() -> None:
    encoder = build_encoder("auto", {"candidates": ["latent", "jpeg2"], "max_encode_s": 60.0})
    assert isinstance(encoder, AutoEncoder)
    still = frame(size=(96, 64), boxes=((8.0, 8.0, 24.0, 20.0),), detail=16)
    rng = np.random.default_rng(0)
    noise = rng.integers(-2, 3, (18, *still.pixels.shape))
    sources = [replace(still, pixels=(still.pixels + one).clip(0, 255).astype(np.uint8)) for one in noise]
    encoded = [*encoder.encode(sources[:9]), *encoder.encode(sources[9:])]
    choices, _ = encoder.news()
    weighed = {one.figures.codec: one.figures for one in choices[0].decision.weighed}
    assert (weighed["latent"].frames, weighed["jpeg2"].frames) == (RUN, SAMPLE)
    assert weighed["latent"].shared_bytes > 100
    assert weighed["latent"].delivered_bytes < weighed["jpeg2"].delivered_bytes
    assert [choice.decision.codec for choice in choices] == ["latent"]
    # A fixed camera: one reference serves both batches.
    shared = {state.digest: state.data for image in encoded for state in image.shared}
    assert len(shared) == 1
    found = auto_module.judge(sources, encoded, shared)
    assert found.background is not None
    assert found.object is not None
    assert found.background > 27
    assert found.object > 34
