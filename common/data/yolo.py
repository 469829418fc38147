"""YOLO folders: one text file for each image, a line for each box in parts of the image's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fogline.common.boxes import Box, check_boxes
from fogline.common.data.files import jpeg_size, list_images, natural_key, read_text
from fogline.common.data.sequence import AnnotatedSequence, Frame
from fogline.common.errors import InputError

_IMAGES, _LABELS = "images", "labels"
_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LIST = "classes.txt"


class YoloFolders(NamedTuple):
    """Where a folder's images, their labels and the names of the classes are."""

    images: Path
    labels: Path
    names: Path | None


def yolo_folders(folder: Path) -> YoloFolders | None:
    """The images, labels and names of a folder, or None where it is not laid out in this way.

    `images/` beside `labels/`, or itself `…/images/NAME` with `…/labels/NAME`. The names of the classes are in
    `data.yaml` or `classes.txt`, in the folder, in its labels or up to two folders above.
    """
    here = folder.resolve()
    if (here / _IMAGES).is_dir() and (here / _LABELS).is_dir():
        images, labels = here / _IMAGES, here / _LABELS
    elif here.parent.name == _IMAGES and (here.parent.parent / _LABELS / here.name).is_dir():
        images, labels = here, here.parent.parent / _LABELS / here.name
    else:
        return None
    places = (labels, here, *here.parents[:2])
    names = (place / name for place in places for name in (*_YAML, _LIST))
    return YoloFolders(images, labels, next((path for path in names if path.is_file()), None))


def load_yolo(folder: Path, folders: YoloFolders) -> AnnotatedSequence:
    """Read a YOLO folder; an empty text file, or none, is a frame without a box, as YOLO trains on it.

    Without names a class's label is its number. A frame with a bad line or JPEG goes to `refused`, and so does a text
    file without image. Raises InputError when the names can't be read.
    """
    names = None if folders.names is None else _names(folders.names)
    frames, refused = [], []
    paths = list_images(folders.images)
    for index, path in enumerate(paths):
        file = folders.labels / f"{path.stem}.txt"
        try:
            width, height = jpeg_size(path)
            lines = read_text(file).splitlines() if file.exists() else []
            boxes = [
                _box(line, width, height, names, f"{file}:{number}")
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
            frames.append(Frame(path, check_boxes(boxes, width, height, where=str(file)), index, width, height))
        except InputError as error:
            refused.append(error)
    stems = {path.stem for path in paths} | {"classes"}
    for file in sorted(folders.labels.glob("*.txt"), key=natural_key):
        if file.stem not in stems:
            refused.append(
                InputError(f"{file}: no image {file.stem}.jpg in {folders.images}; add it or remove the file")
            )
    return AnnotatedSequence(folder.resolve().name, tuple(frames), tuple(refused))


def _names(path: Path) -> dict[int, str]:
    text = read_text(path)
    if path.name == _LIST:
        return dict(enumerate(line.strip() for line in text.splitlines()))
    try:
        document: Any = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: not YAML ({str(error)[:200]}); fix the file") from error
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(key, int) for key in names):
        raise InputError(f"{path}: has no `names` (a list, or a mapping from number to name); add them")
    return {number: str(name).strip() for number, name in names.items()}


def _box(line: str, width: int, height: int, names: dict[int, str] | None, where: str) -> Box:
    fields = line.split()
    try:
        number = int(fields[0])
        x, y, w, h = (float(value) for value in fields[1:])
    except ValueError as error:
        raise InputError(
            f"{where}: {line[:80]!r} is not `class x y w h` (outlines are not read); export boxes"
        ) from error
    label = str(number) if names is None else names.get(number, "")
    if number < 0 or not label:
        raise InputError(f"{where}: class {number} has no name; name it where the others are")
    if not (-0.01 <= x <= 1.01 and -0.01 <= y <= 1.01 and w <= 1.01 and h <= 1.01):
        raise InputError(f"{where}: {line[:80]!r} is not in parts of the image (0 to 1); divide by its size")
    return Box((x - w / 2) * width, (y - h / 2) * height, w * width, h * height, label)
