"""A real fog node process and real devices over mTLS: the whole way of an image."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fog_helpers import Shot, picture, shots, stored, until

from fogline.common.errors import ProtocolError
from fogline.common.images.container import from_bytes
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import control_pb2
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.gen.control_pb2_grpc import FleetServiceStub
from fogline.common.trace import new_trace
from fogline.fog_node.stats import read_images, read_shared


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
