"""When `auto` tries codecs, what a trial finds, and what it does about codecs that fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from auto_parts import BOX, JPEG2, LIMITS, Broken, auto, break_codec, chosen, codecs, frame, frames

from fogline.common.images.ladders import Ladder
from fogline.common.images.planning import Choice, Dropped, Goal, Situation
from fogline.fog_node.encoders import auto as auto_module
from fogline.fog_node.encoders import build_encoder
from fogline.fog_node.encoders.allowance import BURST_S
from fogline.fog_node.encoders.auto import SAMPLE, SETTLE, AutoEncoder
from fogline.fog_node.encoders.auto_params import auto_params
from fogline.fog_node.encoders.candidates import CANDIDATES
from fogline.fog_node.encoders.rendering import render
from fogline.fog_node.encoders.trial import Limits, Trial, run_trial


@pytest.mark.parametrize("name", ["jpeg2", "avif2"])
def test_a_trial_finds_the_cheapest_parameters_that_are_good_enough(name: str) -> None:
    candidate, goal = CANDIDATES[name], Goal("bytes", 30.0, 34.0)
    trial = run_trial(candidate, frames(2), goal, LIMITS)
    assert isinstance(trial, Trial)
    figures = trial.figures
    assert figures.background_db is not None
    assert figures.object_db is not None
    assert figures.shortfall_db(goal) == 0
    assert figures.record_bytes > 100
    assert figures.encode_s > 0
    assert figures.params == candidate.params(trial.rungs)
    # A rung lower on either ladder is not good enough.
    for lower in ((trial.rungs[0] - 1, trial.rungs[1]), (trial.rungs[0], trial.rungs[1] - 1)):
        if min(lower) < 0:
            continue
        backgrounds, objects = candidate.ladder.backgrounds, candidate.ladder.objects
        rung = Ladder((backgrounds[lower[0]],), (objects[lower[1]],))
        one = replace(candidate, ladder=rung)
        worse = run_trial(one, frames(2), goal, LIMITS)
        assert isinstance(worse, Trial)
        assert worse.figures.shortfall_db(goal) > 0


def test_the_trial_sees_what_a_receiver_sees() -> None:
    """Pictures put together without torch are those of the batch decoder."""
    from fogline.common.images.decode import BatchDecoder
    from fogline.fog_node.encoders.rendering import record_of

    sources = frames(2, boxes=(BOX, (70.0, 40.0, 33.0, 25.0)))
    for name in ("jpeg2", "avif2"):
        encoded = build_encoder(name, {}).encode(sources)
        decoder = BatchDecoder()
        prepared = [decoder.prepare(record_of(s, e), {}) for s, e in zip(sources, encoded, strict=True)]
        expected = decoder.decode(prepared).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        assert np.array_equal(np.stack(render(sources, encoded, {})), expected)


def test_a_candidate_that_is_too_slow_or_raises_is_dropped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = run_trial(CANDIDATES["jpeg2"], frames(1), Goal(), Limits(1e-9, 256))
    assert isinstance(slow, Dropped)
    assert slow.reason.startswith("too slow: ")
    break_codec(monkeypatch, "avif2", healthy=0)
    encoder = auto()
    assert codecs(encoder.encode(frames(3))) == {JPEG2}
    ((choice,), _) = encoder.news()
    assert choice.decision.codec == "jpeg2"
    assert [(one.codec, one.reason) for one in choice.decision.dropped] == [
        ("avif2", "it failed: RuntimeError: out of memory")
    ]


def test_a_camera_is_tried_after_its_first_frames() -> None:
    encoder = auto(trial_after=5)
    assert codecs(encoder.encode(frames(3))) == {JPEG2}  # the first of the candidates
    assert encoder.news() == ([], 0.0)
    encoder.encode(frames(2))
    assert len(chosen(encoder)) == 1


def test_names_without_end_do_not_take_the_encoder_s_time_away() -> None:
    """Each costs a trial of some seconds: together no more than their share, and images are encoded all the same."""
    now = 0.0
    params = auto_params({"candidates": ["jpeg2"], "trial_after": 1, "trial_share": 0.25})
    encoder = AutoEncoder(params, "cpu", lambda: now)
    tried = 0.0
    seconds = 10.0

    def book(camera: object, taken: object) -> None:
        nonlocal now, tried
        encoder._allowance.spend(seconds)
        now += seconds
        tried += seconds

    encoder._try = book  # type: ignore[method-assign, assignment]
    for name in range(400):
        now += 1.0  # of encoding
        assert len(encoder.encode(frames(1, camera=f"camera {name}", size=(16, 16), boxes=()))) == 1
    assert BURST_S <= tried <= BURST_S + 0.25 * now + seconds
    assert tried >= 0.25 * now


def test_trials_come_back_every_so_many_images_and_cost_less_then(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def counted(*arguments: Any) -> Any:
        runs.append(len(arguments[1]))
        return run_trial(*arguments)

    monkeypatch.setattr(auto_module, "run_trial", counted)
    encoder = auto(every=8)
    for _ in range(4):
        encoder.encode(frames(4))
    assert runs == [SAMPLE] * 4  # two codecs, before the first and the ninth image


def test_a_first_trial_on_a_single_frame_is_repeated_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = auto(candidates=["jpeg2"])
    encoder.encode(frames(1))
    ((choice,), _) = encoder.news()
    assert choice.decision.weighed[0].figures.frames == 1
    encoder.encode(frames(8))
    encoder.encode(frames(4))
    ((choice,), _) = encoder.news()
    assert choice.decision.weighed[0].figures.frames == SAMPLE


def test_a_new_scene_is_tried_anew() -> None:
    encoder = auto(candidates=["jpeg2"], background_db=32.0)
    for _ in range(SETTLE // 8 + 1):
        encoder.encode(frames(8))
    ((before,), _) = encoder.news()
    for _ in range(3):
        encoder.encode(frames(8, detail=60))
    (after, *_), _ = encoder.news()
    assert after.decision.params["background_quality"] > before.decision.params["background_quality"]
    assert after.decision.weighed[0].figures.shortfall_db(after.decision.goal) == 0


def test_a_codec_that_fails_later_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = auto()
    encoder.encode(frames(3))
    ((choice,), _) = encoder.news()
    assert choice.decision.codec == "avif2"
    for job in list(encoder._encoders):
        encoder._encoders[job] = Broken(encoder._encoders[job], [], 0)
    with pytest.raises(RuntimeError):
        encoder.encode(frames(3))
    assert codecs(encoder.encode(frames(3))) == {JPEG2}  # as the fog node gives the batch again
    choice = encoder.news()[0][-1]
    assert (choice.decision.codec, choice.changed) == ("jpeg2", True)
    assert "RuntimeError" in choice.decision.dropped[0].reason


def test_a_failure_is_of_the_cameras_of_its_batch_alone_and_its_cause_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = auto()
    for camera in ("a", "b", "c"):
        encoder.encode([replace(one, camera=camera) for one in frames(3)])
    assert {codec for _, codec in chosen(encoder)} == {"avif2"}
    monkeypatch.setattr(AutoEncoder, "_try", lambda *_: pytest.fail("a trial"))
    for job in list(encoder._encoders):
        encoder._encoders[job] = Broken(encoder._encoders[job], [], 0)
    for camera in ("a", "b"):  # one after the other: the first has no trial of the codec left by then
        with pytest.raises(RuntimeError, match="out of memory"):
            encoder.encode([replace(one, camera=camera) for one in frames(3)])
    encoder._encoders.clear()
    assert codecs(encoder.encode([replace(one, camera="a") for one in frames(3)])) == {JPEG2}
    assert codecs(encoder.encode([replace(one, camera="b") for one in frames(3)])) == {JPEG2}
    assert JPEG2 not in codecs(encoder.encode([replace(one, camera="c") for one in frames(3)])), (
        "its batches have not failed"
    )


def test_a_batch_that_failed_is_encoded_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_module, "run_trial", lambda *_: pytest.fail("a trial"))
    encoder = auto()
    encoder.inform(Situation({"cam": 1}, cautious=True))
    assert codecs(encoder.encode(frames(3))) == {JPEG2}
    assert encoder.news()[0] == []


def test_nothing_works_and_images_are_encoded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = auto(max_encode_s=1e-9)
    assert codecs(encoder.encode(frames(3))) == {JPEG2}
    assert encoder.news()[0] == []


def test_strangers_can_not_make_it_remember_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_module, "MAX_CAMERAS", 3)
    encoder = auto(candidates=["jpeg2"])
    for index in range(6):
        encoder.encode([frame(camera=f"cam-{index}", size=(16, 16), boxes=())])
    assert len(encoder._cameras) == 3
    many = [frame(camera=f"c{i}", size=(16, 16), boxes=()) for i in range(8)]
    assert len(encoder.encode(many)) == 8
    assert all(isinstance(choice, Choice) for choice in encoder.news()[0])
