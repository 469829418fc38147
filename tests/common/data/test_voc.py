import os
from pathlib import Path

import pytest
from folders import voc_xml, write_jpeg, write_voc

from fogline.common.boxes import Box
from fogline.common.data import load_sequence
from fogline.common.errors import InputError

DATA = Path(os.environ.get("FOGLINE_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
GOOD = voc_xml([("RBC", 1, 1, 20, 30)])


@pytest.mark.parametrize("layout", [("images", "annotations"), ("JPEGImages", "Annotations")])
def test_boxes_count_from_1_and_include_both_corners(tmp_path: Path, layout: tuple[str, str]) -> None:
    xml = voc_xml([("RBC", 1, 1, 20, 30), ("WBC", 5, 6, 64, 48)])
    (frame,) = load_sequence(write_voc(tmp_path, [xml], layout)).frames
    assert frame.boxes == (Box(0, 0, 20, 30, "RBC"), Box(4, 5, 60, 43, "WBC"))


def test_no_box_and_200_boxes(tmp_path: Path) -> None:
    many = voc_xml([("cell", 1 + i % 40, 1 + i % 30, 10 + i % 40, 12 + i % 30) for i in range(200)])
    sequence = load_sequence(write_voc(tmp_path, [voc_xml([]), many]))
    assert [len(f.boxes) for f in sequence.frames] == [0, 200]
    assert sequence.refused == ()


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        (voc_xml([("RBC", 1, 1, 20, 30), ("RBC", 5, 5, 5, 9)]), "no area"),
        (voc_xml([("RBC", 9, 5, 5, 9)]), "no area"),
        (voc_xml([("RBC", "nan", 5, 9, 9)]), "not a finite number"),
        (voc_xml([("RBC", 5, 5, 99, 9)]), "lies outside the 64x48 frame"),
        (voc_xml([("RBC", -30, 5, 9, 9)]), "lies outside"),
        (voc_xml([("RBC", "x", 5, 9, 9)]), "not four numbers"),
        (voc_xml([("", 1, 5, 9, 9)]), "has no name"),
        (voc_xml([("RBC", 1, 1, 20, 30)], size=(640, 480)), "was drawn on 640x480 but the image is 64x48"),
        ("<annotation><object></annotation>", "not well-formed"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", "document type"),
        (voc_xml([("RBC", 1, 1, 20, 30)] * 1025), "more than 1024 boxes"),
    ],
)
def test_a_bad_annotation_refuses_its_frame_alone_and_is_named(tmp_path: Path, xml: str, says: str) -> None:
    sequence = load_sequence(write_voc(tmp_path, [GOOD, xml, GOOD]))
    assert [f.index for f in sequence.frames] == [0, 2]
    (error,) = sequence.refused
    assert says in str(error)
    assert "cell_1.xml" in str(error)


def test_an_image_or_annotation_without_its_other_half(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, [GOOD, GOOD])
    write_jpeg(folder / "images" / "lonely.jpg")
    (folder / "annotations" / "orphan.xml").write_text(GOOD)
    sequence = load_sequence(folder)
    assert len(sequence.frames) == 2
    assert [
        str(e) for e in sequence.refused if "lonely.xml: can't be read" in str(e) or "orphan.xml: no image" in str(e)
    ]
    assert len(sequence.refused) == 2


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its 1 frames is usable"):
        load_sequence(write_voc(tmp_path, [voc_xml([("RBC", 5, 5, 5, 9)])]))


@pytest.mark.data
def test_blood_cells() -> None:
    folder = DATA / "bccd_detection"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; set FOGLINE_DATA")
    sequence = load_sequence(folder)
    assert (len(sequence.frames), sequence.refused) == (120, ())
    assert {b.label for f in sequence.frames for b in f.boxes} == {"RBC", "WBC", "Platelets"}
