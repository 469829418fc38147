"""The trainer's pool over a library: it grows while images arrive, and evicted ones make place for new ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge_helpers import jpeg  # noqa: E402

from fogline.common.boxes import Box  # noqa: E402
from fogline.common.errors import FormatError  # noqa: E402
from fogline.common.images.avif2 import build_avif2  # noqa: E402
from fogline.common.images.codec import SourceImage  # noqa: E402
from fogline.common.images.container import to_bytes  # noqa: E402
from fogline.common.images.decode import BatchDecoder  # noqa: E402
from fogline.common.images.jpeg import resize  # noqa: E402
from fogline.common.images.jpeg2 import build_jpeg2  # noqa: E402
from fogline.common.images.record import ImageRecord  # noqa: E402
from fogline.common.models.augment import Augment, random_cuts  # noqa: E402
from fogline.common.models.training import Recipe, Trainer  # noqa: E402
from fogline.edge_agent.library import Library  # noqa: E402
from fogline.edge_agent.train_pool import LibraryPool  # noqa: E402

SIZE = (64, 48)


def grey_record(seed: int) -> ImageRecord:
    """A frame whose brightness is its seed."""
    pixels = np.full((48, 64, 3), 10 * seed, np.uint8)
    encoded = build_jpeg2({}, "cpu").encode([SourceImage(pixels, ((8.0, 8.0, 16.0, 16.0),))])[0]
    boxes = (Box(16, 16, 32, 32, "car"), Box(0, 0, 8, 8, "dog"))
    return ImageRecord(hashlib.sha256(jpeg(seed)).digest(), 5, "cam", (128, 96), SIZE, boxes, encoded.layers)


def put(library: Library, seed: int, other: ImageRecord | bytes | None = None) -> None:
    record = other if isinstance(other, ImageRecord) else grey_record(seed)
    data = other if isinstance(other, bytes) else to_bytes(record)
    digest = library.blobs.put(data)
    library.add(record, digest, len(data), at=seed, cursor=seed, received_us=9)


def brightness(pool: LibraryPool) -> list[int]:
    means = pool.images(range(len(pool))).mean((1, 2, 3)) * 25.5
    return [round(float(mean)) for mean in means]


@pytest.mark.parametrize("cache", [0, 2 * 3 * 64 * 48, 1 << 30])
def test_the_pool_grows_and_evicted_images_make_place(tmp_path: Path, cache: int) -> None:
    size = len(to_bytes(grey_record(5)))
    library = Library(tmp_path, 4 * size + 200)
    pool = LibraryPool(tmp_path, BatchDecoder(), SIZE, ("car",), cache)
    assert (pool.refresh(), len(pool)) == (0, 0)
    for seed in (1, 2, 3):
        put(library, seed)
    assert pool.refresh() == 3
    assert brightness(pool) == [1, 2, 3]
    assert pool.images([2, 0, 2]).shape == (3, 3, 48, 64)
    target = pool.target(0)
    assert target.boxes.tolist() == [[0.125, pytest.approx(1 / 6), 0.375, 0.5]], "the dog is left out"
    for seed in (4, 5, 6):
        put(library, seed)
    assert library.count < 6
    assert pool.refresh() == 3
    left = brightness(pool)
    assert set(left) >= {4, 5, 6}
    assert len(left) <= 5, "evicted ones have made place"
    assert brightness(pool) == left
    pool.close()
    library.close()


def scene_record(seed: int, boxes: tuple[Box, ...] = ()) -> ImageRecord:
    noise = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    encoded = build_jpeg2({"background_quality": 90}, "cpu").encode([SourceImage(resize(noise, 64, 48), ())])[0]
    return ImageRecord(hashlib.sha256(jpeg(seed)).digest(), 5, "cam", SIZE, SIZE, boxes, encoded.layers)


def test_what_is_not_kept_is_decoded_in_the_view_alone(tmp_path: Path) -> None:
    library = Library(tmp_path, 1 << 20)
    for seed in range(5):
        put(library, seed, scene_record(seed, (Box(8, 8, 16, 16, "car"),)))
    pools = [LibraryPool(tmp_path, BatchDecoder(), SIZE, (), room) for room in (1 << 30, 2 * 3 * 64 * 48, 0)]
    targets, found = [], []
    for pool in pools:
        assert pool.refresh() == 5
        pool.images([0, 1])  # kept where there is room
        targets = [pool.target(i) for i in range(5)]
        _, cuts = random_cuts(targets, pool.size, (32, 32), torch.Generator().manual_seed(4), Augment())
        found.append(pool.views([4, 0, 2, 1, 3], cuts.of([4, 0, 2, 1, 3]), (32, 32), torch.device("cpu")))
        pool.close()
    for other in found[1:]:
        assert (other - found[0]).abs().mean() < 4 / 255
    assert torch.equal(found[1][[1, 3]], found[0][[1, 3]]), "cut from what is kept"
    assert not torch.equal(found[2][[1, 3]], found[0][[1, 3]])
    library.close()


def test_a_damaged_record_of_which_only_a_view_was_asked(tmp_path: Path) -> None:
    library = Library(tmp_path, 1 << 20)
    put(library, 1)
    put(library, 2, damaged_record(2))
    pool = LibraryPool(tmp_path, BatchDecoder(), SIZE, (), 0)
    pool.refresh()
    trainer = Trainer(Recipe(steps=3, batch=4, view=(32, 32), labels=2), pool, seed=0)
    trainer.step()
    assert pool.damaged == 1
    assert pool.target(1).boxes.tolist() == pool.target(0).boxes.tolist()
    pool.close()
    library.close()


def test_a_record_that_does_not_parse_is_left_out(tmp_path: Path) -> None:
    library = Library(tmp_path, 1 << 20)
    put(library, 1)
    put(library, 2, b"no record")
    put(library, 3)
    pool = LibraryPool(tmp_path, BatchDecoder(), SIZE, (), 1 << 20)
    assert pool.refresh() == 2
    assert brightness(pool) == [1, 3]
    assert len(pool.target(1).labels) == 2
    pool.close()
    library.close()


def damaged_record(seed: int) -> ImageRecord:
    """Well formed, until a decoder looks at its pixels."""
    decoder = BatchDecoder()
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    (layer,) = build_avif2({}, "cpu").encode([SourceImage(pixels, ())])[0].layers
    for kept in range(16, len(layer.payload)):
        rotten = replace(layer, payload=layer.payload[:kept] + bytes(len(layer.payload) - kept))
        record = ImageRecord(hashlib.sha256(jpeg(seed)).digest(), 5, "cam", (128, 96), SIZE, (), (rotten,))
        try:
            decoder.decode([decoder.prepare(record, {})])
        except FormatError as error:
            if "can't be decoded" in str(error):
                return record
    raise AssertionError("AVIF takes anything")


def test_a_record_that_can_not_be_decoded_is_left_out_and_counted(tmp_path: Path) -> None:
    library = Library(tmp_path, 1 << 20)
    put(library, 1)
    put(library, 2, damaged_record(2))
    pool = LibraryPool(tmp_path, BatchDecoder(), SIZE, (), 0)
    assert pool.refresh() == 2
    assert brightness(pool) == [1, 1]
    assert brightness(pool) == [1, 1]
    assert pool.damaged == 1
    assert pool.target(1).boxes.tolist() == pool.target(0).boxes.tolist()
    pool.close()
    library.close()


def test_a_pool_of_damaged_records_only_teaches_nothing(tmp_path: Path) -> None:
    library = Library(tmp_path, 1 << 20)
    put(library, 1, damaged_record(1))
    pool = LibraryPool(tmp_path, BatchDecoder(), SIZE, (), 1 << 20)
    pool.refresh()
    assert pool.images([0, 0]).abs().sum() == 0
    assert len(pool.target(0).boxes) == 0
    assert pool.damaged == 1
    pool.close()
    library.close()
