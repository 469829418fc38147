from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.data import AnnotatedSequence, Frame, split_runs, split_train_eval
from fogline.common.errors import InputError


def camera(name: str, frames: int) -> AnnotatedSequence:
    return AnnotatedSequence(name, tuple(Frame(Path(name, f"{i}.jpg"), (), i, 64, 48) for i in range(frames)))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 12))
def test_every_frame_goes_to_exactly_one_edge(sizes: list[int], n_edges: int) -> None:
    cameras = [camera(f"cam{i}", size) for i, size in enumerate(sizes)]
    if n_edges > sum(sizes):
        with pytest.raises(InputError, match="can't feed"):
            split_runs(cameras, n_edges)
        return
    edges = split_runs(cameras, n_edges)
    assert len(edges) == n_edges
    assert all(run.frames for edge in edges for run in edge)
    dealt = sorted(f.path for edge in edges for run in edge for f in run.frames)
    assert dealt == sorted(f.path for c in cameras for f in c.frames)
    for edge in edges:
        for run in edge:
            assert [f.index for f in run.frames] == list(range(run.frames[0].index, run.frames[-1].index + 1))
    if n_edges >= len(cameras):
        assert all(len(edge) == 1 for edge in edges)
        assert len({edge[0].name for edge in edges}) == n_edges


def test_runs_are_as_equal_as_can_be() -> None:
    edges = split_runs([camera("a", 84), camera("b", 175), camera("c", 137), camera("d", 84)], 10)
    assert [(e[0].name, len(e[0].frames)) for e in edges] == [
        *[("a-1", 42), ("a-2", 42)],
        *[("b-1", 58), ("b-2", 58), ("b-3", 59)],
        *[("c-1", 45), ("c-2", 46), ("c-3", 46)],
        *[("d-1", 42), ("d-2", 42)],
    ]


def test_more_cameras_than_edges() -> None:
    edges = split_runs([camera("a", 10), camera("b", 30), camera("c", 10), camera("d", 10)], 2)
    assert [[c.name for c in e] for e in edges] == [["b"], ["a", "c", "d"]]


def test_train_and_eval_parts() -> None:
    train, held_out = split_train_eval(camera("a", 10))
    assert [f.index for f in train.frames] == list(range(7))
    assert [f.index for f in held_out.frames] == [7, 8, 9]
    with pytest.raises(InputError, match="too few to split"):
        split_train_eval(camera("a", 1))
    with pytest.raises(InputError, match="between 0 and 1"):
        split_train_eval(camera("a", 10), 1.0)
