"""`fogline compare` from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fogline.cli import main
from fogline.common.data.clip import write_clip
from fogline.common.errors import ConfigError, InputError
from fogline.common.images import ladders
from fogline.common.images.ladders import Ladder

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clip(tmp_path_factory.mktemp("made") / "clip", cameras=2, frames=6, width=160, height=120)


@pytest.fixture(autouse=True)
def short_ladders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two backgrounds and two objects: the shape of a ladder without its length."""
    short = {
        name: Ladder(ladders.GRIDS[name].backgrounds[1:4:2], ladders.GRIDS[name].objects[::2], usual)
        for name, usual in (("jpeg2", {"background_quality": 22}), ("avif2", {"background_quality": 35}))
    }
    short["siren"] = Ladder(({"steps": 30, "object_steps": 30},))
    short["av1-video2"] = Ladder(({"crf": 50, "preset": 10},), ({"object_crf": 20},))
    monkeypatch.setattr(ladders, "GRIDS", short)


def folder(path: Path, sizes: list[tuple[int, int]], boxes: bool = True) -> Path:
    """An OTB folder of noise, one frame for each size; or a VOC folder without boxes."""
    rng = np.random.default_rng(0)
    images = path / ("img" if boxes else "images")
    images.mkdir(parents=True)
    for index, (width, height) in enumerate(sizes):
        small = rng.integers(0, 255, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(images / f"{index + 1:04d}.jpg", "JPEG")
        if not boxes:
            (path / "annotations").mkdir(exist_ok=True)
            xml = f"<annotation><size><width>{width}</width><height>{height}</height></size></annotation>"
            (path / "annotations" / f"{index + 1:04d}.xml").write_text(xml)
    if boxes:
        (path / "groundtruth_rect.txt").write_text(
            "".join(f"1,1,{max(1, w // 4)},{max(1, h // 4)}\n" for w, h in sizes)
        )
    return path


def test_table_json_and_plot(clip: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    report, picture = tmp_path / "c.json", tmp_path / "c.png"
    codecs = "avif2,jpeg2,siren,av1-video2"
    words = ["--codecs", codecs, "--width", "128", "--frames", "3", "--object-db", "30"]
    assert main(["compare", *map(str, clip), *words, "--json", str(report), "--plot", str(picture)]) == 0
    out = capsys.readouterr()
    assert "camera-1: 3 images coded at 128x96" in out.out
    assert "relative to avif2" in out.out
    assert "camera-2: avif2 4 of 4" in out.err
    found = json.loads(report.read_text())
    assert found["schema"] == 1
    assert [f["name"] for f in found["folders"]] == ["camera-1", "camera-2"]
    assert len(found["points"]) == 2 * (4 + 4 + 1 + 1)
    for point in found["points"]:
        assert point["images"] == 3
        assert point["error"] is None
        assert point["bytes_per_image_with_shared"] >= point["bytes_per_image"] > 100
        assert point["full_psnr_db"] > 10
        assert point["full_ms_ssim"]["scales"] == 4
        assert point["encode_images_per_s"] > 0
    (first, second) = found["equal_quality"]
    assert (first["folder"], first["reference"], first["object_psnr_db_at_least"]) == ("camera-1", "avif2", 30)
    usual = [level for level in second["levels"] if level["usual"]]
    assert usual
    assert usual[0]["codecs"]["avif2"]["ratio"] == 1
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width > 1000


def test_a_detector_learns_from_what_was_decoded(
    clip: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "c.json"
    words = ["--codecs", "jpeg2", "--width", "128", "--detector", "--steps", "9", "--seeds", "2"]
    words += ["--json", str(report), "--plot", str(tmp_path / "c.svg")]
    assert main(["compare", *map(str, clip), *words]) == 0
    out = capsys.readouterr()
    assert "about" in out.err.splitlines()[0]  # the estimate comes before any work
    assert "minus source" in out.out
    found = json.loads(report.read_text())
    assert all(point["images"] == 4 for point in found["points"])  # 70 % of 6
    detector = found["detector"]
    assert detector["metric"] == "iou"
    assert detector["held_out_images"] == 4
    assert len(detector["points"]) == 2  # one for each background
    for point in detector["points"]:
        differences = [a - b for a, b in zip(point["scores"], detector["source"], strict=True)]
        assert point["differences"] == pytest.approx(differences)
    assert "<svg" in (tmp_path / "c.svg").read_text()


@pytest.mark.parametrize(
    ("sizes", "boxes"),
    [
        ([(64, 48)], True),
        ([(1, 1), (1, 1)], True),
        ([(8000, 40)], True),
        ([(64, 48), (96, 64), (64, 48)], True),
        ([(64, 48), (64, 48)], False),
    ],
    ids=["one frame", "1x1", "8000 wide", "sizes that change", "no boxes"],
)
def test_unusual_folders(tmp_path: Path, sizes: list[tuple[int, int]], boxes: bool) -> None:
    pytest.importorskip("av")
    path = folder(tmp_path / "odd", sizes, boxes)
    report, picture = tmp_path / "c.json", tmp_path / "c.png"
    words = ["--codecs", "jpeg2,avif2,av1-video2", "--json", str(report), "--plot", str(picture)]
    assert main(["compare", str(path), *words]) == 0
    found = json.loads(report.read_text())
    assert {point["images"] for point in found["points"]} == {len(sizes)}
    assert all((point["object_psnr_db"] is not None) == boxes for point in found["points"])
    assert picture.stat().st_size > 1000


def test_a_bad_frame_is_named_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "odd", [(64, 48)] * 3)
    bad = path / "img" / "0002.jpg"
    bad.write_bytes(bad.read_bytes()[:-100])
    assert main(["compare", str(path), "--codecs", "jpeg2"]) == InputError.exit_code
    out = capsys.readouterr()
    assert "0002.jpg" in out.err
    assert "2 images coded" in out.out
    assert "add avif2 to --codecs" in out.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["{clip}", "--codecs", "avif"], ConfigError, "did you mean 'avif2'?"),
        (["{clip}", "--codecs", ","], ConfigError, "names none"),
        (["{clip}", "--width", "4"], ConfigError, "--width 4"),
        (["{clip}", "--frames", "0"], ConfigError, "--frames 0"),
        (["{clip}", "--json", "{tmp}/no/x.json"], ConfigError, "--json"),
        (["{clip}", "--plot", "{tmp}/x.bmp"], ConfigError, ".png, .svg, .pdf"),
        (["{clip}", "{clip}"], InputError, "rename one"),
        (["{tmp}/nothing"], InputError, "no such folder"),
        (["{tmp}"], InputError, "not an annotated sequence"),
    ],
)
def test_mistakes_are_told_before_any_work(
    clip: list[Path], tmp_path: Path, words: list[str], code: type, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(clip=clip[0], tmp=tmp_path) for word in words]
    assert main(["compare", *filled]) == code.exit_code  # type: ignore[attr-defined]
    out = capsys.readouterr()
    assert says in out.err
    assert not out.out


def test_a_detector_needs_boxes_and_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = folder(tmp_path / "bare", [(64, 48)] * 4, boxes=False)
    assert main(["compare", str(bare), "--codecs", "jpeg2", "--detector"]) == InputError.exit_code
    assert "--detector: no frame" in capsys.readouterr().err
    one = folder(tmp_path / "one", [(64, 48)])
    assert main(["compare", str(one), "--codecs", "jpeg2", "--detector"]) == InputError.exit_code
    assert "too few to split" in capsys.readouterr().err


def test_ctrl_c_ends_it_and_leaves_nothing(clip: list[Path], tmp_path: Path) -> None:
    words = ["-m", "fogline", "compare", str(clip[0]), "--codecs", "jpeg2,siren", "--json", str(tmp_path / "c.json")]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        child.stderr.readline()  # the first setting is done: it is at work
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
def test_on_a_real_sequence_av1_video_beats_stills(data_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    path, report = data_root / "tracking" / "OTB_Crossing", tmp_path / "c.json"
    words = ["--codecs", "avif2,av1-video2", "--frames", "8", "--json", str(report)]
    assert main(["compare", str(path), *words]) == 0
    points = {p["codec"]: p for p in json.loads(report.read_text())["points"]}
    still, video = points["avif2"], points["av1-video2"]
    assert video["background_psnr_db"] > still["background_psnr_db"]
    assert video["bytes_per_image"] < still["bytes_per_image"]
