"""Annotated folders for other programs' trainers: COCO, VOC, YOLO. What they write, `load_sequence` reads."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from fogline.common.boxes import Box
from fogline.common.files import replace_file


class FolderWriter(Protocol):
    """Writes annotations beside the images of a folder; images are for the caller to write into `images`."""

    images: Path

    def add(self, name: str, width: int, height: int, boxes: Sequence[Box]) -> None:
        """Annotate the image `name`; boxes in its pixels."""

    def close(self) -> None:
        """Write what is written once."""


class CocoWriter:
    """`images/` and `annotations.json`. Categories are numbered from 1, in the order of their first box."""

    def __init__(self, folder: Path) -> None:
        self.images = _made(folder / "images")
        self._file = folder / "annotations.json"
        self._labels: dict[str, int] = {}
        self._images: list[dict[str, object]] = []
        self._annotations: list[dict[str, object]] = []

    def add(self, name: str, width: int, height: int, boxes: Sequence[Box]) -> None:
        """See FolderWriter."""
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": name, "width": width, "height": height})
        for box in boxes:
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": number,
                    "category_id": self._labels.setdefault(box.label, len(self._labels) + 1),
                    "bbox": [box.x, box.y, box.w, box.h],
                    "area": box.area,
                    "iscrowd": 0,
                }
            )

    def close(self) -> None:
        """See FolderWriter."""
        categories = [{"id": number, "name": label} for label, number in self._labels.items()]
        document = {"images": self._images, "annotations": self._annotations, "categories": categories}
        replace_file(self._file, json.dumps(document).encode())


class VocWriter:
    """`images/` and an XML file for each in `annotations/`; corners count from 1, in whole pixels as VOC has them."""

    def __init__(self, folder: Path) -> None:
        self.images = _made(folder / "images")
        self._annotations = _made(folder / "annotations")

    def add(self, name: str, width: int, height: int, boxes: Sequence[Box]) -> None:
        """See FolderWriter."""
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = name
        size = ET.SubElement(root, "size")
        for key, value in (("width", width), ("height", height), ("depth", 3)):
            ET.SubElement(size, key).text = str(value)
        for box in boxes:
            node = ET.SubElement(root, "object")
            ET.SubElement(node, "name").text = box.label
            corners = ET.SubElement(node, "bndbox")
            # Readers take equal corners for a mistake, so the smallest boxes are two pixels across.
            left, top = max(1, min(width - 1, round(box.x) + 1)), max(1, min(height - 1, round(box.y) + 1))
            right, bottom = max(left + 1, round(box.x + box.w)), max(top + 1, round(box.y + box.h))
            for key, value in (("xmin", left), ("ymin", top), ("xmax", right), ("ymax", bottom)):
                ET.SubElement(corners, key).text = str(value)
        ET.ElementTree(root).write(self._annotations / f"{Path(name).stem}.xml", encoding="unicode")

    def close(self) -> None:
        """Nothing is left to write."""


class YoloWriter:
    """`images/`, a text file for each in `labels/`, and `data.yaml`, which names the classes and this folder."""

    def __init__(self, folder: Path) -> None:
        self.images, self._labels = _made(folder / "images"), _made(folder / "labels")
        self._folder = folder
        self._names: dict[str, int] = {}

    def add(self, name: str, width: int, height: int, boxes: Sequence[Box]) -> None:
        """See FolderWriter."""
        lines = []
        for box in boxes:
            number = self._names.setdefault(box.label, len(self._names))
            centre = (box.x + box.w / 2) / width, (box.y + box.h / 2) / height
            lines.append(" ".join([str(number), *(f"{v:.6f}" for v in (*centre, box.w / width, box.h / height))]))
        text = "".join(f"{line}\n" for line in lines)
        (self._labels / f"{Path(name).stem}.txt").write_text(text, encoding="utf-8")

    def close(self) -> None:
        """See FolderWriter."""
        # JSON is YAML, and quotes whatever a label may hold.
        names = [f"  {number}: {json.dumps(name)}" for name, number in self._names.items()]
        lines = [f"path: {json.dumps(str(self._folder.resolve()))}", "train: images", "val: images"]
        lines += ["names:", *names] if names else ["names: {}"]
        replace_file(self._folder / "data.yaml", ("\n".join(lines) + "\n").encode())


WRITERS: dict[str, Callable[[Path], FolderWriter]] = {"coco": CocoWriter, "voc": VocWriter, "yolo": YoloWriter}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
