"""A real fog node process and real devices over mTLS: the whole way of an image."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from fog_helpers import Fog, Shot, chunk, picture, shots, until
from PIL import Image

from fogline.common.errors import ConfigError, FoglineError, IdentityError, ProtocolError, UnavailableError
from fogline.common.images.container import from_bytes
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import control_pb2
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.gen.control_pb2_grpc import FleetServiceStub
from fogline.common.rpc.status import translate
from fogline.common.trace import new_trace
from fogline.common.wire.upload import Drop, MarkStored, RetryLater
from fogline.fog_node.stats import read_images, read_shared


def stored(shot: Shot, *, duplicate: bool = False) -> MarkStored:
    return MarkStored(shot.content_id, duplicate)


def test_what_one_device_uploads_every_other_device_receives(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a, b = device(fog, "a"), device(fog, "b")
    images = shots(12)
    trace = new_trace()
    assert a.upload(images) == {s.content_id: stored(s) for s in images}
    notices = b.notices(upto=12)
    assert [n.cursor for n in notices] == list(range(1, 13))
    records = [from_bytes(data) for data in b.records(notices).values()]
    assert {r.content_id for r in records} == {s.content_id for s in images}
    by_id = {s.content_id: s for s in images}
    for record in records:
        shot = by_id[record.content_id]
        assert (record.camera, record.capture_time_us) == ("cam", shot.capture_us)
        assert (record.source_size, record.size) == ((160, 120), (160, 120))
        assert [(x.x, x.y, x.w, x.h, x.label) for x in record.boxes] == list(shot.boxes)
        assert [layer.kind for layer in record.layers] == [0, 1]
    assert a.notices(upto=12) == []
    lines = [json.loads(line) for line in fog.log.read_text().splitlines()]
    batches = [line for line in lines if line["msg"] == "encoded a batch"]
    assert sum(line["images"] for line in batches) == 12
    assert all(line["traces"] == [trace] for line in batches)
    until(lambda: fog.metric("fogline_published_head") == 12)
    assert fog.metric("fogline_encoded_images_total") == 12
    assert fog.metric("fogline_stored_images") == 12
    stats = read_images(fog.data_dir)
    assert [s.cursor for s in sorted(stats, key=lambda s: s.cursor or 0)] == list(range(1, 13))
    for s in stats:
        assert s.capture_us <= s.received_us <= (s.published_us or 0)
        assert (s.state, s.sources, s.source_bytes) == ("published", ("a",), len(by_id[s.content_id].data))
        assert s.record_bytes
        assert s.record_bytes > sum(layer.payload_bytes for layer in s.layers) > 0
    assert fog.stop() == 0


def test_live_notifications_and_own_images(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a, b = device(fog, "a"), device(fog, "b")
    told: list[pb.Published] = []
    reader = threading.Thread(target=lambda: told.extend(b.notices(upto=6)))
    reader.start()
    until(lambda: fog.metric("fogline_subscribers") == 1)
    a.upload(shots(4))
    b.upload(shots(2, first=100))
    reader.join(20)
    mine = {s.content_id for s in shots(2, first=100)}
    seen = {from_bytes(data).content_id for data in b.records(told).values()}
    assert len(told) == 4
    assert not seen & mine
    until(lambda: fog.metric("fogline_subscribers") == 0)


def test_the_same_image_from_two_devices_is_one_image_with_two_sources(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a, b, c = device(fog, "a"), device(fog, "b"), device(fog, "c")
    image = shots(1)
    assert a.upload(image)[image[0].content_id] == stored(image[0])
    assert b.upload(image)[image[0].content_id] == stored(image[0], duplicate=True)
    assert a.upload(image)[image[0].content_id] == stored(image[0], duplicate=True)
    assert len(c.notices(upto=1)) == 1
    assert a.notices(upto=1) == b.notices(upto=1) == []
    # Nor by asking for it.
    answers = b.fetch([pb.FetchItem(cursor=1), pb.FetchItem(cursor=77), pb.FetchItem(cursor=2**64 - 1)])
    assert [(p.cursor, p.gone) for r in answers for p in r.chunks] == [(1, True), (77, True), (2**64 - 1, True)]
    assert read_images(fog.data_dir)[0].sources == ("a", "b")


def test_two_devices_upload_the_same_large_image_at_once(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    image = [Shot(picture(5, 1600, 1200, quality=98))]
    devices = [device(fog, f"d{i}") for i in range(4)]
    outcomes: list[Any] = []
    threads = [
        threading.Thread(target=lambda d=d: outcomes.extend(d.upload(image, chunk_bytes=8192).values()))
        for d in devices
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert Counter(o.duplicate for o in outcomes) == {False: 1, True: 3}
    stats = read_images(fog.data_dir)
    assert len(stats) == 1
    assert stats[0].sources == ("d0", "d1", "d2", "d3")


def test_filters_by_label_and_camera_still_move_the_cursor(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a, b = device(fog, "a"), device(fog, "b")
    a.upload([Shot(picture(1), ((1.0, 1.0, 9.0, 9.0, "dog"),), "north"), Shot(picture(2), (), "south")])
    a.upload([Shot(picture(3), ((1.0, 1.0, 9.0, 9.0, "cat"),), "south")])
    assert len(b.notices(upto=3, labels=["dog"])) == 1
    assert len(b.notices(upto=3, labels=["dog", "cat"])) == 2
    assert len(b.notices(upto=3, cameras=["south"])) == 2
    assert b.notices(upto=3, cameras=["south"], labels=["dog"]) == []
    assert b.notices(upto=3, labels=["whale"]) == []
    assert [n.cursor for n in b.notices(upto=3, cursor=2)] == [3]


def test_a_wrong_store_id_is_refused(start_fog: Any, device: Any, monkeypatch: Any) -> None:
    a = device(start_fog(), "a")
    monkeypatch.setattr(a, "hello", lambda: pb.HelloResponse(store_id=bytes(16)))
    with pytest.raises(ConfigError, match="call Hello"):
        a.notices(upto=0)


def test_only_edges_are_served(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    for role in ("fog", "cloud"):
        stranger = device(fog, "stranger", role)
        with pytest.raises(IdentityError, match=role):
            stranger.hello()
        with pytest.raises(IdentityError, match=role):
            stranger.upload(shots(1))
        with pytest.raises(IdentityError, match=role):
            stranger.fetch([pb.FetchItem(cursor=1)])
        with pytest.raises(IdentityError, match=role), translate():
            list(stranger.stub.Subscribe(pb.SubscribeRequest()))


def jpeg(image: Image.Image, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, settings.pop("format", "JPEG"), **settings)
    return buffer.getvalue()


def bad_pictures() -> dict[str, bytes]:
    whole = picture(1)
    return {
        "truncated": whole[: len(whole) // 2],
        "cut by a byte": whole[:-1],
        "no picture": b"hello world",
        "png": jpeg(Image.new("RGB", (32, 32)), format="PNG"),
        "bomb": jpeg(Image.new("L", (10_000, 10_000))),
    }


def test_bad_images_are_refused_by_name_and_the_rest_goes_on(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a = device(fog, "a")
    bad = {name: Shot(data, ()) for name, data in bad_pictures().items()}
    good = shots(3)
    outcomes = a.upload([good[0], *bad.values(), *good[1:]])
    for name, shot in bad.items():
        outcome = outcomes[shot.content_id]
        assert isinstance(outcome, Drop), name
        assert outcome.detail, name
    assert all(outcomes[s.content_id] == stored(s) for s in good)
    assert not list((fog.data_dir / "blobs" / "partial").iterdir())
    assert {s.content_id for s in read_images(fog.data_dir)} == {s.content_id for s in good}


def test_odd_but_valid_images_are_taken(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a, b = device(fog, "a"), device(fog, "b")
    base = Image.open(io.BytesIO(picture(1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = [
        jpeg(base, progressive=True),
        jpeg(base.convert("CMYK")),
        jpeg(base.convert("L")),
        jpeg(base, exif=exif),
        jpeg(Image.new("RGB", (1, 1))),
        jpeg(Image.new("RGB", (3, 700))),
    ]
    images = [Shot(data, ()) for data in odd]
    assert all(isinstance(o, MarkStored) for o in a.upload(images).values())
    assert len(b.records(b.notices(upto=len(odd)))) == len(odd)


INF = float("inf")
BAD_BOXES = [
    (float("nan"), 1, 5, 5),
    (1, INF, 5, 5),
    (1, 1, 0, 5),
    (1, 1, -4, 5),
    (150, 1, 40, 5),
    (-50, -50, 4, 4),
]


def test_boxes_are_checked(start_fog: Any, device: Any) -> None:
    fog = start_fog(limits__max_boxes=200)
    a, b = device(fog, "a"), device(fog, "b")
    bad = [Shot(picture(n), ((*box, "x"),)) for n, box in enumerate(BAD_BOXES)]
    bad.append(Shot(picture(50), ((1, 1, 5, 5, "l" * 65),)))
    bad.append(Shot(picture(51), ((1.0, 1.0, 5.0, 5.0, "x"),) * 201))
    bad.append(Shot(picture(52), camera=""))
    bad.append(Shot(picture(53), camera="c" * 65))
    bad.append(Shot(picture(54), capture_us=2**63))
    outcomes = a.upload(bad)
    assert all(isinstance(outcomes[s.content_id], Drop) for s in bad), outcomes
    good = [
        Shot(picture(60), tuple((float(n % 40), float(n // 40), 20.0, 20.0, f"l{n}") for n in range(200))),
        Shot(picture(61), ()),
        Shot(picture(62), ((-0.5, -0.5, 160.9, 120.9, "slack"),)),
    ]
    assert a.upload(good) == {s.content_id: stored(s) for s in good}
    counts = sorted(len(from_bytes(data).boxes) for data in b.records(b.notices(upto=3)).values())
    assert counts == [0, 1, 200]


def test_protocol_violations_break_the_stream_and_nothing_else(start_fog: Any, device: Any) -> None:
    fog = start_fog()
    a = device(fog, "a")
    big = Shot(picture(1, 1600, 1200, quality=98))
    offer = pb.UploadRequest(offer=big.offer())
    wrong_crc = chunk(big, 0, 1000)
    wrong_crc.chunk.chunk.crc32 ^= 1
    oversized = chunk(big, 0, (256 << 10) + 1)
    attacks: list[list[pb.UploadRequest]] = [
        [pb.UploadRequest()],
        [chunk(big, 0, 100)],
        [offer, offer],
        [pb.UploadRequest(offer=pb.ImageOffer(content_id=b"short", size=5))],
    ]
    # Often: an answer that is being written while the stream is aborted must not leave the device hanging.
    for attack in attacks * 20:
        with pytest.raises(ProtocolError):
            a.raw_upload(attack)
    for first in (wrong_crc, oversized, chunk(big, 500, 100)):
        with pytest.raises(ProtocolError):
            interactive(a, offer, [first])
    with pytest.raises(ProtocolError):
        interactive(a, offer, [chunk(big, 0, 100), chunk(big, 0, 100)])
    sizes = [0, (32 << 20) + 1, 2**63]
    for size in sizes:
        (answer,) = a.raw_upload([pb.UploadRequest(offer=big.offer(size))])
        assert answer.rejected.reason == pb.REJECT_REASON_INVALID
    # What is claimed under the name of another image is never taken for it.
    liar, victim = Shot(picture(2)), Shot(picture(3))
    claim = pb.UploadRequest(offer=liar.offer())
    claim.offer.content_id = victim.content_id
    claim.offer.size = len(liar.data)
    data = chunk(liar, 0, len(liar.data))
    data.chunk.content_id = victim.content_id
    answers = interactive(a, claim, [data])
    assert answers[-1].rejected.reason == pb.REJECT_REASON_CORRUPT
    assert a.upload([big, victim]) == {s.content_id: stored(s) for s in (big, victim)}


def interactive(a: Any, offer: pb.UploadRequest, after: list[pb.UploadRequest]) -> list[pb.UploadResponse]:
    """Offer, wait for the answer, then send the rest."""
    accepted = threading.Event()

    def requests() -> Any:
        yield offer
        assert accepted.wait(10)
        yield from after

    answers = []
    with translate():
        for answer in a.stub.Upload(requests(), timeout=20):
            answers.append(answer)
            accepted.set()
    return answers


def test_fetch_resumes_anywhere_and_packs_small_records(start_fog: Any, device: Any) -> None:
    fog = start_fog(encoder__params={"background_quality": 95, "object_quality": 95}, width=1600)
    a, b = device(fog, "a"), device(fog, "b")
    a.upload([*shots(30), Shot(picture(99, 1600, 1200, quality=95))])
    notices = b.notices(upto=31)
    whole = b.records(notices)
    answers = b.fetch([pb.FetchItem(cursor=n.cursor) for n in notices])
    assert len(answers) < 10
    for answer in answers:
        assert sum(len(part.chunk.data) for part in answer.chunks) <= 256 << 10
    biggest = max(notices, key=lambda n: n.size)
    for offset in (1, biggest.size // 2, biggest.size - 1):
        got = b.fetch([pb.FetchItem(cursor=biggest.cursor, offset=offset)])
        assert b"".join(p.chunk.data for r in got for p in r.chunks) == whole[biggest.cursor][offset:]
    with pytest.raises(ProtocolError, match="start again"):
        b.fetch([pb.FetchItem(cursor=biggest.cursor, offset=biggest.size + 1)])
    with pytest.raises(ProtocolError, match="at most"):
        b.fetch([pb.FetchItem(cursor=1)] * 1025)
    with pytest.raises(ProtocolError, match="neither"):
        b.fetch([pb.FetchItem()])
    assert read_shared(fog.data_dir) == []


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


def test_a_port_in_use_and_a_data_folder_in_use(start_fog: Any, tmp_path: Any, certificates: Any) -> None:
    first = start_fog()
    for settings, reason in (
        ({"listen": first.address, "data_dir": str(tmp_path / "other")}, "in use"),
        ({"listen": first.address, "data_dir": str(tmp_path / "other")}, "in use"),
        ({"data_dir": str(first.data_dir)}, "another fog node"),
        ({"data_dir": str(tmp_path / "other"), "metrics__port": first.metrics_port}, "metrics.port"),
    ):
        second = Fog(tmp_path / "second", certificates.tls("fog2", "fog"), settings)
        process = second.spawn()
        assert process.wait(20) == ConfigError.exit_code
        assert process.stdout is not None
        process.stdout.close()
        assert second.logged(reason), second.log.read_text()
    assert first.health()[0] in (200, 503)


def test_an_edge_certificate_and_a_bad_encoder_setting_are_refused(tmp_path: Any, certificates: Any) -> None:
    for tls, settings, code in (
        (certificates.tls("x", "edge"), {}, IdentityError.exit_code),
        (certificates.tls("x", "fog"), {"encoder__params": {"nonsense": 1}}, ConfigError.exit_code),
        (certificates.tls("x", "fog"), {"encoder__codec": "siren", "encoder__params": {"steps": 0}}, 2),
        (certificates.tls("x", "fog"), {"encoder__device": "tpu"}, ConfigError.exit_code),
    ):
        fog = Fog(tmp_path / "fog", tls, settings)
        process = fog.spawn()
        assert process.wait(20) == code, fog.log.read_text()
        assert process.stdout is not None
        assert process.stdout.read() == "", "it must not say that it is ready"
        process.stdout.close()


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


def test_a_fleet_is_joined_left_and_not_needed(
    start_fog: Any, device: Any, certificates: Any, tmp_path: Path, free_port: int
) -> None:
    fog = start_fog(cloud=f"127.0.0.1:{free_port}")
    a, b = device(fog, "a"), device(fog, "b")
    a.upload(shots(2))
    assert len(b.notices(upto=2)) == 2
    until(lambda: fog.logged("not in a fleet"))
    tls = certificates.tls("cloud", "cloud")
    settings = {
        "listen": f"127.0.0.1:{free_port}",
        "data_dir": str(tmp_path / "cloud"),
        "heartbeat_ms": 200,
        "tls": {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key)},
    }
    (tmp_path / "cloud.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "fogline.cloud_server", "--config", str(tmp_path / "cloud.yaml")]
    with (tmp_path / "cloud.log").open("w") as log:
        cloud = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: fog.logged("joined the fleet"), 40)
        channel = connect(f"127.0.0.1:{free_port}", certificates.tls("a", "edge"), meter=LinkMeter("edge-cloud"))
        fleet = FleetServiceStub(channel)
        until(lambda: [f.address for f in fleet.FindFogs(control_pb2.FindFogsRequest()).fogs] == [fog.address])
        status = lambda: fleet.FleetStatus(control_pb2.FleetStatusRequest()).devices[0]  # noqa: E731
        until(lambda: status().gauges["published_head"] == 2)
        assert fog.stop() == 0
        assert not fleet.FindFogs(control_pb2.FindFogsRequest()).fogs
        channel.close()
    finally:
        cloud.terminate()
        cloud.wait(20)
