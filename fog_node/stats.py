"""Per-image figures of a fog node, read from its store by another process (the launcher's report)."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fogline.common.errors import FormatError
from fogline.common.images.forms import Form
from fogline.common.images.planning import Choice


@dataclass(frozen=True)
class LayerStats:
    """One layer's kind (0 background, 1 object), codec number and payload bytes."""

    kind: int
    codec: int
    payload_bytes: int


@dataclass(frozen=True)
class ImageStats:
    """What became of one image. Times in microseconds since the Unix epoch, by the fog node's clock.

    The fields after `state` are None or empty until the image is published.
    """

    content_id: bytes
    camera: str
    sources: tuple[str, ...]  # names of the devices that uploaded it
    source_size: tuple[int, int]  # pixels
    source_bytes: int  # as uploaded
    form: Form  # in which it was uploaded
    boxes: int
    capture_us: int
    received_us: int
    state: str  # received, published or bad
    reason: str  # why it is bad
    cursor: int | None = None
    record_bytes: int | None = None
    layers: tuple[LayerStats, ...] = ()
    encode_s: float | None = None  # its share of its batch, without trials; 0 where the upload's layers were published
    published_us: int | None = None


@dataclass(frozen=True)
class SharedStats:
    """One shared-state blob and how often each device was sent it."""

    digest: bytes
    size: int
    sent: dict[str, int]


@dataclass(frozen=True)
class ChoiceStats:
    """A camera's codec, why, when that was last weighed (µs since the Unix epoch) and how often it has changed."""

    choice: Choice
    at_us: int
    changes: int


def read_images(data_dir: Path) -> list[ImageStats]:
    """Every image of a fog node's store, in order of arrival; the node may be running. Raises FormatError."""
    with closing(_open(data_dir)) as db:
        columns = {column[1] for column in db.execute("PRAGMA table_info(images)")}
        form = "upload_form" if "upload_form" in columns else str(Form.ORIGINAL.value)  # a store from before forms
        sources: dict[bytes, list[str]] = {}
        for content_id, device in db.execute("SELECT content_id, device FROM sources ORDER BY device"):
            sources.setdefault(content_id, []).append(device)
        rows = db.execute(
            "SELECT i.content_id, camera, width, height, source_bytes, boxes, capture_us, received_us, state, reason,"
            f" cursor, size, layers, encode_s, published_us, {form}"
            " FROM images i LEFT JOIN published p USING (content_id) ORDER BY seq"
        ).fetchall()
    return [
        ImageStats(
            content_id=row[0],
            camera=row[1],
            sources=tuple(sources.get(row[0], ())),
            source_size=(row[2], row[3]),
            source_bytes=row[4],
            form=Form(row[15]),
            boxes=len(msgspec.json.decode(row[5])),
            capture_us=row[6],
            received_us=row[7],
            state=row[8],
            reason=row[9],
            cursor=row[10],
            record_bytes=row[11],
            layers=tuple(LayerStats(*layer) for layer in msgspec.json.decode(row[12] or b"[]")),
            encode_s=row[13],
            published_us=row[14],
        )
        for row in rows
    ]


def read_needs(data_dir: Path) -> dict[int, list[tuple[bytes, int]]]:
    """Digest and size of the shared state that each record needs, by the record's cursor. Raises FormatError."""
    with closing(_open(data_dir)) as db:
        needs: dict[int, list[tuple[bytes, int]]] = {}
        for cursor, digest, size in db.execute(
            "SELECT cursor, digest, size FROM record_shared JOIN shared USING (digest)"
        ):
            needs.setdefault(cursor, []).append((digest, size))
        return needs


def read_shared(data_dir: Path) -> list[SharedStats]:
    """Every shared-state blob of a fog node's store. Raises FormatError."""
    with closing(_open(data_dir)) as db:
        sent: dict[bytes, dict[str, int]] = {}
        for device, digest, times in db.execute("SELECT device, digest, times FROM shared_sent"):
            sent.setdefault(digest, {})[device] = times
        return [SharedStats(d, size, sent.get(d, {})) for d, size in db.execute("SELECT digest, size FROM shared")]


def read_choices(data_dir: Path) -> list[ChoiceStats]:
    """What `auto` chose for each camera, by name; nothing where another codec is configured. Raises FormatError."""
    with closing(_open(data_dir)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'choices'").fetchone():
            return []  # a store from before there was `auto`
        rows = db.execute("SELECT at_us, changes, choice FROM choices ORDER BY camera, width, height").fetchall()
    try:
        return [ChoiceStats(msgspec.json.decode(raw, type=Choice), at_us, changes) for at_us, changes, raw in rows]
    except msgspec.DecodeError as error:
        raise FormatError(f"{data_dir}: a camera's choice can't be read ({error}); update Fogline") from error


def _open(data_dir: Path) -> sqlite3.Connection:
    path = data_dir / "fog.db"
    try:
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise FormatError(f"{path} is not a fog node's store: {error}; name the node's data_dir") from error
