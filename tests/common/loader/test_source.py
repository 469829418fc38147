"""Where records may come from."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from record_sets import equal, records  # noqa: E402

from fogline.cli import main  # noqa: E402
from fogline.common.data.clip import write_clip  # noqa: E402
from fogline.common.errors import FormatError, InputError  # noqa: E402
from fogline.common.images.archive import ArchiveWriter, read_archive  # noqa: E402
from fogline.common.images.container import to_bytes  # noqa: E402
from fogline.common.images.record import ImageRecord, SharedState  # noqa: E402
from fogline.common.loader.loader import DecodedLoader  # noqa: E402
from fogline.common.loader.source import read_source  # noqa: E402
from fogline.common.models.augment import Augment  # noqa: E402
from fogline.edge_agent.library import Library  # noqa: E402


def batches(source: Any, **options: Any) -> list[Any]:
    return list(DecodedLoader(source, size=(48, 32), device="cpu", cache="none", **options))


def write(path: Path, some: list[ImageRecord]) -> Path:
    with ArchiveWriter(path) as archive:
        for record in some:
            archive.add(record)
    return path


def test_every_kind_of_source_gives_the_same_batches(tmp_path: Path) -> None:
    some = records()
    expected = batches(some)
    assert equal(batches(iter(some)), expected)
    assert equal(batches(write(tmp_path / "all.fga", some)), expected)
    assert equal(batches(str(tmp_path / "all.fga")), expected)
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a", some[:4])
    (folder / "b.fgl").write_bytes(to_bytes(some[4]))
    write(folder / "c", some[5:])
    (folder / "notes.txt").write_text("not a record")
    (folder / "empty").touch()
    assert equal(batches(folder), expected)
    assert equal(batches(folder / "b.fgl"), batches(some[4:5]))
    library = Library(tmp_path / "edge" / "library", 1 << 20)
    for number, record in enumerate(some):
        data = to_bytes(record)
        library.add(record, library.blobs.put(data), len(data), at=number, cursor=number, received_us=9)
    assert equal(batches(tmp_path / "edge"), expected), "while the agent holds it open"
    assert equal(batches(tmp_path / "edge" / "library"), expected)
    library.close()


@pytest.mark.parametrize("codec", ["jpeg2", "latent"])
def test_what_fogline_encode_writes(codec: str, tmp_path: Path) -> None:
    """Of `latent` with the reference pictures that its records share."""
    (clip,) = write_clip(tmp_path / "clip", cameras=1, frames=3, width=96, height=64)
    file = tmp_path / "clip.fga"
    assert main(["encode", str(clip), "-o", str(file), "--codec", codec, "--width", "64"]) == 0
    ((images, targets),) = batches(file, augment=Augment())
    assert images.shape == (3, 3, 32, 48)
    assert sum(len(t.labels) for t in targets) > 0
    ((kept, _),) = list(DecodedLoader(file, size=(48, 32), device="cpu", cache="ram", augment=Augment()))
    assert (images - kept).abs().mean() < 5 / 255


def test_shared_state_is_read_with_its_records(tmp_path: Path) -> None:
    from dataclasses import replace
    from hashlib import sha256

    state = SharedState(sha256(b"state").digest(), b"state")
    needing = replace(records()[0], shared=(state.digest,))
    with ArchiveWriter(tmp_path / "with") as archive:
        archive.add_shared(state)
        archive.add(needing)
    library = Library(tmp_path / "library", 1 << 20)
    library.blobs.put(state.data)
    library.add_shared(state.digest, len(state.data))
    data = to_bytes(needing)
    digest = library.blobs.put(data)
    library.add(needing, digest, len(data), at=1, cursor=1, received_us=9)
    expected = batches([state, needing])
    assert equal(batches(tmp_path / "with"), expected)
    assert equal(batches(tmp_path / "library"), expected)
    library.blobs.delete(state.digest)
    with pytest.raises(FormatError, match="is not in the store"):
        batches(tmp_path / "library")
    library.blobs.delete(digest)
    assert [type(entry) for entry in read_source(tmp_path / "library")] == [FormatError]
    library.close()


def test_a_library_that_evicts_while_it_is_read(tmp_path: Path) -> None:
    """What is gone is left out; as many of what arrived since take its place."""
    data = [to_bytes(record) for record in records()]
    library = Library(tmp_path / "library", sum(len(d) for d in data[:3]))

    def add(number: int) -> None:
        digest = library.blobs.put(data[number])
        library.add(records()[number], digest, len(data[number]), at=number, cursor=number, received_us=9)

    for number in range(3):
        add(number)
    found = read_source(tmp_path / "library")
    first = next(found)
    for number in range(3, 7):
        add(number)
    rest = list(found)
    assert all(isinstance(entry, ImageRecord) for entry in rest)
    ids = [record.content_id for record in records()]
    order = [ids.index(entry.content_id) for entry in (first, *rest)]
    assert order[0] == 0
    assert 3 <= len(order) <= 4
    assert order == sorted(set(order))
    assert set(order[1:]) <= {4, 5, 6}  # 1, 2 and then 3 were gone
    library.close()


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "library.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 9)
    (tmp_path / "text").write_text("no records")
    for source, error, words in (
        (tmp_path / "absent", InputError, "no such file"),
        (tmp_path / "empty", InputError, "fogline encode"),
        (tmp_path, InputError, "not an edge agent's library"),
        (tmp_path / "text", FormatError, "no archive"),
        ([b"bytes"], InputError, "yields bytes"),
    ):
        with pytest.raises(error, match=words):
            batches(source)


def test_damaged_files(tmp_path: Path) -> None:
    data = bytearray(to_bytes(records()[0]))
    data[len(data) // 2] ^= 4
    (tmp_path / "one.fgl").write_bytes(data)
    (tmp_path / "two.fgl").write_bytes(to_bytes(records()[1]))
    with pytest.raises(FormatError, match=r"one\.fgl"):
        batches(tmp_path)
    assert len(batches(tmp_path, skip_damaged=True)[0][1]) == 1
    archive = bytearray(write(tmp_path / "a", records()).read_bytes())
    (tmp_path / "a").write_bytes(archive[:-20])
    with pytest.raises(FormatError, match="cut off"):
        batches(tmp_path / "a", skip_damaged=True)
    assert sum(isinstance(e, ImageRecord) for e in _until_damage(tmp_path / "a")) == 9


def _until_damage(path: Path) -> list[Any]:
    found = []
    with pytest.raises(FormatError):
        found.extend(read_archive(path))  # extend keeps what came before the error
    return found


def test_a_library_of_another_program_is_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "library.sqlite").close()
    with pytest.raises(InputError, match="not an edge agent's library"):
        batches(tmp_path)
