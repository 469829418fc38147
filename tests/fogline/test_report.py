"""The report from findings: its arithmetic, its schema, its page."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fogline.common.blobs import BlobStore
from fogline.common.images.container import to_bytes
from fogline.common.images.forms import Form
from fogline.common.images.planning import Choice, Dropped, Figures, Goal, Link, decide
from fogline.common.images.record import ImageRecord, Layer, LayerKind
from fogline.deploy.local.plan import PlannedImage
from fogline.fog_node.stats import ChoiceStats, ImageStats
from fogline.report import page, pictures, terminal, traffic
from fogline.report.charts import Curve
from fogline.report.document import document
from fogline.report.evaluate import encode_speed
from fogline.report.findings import CameraCodec, CodecTrial, Comparison, Delay, Device, Findings, Score, Speed
from fogline.report.holdings import Completeness, check, published_twice, read_holdings
from fogline.report.traffic import Flow
from fogline.report.trials import parts_of

FLOWS = (
    Flow("edge-fog", "up", "image", 1000.4),
    Flow("edge-fog", "down", "record", 300.0),
    Flow("edge-fog", "down", "shared_state", 20.0),
    Flow("edge-fog", "up", "control", 7.0),
    Flow("edge-cloud", "up", "model", 5.0),
)
PICTURE = np.arange(60 * 80 * 3, dtype=np.uint32).reshape(60, 80, 3).astype(np.uint8)


def findings() -> Findings:
    """One small complete run."""
    counted = traffic.count(FLOWS, source=900, source_resized=200, serverless=1800, serverless_resized=400)
    score = Score(b"1" * 32, "cam <1>", 150, 100, 40, 28.0, 27.0, 33.0, 25.0)
    curve = Curve((10, 20), ((0.1, 0.5), (0.2, 0.6)))
    panel = pictures.Panel("Original", pictures.data_uri(PICTURE), "a caption")
    return Findings(
        title="a run",
        synthetic=True,
        codec="siren",
        codec_params={"steps": 5},
        chosen=[],
        uplink="original",
        uplink_forms={"original": 3},
        size=(320, 180),
        width=320,
        images=3,
        receivers_per_image=2.0,
        traffic=counted,
        flows=FLOWS,
        model=traffic.model_of(counted, 2.0, 900),
        scores=[score, dataclasses.replace(score, object_db=None, object_background_db=None, full_db=30.0)],
        encode=Speed(3.0, "cpu"),
        decode=Speed(100.0, "cpu"),
        prepare_per_s=500.0,
        delay=Delay(0.5, 0.9, (0.1, 0.5, 0.9)),
        devices=[
            Device("cloud", "cloud", 0.5, 1),
            Device("fog", "fog", 4.0, 0),
            Device("edge-01", "edge", 1.0, 0, 1, 1, Completeness("edge-01", 2, 2, 0, 0, 0)),
        ],
        published_twice=0,
        comparison=Comparison(
            metric="iou", seeds=(0, 1), steps=20, images=3, epochs=4.0, parameters=1000, untrained=0.05,
            constant_box=0.2, constant_box_per_camera=0.3, on_source=(0.5, 0.7), on_decoded=(0.5, 0.68),
            seconds_source=1.0, seconds_decoded=1.1,
            metric_curves={"source": curve, "decoded": curve}, loss_curves={"source": curve, "decoded": curve},
        ),
        metric="iou",
        fleet={"edge-01": Curve((5, 10), ((0.1, 0.2),))},
        trials=[
            CodecTrial("siren", {}, 150.0, 28.0, 27.0, 33.0, 3.0, 100.0, True, 300.0),
            CodecTrial("avif2", {}, 100.0, 29.0, 28.0, 36.0, 30.0, 200.0, False, 300.0),
        ],
        exhibits=[pictures.Exhibit("The best", (panel,), (panel,))],
        trial_strips=[[panel, panel]],
        refused=["frame 7: no <box>"],
        seconds={"training": 3.0},
        environment={"date": "today"},
        command="fogline up",
        config={"edges": 3},
    )  # fmt: skip


def test_only_what_was_encoded_has_an_encoding_speed() -> None:
    def stats(encode_s: float | None) -> ImageStats:
        return ImageStats(b"i" * 32, "cam", ("a",), (64, 48), 9, Form.ROI, 1, 0, 0, "published", "", encode_s=encode_s)

    assert encode_speed([stats(0.5), stats(0.0), stats(None), stats(0.25)], "cpu").images_per_s == 2 / 0.75
    nothing = encode_speed([stats(0.0), stats(None)], "cpu")
    assert nothing.images_per_s is None
    shown = page.render(dataclasses.replace(findings(), encode=nothing))
    assert "nothing was encoded" in shown
    assert document(dataclasses.replace(findings(), encode=nothing))["encode"]["images_per_s"] is None


def test_shared_state_is_borne_by_the_images_that_need_it() -> None:
    def record(number: int, *shared: bytes) -> ImageRecord:
        return ImageRecord(bytes([number]) * 32, 0, "cam", (8, 8), (8, 8), (), (), shared)

    one, two = b"1" * 32, b"2" * 32
    image = PlannedImage(b"i" * 32, 9, None, "cam")  # type: ignore[arg-type]
    records = [(record(i, *shared), 5, image) for i, shared in enumerate([(one,), (one, two), (one,), ()])]
    assert parts_of(records, {one: b"x" * 300, two: b"x" * 40}) == {one: 100, two: 40}


def test_bytes_are_sorted_into_the_schema_s_classes() -> None:
    found = findings()
    assert dataclasses.asdict(found.traffic) == {
        "source": 900, "source_resized": 200, "uplink": 1000, "downlink": 300, "shared_state": 20, "control": 12,
        "serverless": 1800, "serverless_resized": 400,
    }  # fmt: skip
    assert found.traffic.gain_vs_source == pytest.approx(1800 / 1332)
    assert found.model.alpha == pytest.approx(160 / 900)
    assert found.model.beta == pytest.approx(1000 / 900)
    assert found.model.gain == pytest.approx(1800 / (1000 + 320))
    assert found.model.gain_as_captured == pytest.approx(2 / (1 + 2 * 160 / 900))


def test_document_is_json_with_means_over_what_is_there() -> None:
    made = json.loads(json.dumps(document(findings())))
    assert made["quality"] == {"full_psnr_db": 29.0, "background_psnr_db": 27.0, "object_psnr_db": 33.0}
    assert made["extra"]["quality_all"]["object_gain_over_background_db"] == 8.0
    assert made["cpu_seconds"] == {"edge": 1.0, "fog": 4.0, "cloud": 0.5}
    assert made["training"]["on_decoded"] == pytest.approx(0.59)
    assert made["extra"]["training_seeds"]["difference_decoded_minus_source"] == pytest.approx([0, -0.02])
    assert (made["images_lost"], made["images_duplicated"]) == (0, 0)


def test_page_escapes_what_users_named_and_says_what_speaks_against_it() -> None:
    text = page.render(findings())
    assert "cam &lt;1&gt;" in text
    assert "cam <1>" not in text
    assert "Synthetic images" in text
    assert "avif2 took fewer bytes at a higher PSNR than siren" in text
    assert "MORE bytes" in text
    assert "Not complete" not in text


def test_what_auto_chose_is_in_the_document_the_page_and_on_the_terminal() -> None:
    figures = [
        Figures("avif2", {"background_quality": 20}, 3, 1000.0, 0.03, 28.5, 36.0, 0.002),
        Figures("jpeg2", {"background_quality": 12}, 3, 2000.0, 0.003, 28.5, 36.0, 0.002),
    ]
    decision = decide(Goal(), Link(2), figures, [Dropped("siren", "too slow: 2 s an image")])
    assert decision is not None
    stats = ChoiceStats(Choice("cam <1>", 320, 180, decision, True), 0, 2)
    found = dataclasses.replace(
        findings(), codec="auto", codec_params={}, chosen=[CameraCodec(stats, {"avif2": 9, "jpeg2": 1})]
    )
    (camera,) = json.loads(json.dumps(document(found)))["codec"]["cameras"]
    assert (camera["camera"], camera["codec"], camera["changes"]) == ("cam <1>", "avif2", 2)
    assert camera["images"] == {"avif2": 9, "jpeg2": 1}
    assert [one["codec"] for one in camera["candidates"]] == ["avif2", "jpeg2"]
    assert camera["dropped"] == [{"codec": "siren", "reason": "too slow: 2 s an image"}]
    text = page.render(found)
    console = Console(file=StringIO(), width=200)
    terminal.show(console, found)
    assert isinstance(console.file, StringIO)
    for shown in (text, console.file.getvalue()):
        assert "least bytes, 2,000 bytes an image to 2 receivers" in shown
        assert "jpeg2: 2.00 times the bytes of avif2; siren: too slow: 2 s an image" in shown
    assert "what auto chose" not in page.render(findings())


def test_page_of_a_run_with_nothing_to_train_and_no_boxes() -> None:
    bare = dataclasses.replace(
        findings(), comparison=None, fleet={}, trials=[], trial_strips=[], exhibits=[], scores=[], refused=[],
        delay=Delay(0, 0, ()), synthetic=False,
    )  # fmt: skip
    text = page.render(bare)
    assert "Synthetic images" not in text
    assert "Does the detector learn" not in text
    assert document(bare)["training"] is None


def test_what_is_lost_or_doubled_is_shouted() -> None:
    edge = Device("edge-01", "edge", 1.0, 0, 1, 1, Completeness("edge-01", 2, 1, 1, 1, 1))
    broken = dataclasses.replace(findings(), devices=[edge], published_twice=2)
    assert (broken.lost, broken.duplicated) == (1, 4)
    assert "Not complete: 1 deliveries lost, 4 doubled" in page.render(broken)
    shown = StringIO()
    terminal.show(Console(file=shown, width=100), broken)
    assert "NOT COMPLETE" in shown.getvalue()


def record(content_id: bytes) -> bytes:
    layer = Layer(LayerKind.BACKGROUND, 1, 1, (0, 0, 32, 32), 1.0, b"payload")
    return to_bytes(ImageRecord(content_id, 1, "camera", (32, 32), (32, 32), (), (layer,)))


def test_holdings_are_counted_from_the_files(tmp_path: Path) -> None:
    """A library made by hand: one right record, one doubled, one that does not belong, one damaged on disk."""
    blobs = BlobStore(tmp_path / "blobs")
    database = sqlite3.connect(tmp_path / "library.sqlite")
    database.execute("CREATE TABLE records (content_id, digest, size, received_us, capture_us)")
    ids = {name: name.encode() * 32 for name in "abcd"}
    for name in "abbcd":
        data = record(ids[name])
        digest = blobs.put(data)
        database.execute(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?)", (ids[name], digest, len(data), 3_000_000, 1_000_000)
        )
        if name == "d":
            blobs.path(digest).write_bytes(b"damaged")
    database.commit()
    database.close()
    holdings = read_holdings("edge-01", tmp_path)
    assert {held.delay_s for held in holdings.held} == {2.0}
    found = check(holdings, frozenset({ids["a"], ids["b"], ids["d"], b"e" * 32}))
    assert found == Completeness("edge-01", expected=4, held=2, lost=2, duplicated=1, unexpected=1)


def test_published_twice() -> None:
    assert published_twice([b"a", b"b", b"a", b"a"]) == 2


def test_pictures() -> None:
    assert pictures.data_uri(PICTURE).startswith("data:image/webp;base64,")
    assert (pictures.difference(PICTURE, PICTURE, 4) == 128).all()
    assert pictures.difference(PICTURE, np.zeros_like(PICTURE), 4).max() == 255
    assert pictures.crop_around(PICTURE, (70.0, 50.0, 10.0, 10.0)).shape == (17, 17, 3)
    assert pictures.crop_around(PICTURE, (0.0, 0.0, 80.0, 60.0)).shape == PICTURE.shape
