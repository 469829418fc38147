"""The encoder `auto` with the real classical codecs on painted frames."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fogline.common.errors import ConfigError
from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.common.images.ladders import Ladder
from fogline.common.images.planning import Choice, Dropped, Goal, Situation
from fogline.common.images.record import SharedState
from fogline.fog_node import encoders
from fogline.fog_node.encoders import auto as auto_module
from fogline.fog_node.encoders import build_encoder
from fogline.fog_node.encoders.allowance import BURST_S
from fogline.fog_node.encoders.auto import LASTS, RUN, SAMPLE, SETTLE, AutoEncoder
from fogline.fog_node.encoders.auto_params import auto_params
from fogline.fog_node.encoders.candidates import CANDIDATES
from fogline.fog_node.encoders.rendering import render
from fogline.fog_node.encoders.trial import Limits, Trial, run_trial

AVIF2, JPEG2 = 2, 1
BOX = (20.0, 16.0, 40.0, 30.0)
LIMITS = Limits(encode_s=30.0, shared_frames=256)


def frame(
    seed: int = 0, size: tuple[int, int] = (128, 96), camera: str = "cam", boxes: Any = (BOX,), detail: int = 12
) -> SourceImage:
    """Smooth colours of a camera with a textured object; `detail` is how many patches there are across."""
    rng = np.random.default_rng(sum(camera.encode()) + detail)
    coarse = rng.integers(40, 215, (detail * 3 // 4, detail, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).copy()
    pixels = np.roll(pixels, seed, axis=1)
    for x, y, w, h in boxes:
        texture = np.random.default_rng(seed).integers(60, 200, (int(h) // 4 + 1, int(w) // 4 + 1, 3), dtype=np.uint8)
        patch = np.asarray(Image.fromarray(texture).resize((int(w), int(h)), Image.Resampling.BILINEAR))
        pixels[int(y) : int(y) + int(h), int(x) : int(x) + int(w)] = patch
    return SourceImage(pixels, tuple(boxes), camera)


def frames(count: int, **settings: Any) -> list[SourceImage]:
    return [frame(seed, **settings) for seed in range(count)]


def auto(**params: Any) -> AutoEncoder:
    encoder = build_encoder(
        "auto", {"candidates": ["jpeg2", "avif2"], "max_encode_s": 30.0, "trial_after": 1, **params}
    )
    assert isinstance(encoder, AutoEncoder)
    return encoder


def chosen(encoder: AutoEncoder) -> list[tuple[str, str]]:
    return [(choice.camera, choice.decision.codec) for choice in encoder.news()[0]]


def codecs(encoded: Sequence[EncodedImage]) -> set[int]:
    return {layer.codec for image in encoded for layer in image.layers}


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


class Broken(ImageEncoder):
    """Raises, at once or after some batches."""

    def __init__(self, inner: ImageEncoder, calls: list[int], healthy: int) -> None:
        self.inner, self.calls, self.healthy = inner, calls, healthy

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        self.calls.append(len(images))
        if len(self.calls) > self.healthy:
            raise RuntimeError("out of memory")
        return self.inner.encode(images)


def break_codec(monkeypatch: pytest.MonkeyPatch, name: str, healthy: int) -> list[int]:
    """Let the encoder of this codec raise after so many calls; returns the calls."""
    real, calls = encoders.build_encoder, list[int]()

    def build(codec: str, params: Mapping[str, Any], device: str = "cpu") -> ImageEncoder:
        encoder = real(codec, params, device)
        return Broken(encoder, calls, healthy) if codec == name else encoder

    monkeypatch.setattr(encoders, "build_encoder", build)
    return calls


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


def test_the_cheapest_codec_is_chosen_and_its_records_are_good_enough() -> None:
    encoder = auto(background_db=30.0, object_db=34.0)
    encoder.inform(Situation({"cam": 9}))
    sources = frames(6)
    encoded = encoder.encode(sources)
    (choice,), seconds = encoder.news()
    decision = choice.decision
    assert (choice.camera, choice.width, choice.height, choice.changed) == ("cam", 128, 96, True)
    assert seconds > 0
    assert decision.link.receivers == 9
    assert {one.figures.codec for one in decision.weighed} == {"jpeg2", "avif2"}
    best = min(decision.weighed, key=lambda one: one.cost.downlink_bytes)
    assert best.chosen
    assert codecs(encoded) == {{"jpeg2": JPEG2, "avif2": AVIF2}[decision.codec]}
    measured = auto_module.judge(sources, encoded, {})
    assert measured.object is not None
    assert measured.background is not None
    assert measured.object > 33
    assert measured.background > 29
    assert encoder.news() == ([], 0.0)


def test_every_camera_has_its_own_choice_and_results_keep_their_order() -> None:
    encoder = auto()
    sources = [frame(i, camera=f"cam-{i % 3}", size=((128, 96), (96, 128), (64, 48))[i % 3]) for i in range(9)]
    encoded = encoder.encode(sources)
    assert {camera for camera, _ in chosen(encoder)} == {"cam-0", "cam-1", "cam-2"}
    for source, image in zip(sources, encoded, strict=True):
        assert image.layers[0].region[2:] == (source.pixels.shape[1], source.pixels.shape[0])
    assert [image.layers[0].payload for image in encoder.encode(sources)] == [i.layers[0].payload for i in encoded]


def test_receivers_and_links_change_the_choice_without_another_trial() -> None:
    encoder = auto(objective="time")
    encoder.inform(Situation({"cam": 1}, downlink_bit_s=1e9))
    encoder.encode(frames(3))
    ((choice,), _) = encoder.news()
    assert choice.decision.codec == "jpeg2"  # encodes several times faster, and bytes cost nothing
    encoder.inform(Situation({"cam": 1}, downlink_bit_s=2e8))
    encoder.encode(frames(3))
    assert encoder.news() == ([], 0.0)
    encoder.inform(Situation({"cam": 500}, downlink_bit_s=1e4))
    assert codecs(encoder.encode(frames(3))) == {AVIF2}
    ((choice,), seconds) = encoder.news()
    assert (choice.decision.codec, choice.changed, seconds) == ("avif2", True, 0.0)
    encoder.inform(Situation({"cam": 600}, downlink_bit_s=1e4))
    encoder.encode(frames(1))
    ((choice,), _) = encoder.news()
    assert not choice.changed
    assert choice.decision.link.receivers == 600


def test_stated_rates_win_over_measured_ones() -> None:
    encoder = auto(objective="time", downlink_bit_s=1e3, uplink_bit_s=2e3)
    encoder.inform(Situation({"cam": 9}, downlink_bit_s=1e9, uplink_bit_s=1e9))
    encoder.encode(frames(1))
    ((choice,), _) = encoder.news()
    assert (choice.decision.link.downlink_bit_s, choice.decision.link.uplink_bit_s) == (1e3, 2e3)


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


def test_frames_without_boxes_and_the_first_that_has_one() -> None:
    encoder = auto(candidates=["jpeg2"])
    encoder.encode(frames(3, boxes=()))
    ((choice,), _) = encoder.news()
    figures = choice.decision.weighed[0].figures
    assert figures.object_db is None
    assert 80 <= figures.params["object_quality"] <= 90  # what the codec takes by default
    encoded = encoder.encode(frames(3))
    ((choice,), _) = encoder.news()
    assert choice.decision.weighed[0].figures.object_db is not None
    assert all(len(image.layers) == 2 for image in encoded)


def test_boxes_that_cover_the_whole_frame() -> None:
    encoder = auto(candidates=["avif2"])
    encoded = encoder.encode(frames(2, boxes=((0.0, 0.0, 128.0, 96.0),)))
    ((choice,), _) = encoder.news()
    figures = choice.decision.weighed[0].figures
    assert figures.background_db is None
    assert figures.params["background_quality"] == 20
    assert all(len(image.layers) == 2 for image in encoded)


def test_a_camera_that_changes_its_resolution_and_back() -> None:
    encoder = auto()
    encoder.encode(frames(3))
    encoder.encode([*frames(2, size=(64, 48), boxes=()), frame(7)])
    sizes = [(choice.width, choice.height) for choice in encoder.news()[0]]
    assert sizes == [(128, 96), (64, 48)]
    encoder.encode(frames(3))
    assert encoder.news() == ([], 0.0)


@pytest.mark.parametrize("size", [(1, 1), (16, 2), (7, 300)])
def test_tiny_and_odd_frames(size: tuple[int, int]) -> None:
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    boxes = ((0.0, 0.0, float(size[0]), float(size[1])),)
    (image,) = auto().encode([SourceImage(pixels, boxes, "tiny")])
    assert image.layers[0].region == (0, 0, *size)


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


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"objective": "beauty"}, "objective"),
        ({"backgrund_db": 30}, "backgrund_db"),
        ({"background_db": 3}, "background_db"),
        ({"object_db": float("nan")}, "object_db"),
        ({"candidates": ["jpeg2", "tiff"]}, "tiff"),
        ({"candidates": []}, "at least one"),
        ({"candidates": ["jpeg2", "jpeg2"]}, "once"),
        ({"candidates": ["auto"]}, "auto"),
        ({"every": 0}, "every"),
        ({"downlink_bit_s": 0}, "downlink_bit_s"),
        ({"max_encode_s": "long"}, "max_encode_s"),
    ],
)
def test_bad_parameters_are_refused_by_name(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_encoder("auto", params)


def test_without_torch_only_pictures_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    from fogline.fog_node.encoders import candidates

    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda _: None)
    assert [one.codec for one in candidates.chosen(None)] == ["jpeg2", "avif2"]
    with pytest.raises(ConfigError, match="torch"):
        candidates.chosen(("latent",))
    with pytest.raises(ConfigError, match="torch"):
        candidates.chosen(("siren",))


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


def test_strangers_can_not_make_it_remember_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_module, "MAX_CAMERAS", 3)
    encoder = auto(candidates=["jpeg2"])
    for index in range(6):
        encoder.encode([frame(camera=f"cam-{index}", size=(16, 16), boxes=())])
    assert len(encoder._cameras) == 3
    many = [frame(camera=f"c{i}", size=(16, 16), boxes=()) for i in range(8)]
    assert len(encoder.encode(many)) == 8
    assert all(isinstance(choice, Choice) for choice in encoder.news()[0])
