import os
from pathlib import Path

import pytest
from folders import write_jpeg, write_otb

from fogline.common.boxes import Box
from fogline.common.data import load_sequence
from fogline.common.errors import InputError

DATA = Path(os.environ.get("FOGLINE_DATA", Path(__file__).parents[3].parent / "shared" / "data"))


@pytest.mark.parametrize("line", ["5,6,10,12", "5\t6\t10\t12", "5 6 10 12", "5, 6,\t10  ,12", "5;6;10;12"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_separators_and_the_shift_to_0_based(tmp_path: Path, line: str, newline: str) -> None:
    sequence = load_sequence(write_otb(tmp_path / "cam", [line] * 3, newline=newline))
    assert sequence.name == "cam"
    assert [f.boxes for f in sequence.frames] == [(Box(4, 5, 10, 12),)] * 3
    assert [(f.index, f.width, f.height) for f in sequence.frames] == [(0, 64, 48), (1, 64, 48), (2, 64, 48)]
    assert sequence.refused == ()


def test_frames_are_in_natural_order(tmp_path: Path) -> None:
    folder = write_otb(tmp_path, ["1,1,5,5", "2,1,5,5", "3,1,5,5"], frames=0)
    for name in ("10.jpg", "9.jpg", "x2.jpeg", ".hidden.jpg", "notes.txt"):
        write_jpeg(folder / "img" / name)
    assert [f.path.name for f in load_sequence(folder).frames] == ["9.jpg", "10.jpg", "x2.jpeg"]


def test_a_polygon_file_beside_is_ignored(tmp_path: Path) -> None:
    folder = write_otb(tmp_path, ["1,1,5,5"])
    (folder / "groundtruth_polygon.txt").write_text("1,1,5,1,5,5,1,5\n" * 7)
    assert len(load_sequence(folder).frames) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("NaN,NaN,NaN,NaN", "not a finite number"),
        ("5,5,inf,4", "not a finite number"),
        ("5,5,0,9", "no area"),
        ("5,5,-4,9", "no area"),
        ("60,5,40,9", "lies outside the 64x48 frame"),
        ("-20,5,10,9", "lies outside"),
        ("5,5,5", "not four numbers"),
        ("5,5,5,5,5", "not four numbers"),
        ("a,5,5,5", "not four numbers"),
    ],
)
def test_a_bad_line_refuses_its_frame_alone_and_is_named(tmp_path: Path, line: str, says: str) -> None:
    folder = write_otb(tmp_path, ["1,1,9,9", line, "3,3,9,9"])
    sequence = load_sequence(folder)
    assert [(f.index, f.path.name, f.boxes[0].x) for f in sequence.frames] == [(0, "0001.jpg", 0), (2, "0003.jpg", 2)]
    (error,) = sequence.refused
    assert says in str(error)
    assert f"{folder / 'groundtruth_rect.txt'}:2" in str(error)


def test_an_empty_line_is_a_frame_without_a_box(tmp_path: Path) -> None:
    sequence = load_sequence(write_otb(tmp_path, ["1,1,9,9", "", "3,3,9,9", ""]))
    assert [len(f.boxes) for f in sequence.frames] == [1, 0, 1, 0]


def test_blank_lines_after_the_last_frame_are_no_annotation(tmp_path: Path) -> None:
    assert len(load_sequence(write_otb(tmp_path, ["1,1,9,9", "2,2,9,9", "", "  ", ""], frames=2)).frames) == 2


@pytest.mark.parametrize(("lines", "says"), [(2, "is missing"), (4, "is extra")])
def test_a_missing_or_extra_line_refuses_the_sequence(tmp_path: Path, lines: int, says: str) -> None:
    folder = write_otb(tmp_path, ["1,1,9,9"] * lines, frames=3)
    with pytest.raises(InputError, match=rf"{lines} lines for 3 frames.*{says}"):
        load_sequence(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"\x89PNG\r\n\x1a\n" + bytes(30), "not a JPEG"), (b"\xff\xd8\xff\xe0\x00", "truncated")],
)
def test_a_bad_jpeg_refuses_its_frame_alone(tmp_path: Path, content: bytes, says: str) -> None:
    folder = write_otb(tmp_path, ["1,1,9,9"] * 3)
    (folder / "img" / "0002.jpg").write_bytes(content)
    sequence = load_sequence(folder)
    assert [f.index for f in sequence.frames] == [0, 2]
    assert says in str(sequence.refused[0])
    assert "0002.jpg" in str(sequence.refused[0])


def test_structural_errors_are_clear(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_sequence(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not an annotated sequence"):
        load_sequence(tmp_path / "empty")
    (tmp_path / "cam" / "img").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no \.jpg"):
        load_sequence(tmp_path / "cam")
    write_jpeg(tmp_path / "cam" / "img" / "1.jpg")
    with pytest.raises(InputError, match=r"groundtruth_rect\.txt: can't be read"):
        load_sequence(tmp_path / "cam")
    (tmp_path / "cam" / "groundtruth_rect.txt").write_bytes(b"\xff\xfe1\x002\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_sequence(tmp_path / "cam")
    (tmp_path / "cam" / "groundtruth_rect.txt").write_text("0,0,0,0\n")
    with pytest.raises(InputError, match="none of its 1 frames is usable"):
        load_sequence(tmp_path / "cam")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "size"),
    [
        ("OTB_Crossing", 120, (360, 240)),
        ("OTB_Human7", 250, (320, 240)),
        ("OTB_Car1", 300, (320, 240)),
        ("VOT15_bag", 196, (480, 360)),
        ("UAV123_boat1", 120, (1280, 720)),
    ],
)
def test_real_sequences(name: str, count: int, size: tuple[int, int]) -> None:
    folder = DATA / "tracking" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; set FOGLINE_DATA")
    sequence = load_sequence(folder)
    assert (sequence.name, len(sequence.frames), sequence.refused) == (name, count, ())
    assert {(f.width, f.height) for f in sequence.frames} == {size}
    assert all(len(f.boxes) == 1 for f in sequence.frames)
