"""Batches: who goes together, what happens to those that fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fogline.fog_node.encode_queue import TRIES_ALONE, TRIES_TOGETHER, Batch, EncodeQueue, coded_size
from fogline.fog_node.store import QueuedImage


def image(number: int, width: int = 640, height: int = 480) -> QueuedImage:
    return QueuedImage(number.to_bytes(32, "big"), "cam", 0, width, height, ())


def test_coded_size() -> None:
    assert coded_size(640, 480, 320) == (320, 240)
    assert coded_size(1280, 720, 320) == (320, 180)
    assert coded_size(100, 75, 320) == (100, 74)
    assert coded_size(65535, 1, 320) == (320, 2)
    assert coded_size(1, 1, 320) == (1, 2)


@given(st.integers(1, 65535), st.integers(1, 65535), st.integers(16, 8192))
def test_coded_size_is_even_high_and_never_wider(width: int, height: int, target: int) -> None:
    coded = coded_size(width, height, target)
    assert coded[0] == min(width, target)
    assert coded[1] % 2 == 0
    assert abs(coded[1] - height * coded[0] / width) <= 2


def test_a_batch_starts_when_full_or_due() -> None:
    queue = EncodeQueue(batch=3, max_wait_s=1.0, target_width=320)
    assert queue.take(0.0) is None
    assert queue.due_at() is None
    queue.add([image(1), image(2)], 0.0)
    assert queue.take(0.5) is None
    assert queue.due_at() == 1.0
    queue.add([image(3), image(4)], 0.6)
    assert queue.take(0.6) == Batch((image(1), image(2), image(3)))
    assert queue.due_at() == 1.6
    assert queue.take(1.6) == Batch((image(4),))
    assert len(queue) == 0


def test_sizes_are_not_mixed_and_the_oldest_goes_first() -> None:
    queue = EncodeQueue(batch=2, max_wait_s=0.0, target_width=320)
    queue.add([image(1), image(2, 640, 360), image(3), image(4, 1280, 720)], 0.0)
    queue.add([image(5)], 1.0)
    taken = [queue.take(2.0) for _ in range(3)]
    assert {b.images for b in taken if b} == {
        (image(1), image(3)),
        (image(2, 640, 360), image(4, 1280, 720)),
        (image(5),),
    }
    assert taken[2] == Batch((image(5),))


@given(
    st.lists(st.sampled_from([(640, 480), (640, 360)]), max_size=60),
    st.sets(st.integers(0, 59)),
    st.integers(1, 16),
    st.integers(0, 20),
    st.randoms(use_true_random=False),
)
def test_culprits_end_alone_and_everyone_else_is_encoded(
    sizes: list[tuple[int, int]], culprits: set[int], batch: int, accidents: int, rng: object
) -> None:
    queue = EncodeQueue(batch, 0.0, 320)
    images = [image(n, *size) for n, size in enumerate(sizes)]
    bad = {images[n].content_id for n in culprits if n < len(images)}
    queue.add(images, 0.0)
    encoded: list[bytes] = []
    rejected: list[bytes] = []
    hit: dict[bytes, int] = {}
    steps = 0
    while (taken := queue.take(1.0)) is not None:
        steps += 1
        assert steps < 5000
        ids = [i.content_id for i in taken.images]
        # An accident is a kill from outside; no image alone has enough of them to be blamed.
        accident = accidents > 0 and all(hit.get(i, 0) < TRIES_ALONE - 1 for i in ids) and rng.random() < 0.3  # type: ignore[attr-defined]
        if accident:
            accidents -= 1
            if len(ids) == 1:
                hit[ids[0]] = hit.get(ids[0], 0) + 1
        if accident or bad.intersection(ids):
            refused = queue.failed(taken, "it died")
            if refused is not None:
                rejected.append(refused.image.content_id)
        else:
            encoded += ids
    assert sorted(rejected) == sorted(bad)
    assert sorted(encoded) == sorted(i.content_id for i in images if i.content_id not in bad)


def test_a_failed_batch_is_tried_whole_before_it_is_split() -> None:
    queue = EncodeQueue(4, 0.0, 320)
    queue.add([image(n) for n in range(4)], 0.0)
    for _ in range(TRIES_TOGETHER):
        taken = queue.take(1.0)
        assert taken is not None
        assert len(taken.images) == 4
        assert queue.failed(taken, "x") is None
    halves = [queue.take(1.0), queue.take(1.0)]
    assert [len(b.images) for b in halves if b] == [2, 2]


def test_the_oldest_is_what_is_not_done() -> None:
    queue = EncodeQueue(batch=2, max_wait_s=1.0, target_width=320)
    assert queue.oldest_s(5.0) == 0
    queue.add([image(1), image(2)], 1.0)
    queue.add([image(3)], 3.0)
    batch = queue.take(3.0)
    assert batch is not None
    assert queue.oldest_s(4.0) == 3.0, "what is being encoded is not done"
    queue.failed(batch, "why")
    queue.add([image(1)], 6.0)
    assert queue.oldest_s(6.0) == 5.0, "what is tried again has waited since it came"
    queue.done(batch.images)
    assert queue.oldest_s(6.0) == 3.0
    queue.done([image(3)])
    assert queue.oldest_s(6.0) == 0
