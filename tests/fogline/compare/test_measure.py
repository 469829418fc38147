"""What is counted for a codec: whole records, and shared state once for each distinct blob."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

pytest.importorskip("torch")

from fogline.common.data import load_sequence
from fogline.common.data.clip import write_clip
from fogline.common.errors import FormatError, InputError
from fogline.common.images.codec import EncodedImage, SourceImage
from fogline.common.images.container import to_bytes
from fogline.common.images.record import ImageRecord, SharedState
from fogline.compare.frames import Folder, load
from fogline.compare.measure import measure
from fogline.compare.subjects import ProductCodec, build_subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = write_clip(tmp_path_factory.mktemp("made") / "clip", cameras=1, frames=7, width=160, height=120)[0]
    return load(load_sequence(path), path, 128, None, pytest.fail)


class Sharing(ProductCodec):
    """`jpeg2`, with shared state: a blob that all images name, and another from the fourth image on."""

    batch = 3

    def __init__(self) -> None:
        super().__init__("jpeg2", {}, "cpu")
        self.seen: list[SourceImage] = []

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        out = []
        for image, encoded in zip(images, super().encode(images), strict=True):
            blobs = [b"scene" * 100, *([b"newer" * 50] if len(self.seen) >= 3 else [])]
            self.seen.append(image)
            shared = tuple(SharedState(hashlib.sha256(blob).digest(), blob) for blob in blobs)
            out.append(EncodedImage(encoded.layers, shared))
        return out

    def prepare(self, records: Sequence[ImageRecord], shared: Mapping[bytes, bytes]) -> Any:
        assert all(digest in shared for record in records for digest in record.shared)
        return super().prepare(records, shared)


def test_shared_state_is_counted_once_for_each_distinct_blob(folder: Folder) -> None:
    codec = Sharing()
    found, _ = measure(folder, codec, lambda done: None)
    assert found.images == 7
    assert found.shared_bytes == 750
    assert found.delivered_bytes == pytest.approx(found.bytes + 750 / 7)
    assert found.rung.bytes == found.delivered_bytes
    # A digest in a record is 32 bytes of it.
    plain, _ = measure(folder, build_subject("jpeg2", {}), lambda done: None)
    assert plain.shared_bytes == 0
    assert found.bytes == pytest.approx(plain.bytes + 32 * (7 + 4) / 7)


def test_frames_come_in_order_in_batches_under_the_folders_name(folder: Folder) -> None:
    codec = Sharing()
    done: list[int] = []
    measure(folder, codec, done.append)
    assert done == [3, 6, 7]
    assert [image.camera for image in codec.seen] == [folder.name] * 7
    assert all(a is c.source for a, c in zip(codec.seen, folder.frames, strict=True))


def test_bytes_are_those_of_whole_records(folder: Folder) -> None:
    subject = build_subject("avif2", {})
    found, _ = measure(folder, subject, lambda done: None)
    encoded = build_subject("avif2", {}).encode([captured.source for captured in folder.frames])
    sizes = [len(to_bytes(c.record(e))) for c, e in zip(folder.frames, encoded, strict=True)]
    assert found.bytes == pytest.approx(sum(sizes) / 7)
    headers = found.bytes - found.background_bytes - found.object_bytes
    assert 90 < headers < 140  # content id, camera, size, label, box, two layers, checksums
    assert found.object_db is not None
    assert found.background_db is not None
    assert found.object_db > found.background_db
    assert found.full_similarity is not None
    assert found.full_similarity.scales == 4  # 96 rows
    assert min(found.encode_s, found.prepare_s, found.decode_s) > 0


def test_views_are_what_a_detector_would_see(folder: Folder) -> None:
    _, views = measure(folder, build_subject("jpeg2", {}), lambda done: None, (64, 48))
    assert views is not None
    assert views.shape == (7, 3, 48, 64)
    assert str(views.dtype) == "torch.uint8"


def test_an_encoder_that_leaves_images_out_is_told_apart(folder: Folder) -> None:
    class Lazy(Sharing):
        def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
            return super().encode(images)[1:]

    with pytest.raises(FormatError, match="2 records of 3 images"):
        measure(folder, Lazy(), lambda done: None)


def test_only_the_first_frames_and_none_too_large(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = load_sequence(folder.path)
    few = load(sequence, folder.path, 128, 2, pytest.fail)
    assert [c.frame.index for c in few.frames] == [0, 1]
    monkeypatch.setattr("fogline.compare.frames.MAX_BYTES", 100_000)
    with pytest.raises(InputError, match="--frames 2"):
        load(sequence, folder.path, 128, None, pytest.fail)
    monkeypatch.setattr("fogline.compare.frames.BATCH_PIXELS", 2 * 128 * 96)
    assert [len(batch) for batch in folder.batches(32)] == [2, 2, 2, 1]
