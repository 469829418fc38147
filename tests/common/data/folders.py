"""Writes small annotated folders for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_jpeg(path: Path, width: int = 64, height: int = 48, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", quality=80)


def write_otb(folder: Path, lines: list[str], frames: int | None = None, newline: str = "\n") -> Path:
    for i in range(len(lines) if frames is None else frames):
        write_jpeg(folder / "img" / f"{i + 1:04d}.jpg", seed=i)
    (folder / "groundtruth_rect.txt").write_bytes((newline.join(lines) + newline).encode())
    return folder


def voc_xml(boxes: list[tuple[str, object, object, object, object]], size: tuple[int, int] = (64, 48)) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in boxes
    )
    size_xml = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>{size_xml}{objects}</annotation>"


def write_voc(folder: Path, xmls: list[str], layout: tuple[str, str] = ("images", "annotations")) -> Path:
    (folder / layout[1]).mkdir(parents=True)
    for i, xml in enumerate(xmls):
        write_jpeg(folder / layout[0] / f"cell_{i}.jpg", seed=i)
        (folder / layout[1] / f"cell_{i}.xml").write_text(xml)
    return folder
