"""Who has what left to do, and when nothing moves any more."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fogline.common.data.clip import write_clip
from fogline.common.data.load import load_sequence
from fogline.deploy.local.cluster import Cluster, Settings
from fogline.deploy.local.job import Track
from fogline.deploy.local.plan import make_plan
from fogline.deploy.local.progress import EdgeProgress, FogProgress, Progress, Watch, who_is_stuck
from fogline.deploy.local.view import View, human_bytes

DONE_EDGE = EdgeProgress("edge-01", True, 5, 5, True, 0, 10, 10, 20, 20, 0.5, 0.7, 1e6, 2e6)
DONE = Progress(FogProgress(True, 15, 15, 15), (DONE_EDGE,))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"capture_done": False, "captured": 3}, "captured 3 of 5"),
        ({"waiting": 2}, "2 images in its outbox"),
        ({"held": 9}, "holds 9 of the 10"),
        ({"held": 11}, "holds 11 of the 10"),
        ({"step": 19}, "trained 19 of 20"),
    ],
)
def test_an_edge_says_what_is_missing(change: dict[str, int], says: str) -> None:
    assert DONE.missing == {}
    missing = replace(DONE, edges=(replace(DONE_EDGE, **change),)).missing
    assert list(missing) == ["edge-01"]
    assert says in who_is_stuck(missing)


def test_the_fog_node_says_what_is_missing() -> None:
    assert "published 14 of 15" in replace(DONE, fog=FogProgress(True, 15, 15, 14)).missing["fog"]
    assert "holds 14 of 15" in replace(DONE, fog=FogProgress(True, 15, 14, 14)).missing["fog"]


def test_a_stall_is_no_change_for_long_and_encoding_may_take_longer() -> None:
    waiting = replace(DONE, edges=(replace(DONE_EDGE, held=9),))
    watch = Watch()
    assert watch.stalled_for(waiting, 0.0) is None
    assert watch.stalled_for(waiting, 179.0) is None
    assert watch.stalled_for(waiting, 181.0) == 181.0
    moved = replace(waiting, edges=(replace(DONE_EDGE, held=8),))
    assert watch.stalled_for(moved, 181.0) is None
    encoding = replace(moved, fog=FogProgress(True, 15, 15, 14))
    assert watch.stalled_for(encoding, 200.0) is None
    assert watch.stalled_for(encoding, 600.0) is None
    assert watch.stalled_for(encoding, 1200.0) == 1000.0


def test_both_views_show_what_matters() -> None:
    busy = Progress(FogProgress(False, 15, 12, 8), (DONE_EDGE, replace(DONE_EDGE, name="edge-02", to_train=0, held=3)))
    plain, live = StringIO(), StringIO()
    for console in (Console(file=plain), Console(file=live, force_terminal=True, width=140)):
        with View(console) as view:
            view.show(busy)
            view.show(busy)
        view.finish(busy)
    assert plain.getvalue().count("up 12/15") == 2
    assert "restarting: fog" in plain.getvalue()
    assert "down 13/20" in plain.getvalue()
    assert "edge-02" in live.getvalue()
    assert "3/10" in live.getvalue()


def test_human_bytes() -> None:
    assert [human_bytes(n) for n in (0, 999, 1000, 12_345, 9_999_999, 3.2e9)] == [
        "0 B", "999 B", "1 kB", "12.3 kB", "10 MB", "3.2 GB",
    ]  # fmt: skip


def test_a_track_notes_each_evaluation_once() -> None:
    track = Track()
    for step, value in ((0, None), (5, 0.1), (7, 0.1), (10, 0.3), (10, 0.4), (12, float("nan"))):
        track.note(step, value)
    assert (track.steps, track.metric) == ([5, 10], [0.1, 0.3])


def test_a_plan_deals_every_shared_frame_to_one_edge(tmp_path: Path) -> None:
    folders = write_clip(tmp_path / "clip", cameras=2, frames=10, width=96, height=64)
    plan = make_plan([load_sequence(folder) for folder in folders], 5, 0.7)
    assert [edge.name for edge in plan.edges] == [f"edge-{n:02}" for n in range(1, 6)]
    assert sum(len(edge.images) for edge in plan.edges) == len(plan.images) == 14
    for edge in plan.edges:
        assert plan.expected(edge.name) | edge.content_ids == plan.images.keys()
        assert not plan.expected(edge.name) & edge.content_ids
    assert sum(len(sequence.frames) for sequence in plan.held_out) == 6
    assert (plan.metric, plan.labels, plan.trainable) == ("iou", (), True)


def test_without_boxes_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    (folder,) = write_clip(tmp_path / "clip", cameras=1, frames=10, width=96, height=64)
    boxes = folder / "groundtruth_rect.txt"
    lines = boxes.read_text().splitlines()
    for out, kept in (("a", lines[:7] + [""] * 3), ("b", [""] * 7 + lines[7:])):
        boxes.write_text("\n".join(kept) + "\n")
        plan = make_plan([load_sequence(folder)], 2, 0.7)
        assert not plan.trainable
        assert Cluster(plan, Settings(out=tmp_path / out, codec="jpeg2", train_steps=5, train_edges=1)).trainers == 0
