"""How the encode queue is told to gather images."""

import pytest

from fogline.common.errors import ConfigError
from fogline.fog_node.config import EncoderConfig
from fogline.fog_node.encode_queue import EncodeQueue
from fogline.fog_node.gathering import Gathering
from fogline.fog_node.store import QueuedImage


def image(number: int, camera: str) -> QueuedImage:
    return QueuedImage(number.to_bytes(32, "big"), camera, 0, 640, 480, ())


def test_other_codecs_gather_as_configured() -> None:
    assert Gathering.of(EncoderConfig(codec="avif2", batch=7, max_wait_s=2.0)) == Gathering(7, 2.0)


def test_nerv_gathers_a_group_of_one_camera() -> None:
    found = Gathering.of(EncoderConfig(codec="nerv", params={"group": 90, "group_wait_s": 4}))
    assert found == Gathering(90, 4.0, by_camera=True)
    assert Gathering.of(EncoderConfig(codec="nerv", max_wait_s=100.0)).max_wait_s == 100.0
    with pytest.raises(ConfigError, match="codec nerv"):
        Gathering.of(EncoderConfig(codec="nerv", params={"group": 0}))


def test_a_batch_by_camera_has_one_camera() -> None:
    queue = EncodeQueue(3, 1.0, 320, by_camera=True)
    queue.add([image(1, "a"), image(2, "b"), image(3, "a"), image(4, "b")], 0.0)
    assert queue.take(0.5) is None
    queue.add([image(5, "b")], 0.5)
    full = queue.take(0.5)
    assert full is not None
    assert [one.camera for one in full.images] == ["b", "b", "b"]
    assert queue.take(0.9) is None
    due = queue.take(1.0)
    assert due is not None
    assert [one.camera for one in due.images] == ["a", "a"]
    assert (len(queue), queue.due_at()) == (0, None)
