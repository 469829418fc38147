"""VOC folders: one XML file for each image, any number of labelled boxes in it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from fogline.common.boxes import Box, check_boxes
from fogline.common.data.files import jpeg_size, list_images, natural_key, read_text
from fogline.common.data.sequence import AnnotatedSequence, Frame
from fogline.common.errors import InputError

_LAYOUTS = (("images", "annotations"), ("JPEGImages", "Annotations"))


def voc_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and of annotations, or None where the folder is not laid out in this way."""
    for images, xml in _LAYOUTS:
        if (folder / images).is_dir() and (folder / xml).is_dir():
            return folder / images, folder / xml
    return None


def load_voc(folder: Path, images: Path, annotations: Path) -> AnnotatedSequence:
    """Read a VOC folder; an XML file without `object` is a frame without a box.

    A frame whose XML or JPEG is bad or missing goes to `refused` (its other boxes too: a detector would
    learn that the refused object is background).
    """
    frames, refused = [], []
    paths = list_images(images)
    for index, path in enumerate(paths):
        file = annotations / f"{path.stem}.xml"
        try:
            width, height = jpeg_size(path)
            boxes = check_boxes(_parse(file, width, height), width, height, where=str(file))
        except InputError as error:
            refused.append(error)
            continue
        frames.append(Frame(path, boxes, index, width, height))
    stems = {path.stem for path in paths}
    for file in sorted(annotations.glob("*.xml"), key=natural_key):
        if file.stem not in stems:
            refused.append(InputError(f"{file}: no image {file.stem}.jpg in {images}; add it or remove the annotation"))
    return AnnotatedSequence(folder.resolve().name, tuple(frames), tuple(refused))


def _parse(file: Path, width: int, height: int) -> list[Box]:
    text = read_text(file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # expands to more than its size, and no annotation tool writes it
        raise InputError(f"{file}: has a document type or entities; write plain VOC XML")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise InputError(f"{file}: not well-formed XML ({error}); export the annotation again") from error
    stated = tuple(root.findtext(f"size/{key}", "0").strip() for key in ("width", "height"))
    if stated != ("0", "0") and stated != (str(width), str(height)):
        raise InputError(
            f"{file}: was drawn on {stated[0]}x{stated[1]} but the image is {width}x{height}; "
            "annotate the image as stored"
        )
    return [_box(file, number, node) for number, node in enumerate(root.iter("object"))]


def _box(file: Path, number: int, node: ET.Element) -> Box:
    label = node.findtext("name", "").strip()
    corners = [node.findtext(f"bndbox/{key}", "").strip() for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = (float(value) for value in corners)
    except ValueError as error:
        raise InputError(f"{file}: object {number} has the corners {corners}, not four numbers; fix the box") from error
    if not label:
        raise InputError(f"{file}: object {number} has no name; label it")
    if x1 <= x0 or y1 <= y0:
        raise InputError(f"{file}: object {number} has the corners {corners} and so no area; fix or remove the box")
    return Box(x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1, label)  # VOC counts from 1 and includes both corners
