"""The reference in blocks of pixels is the published one, and its weights survive being written."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fogline.benchmarks import siren_reference
from fogline.benchmarks.siren_encode import Bench
from fogline.benchmarks.siren_reference import BlockedReference, loaded, render, saved
from fogline.common.images.siren_payload import Grid, Shape
from fogline.fog_node.encoders.siren import LayerSource
from fogline.fog_node.encoders.siren_reference import ReferenceFit


def source() -> LayerSource:
    y, x = np.mgrid[0:30, 0:40].astype(np.float32)
    values = np.stack([np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)], axis=2)
    return LayerSource(0, (0, 0, 40, 30), 1.0, Shape(3, 10), Grid(1, 1), values)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siren_reference, "_BLOCK", 500)  # two and a part
    (signal,) = source().signals
    whole, blocks = ReferenceFit(signal, 40, 0, torch.device("cpu")), BlockedReference(signal, 40, 0)
    start = [w.clone() for w, _ in whole.folded()]
    for _ in range(40):
        whole.step()
        blocks.step()
    for (w, b), (other, bias), first in zip(whole.folded(), blocks.folded(), start, strict=True):
        torch.testing.assert_close(other, w, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(bias, b, atol=1e-4, rtol=1e-4)
        assert (w - first).abs().max() > 1e-3


def test_written_weights_are_the_same() -> None:
    frame = source()
    fit = BlockedReference(frame.signals[0], 3, 0)
    fit.step()
    again = loaded(saved(fit.folded()), frame)
    np.testing.assert_array_equal(render(again, frame), render(fit.folded(), frame))


@pytest.mark.data
def test_the_comparison_adds_up_and_leaves_open_what_was_not_run(data_root: Path, tmp_path: Path) -> None:
    row = Bench(data_root / "tracking", tmp_path, "cpu", images=1, quick=True).sequence("OTB_Crossing")
    image, parts = row["fast"]["image"], [row["fast"][kind] for kind in ("background", "object")]
    assert image["bytes"] == sum(part["bytes"] for part in parts)
    whole = 4 * (Shape(10, 28).parameters + Shape(3, 10).parameters)
    assert image["times_smaller"] == pytest.approx(whole / image["bytes"])
    assert image["images_per_s"] == pytest.approx(1 / sum(part["s"] for part in parts))
    assert "db_more" in parts[1]
    assert "db_more" not in parts[0]  # the reference's background was not run
