"""A real fog node process that is full, killed or broken: nothing is lost and nothing doubled."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from fog_helpers import Fog, Shot, chunk, interactive, picture, shots, until

from fogline.common.errors import FoglineError, UnavailableError
from fogline.common.images.container import from_bytes
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.wire.upload import Drop, MarkStored, RetryLater
from fogline.fog_node.stats import read_images


def test_a_full_quota_refuses_uploads_and_keeps_publishing(start_fog: Any, device: Any) -> None:
    fog = start_fog(capacity_bytes=1 << 20, keep_sources=False)
    a, b = device(fog, "a"), device(fog, "b")
    big = [Shot(picture(n, 800, 600, quality=95)) for n in range(40)]
    outcomes = a.upload(big)
    kinds = Counter(type(o).__name__ for o in outcomes.values())
    assert set(kinds) == {"RetryLater", "MarkStored"}, kinds
    details = [o.detail for o in outcomes.values() if isinstance(o, RetryLater)]
    assert "capacity_bytes" in details[0] or "quota" in details[0]
    # Encoding makes room, and the same images are taken later.
    left = {s.content_id: s for s in big}
    deadline = time.monotonic() + 60
    while left and time.monotonic() < deadline:
        for content_id, outcome in a.upload(list(left.values())).items():
            if isinstance(outcome, MarkStored):
                del left[content_id]
    assert not left
    assert len(b.notices(upto=40, limit_s=60)) == 40


def test_kept_sources_give_way_to_new_images(start_fog: Any, device: Any) -> None:
    fog = start_fog(capacity_bytes=1 << 20, keep_sources=True)
    a, b = device(fog, "a"), device(fog, "b")
    for start in range(0, 30, 3):
        some = [Shot(picture(n, 800, 600, quality=90)) for n in range(start, start + 3)]
        outcomes = a.upload(some).values()
        assert all(isinstance(o, MarkStored) for o in outcomes), outcomes
        b.notices(upto=start + 3)
    assert len(b.notices(upto=30)) == 30


def test_a_full_disk_loses_nothing(start_fog: Any, device: Any, small_disk: Path) -> None:
    fog = start_fog(data_dir=str(small_disk / "store"))
    fog.data_dir = small_disk / "store"
    a, b = device(fog, "a"), device(fog, "b")
    first, later = shots(5), [Shot(picture(n, 1200, 900, quality=95)) for n in range(100, 110)]
    assert all(isinstance(o, MarkStored) for o in a.upload(first).values())
    b.notices(upto=5)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 14)):
            pass
    outcomes = a.upload(later)
    assert all(isinstance(o, RetryLater) for o in outcomes.values()), outcomes
    assert len(b.records(b.notices(upto=5))) == 5
    filler.unlink()
    assert all(isinstance(o, MarkStored) for o in a.upload(later[:5]).values())
    assert len(b.records(b.notices(upto=10))) == 10


def test_a_store_that_can_not_be_written_ends_the_node(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    process = psutil.Process(fog.pid)
    (fog.data_dir / "blobs" / "temp").rmdir()
    device(fog, "a").upload(shots(1))
    until(lambda: process.status() == psutil.STATUS_ZOMBIE, what="the end of the node")
    assert "can't be written" in fog.log.read_text()


def test_health_follows_the_encoder(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    until(lambda: fog.health()[0] == 200)
    _status, state = fog.health()
    assert state["ok"]
    assert state["encoder"] == "ready"
    (child,) = psutil.Process(fog.pid).children()
    child.kill()
    until(lambda: [p.pid for p in psutil.Process(fog.pid).children()] not in ([], [child.pid]))
    until(lambda: fog.health()[0] == 200)
    a, b = device(fog, "a"), device(fog, "b")
    a.upload(shots(3))
    assert len(b.notices(upto=3)) == 3


def test_kill_9_leaves_no_child_behind(start_fog: Any) -> None:
    fog = start_fog()
    until(lambda: fog.health()[0] == 200)
    (child,) = psutil.Process(fog.pid).children()
    fog.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_restart_keeps_the_store_and_resumes_a_partial_upload(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a = device(fog, "a")
    big = Shot(picture(7, 1600, 1200, quality=98))
    store_id = a.hello().store_id
    half = len(big.data) // 2
    answers = interactive(a, pb.UploadRequest(offer=big.offer()), [chunk(big, 0, half)])
    assert answers[-1].accepted.offset == 0
    fog.kill()
    fog.start()
    a = device(fog, "a")
    assert a.hello().store_id == store_id
    answers = interactive(a, pb.UploadRequest(offer=big.offer()), [chunk(big, half, len(big.data) - half)])
    assert answers[0].accepted.offset == half
    assert answers[1].stored.content_id == big.content_id


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_loses_and_doubles_nothing(start_fog: Any, device: Any, kills: int) -> None:
    rng = random.Random(11)
    fog = start_fog(encoder__max_wait_s=0.0, encoder__batch=4)
    count = 8 * kills
    images = shots(count)
    held: set[bytes] = set()
    for _ in range(kills):
        a = device(fog, "a")
        killer = threading.Timer(rng.uniform(0.02, 0.6), fog.kill)
        killer.start()
        try:
            while True:
                todo = [s for s in images if s.content_id not in held][:10]
                if not todo:
                    break
                held |= {i for i, outcome in a.uploading(todo) if isinstance(outcome, MarkStored)}
        except (UnavailableError, FoglineError):
            pass
        killer.join()
        fog.start()
    a, b = device(fog, "a"), device(fog, "b")
    assert all(isinstance(o, MarkStored) for o in a.upload(images).values())
    until(lambda: b.hello() and read_done(fog) == count, 30, "every image to be published")
    notices = b.notices(upto=count)
    contents = Counter(from_bytes(data).content_id for data in b.records(notices).values())
    assert contents == Counter(s.content_id for s in images)
    # What was killed between blob and row is swept: only sources and records are left.
    fog.stop()
    fog.start()
    named = {s.content_id.hex() for s in images} | {n.digest.hex() for n in notices}
    assert {p.name for p in (fog.data_dir / "blobs").glob("??/*")} == named


def read_done(fog: Fog) -> int:
    return sum(s.state == "published" for s in read_images(fog.data_dir))


def test_killing_the_encoder_over_and_over_sets_nothing_aside(start_fog: Any, device: Any) -> None:
    fog = start_fog(encoder__batch=4, encoder__max_wait_s=0.0)
    a, b = device(fog, "a"), device(fog, "b")
    images = [Shot(picture(n, 640, 480)) for n in range(40)]
    rng = random.Random(3)
    done = threading.Event()
    kills = 0

    def kill() -> None:
        nonlocal kills
        while kills < 4 and not done.wait(rng.uniform(0.1, 0.5)):
            for child in psutil.Process(fog.pid).children():
                child.kill()
                kills += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        a.upload(images)
        killer.join(30)
    finally:
        done.set()
        killer.join()
    assert kills >= 4
    assert len(b.notices(upto=40, limit_s=60)) == 40
    assert all(s.state == "published" for s in read_images(fog.data_dir))


def test_an_image_that_can_not_be_encoded_is_set_aside_with_its_reason(start_fog: Any, device: Any) -> None:
    fog = start_fog(encoder__batch=4)
    a, b = device(fog, "a"), device(fog, "b")
    until(lambda: fog.health()[0] == 200)
    (child,) = psutil.Process(fog.pid).children()
    child.suspend()
    images = shots(4)
    a.upload(images)
    source = fog.data_dir / "blobs" / images[2].content_id.hex()[:2] / images[2].content_id.hex()
    source.write_bytes(b"the disk went bad")
    child.resume()
    assert len(b.notices(upto=3)) == 3
    (bad,) = [s for s in read_images(fog.data_dir) if s.state == "bad"]
    assert bad.content_id == images[2].content_id
    assert "JPEG" in bad.reason
    outcome = a.upload([images[2]])[images[2].content_id]
    assert isinstance(outcome, Drop)
    assert "set aside" in outcome.detail
    until(lambda: fog.health()[1]["images"] == {"bad": 1, "published": 3})
