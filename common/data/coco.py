"""COCO folders: one JSON file for all images, any number of labelled boxes in each."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import msgspec

from fogline.common.boxes import Box, check_boxes
from fogline.common.data.files import jpeg_size, list_images, read_bytes
from fogline.common.data.sequence import AnnotatedSequence, Frame
from fogline.common.errors import InputError

# The largest published file of instances (train2017) has 450 MB; outlines, its greater part, are skipped in reading.
MAX_JSON_BYTES = 1 << 30
_BESIDE = ("annotations.json", "_annotations.coco.json", "instances.json", "labels.json")


class CocoFiles(NamedTuple):
    """Where a folder's images and their annotations are."""

    images: Path
    annotations: Path


class _Image(msgspec.Struct):
    id: int
    file_name: str
    width: int = 0
    height: int = 0


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: list[float] = msgspec.field(default_factory=list)
    iscrowd: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _Document(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def coco_files(folder: Path) -> CocoFiles | None:
    """The images and the JSON file of a folder, or None where it is not laid out in this way.

    The JSON file lies in the folder (`annotations.json`, `_annotations.coco.json`, …), with the images beside it or in
    `images/`; or alone in `annotations/` beside `images/`; or, as COCO itself is published, in
    `../annotations/instances_FOLDER.json`.
    """
    inside = folder / "images"
    images = inside if inside.is_dir() else folder
    for name in _BESIDE:
        if (folder / name).is_file():
            return CocoFiles(images, folder / name)
    alone = sorted((folder / "annotations").glob("*.json"))
    if len(alone) == 1 and inside.is_dir():
        return CocoFiles(inside, alone[0])
    published = folder.resolve().parent / "annotations" / f"instances_{folder.resolve().name}.json"
    return CocoFiles(folder, published) if published.is_file() else None


def load_coco(folder: Path, files: CocoFiles) -> AnnotatedSequence:
    """Read a COCO folder; a listed image without annotation is a frame without a box, crowds (`iscrowd`) are no boxes.

    A frame with a bad box, of another size than stated, not listed or not there goes to `refused`. Raises InputError
    when the JSON file is none, too large, or names an image or category twice.
    """
    document = _read(files.annotations)
    labels = {category.id: category.name for category in document.categories}
    listed = {image.file_name: image for image in document.images}
    ids = {image.id for image in document.images}
    if len(labels) < len(document.categories) or not len(listed) == len(ids) == len(document.images):
        raise InputError(f"{files.annotations}: an id or file name stands there twice; merge the files with new ids")
    of_image: dict[int, list[_Annotation]] = defaultdict(list)
    for annotation in document.annotations:
        of_image[annotation.image_id].append(annotation)
    refused = [
        InputError(f"{files.annotations}: annotations of image {image}, which is not listed; list or remove it")
        for image in sorted(of_image.keys() - ids)
    ]
    frames = []
    for index, path in enumerate(list_images(files.images)):
        image = listed.pop(path.name, None)
        where = f"{files.annotations}: {path.name}"
        try:
            if image is None:
                raise InputError(f"{where} is in {files.images} but not listed; list it, without annotations if empty")
            width, height = jpeg_size(path)
            if (image.width or width, image.height or height) != (width, height):
                raise InputError(
                    f"{where} was drawn on {image.width}x{image.height} but the image is {width}x{height}; "
                    "annotate the image as stored"
                )
            found = [_box(annotation, labels, where) for annotation in of_image[image.id] if not annotation.iscrowd]
            frames.append(Frame(path, check_boxes(found, width, height, where=where), index, width, height))
        except InputError as error:
            refused.append(error)
    refused += [
        InputError(f"{files.annotations}: no image {name[:80]!r} in {files.images}; add it or remove it from the list")
        for name in sorted(listed)
    ]
    return AnnotatedSequence(folder.resolve().name, tuple(frames), tuple(refused))


def _read(path: Path) -> _Document:
    data = read_bytes(path, MAX_JSON_BYTES)
    try:
        return msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not COCO's instances ({error}); export the annotations again") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply for COCO's instances; export the annotations again") from error


def _box(annotation: _Annotation, labels: dict[int, str], where: str) -> Box:
    label = labels.get(annotation.category_id, "").strip()
    if not label:
        raise InputError(f"{where} has category {annotation.category_id}, which has no name; add it to `categories`")
    if len(annotation.bbox) != 4:
        raise InputError(f"{where} has the bbox {annotation.bbox[:8]}, not four numbers x, y, w, h; fix the box")
    x, y, w, h = annotation.bbox
    return Box(x, y, w, h, label)
