"""`fogline explain` on folders, and its units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fogline.cli import main
from fogline.common.data.clip import write_clip
from fogline.common.errors import ConfigError, FormatError, InputError
from fogline.common.images.planning import Choice, Figures, Goal, Link, decide
from fogline.explain import quantities
from fogline.fog_node.store import EncodedRecord, NewImage, Store


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clip(tmp_path_factory.mktemp("made") / "clip", cameras=2, frames=6, width=160, height=120)


def explain(*arguments: object) -> int:
    return main(["explain", *map(str, arguments)])


def one_frame(folder: Path, clip: Path, *, box: bool = True) -> Path:
    (folder / "img").mkdir(parents=True)
    image = sorted((clip / "img").iterdir())[0]
    (folder / "img" / image.name).write_bytes(image.read_bytes())
    line = (clip / "groundtruth_rect.txt").read_text().splitlines()[0] if box else ""
    (folder / "groundtruth_rect.txt").write_text(line + "\n")
    return folder


def test_candidates_reasons_and_the_place_of_training(
    clip: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "explain.json"
    asked = ("--receivers", 9, "--downlink", "1Mbit/s", "--uplink", "2MB/s", "--objective", "time")
    more = ("--object-db", 34, "--width", 128, "--model-bytes", "640kB", "--images-per-update", 50, "--json", file)
    assert explain(*clip, *asked, *more, "--candidates", "jpeg2,avif2") == 0
    out = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert (found["schema"], found["source"]) == (1, "folders")
    assert [camera["camera"] for camera in found["cameras"]] == [folder.name for folder in clip]
    for camera in found["cameras"]:
        assert camera["goal"] == {"objective": "time", "background_psnr_db": 28.0, "object_psnr_db": 34.0}
        assert camera["link"]["receivers"] == 9
        assert (camera["link"]["downlink_bit_s"], camera["link"]["uplink_bit_s"]) == (1e6, 16e6)
        by_codec = {one["codec"]: one for one in camera["candidates"]}
        assert set(by_codec) == {"jpeg2", "avif2"}
        for one in by_codec.values():
            assert one["delivery_s"] == pytest.approx(one["encode_s"] + one["downlink_s"] + one["decode_s"])
            assert one["downlink_s"] == pytest.approx(9 * 8 * one["delivered_bytes"] / 1e6)
            assert one["shortfall_db"] == 0
        won = by_codec[camera["codec"]]
        assert won["chosen"]
        assert won["delivery_s"] == min(one["delivery_s"] for one in by_codec.values())
        said = camera["communication"]
        assert said["serverless_bytes"] == pytest.approx(9 * said["source_bytes_m"])
        assert said["fog_bytes"] == pytest.approx(said["source_bytes_m"] + 9 * won["delivered_bytes"])
        assert said["gain"] == pytest.approx(9 / (1 + 9 * said["alpha"]))
        training = camera["training"]
        assert training["break_even_images_per_update"] == pytest.approx(640_000 / won["delivered_bytes"])
        assert training["fewer_bytes_at"] == ("edges" if training["break_even_images_per_update"] > 50 else "fog")
        assert camera["upload_s"] == pytest.approx(8 * said["source_bytes_m"] / 16e6)
        assert won["reason"] in out
    assert "n/(beta + alpha n)" in out
    assert "train at the edges" in out


def test_a_coded_uplink_has_a_measured_beta(clip: list[Path], tmp_path: Path) -> None:
    betas = {}
    for form in ("original", "avif", "roi"):
        file = tmp_path / f"{form}.json"
        assert explain(clip[0], "--uplink-form", form, "--candidates", "jpeg2", "--json", file) == 0
        betas[form] = json.loads(file.read_text())["cameras"][0]["communication"]["beta"]
    assert betas["original"] == 1
    assert 0 < betas["roi"] < 1
    assert betas["avif"] != betas["roi"]


@pytest.mark.parametrize("box", [True, False])
def test_one_frame_with_and_without_a_box(clip: list[Path], tmp_path: Path, box: bool) -> None:
    folder = one_frame(tmp_path / "one", clip[0], box=box)
    file = tmp_path / "one.json"
    assert explain(folder, "--candidates", "jpeg2", "--json", file) == 0
    (camera,) = json.loads(file.read_text())["cameras"]
    (candidate,) = camera["candidates"]
    assert candidate["frames"] == 1
    assert (candidate["object_psnr_db"] is None) is not box


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), ConfigError, "one of the two"),
        (("--receivers", 0), ConfigError, "--receivers 0"),
        (("--downlink", "fast"), ConfigError, "--downlink 'fast'"),
        (("--downlink", "2MB"), ConfigError, "not a rate"),
        (("--model-bytes", "2MB/s"), ConfigError, "not a size"),
        (("--candidates", "tiff"), ConfigError, "tiff"),
        (("--background-db", "nan"), ConfigError, "background_db"),
        (("--images-per-update", "0"), ConfigError, "--images-per-update"),
        (("--candidates", "jpeg2", "--max-encode-s", "1e-9"), InputError, "too slow"),
    ],
)
def test_bad_requests_are_named(
    clip: list[Path], arguments: tuple[Any, ...], code: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(*([clip[0]] if arguments else []), *arguments) == code.exit_code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--receivers", 1), ("--uplink-form", "original"), ("--frames", 9)])
def test_a_fog_node_s_choices_take_no_options_of_folders(
    tmp_path: Path, option: tuple[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain("--fog", tmp_path, *option) == ConfigError.exit_code
    assert f"{option[0]} is for folders" in capsys.readouterr().err


async def test_alpha_of_a_fog_node_counts_shared_state_and_one_size_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "fog", None)
    await store.open()
    decision = decide(Goal(), Link(3), [Figures("latent", {}, 4, 100.0, 0.1, 30.0, 36.0)], [])
    assert decision is not None
    await store.choose([Choice("cam", 160, 120, decision, True), Choice("cam", 80, 60, decision, True)])
    blob = b"s" * 32
    for number, (width, size) in enumerate([(320, 100), (320, 200), (80, 30)]):
        content_id = bytes([number]) * 32
        await store.add(NewImage(content_id, "cam", number, width, width * 3 // 4, 1000, ()), "a")
        shared = ((blob, 700),) if width == 320 else ()
        await store.publish([EncodedRecord(content_id, b"r" + content_id[1:], size, ((0, 4, 9),), shared, 0.1)])
    store.close()
    file = tmp_path / "explain.json"
    assert explain("--fog", tmp_path / "fog", "--json", file) == 0
    alphas = {c["coded_width_px"]: c["communication"]["alpha"] for c in json.loads(file.read_text())["cameras"]}
    assert alphas == pytest.approx({160: (100 + 200 + 700) / 2 / 1000, 80: 30 / 1000})


def test_a_folder_without_a_fog_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("--fog", tmp_path) == FormatError.exit_code
    assert "data_dir" in capsys.readouterr().err
    assert explain(tmp_path / "nowhere") == InputError.exit_code


@pytest.mark.parametrize(
    ("text", "bit_s"),
    [("2MB/s", 16e6), ("16Mbit/s", 16e6), ("16 Mbps", 16e6), ("16e6", 16e6), ("1kB/s", 8e3), ("1MiB/s", 8 * 2**20)],
)
def test_rates(text: str, bit_s: float) -> None:
    assert quantities.rate("--downlink", text) == bit_s


@pytest.mark.parametrize("text", ["", "-1", "0", "MB/s", "5 parsecs", "1MB", "1Mbit", "inf", "nan", "1e999"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ConfigError, match="--downlink"):
        quantities.rate("--downlink", text)


def test_sizes() -> None:
    assert quantities.size("--model-bytes", "6.4MB") == 6.4e6
    assert quantities.size("--model-bytes", "640kB") == 640e3
    assert quantities.size("--model-bytes", "123") == 123
    for text in ("2Mbit", "2MB/s", "0", "-3"):
        with pytest.raises(ConfigError, match="--model-bytes"):
            quantities.size("--model-bytes", text)
