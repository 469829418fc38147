"""The rate that is published is that of the timed frames, of the slowest sequence at the size asked about."""

import numpy as np
import pytest

from fogline.benchmarks import latent_encode
from fogline.common.images.codec import SourceImage


def frames(count: int) -> list[SourceImage]:
    world = np.random.default_rng(1).integers(0, 256, (48, 64 + count, 3), np.uint8)
    return [SourceImage(np.ascontiguousarray(world[:, i : i + 64]), ((8, 8, 20, 16),), "c") for i in range(count)]


def test_only_frames_after_the_first_batch_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_encode, "BATCH", 2)
    row = latent_encode.measure(frames(5), 2)
    assert row["size"] == (64, 48)
    assert row["images"] == 3
    assert len(row["repeats"]) == 2
    assert min(row["repeats"]) <= row["images_per_s"] <= max(row["repeats"])
    assert row["cores_busy"] == pytest.approx(row["cpu_s_per_image"] * row["images_per_s"], rel=0.5)
    assert row["record_bytes"] > 0


def test_the_target_is_about_the_slowest_sequence_of_its_size() -> None:
    rows = [
        {"size": size, "images_per_s": rate} for size, rate in (((640, 360), 7.0), ((640, 360), 6.0), ((320, 240), 2.0))
    ]
    assert latent_encode.target(rows) == {"value": 6.0, "must": 5.0, "met": True, "aim": 20.0, "aim_met": False}
    assert latent_encode.target(rows[2:])["value"] is None
    assert not latent_encode.target(rows[2:])["met"]
