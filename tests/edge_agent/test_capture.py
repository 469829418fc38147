"""Capture: from folders into the outbox, each frame once, bad ones skipped."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_helpers import jpeg, otb_folder, until

from fogline.edge_agent.capture import Capture
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.config import CaptureConfig, Frames
from fogline.edge_agent.outbox import Outbox
from fogline.edge_agent.workers import Stop


@contextmanager
def capturing(config: CaptureConfig, outbox: Outbox) -> Iterator[Capture]:
    stop = Stop()
    capture = Capture(config, outbox, FogClock(), stop)
    thread = threading.Thread(target=capture.run)
    thread.start()
    try:
        yield capture
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def replay(*runs: Frames, fps: float = 0) -> CaptureConfig:
    return CaptureConfig(source="sequence", runs=runs, fps=fps, label="car")


def test_a_run_is_captured_once_over_restarts(tmp_path: Path) -> None:
    folder = otb_folder(tmp_path / "seq", 8)
    outbox = Outbox(tmp_path / "out", 1 << 20, "block")
    with capturing(replay(Frames(path=folder, start=2, stop=5, camera="c1")), outbox) as capture:
        until(lambda: capture.done)
    items = outbox.take(99)
    assert [outbox.read(i.content_id) for i in items] == [jpeg(n) for n in (2, 3, 4)]
    assert {i.camera for i in items} == {"c1"}
    assert items[0].boxes[0].label == "car"
    for item in items:
        outbox.stored(item.content_id)
    with capturing(replay(Frames(path=folder, start=2, stop=6)), outbox) as capture:
        until(lambda: capture.done)
    assert [outbox.read(i.content_id) for i in outbox.take(99)] == [jpeg(5)]
    outbox.close()


def test_frame_rate(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "out", 1 << 20, "block")
    started = time.monotonic()
    with capturing(replay(Frames(path=otb_folder(tmp_path / "seq", 6)), fps=20), outbox) as capture:
        until(lambda: capture.done)
    assert 0.25 <= time.monotonic() - started < 3
    outbox.close()


def test_a_full_outbox_makes_capture_wait_and_go_on(tmp_path: Path) -> None:
    folder = otb_folder(tmp_path / "seq", 20)
    outbox = Outbox(tmp_path / "out", 5 * len(jpeg(0)), "block")
    seen: list[bytes] = []
    with capturing(replay(Frames(path=folder)), outbox) as capture:
        until(lambda: capture.waiting)
        assert not capture.done
        while len(seen) < 20:
            until(lambda: outbox.count)
            for item in outbox.take(3):
                seen.append(outbox.read(item.content_id))
                outbox.stored(item.content_id)
        until(lambda: capture.done)
    assert seen == [jpeg(n) for n in range(20)]
    outbox.close()


def test_bad_frames_are_skipped_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = otb_folder(tmp_path / "seq", 6)
    lines = (folder / "groundtruth_rect.txt").read_text().splitlines()
    lines[1] = "nan,1,5,5"
    lines[2] = "9,9,0,5"
    (folder / "groundtruth_rect.txt").write_text("\n".join(lines) + "\n")
    (folder / "img" / "0004.jpg").write_bytes(b"")
    (folder / "img" / "0005.jpg").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    outbox = Outbox(tmp_path / "out", 1 << 20, "block")
    missing = Frames(path=tmp_path / "no-such")
    with capturing(replay(missing, Frames(path=folder)), outbox) as capture:
        until(lambda: capture.done)
        assert capture.refused == 5
    assert [outbox.read(i.content_id) for i in outbox.take(99)] == [jpeg(0), jpeg(5)]
    outbox.close()


def annotate(folder: Path, name: str) -> None:
    (folder / "annotations" / f"{name}.xml").write_text(
        "<annotation><size><width>64</width><height>48</height></size><object><name>cell</name><bndbox>"
        "<xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )


def test_a_folder_is_watched(tmp_path: Path) -> None:
    folder = tmp_path / "voc"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    old = folder / "images" / "a.jpg"
    old.write_bytes(jpeg(1))
    os.utime(old, (1e9, 1e9))
    annotate(folder, "a")
    config = CaptureConfig(source="folder", runs=(Frames(path=folder),), poll_s=0.02)
    outbox = Outbox(tmp_path / "out", 1 << 20, "block")
    with capturing(config, outbox) as capture:
        until(lambda: outbox.count == 1)
        (folder / "images" / "b.jpg").write_bytes(jpeg(2)[:300])  # still being copied
        time.sleep(0.01)
        (folder / "images" / "b.jpg").write_bytes(jpeg(2))
        annotate(folder, "b")
        until(lambda: outbox.count == 2)
        (folder / "images" / "c.jpg").write_bytes(jpeg(3))  # its annotation comes later
        until(lambda: capture.refused == 1)
        annotate(folder, "c")
        until(lambda: outbox.count == 3)
        until(lambda: capture.done)
    with capturing(config, outbox) as capture:
        (folder / "images" / "d.jpg").write_bytes(jpeg(4))
        annotate(folder, "d")
        until(lambda: outbox.count == 4)
    assert [outbox.read(i.content_id) for i in outbox.take(99)] == [jpeg(n) for n in (1, 2, 3, 4)]
    outbox.close()
