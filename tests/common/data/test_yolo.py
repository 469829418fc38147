from pathlib import Path

import pytest
from folders import write_jpeg

from fogline.common.boxes import Box
from fogline.common.data import load_sequence
from fogline.common.errors import InputError


def write(images: Path, labels: Path, texts: list[str | None]) -> None:
    labels.mkdir(parents=True)
    for number, text in enumerate(texts, 1):
        write_jpeg(images / f"{number}.jpg", seed=number)
        if text is not None:
            (labels / f"{number}.txt").write_text(text)


@pytest.mark.parametrize(
    ("images", "labels", "names", "folder"),
    [
        ("cam/images", "cam/labels", "cam/data.yaml", "cam"),
        ("cam/images", "cam/labels", "data.yaml", "cam"),
        ("set/images/train", "set/labels/train", "set/data.yaml", "set/images/train"),
        ("cam/images", "cam/labels", "cam/classes.txt", "cam"),
        ("cam/images", "cam/labels", "cam/labels/classes.txt", "cam"),
    ],
)
def test_layouts(tmp_path: Path, images: str, labels: str, names: str, folder: str) -> None:
    """Centres and sizes in parts of the image; an empty file and none are frames without a box."""
    write(tmp_path / images, tmp_path / labels, ["0 0.5 0.5 0.25 0.5\n1 0.125 0.25 0.25 0.5\n", "", None])
    (tmp_path / names).write_text("car\nvan\n" if names.endswith("txt") else "path: x\nnames: [car, van]\nnc: 2\n")
    sequence = load_sequence(tmp_path / folder)
    assert (sequence.name, sequence.refused) == (Path(folder).name, ())
    assert [frame.boxes for frame in sequence.frames] == [
        (Box(24, 12, 16, 24, "car"), Box(0, 0, 16, 24, "van")),
        (),
        (),
    ]


def test_names_by_number_and_none(tmp_path: Path) -> None:
    write(tmp_path / "images", tmp_path / "labels", ["7 0.5 0.5 0.5 0.5"])
    assert load_sequence(tmp_path).frames[0].boxes[0].label == "7"
    (tmp_path / "data.yaml").write_text("names: {7: bus}")
    assert load_sequence(tmp_path).frames[0].boxes[0].label == "bus"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 0.5 0.5 0.5", "is not `class x y w h`"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "outlines are not read"),
        ("car 0.5 0.5 0.5 0.5", "is not `class x y w h`"),
        ("2 0.5 0.5 0.5 0.5", "class 2 has no name"),
        ("-1 0.5 0.5 0.5 0.5", "class -1 has no name"),
        ("0 32 24 10 10", "not in parts of the image"),
        ("0 nan 0.5 0.5 0.5", "not in parts of the image"),
        ("0 0.5 0.5 0 0.5", "no area"),
        ("0 0.9 0.5 0.5 0.5", "lies outside the 64x48 frame"),
    ],
)
def test_a_bad_line_refuses_its_frame_alone_and_is_named(tmp_path: Path, line: str, says: str) -> None:
    good = "0 0.5 0.5 0.5 0.5"
    write(tmp_path / "images", tmp_path / "labels", [good, f"{good}\n{line}", good])
    (tmp_path / "data.yaml").write_text("names: [car, van]")
    sequence = load_sequence(tmp_path)
    assert [frame.index for frame in sequence.frames] == [0, 2]
    (error,) = sequence.refused
    assert says in str(error)
    assert "2.txt" in str(error)


def test_labels_without_image(tmp_path: Path) -> None:
    write(tmp_path / "images", tmp_path / "labels", [""])
    (tmp_path / "labels" / "9.txt").write_text("")
    (error,) = load_sequence(tmp_path).refused
    assert "no image 9.jpg" in str(error)


@pytest.mark.parametrize("text", ["names: {car: 0}", "nc: 3", "- car", "names: [", "names: !!python/object:os.system"])
def test_bad_names_refuse_the_folder(tmp_path: Path, text: str) -> None:
    write(tmp_path / "images", tmp_path / "labels", ["0 0.5 0.5 0.5 0.5"])
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=r"data\.yaml"):
        load_sequence(tmp_path)
