import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fogline.common.data import load_sequence, split_train_eval
from fogline.common.data.clip import write_clip
from fogline.common.errors import InputError


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(w, 0) * max(h, 0)
    return inside / (a[2] * a[3] + b[2] * b[3] - inside)


def test_the_same_seed_writes_the_same_files_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_clip(tmp_path / name, cameras=3, frames=2, width=160, height=96, seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    assert "SYNTHETIC" in (tmp_path / "a" / "README.txt").read_text()


def test_it_loads_with_one_box_in_every_frame_and_boxes_that_move(tmp_path: Path) -> None:
    folders = write_clip(tmp_path / "clip", frames=24, width=320, height=180)
    assert [f.name for f in folders] == ["camera-1", "camera-2", "camera-3"]
    for folder in folders:
        sequence = load_sequence(folder)
        assert (len(sequence.frames), sequence.refused) == (24, ())
        assert all(len(f.boxes) == 1 and (f.width, f.height) == (320, 180) for f in sequence.frames)
        train, held_out = split_train_eval(sequence)
        boxes = [(b.x, b.y, b.w, b.h) for f in train.frames for b in f.boxes]
        wanted = [(b.x, b.y, b.w, b.h) for f in held_out.frames for b in f.boxes]
        # Even the one constant box that suits the held-out frames best, of all that were trained on, does badly.
        assert max(np.mean([overlap(b, w) for w in wanted]) for b in boxes) < 0.35, folder.name


def test_boxes_are_the_extent_of_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fogline.common.data.clip as clip

    # A green scene without noise, in which whatever is not green is the object (its shadow is dark green).
    green = np.array([0, 1, 0], np.float32)
    monkeypatch.setattr(clip, "SCENES", (lambda rng, h, w: np.ones((h, w, 1), np.float32) * green,))
    monkeypatch.setattr(clip, "_expose", lambda frame, rng, gain: (np.clip(frame, 0, 1) * 255).astype(np.uint8))
    (folder,) = clip.write_clip(tmp_path / "clip", cameras=1, frames=6)
    for frame in load_sequence(folder).frames:
        rows, columns = np.nonzero(np.asarray(Image.open(frame.path)).astype(int)[..., [0, 2]].sum(2) > 32)
        (box,) = frame.boxes
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.allclose(found, (box.x, box.y, box.x + box.w, box.y + box.h), atol=3)


def test_it_reuses_itself_and_touches_nothing_else(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", cameras=1, frames=1, width=64, height=48)
    before = digest(tmp_path / "clip")
    (folder,) = write_clip(tmp_path / "clip", cameras=1, frames=1, width=64, height=48)
    assert (folder.name, digest(tmp_path / "clip")) == ("camera-1", before)
    with pytest.raises(InputError, match="something other than this clip"):
        write_clip(tmp_path / "clip", cameras=1, frames=2, width=64, height=48)
    with pytest.raises(InputError, match="at least 64x48"):
        write_clip(tmp_path / "tiny", width=8)
