"""What the loader's benchmark says an input holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from fogline.benchmarks.loader import archive, held
from fogline.common.images.archive import read_archive
from fogline.common.images.codec import SourceImage
from fogline.common.images.record import ImageRecord, SharedState
from fogline.common.loader.loader import DecodedLoader


def test_a_reference_is_counted_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = archive([SourceImage(pixels, ()) for _ in range(8)], "latent", False, tmp_path / "latent")
    entries = list(read_archive(path))
    (reference,) = [entry.data for entry in entries if isinstance(entry, SharedState)]
    assert sum(isinstance(entry, ImageRecord) for entry in entries) == 8
    loader = DecodedLoader(path, size=(64, 48), batch_size=4, device="cpu", cache="none")
    assert len(reference) < 8 * 1e3 * held(loader)["compressed_kb"] < 5 * len(reference)
    assert held(loader)["decoded_kb"] == 0
    list(loader)
    assert held(loader)["decoded_kb"] == 3 * 64 * 48 / 8 / 1e3
