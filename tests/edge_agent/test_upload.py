"""Uploading to a fog node that breaks, refuses, is full, or lies."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edge_helpers import until
from edge_parts import parts
from scripted_fog import CHUNK, ScriptedFog, serving

from fogline.common.rpc.gen import images_pb2 as pb
from fogline.edge_agent.clock import FogClock

YEAR = 365 * 86_400 * 1_000_000


def test_everything_arrives_whole_and_leaves_the_outbox(tmp_path: Path) -> None:
    fog = ScriptedFog()
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        images = edge.add(*range(60))
        until(lambda: edge.outbox.count == 0)
        images += edge.add(60, 61)  # the stream is still open
        until(lambda: edge.outbox.count == 0)
        assert set(fog.stored.values()) == set(images)
        assert edge.outbox.totals()["stored"] == 62
        assert fog.offers[0].boxes[0].label == "car"
        assert len(fog.hellos) == 1


def test_a_broken_stream_resumes_where_the_fog_node_is(tmp_path: Path) -> None:
    fog = ScriptedFog()
    fog.break_after = 4
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        (image,) = edge.add(1, data=os.urandom(10 * CHUNK + 17))
        until(lambda: edge.outbox.count == 0)
        assert list(fog.stored.values()) == [image]
        assert fog.resumed_at == [0, 4 * CHUNK]


def test_a_fog_node_that_restarts_again_and_again(tmp_path: Path) -> None:
    fog = ScriptedFog()
    with serving(fog) as server, parts(tmp_path, fog, run="upload") as edge:
        images = edge.add(*range(40))
        for _ in range(4):
            done = len(fog.stored)
            edge.add(1000 + done, data=os.urandom(5 * CHUNK))
            until(lambda done=done: len(fog.stored) > done)
            server.stop()
            server.start()
        until(lambda: edge.outbox.count == 0)
        assert set(images) <= set(fog.stored.values())
        assert edge.outbox.totals().get("rejected", 0) == 0


def test_duplicates_and_refusals_leave_the_outbox_each_by_its_name(tmp_path: Path) -> None:
    fog = ScriptedFog()
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        known = edge.outbox  # filled before the first connection may see it
        (first,) = edge.add(1)
        until(lambda: known.count == 0)
        bad = hashlib.sha256(edge.add(2)[0]).digest()
        until(lambda: known.count == 0)
        fog.on_offer = lambda offer: pb.UploadResponse(
            rejected=pb.UploadRejected(content_id=offer.content_id, reason=pb.REJECT_REASON_INVALID, detail="no good")
        )
        (third,) = edge.add(3)
        until(lambda: known.count == 0)
        assert known.rejected() == [(hashlib.sha256(third).digest(), "no good")]
        fog.on_offer = lambda offer: None
        edge.outbox.add(first, (), "cam", edge.clock.stamp(), "s", "again")
        until(lambda: known.count == 0)
        assert known.totals() == {"captured": 4, "stored": 2, "duplicate": 1, "rejected": 1}
        assert bad in fog.stored


def test_no_space_keeps_the_image_and_says_so(tmp_path: Path) -> None:
    fog = ScriptedFog()
    fog.on_offer = lambda offer: pb.UploadResponse(
        rejected=pb.UploadRejected(content_id=offer.content_id, reason=pb.REJECT_REASON_NO_SPACE, detail="disk full")
    )
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        (image,) = edge.add(1)
        until(lambda: edge.uploader.full == "disk full")
        assert edge.outbox.count == 1
        fog.on_offer = lambda offer: None
        until(lambda: edge.outbox.count == 0)
        assert edge.uploader.full == ""
        assert list(fog.stored.values()) == [image]


def test_answers_that_make_no_sense_lose_nothing(tmp_path: Path) -> None:
    lies = [
        lambda o: pb.UploadResponse(),
        lambda o: pb.UploadResponse(stored=pb.UploadStored(content_id=o.content_id)),  # nothing was sent
        lambda o: pb.UploadResponse(accepted=pb.UploadAccepted(content_id=o.content_id, offset=1 << 40)),
        lambda o: pb.UploadResponse(accepted=pb.UploadAccepted(content_id=b"x" * 32, offset=0)),
        lambda o: pb.UploadResponse(rejected=pb.UploadRejected(content_id=o.content_id, reason=77)),  # type: ignore[arg-type]
        lambda o: pb.UploadResponse(rejected=pb.UploadRejected(content_id=o.content_id)),
    ]
    fog = ScriptedFog()
    fog.on_offer = lambda offer: lies.pop()(offer) if lies else None
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        (image,) = edge.add(1)
        until(lambda: edge.outbox.count == 0)
        assert not lies
        assert list(fog.stored.values()) == [image]


def test_an_image_damaged_on_our_disk_does_not_hold_up_the_others(tmp_path: Path) -> None:
    fog = ScriptedFog()
    fog.hello = {"store_id": b"short"}  # no session yet
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        damaged, fine = (hashlib.sha256(image).digest() for image in edge.add(1, 2))
        path = tmp_path / "outbox" / "blobs" / damaged.hex()[:2] / damaged.hex()
        path.write_bytes(b"x" * path.stat().st_size)
        until(lambda: "store id" in edge.link.error)
        fog.hello = {}
        until(lambda: edge.outbox.count == 0)
        assert list(fog.stored) == [fine]
        ((lost, reason),) = edge.outbox.rejected()
        assert lost == damaged
        assert "damaged" in reason


def test_capture_times_are_the_fog_nodes_with_a_clock_a_year_off(tmp_path: Path) -> None:
    fog = ScriptedFog()
    wrong = FogClock(wall=lambda: fog.clock() - YEAR)
    with serving(fog), parts(tmp_path, fog, clock=wrong, run="upload") as edge:
        before = fog.clock()
        edge.add(1)
        after = fog.clock()
        until(lambda: edge.outbox.count == 0)
        assert fog.hellos[0].client_time_us < before - YEAR // 2
        assert before - 200_000 <= fog.offers[0].capture_time_us <= after + 200_000


def test_a_greeting_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    fog = ScriptedFog()
    with serving(fog), parts(tmp_path, fog, run="upload") as edge:
        for hello, text in (
            ({"protocol": 2}, "protocol 2"),
            ({"max_chunk_bytes": 1}, "chunks of 1 bytes"),
            ({"max_chunk_bytes": 1 << 30}, "chunks of"),
            ({"store_id": b""}, "store id"),
        ):
            fog.hello = hello
            edge.add(len(fog.hellos) + 1)
            edge.link.close()
            until(lambda text=text: text in edge.link.error)
        fog.hello = {}
        until(lambda: edge.outbox.count == 0)
