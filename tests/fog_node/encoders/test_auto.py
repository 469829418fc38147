"""The encoder `auto` with the real classical codecs on painted frames: what it chooses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from auto_parts import AVIF2, JPEG2, auto, chosen, codecs, frame, frames

from fogline.common.errors import ConfigError
from fogline.common.images.codec import SourceImage
from fogline.common.images.planning import Situation
from fogline.fog_node.encoders import auto as auto_module
from fogline.fog_node.encoders import build_encoder


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
