"""A real fog node that chooses the codec of every camera."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from fog_helpers import Fog, Shot, picture, shots, until

from fogline.cli import main
from fogline.common.errors import InputError
from fogline.common.images.container import from_bytes
from fogline.fog_node.config import EncoderConfig
from fogline.fog_node.encoder import check
from fogline.fog_node.stats import read_choices, read_images

AUTO = {
    "encoder__codec": "auto",
    "encoder__params": {"candidates": ["jpeg2", "avif2"], "max_encode_s": 30.0, "trial_after": 1},
}


def children(fog: Fog) -> list[psutil.Process]:
    return psutil.Process(fog.pid).children()


def said(fog: Fog) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, fog.log.read_text().splitlines()) if "chosen" in line]


def test_cameras_get_their_codecs_and_it_can_be_seen_why(start_fog: Any, device: Any) -> None:
    fog = start_fog(**AUTO)
    a, b = device(fog, "a"), device(fog, "b")
    images = [*shots(6, camera="north"), *shots(6, first=50, camera="south", boxes=())]
    a.upload(images)
    records = [from_bytes(data) for data in b.records(b.notices(upto=12)).values()]
    assert {r.content_id for r in records} == {s.content_id for s in images}
    choices = {one.choice.camera: one for one in read_choices(fog.data_dir)}
    assert set(choices) == {"north", "south"}
    numbers = {"jpeg2": 1, "avif2": 2}
    for record in records:
        decision = choices[record.camera].choice.decision
        assert {layer.codec for layer in record.layers} == {numbers[decision.codec]}
    north = choices["north"]
    assert (north.changes, north.choice.width, north.choice.height) == (1, 160, 120)
    assert {one.figures.codec for one in north.choice.decision.weighed} == set(numbers)
    assert all(one.reason for one in north.choice.decision.weighed)
    lines = said(fog)
    assert sorted(line["camera"] for line in lines) == ["north", "south"]
    assert all(line["chosen"] == choices[line["camera"]].choice.decision.codec for line in lines)
    assert all(len(line["rejected"]) == 1 for line in lines)
    counts = {codec: fog.metric(f'fogline_auto_cameras{{codec="{codec}"}}') for codec in numbers}
    assert sum(counts.values()) == 2
    assert fog.metric("fogline_auto_trial_seconds_total") > 0
    assert fog.stop() == 0


def test_it_is_told_who_receives_a_camera(start_fog: Any, device: Any) -> None:
    fog = start_fog(**AUTO)
    a = device(fog, "a")
    calls = []
    for name in ("a", "b", "c", "d"):
        one = device(fog, name) if name != "a" else a
        calls.append(one.subscribe(cameras=["south"] if name == "d" else []))
    until(lambda: fog.metric("fogline_subscribers") == 4)
    a.upload(shots(3, camera="north"))
    until(lambda: fog.metric("fogline_encoded_images_total") == 3)
    (north,) = read_choices(fog.data_dir)
    assert north.choice.decision.link.receivers == 2  # b and c: a took it, d does not want it
    for call in calls:
        call.cancel()


def test_kill_9_of_the_encoder_in_the_middle_of_a_trial(start_fog: Any, device: Any) -> None:
    fog = start_fog(**AUTO, encoder__batch=32)
    a, b = device(fog, "a"), device(fog, "b")
    images = [Shot(picture(seed, 640, 480), camera=f"cam-{seed % 4}") for seed in range(24)]
    until(lambda: fog.health()[0] == 200)
    (child,) = children(fog)
    before = child.cpu_times().user
    a.upload(images[:12])
    # All of it is trials at first; those of four cameras take seconds.
    until(lambda: child.cpu_times().user > before + 0.3, what="a child at work")
    assert fog.metric("fogline_published_head") < 12
    child.kill()
    a.upload(images[12:])
    until(lambda: fog.metric("fogline_published_head") == 24, 60)
    assert {s.state for s in read_images(fog.data_dir)} == {"published"}
    records = [from_bytes(data) for data in b.records(b.notices(upto=24)).values()]
    assert {r.content_id for r in records} == {s.content_id for s in images}
    # What was known of the cameras went with the child and was found out anew.
    a.upload([Shot(picture(100 + i, 640, 480), camera=f"cam-{i}") for i in range(4)])
    until(lambda: fog.metric("fogline_published_head") == 28, 60)
    assert {one.choice.camera for one in read_choices(fog.data_dir)} == {f"cam-{i}" for i in range(4)}
    assert fog.stop() == 0


def test_a_camera_that_changes_resolution_and_a_lone_frame(start_fog: Any, device: Any) -> None:
    fog = start_fog(**AUTO)
    a, b = device(fog, "a"), device(fog, "b")
    a.upload(shots(4))
    a.upload([Shot(picture(60 + i, 96, 64)) for i in range(4)])
    a.upload([Shot(picture(90), (), "lone")])
    assert len(b.notices(upto=9)) == 9
    sizes = {(one.choice.camera, one.choice.width, one.choice.height) for one in read_choices(fog.data_dir)}
    assert sizes == {("cam", 160, 120), ("cam", 96, 64), ("lone", 160, 120)}


def test_choices_outlive_the_node_and_other_codecs_leave_none(start_fog: Any, device: Any) -> None:
    fog = start_fog(**AUTO)
    device(fog, "a").upload(shots(3))
    until(lambda: fog.metric("fogline_published_head") == 3)
    fog.kill()
    assert [one.choice.camera for one in read_choices(fog.data_dir)] == ["cam"]
    fog.start()
    device(fog, "a").upload(shots(3, first=20))
    until(lambda: fog.metric("fogline_published_head") == 6)
    (choice,) = read_choices(fog.data_dir)
    assert choice.changes == 2  # the new child could not know that it was the same before


@pytest.mark.parametrize("params", [{"objective": "beauty"}, {"candidates": ["tiff"]}, {"every": -1}])
def test_wrong_settings_are_refused_before_anything_starts(params: dict[str, Any]) -> None:
    from fogline.common.errors import ConfigError

    with pytest.raises(ConfigError, match="codec auto"):
        check(EncoderConfig(codec="auto", params=params))


def test_fogline_explain_reads_a_running_node(
    start_fog: Any, device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fog = start_fog(**AUTO)
    file = tmp_path / "explain.json"
    assert main(["explain", "--fog", str(fog.data_dir)]) == InputError.exit_code
    assert "has chosen no codec" in capsys.readouterr().err
    images = shots(4)
    device(fog, "a").upload(images)
    until(lambda: fog.metric("fogline_published_head") == 4)
    assert main(["explain", "--fog", str(fog.data_dir), "--json", str(file)]) == 0
    (camera,) = json.loads(file.read_text())["cameras"]
    (choice,) = read_choices(fog.data_dir)
    assert (camera["camera"], camera["codec"]) == ("cam", choice.choice.decision.codec)
    assert camera["reason"] in capsys.readouterr().out
    stats = read_images(fog.data_dir)
    assert camera["communication"]["source_bytes_m"] == pytest.approx(sum(len(s.data) for s in images) / 4)
    assert camera["training"]["delivered_bytes_alpha_m"] == pytest.approx(sum(s.record_bytes or 0 for s in stats) / 4)
