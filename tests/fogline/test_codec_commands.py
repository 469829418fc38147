"""`fogline encode` and `fogline decode`, and the file between them."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fogline.cli import main
from fogline.commands.parameters import parse
from fogline.common.boxes import Box
from fogline.common.data import load_sequence
from fogline.common.data.clip import write_clip
from fogline.common.data.writers import WRITERS
from fogline.common.errors import ConfigError, FormatError, InputError
from fogline.common.images.archive import ArchiveWriter, read_archive
from fogline.common.images.record import ImageRecord, SharedState


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("made") / "clip", cameras=1, frames=5, width=160, height=120)[0]


@pytest.fixture(scope="module")
def archive(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "clip.fga"
    assert main(["encode", str(clip), "-o", str(path), "--codec", "jpeg2", "--width", "128"]) == 0
    return path


def test_there_and_back(clip: Path, archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert main(["decode", str(archive), "-o", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    for line, source in zip(lines, sorted((clip / "img").iterdir()), strict=True):
        assert line["size"] == [128, 96]
        assert line["source_size"] == [160, 120]
        assert line["boxes"]
        with Image.open(tmp_path / line["file"]) as decoded, Image.open(source) as original:
            assert decoded.size == (128, 96)
            difference = np.asarray(decoded, float) - np.asarray(original.convert("RGB").resize((128, 96)), float)
            assert np.sqrt((difference**2).mean()) < 20  # the right picture, the right way round


@pytest.mark.parametrize(
    ("codec", "more"), [("latent", []), ("nerv", ["--param", "steps=400", "--param", "channels=8"])]
)
def test_shared_state_travels_in_the_file(clip: Path, tmp_path: Path, codec: str, more: list[str]) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "clip.fga"
    assert main(["encode", str(clip), "-o", str(path), "--codec", codec, "--width", "128", *more]) == 0
    assert main(["decode", str(path), "-o", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    for line, source in zip(lines, sorted((clip / "img").iterdir()), strict=True):
        with Image.open(tmp_path / "out" / line["file"]) as decoded, Image.open(source) as original:
            difference = np.asarray(decoded, float) - np.asarray(original.convert("RGB").resize((128, 96)), float)
            assert np.sqrt((difference**2).mean()) < 20


def test_a_bad_frame_is_named_and_the_rest_goes_on(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "clip"
    (copy / "img").mkdir(parents=True)
    for image in (clip / "img").iterdir():
        (copy / "img" / image.name).write_bytes(image.read_bytes())
    (copy / "groundtruth_rect.txt").write_bytes((clip / "groundtruth_rect.txt").read_bytes())
    broken = sorted((copy / "img").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:-200])
    out = tmp_path / "clip.fga"
    assert main(["encode", str(copy), "-o", str(out), "--codec", "jpeg2"]) == InputError.exit_code
    assert broken.name in capsys.readouterr().err
    assert sum(isinstance(entry, ImageRecord) for entry in read_archive(out)) == 4


def test_mistakes_have_their_codes(clip: Path, tmp_path: Path) -> None:
    assert main(["encode", str(tmp_path), "-o", str(tmp_path / "x"), "--codec", "jpeg2"]) == InputError.exit_code
    missing = str(tmp_path / "no" / "x")
    assert main(["encode", str(clip), "-o", missing, "--codec", "jpeg2"]) == ConfigError.exit_code
    assert main(["encode", str(clip), "-o", missing, "--codec", "jpeg2", "--param", "x"]) == ConfigError.exit_code
    assert main(["encode", str(clip), "-o", missing, "--width", "1"]) == ConfigError.exit_code


def test_what_is_no_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["decode", str(tmp_path / "missing"), "-o", str(tmp_path / "none")]) == InputError.exit_code
    assert not (tmp_path / "none").exists()
    (tmp_path / "junk").write_bytes(b"junk")
    assert main(["decode", str(tmp_path / "junk"), "-o", str(tmp_path / "out")]) == FormatError.exit_code
    assert "fogline encode" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["coco", "voc", "yolo"])
def test_folders_for_other_trainers(archive: Path, tmp_path: Path, layout: str) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "out"
    assert main(["decode", str(archive), "-o", str(out), "--layout", layout]) == 0
    sequence = load_sequence(out)
    assert sequence.refused == ()
    records = {r.content_id.hex()[:16]: r for r in read_archive(archive) if isinstance(r, ImageRecord)}
    assert {frame.path.stem for frame in sequence.frames} == records.keys()
    tolerance = 1.0 if layout == "voc" else 0.01  # whole pixels; six digits
    for frame in sequence.frames:
        (found,), (box,) = frame.boxes, records[frame.path.stem].boxes
        expected = box.scaled(128 / 160, 96 / 120)
        assert (found.x, found.y, found.w, found.h) == pytest.approx(
            (expected.x, expected.y, expected.w, expected.h), abs=tolerance
        )
        assert found.label == expected.label


@given(
    st.lists(
        st.tuples(
            st.floats(0, 60),
            st.floats(0, 44),
            st.floats(0.01, 80),
            st.floats(0.01, 80),
            st.text("aé猫 <&\"':#-", min_size=1, max_size=9),
        ),
        max_size=4,
    )
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=20, deadline=None
)
def test_any_boxes_are_read_back(tmp_path: Path, values: list[tuple[float, float, float, float, str]]) -> None:
    """Labels of any characters that XML can hold, boxes of less than a pixel and at every edge."""
    boxes = [
        Box(x, y, min(w, 64 - x), min(h, 48 - y), "".join(c for c in label if c.isprintable()).strip() or "a")
        for x, y, w, h, label in values
    ]
    boxes = [box for box in boxes if len(box.label.encode()) <= 64]
    for layout, make in WRITERS.items():
        folder = tmp_path / secrets.token_hex(8)
        writer = make(folder)
        Image.new("RGB", (64, 48)).save(writer.images / "a.jpg")
        writer.add("a.jpg", 64, 48, boxes)
        writer.close()
        sequence = load_sequence(folder)
        if layout == "yolo":  # six digits are less than the smallest boxes
            continue
        assert not sequence.refused, layout
        assert [box.label for box in sequence.frames[0].boxes] == [box.label for box in boxes]


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    def break_off() -> None:
        with ArchiveWriter(tmp_path / "a.fga") as writer:
            writer.add_shared(SharedState(b"d" * 32, b"data"))
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        break_off()
    assert list(tmp_path.iterdir()) == []


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_noticed(archive: Path, tmp_path: Path, data: st.DataObject) -> None:
    good = archive.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    bad = bytearray(good)
    if kind == "flip":
        bad[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del bad[at:]
    else:
        bad += b"\0"
    path = tmp_path / "bad.fga"
    path.write_bytes(bad)
    with pytest.raises(FormatError):
        list(read_archive(path))


@pytest.mark.parametrize(("pair", "says"), [("steps", "K=V"), ("=3", "K=V"), ("steps=[", "not a YAML value")])
def test_a_wrong_parameter_is_told(pair: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"--param.*{says}"):
        parse("--param", [pair])
