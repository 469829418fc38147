"""The whole job over real processes: nothing lost, nothing doubled, and a report that says so."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Up

pytestmark = pytest.mark.timeout(420)  # half a minute each on two quiet cores; this is for crowded ones

# What one run shows for all: codecs beside each other and training beside source cost far more than the job.
ALONE = ("--no-train-compare", "--no-codec-compare")
SCHEMA = {
    "schema": None,
    "devices": None,
    "receivers_per_image": None,
    "images": None,
    "codec": {"name", "params"},
    "uplink": {"form", "images", "beta", "alpha", "gain_n_over_beta_plus_alpha_n"},
    "bytes": {
        "source",
        "source_resized",
        "uplink",
        "downlink",
        "shared_state",
        "control",
        "serverless",
        "serverless_resized",
    },
    "gain_vs_source": None,
    "gain_vs_resized": None,
    "quality": {"full_psnr_db", "background_psnr_db", "object_psnr_db"},
    "encode": {"images_per_s", "device"},
    "decode": {"images_per_s", "device"},
    "delay_s": {"p50", "p95"},
    "cpu_seconds": {"edge", "fog", "cloud"},
    "training": {
        "metric",
        "untrained",
        "constant_box",
        "on_source",
        "on_decoded",
        "epochs",
        "seconds_source",
        "seconds_decoded",
    },
    "images_lost": None,
    "images_duplicated": None,
    "extra": None,
}


@pytest.fixture(scope="module")
def jpeg2(once: Callable[[str, Callable[[], Up]], Up], fogline_up: Callable[..., Up], tiny_clip: list[Path]) -> Up:
    words = [word for folder in tiny_clip for word in ("--data", folder)]
    words += ["--edges", 3, "--image-codec", "jpeg2", "--width", 96, "--fps", 0, "--train-edges", 1, "--train-steps", 4]
    return once("jpeg2", lambda: fogline_up(*words))


def test_every_image_reaches_every_other_edge_once(jpeg2: Up) -> None:
    assert jpeg2.code == 0, jpeg2.text
    report = jpeg2.report
    assert (report["devices"], report["images"], report["receivers_per_image"]) == (3, 14, 2)
    assert (report["images_lost"], report["images_duplicated"]) == (0, 0)
    edges = [device for device in report["extra"]["devices"] if device["tier"] == "edge"]
    assert [edge["completeness"]["held"] + edge["captured"] for edge in edges] == [14, 14, 14]
    assert [device["restarts"] for device in report["extra"]["devices"]] == [0] * 5


def test_report_has_exactly_the_documented_keys(jpeg2: Up) -> None:
    report = jpeg2.report
    assert report["schema"] == 1
    assert report.keys() == SCHEMA.keys()
    for key, inner in SCHEMA.items():
        if inner is not None:
            assert report[key].keys() == inner, key


def test_figures_add_up(jpeg2: Up, tiny_clip: list[Path]) -> None:
    report = jpeg2.report
    counted = report["bytes"]
    files = [path for folder in tiny_clip for path in sorted((folder / "img").iterdir())[:7]]
    assert counted["source"] == sum(path.stat().st_size for path in files)
    assert counted["serverless"] == 2 * counted["source"]
    assert counted["serverless_resized"] == 2 * counted["source_resized"] < counted["serverless"]
    assert counted["source"] < counted["uplink"] < counted["source"] * 1.2
    total = counted["uplink"] + counted["downlink"] + counted["shared_state"] + counted["control"]
    assert report["gain_vs_source"] == pytest.approx(counted["serverless"] / total)
    assert report["gain_vs_resized"] == pytest.approx(counted["serverless_resized"] / total)
    assert counted["control"] > 0
    assert 20 < report["quality"]["full_psnr_db"] < 60
    assert 0 < report["delay_s"]["p50"] <= report["delay_s"]["p95"] < 60
    assert all(seconds > 0 for seconds in report["cpu_seconds"].values())
    assert report["encode"]["device"] == "cpu"
    assert report["decode"]["device"] == "cpu, 1 thread"
    assert report["training"]["metric"] == "iou"
    assert 0 <= report["training"]["on_decoded"] <= 1


def test_page_is_one_file_that_needs_nothing_else(jpeg2: Up) -> None:
    page = (jpeg2.out / "report.html").read_text(encoding="utf-8")
    outside = re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", page)
    assert outside == []
    assert "<script" not in page
    assert page.count("data:image/webp;base64,") > 20
    assert page.count("<svg") >= 5
    for codec in ("siren", "jpeg2", "avif2"):
        assert f"<b>{codec}</b>" in page


def test_leaves_no_state_but_logs(jpeg2: Up) -> None:
    left = {path.name for path in jpeg2.out.iterdir()}
    assert left == {"config", "fogline-run.json", "logs", "pki", "report.html", "report.json"}
    assert {path.name for path in (jpeg2.out / "logs").iterdir()} == {
        "cloud.log",
        "fog.log",
        "edge-01.log",
        "edge-02.log",
        "edge-03.log",
    }


def test_siren(fogline_up: Callable[..., Up], tiny_clip: list[Path]) -> None:
    params = [word for pair in ("steps=30", "object_steps=20") for word in ("--codec-param", pair)]
    done = fogline_up(
        "--data",
        tiny_clip[0],
        "--edges",
        2,
        *params,
        "--width",
        64,
        "--fps",
        0,
        "--train-edges",
        0,
        *ALONE,
    )
    assert done.code == 0, done.text
    report = done.report
    assert report["codec"] == {"name": "siren", "params": {"steps": 30, "object_steps": 20}}
    assert (report["images"], report["images_lost"], report["images_duplicated"]) == (7, 0, 0)
    assert report["training"] is None
    assert report["extra"]["codecs_on_same_frames"] == []


def test_latent_shares_reference_pictures(fogline_up: Callable[..., Up], tiny_clip: list[Path]) -> None:
    data = [word for folder in tiny_clip for word in ("--data", folder)]
    done = fogline_up(
        *data, "--edges", 3, "--image-codec", "latent", "--width", 96, "--fps", 0, "--train-edges", 0, *ALONE,
    )  # fmt: skip
    assert done.code == 0, done.text
    report = done.report
    assert (report["images"], report["images_lost"], report["images_duplicated"]) == (14, 0, 0)
    counted = report["bytes"]
    assert 0 < counted["shared_state"] < counted["uplink"]
    parts = ("uplink", "downlink", "shared_state", "control")
    assert report["gain_vs_source"] == pytest.approx(counted["serverless"] / sum(counted[part] for part in parts))
    assert report["quality"]["object_psnr_db"] > 30


def test_nerv_shares_networks(fogline_up: Callable[..., Up], tiny_clip: list[Path]) -> None:
    data = [word for folder in tiny_clip for word in ("--data", folder)]
    params = [word for pair in ("steps=40", "channels=4", "group_wait_s=1") for word in ("--codec-param", pair)]
    done = fogline_up(
        *data, "--edges", 3, "--image-codec", "nerv", *params, "--width", 96, "--fps", 0, "--train-edges", 0, *ALONE,
    )  # fmt: skip
    assert done.code == 0, done.text
    report = done.report
    assert (report["images"], report["images_lost"], report["images_duplicated"]) == (14, 0, 0)
    assert report["bytes"]["shared_state"] > 0
    assert report["quality"]["object_psnr_db"] > 30


def test_auto(fogline_up: Callable[..., Up], tiny_clip: list[Path]) -> None:
    data = [word for folder in tiny_clip for word in ("--data", folder)]
    params = [word for pair in ("object_db=33", "max_encode_s=60", "trial_after=1") for word in ("--codec-param", pair)]
    done = fogline_up(
        *data, "--edges", 3, "--image-codec", "auto", *params, "--width", 96, "--fps", 0, "--train-edges", 0, *ALONE,
    )  # fmt: skip
    assert done.code == 0, done.text
    report = done.report
    assert (report["images"], report["images_lost"], report["images_duplicated"]) == (14, 0, 0)
    codec = report["codec"]
    assert (codec["name"], codec["params"]) == ("auto", {"object_db": 33, "max_encode_s": 60, "trial_after": 1})
    assert sum(sum(camera["images"].values()) for camera in codec["cameras"]) == 14
    assert {camera["camera"] for camera in codec["cameras"]} == set(report["extra"]["quality_by_camera"])
    for camera in codec["cameras"]:
        assert camera["codec"] in camera["images"]
        assert camera["goal"]["object_psnr_db"] == 33
        assert camera["link"]["receivers"] <= 2  # some edges may subscribe after the first batch
        assert {one["codec"] for one in camera["candidates"]} == {"jpeg2", "avif2", "latent"}
        assert camera["reason"]
    # What was promised on a few frames holds over all of them.
    assert report["quality"]["object_psnr_db"] > 32
    assert report["quality"]["background_psnr_db"] > 27
    page = (done.out / "report.html").read_text(encoding="utf-8")
    assert "Which codec each camera got, and why" in page
    assert "what auto chose" in done.text


@pytest.mark.parametrize("uplink", ["resized", "avif", "roi"])
def test_coded_uplinks(fogline_up: Callable[..., Up], tiny_clip: list[Path], uplink: str) -> None:
    data = [word for folder in tiny_clip for word in ("--data", folder)]
    done = fogline_up(
        *data, "--edges", 3, "--image-codec", "avif2", "--uplink", uplink, "--width", 96, "--fps", 0,
        "--train-edges", 0, *ALONE,
    )  # fmt: skip
    assert done.code == 0, done.text
    report = done.report
    assert (report["images"], report["images_lost"], report["images_duplicated"]) == (14, 0, 0)
    assert report["uplink"]["form"] == uplink
    assert report["uplink"]["images"] == {uplink: 14}
    counted = report["bytes"]
    assert 0 < report["uplink"]["beta"] < 0.9
    assert report["uplink"]["beta"] == pytest.approx(counted["uplink"] / counted["source"])
    prediction = report["extra"]["prediction"]
    n, alpha, beta = prediction["n"], prediction["alpha"], prediction["beta"]
    assert prediction["gain_n_over_beta_plus_alpha_n"] == pytest.approx(n / (beta + alpha * n))
    assert prediction["gain_n_over_1_plus_alpha_n"] == pytest.approx(n / (1 + alpha * n))
    # Against the captured frames: what the uplink lost shows here.
    assert 20 < report["quality"]["full_psnr_db"] < 60
    page = (done.out / "report.html").read_text(encoding="utf-8")
    assert "n/(beta + alpha n)" in page


def test_a_wrong_setting_ends_it_before_anything_starts(
    fogline_up: Callable[..., Up], tiny_clip: list[Path], tmp_path: Path
) -> None:
    done = fogline_up("--data", tmp_path)
    assert done.code == 3
    assert str(tmp_path) in done.text
    done = fogline_up("--data", tiny_clip[0], "--width", "330")
    assert done.code == 2
    assert "multiple of 16" in done.text
    done = fogline_up("--fps", "nan")
    assert done.code == 2
    done = fogline_up("--codec-param", "nonsense")
    assert done.code == 2
    assert "K=V" in done.text
    done = fogline_up("--data", tiny_clip[0], "--edges", 2, "--image-codec", "jpeg2", "--codec-param", "colour=blue")
    assert done.code == 2
    assert "colour" in done.text
    assert not (done.out / "logs").exists()


def test_ctrl_c_stops_everything_in_order(
    tiny_clip: list[Path], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    command = [sys.executable, "-m", "fogline", "up", "--data", tiny_clip[0], "--edges", "2", "--image-codec", "jpeg2"]
    command += ["--fps", "0.1", "--train-edges", "0", "--out", tmp_path / "out"]
    launcher = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    logs = [tmp_path / "out" / "logs" / f"{name}.log" for name in ("cloud", "fog", "edge-01", "edge-02")]
    try:
        up = lambda: all(log.exists() and "ready {" in log.read_text() for log in logs)  # noqa: E731
        wait_until(up, 240, "the cluster to be up")
    finally:  # also where it is not: nothing may be left of it
        launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert '"msg": "stopping"' in logs[0].read_text()
