"""What the loader is measured against does the same work: equal numbers give equal views of equal images."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fogline.benchmarks.loader_jpeg import JpegLoader, jpegs  # noqa: E402
from fogline.common.boxes import Box  # noqa: E402
from fogline.common.images.codec import SourceImage  # noqa: E402
from fogline.common.images.jpeg import resize  # noqa: E402
from fogline.common.images.record import ImageRecord  # noqa: E402
from fogline.common.loader.loader import DecodedLoader  # noqa: E402
from fogline.common.models.augment import Augment, expose  # noqa: E402
from fogline.fog_node.encoders import build_encoder  # noqa: E402

VIEW = (64, 48)
BOXES = ((20.0, 10.0, 33.0, 21.0), (60.0, 30.0, 20.0, 30.0))


def images(count: int) -> list[SourceImage]:
    random = np.random.default_rng(0)
    noise = [random.integers(60, 200, (6, 8, 3), dtype=np.uint8) for _ in range(count)]
    return [SourceImage(resize(small, 128, 96), BOXES[: i % 3]) for i, small in enumerate(noise)]


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_the_same_views_as_of_records(cache: str) -> None:
    sources = images(6)
    quality = {"background_quality": 95, "object_quality": 95}
    records = [
        ImageRecord(bytes(32), 0, "", (128, 96), (128, 96), tuple(Box(*b) for b in source.boxes), coded.layers)
        for source, coded in zip(sources, build_encoder("jpeg2", quality).encode(sources), strict=True)
    ]
    augment = Augment(zoom=(0.8, 1.6))
    ours = DecodedLoader(records, size=VIEW, batch_size=6, augment=augment, device="cpu", cache=cache)
    ((pixels, targets),) = list(ours)
    theirs = JpegLoader(sources, jpegs(sources), 1, VIEW, 6, augment, torch.device("cpu"), workers=0)
    draws = ours._draw(0)[1]
    assert draws is not None
    theirs._data.draws.copy_(draws)
    for i, (image, target, drawn) in enumerate(theirs._data):
        assert torch.equal(target.boxes, targets[i].boxes)
        shown = expose(image[None].float() / 255, drawn, augment)[0]
        assert (shown - pixels[i]).abs().mean() < 4 / 255


def test_batches() -> None:
    loader = JpegLoader(images(5), jpegs(images(5)), 2, VIEW, 4, Augment(), torch.device("cpu"), workers=0)
    for _ in range(2):
        batches = list(loader)
        assert [tuple(pixels.shape) for pixels, _ in batches] == [(4, 3, 48, 64)] * 2
    assert loader.worker_pids() == []
    loader.close()
