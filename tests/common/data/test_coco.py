import json
from pathlib import Path
from typing import Any

import pytest
from folders import write_jpeg

from fogline.common.boxes import Box
from fogline.common.data import load_sequence
from fogline.common.errors import InputError


def image(number: int, **other: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48} | other


def box(number: int, *bbox: float, category: int = 3, **other: Any) -> dict[str, Any]:
    outline = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    return {"id": 1, "image_id": number, "category_id": category, "bbox": bbox, "segmentation": outline} | other


def document(images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    categories = [{"id": 3, "name": "car", "supercategory": "vehicle"}, {"id": 7, "name": "van"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write(json_file: Path, images: Path, text: dict[str, Any] | str, frames: int) -> None:
    for number in range(1, frames + 1):
        write_jpeg(images / f"{number}.jpg", seed=number)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(text if isinstance(text, str) else json.dumps(text))


@pytest.mark.parametrize(
    ("json_file", "images", "folder"),
    [
        ("cam/annotations.json", "cam", "cam"),
        ("cam/annotations.json", "cam/images", "cam"),
        ("train/_annotations.coco.json", "train", "train"),
        ("cam/annotations/instances.json", "cam/images", "cam"),
        ("coco/annotations/instances_val2017.json", "coco/val2017", "coco/val2017"),
    ],
)
def test_layouts(tmp_path: Path, json_file: str, images: str, folder: str) -> None:
    """Boxes count from 0; many, one and none; a crowd is no box; images in natural order."""
    annotations = [box(10, 4, 5, 20.5, 12), box(10, 0, 0, 64, 48, category=7), box(9, 1, 1, 5, 5, iscrowd=1)]
    write(
        tmp_path / json_file, tmp_path / images, document([image(n) for n in range(10, 0, -1)], annotations), frames=10
    )
    sequence = load_sequence(tmp_path / folder)
    assert (sequence.name, sequence.refused) == (Path(folder).name, ())
    assert [frame.path.name for frame in sequence.frames] == [f"{n}.jpg" for n in range(1, 11)]
    assert [len(frame.boxes) for frame in sequence.frames] == [0] * 9 + [2]
    assert sequence.frames[-1].boxes == (Box(4, 5, 20.5, 12, "car"), Box(0, 0, 64, 48, "van"))


@pytest.mark.parametrize(
    ("images", "annotations", "says"),
    [
        ([image(1), image(2)], [box(2, 1, 1, 0, 5)], "no area"),
        ([image(1), image(2)], [box(2, 1, 1, 5)], "not four numbers"),
        ([image(1), image(2)], [box(2, 50, 1, 20, 5)], "lies outside the 64x48 frame"),
        ([image(1), image(2)], [box(2, 1, 1, 5, 5, category=4)], "category 4, which has no name"),
        ([image(1), image(2, width=640)], [], "was drawn on 640x48 but the image is 64x48"),
        ([image(1)], [], "2.jpg is in"),
        ([image(1), image(2), image(5, file_name="../../etc/passwd")], [], "no image '../../etc/passwd'"),
        ([image(1), image(2)], [box(5, 1, 1, 5, 5)], "annotations of image 5, which is not listed"),
        ([image(1), image(2)], [box(2, 1, 1, 5, 5)] * 1025, "more than 1024 boxes"),
    ],
)
def test_a_bad_image_is_named_and_the_rest_goes_on(
    tmp_path: Path, images: list[Any], annotations: list[Any], says: str
) -> None:
    write(tmp_path / "annotations.json", tmp_path, document(images, annotations), frames=2)
    sequence = load_sequence(tmp_path)
    assert sequence.frames[0].path.name == "1.jpg"
    assert [says in str(error) for error in sequence.refused] == [True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not COCO's instances"),
        ("[]", "not COCO's instances"),
        ('{"images": []}', "not COCO's instances"),
        ("\xff", "not COCO's instances"),
        ("[" * 100_000, "not COCO's instances|nested too deeply"),
        (json.dumps(document([image(1), image(1)], [])), "twice"),
        (json.dumps(document([image(1), image(2, file_name="1.jpg")], [])), "twice"),
        (json.dumps(document([image(1, id="1")], [])), "not COCO's instances"),
        (json.dumps(document([image(1)], [box(1, 1, 1, float("nan"), 5)])), "not COCO's instances"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path / "annotations.json", tmp_path, text, frames=1)
    with pytest.raises(InputError, match=says):
        load_sequence(tmp_path)
