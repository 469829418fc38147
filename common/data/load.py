"""Opening a data folder of any known layout."""

from __future__ import annotations

from pathlib import Path

from fogline.common.data.coco import coco_files, load_coco
from fogline.common.data.otb import BOXES, IMAGES, is_otb, load_otb
from fogline.common.data.sequence import AnnotatedSequence
from fogline.common.data.voc import load_voc, voc_folders
from fogline.common.data.yolo import load_yolo, yolo_folders
from fogline.common.errors import InputError


def load_sequence(path: Path) -> AnnotatedSequence:
    """Read an annotated sequence: an OTB, COCO, VOC or YOLO folder (docs/data-folders.md).

    JPEG headers are read, pixels are not. Bad frames are left out and listed in `refused`, each as an InputError that
    names file, line and value.
    Raises InputError when the folder is of no known layout, its lines don't match its frames, or no frame is usable.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; name an annotated sequence", number=301)
    if is_otb(path):
        sequence = load_otb(path)
    elif (coco := coco_files(path)) is not None:  # before VOC: both may have images/ and annotations/
        sequence = load_coco(path, coco)
    elif (voc := voc_folders(path)) is not None:
        sequence = load_voc(path, *voc)
    elif (yolo := yolo_folders(path)) is not None:
        sequence = load_yolo(path, yolo)
    else:
        raise InputError(
            f"{path}: not an annotated sequence; wanted {IMAGES}/*.jpg with {BOXES} (OTB), images with one JSON file "
            "(COCO), images/ with annotations/*.xml (VOC), or images/ with labels/*.txt (YOLO)",
            number=301,
        )
    if not sequence.frames:
        raise InputError(
            f"{path}: none of its {len(sequence.refused)} frames is usable; the first: {sequence.refused[0]}",
            number=302,
        )
    return sequence
