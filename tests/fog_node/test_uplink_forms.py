"""A fog node process and what edges may send it of an image: each form, mixed, and by devices that mean no good."""

from __future__ import annotations

import hashlib
import queue
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fog_helpers import Device, Shot, chunk, picture, until

from fogline.common.boxes import Box
from fogline.common.errors import InputError, ProtocolError
from fogline.common.images import quality
from fogline.common.images.container import from_bytes, to_bytes
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.forms import CODED_FORMS, Form, Qualities
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.uplink import decode, encode
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.wire.upload import Drop, MarkStored, RetryLater
from fogline.fog_node.config import FogConfig, UplinkConfig
from fogline.fog_node.stats import read_images

BOXES = ((80.0, 60.0, 90.0, 70.0, "cat"),)
SIZE = (320, 240)


def coded(seed: int, form: Form, width: int = 160) -> Shot:
    """An image that was captured at 320x240, as an edge sends it in a form."""
    jpeg = picture(seed, *SIZE)
    content_id = hashlib.sha256(jpeg).digest()
    boxes = [Box(*box) for box in BOXES]
    data = jpeg if form is Form.ORIGINAL else encode(form, jpeg, content_id, boxes, width, Qualities())
    if form is Form.ORIGINAL:
        return Shot(data, BOXES)
    return Shot(data, BOXES, of=content_id, form=form.value)


def blob(fog: Any, digest: bytes) -> Path:
    path: Path = fog.data_dir / "blobs" / digest.hex()[:2] / digest.hex()
    return path


def test_a_mixed_fleet_shares_images(start_fog: Any, device: Any) -> None:
    fog = start_fog(width=160)
    a, b, c = device(fog, "a"), device(fog, "b"), device(fog, "c")
    shots = {form: coded(form.value, form) for form in Form}
    for sender, forms in ((a, (Form.ORIGINAL, Form.RESIZED)), (b, (Form.AVIF, Form.ROI))):
        outcome = sender.upload([shots[form] for form in forms])
        assert all(isinstance(one, MarkStored) for one in outcome.values())
    records = {r.content_id: r for r in map(from_bytes, c.records(c.notices(upto=4)).values())}
    assert set(records) == {shot.content_id for shot in shots.values()}
    decoder = BatchDecoder()
    for form, shot in shots.items():
        record = records[shot.content_id]
        assert (record.source_size, record.size) == (SIZE, (160, 120))
        assert [(x.x, x.y, x.w, x.h, x.label) for x in record.boxes] == list(BOXES)
        captured = resize(decode_jpeg(picture(form.value, *SIZE)), 160, 120)
        (image,) = decoder.decode([decoder.prepare(record, {})])
        got = quality.measure(captured, (image * 255).permute(1, 2, 0).numpy(), [(40, 30, 45, 35)])
        assert got.full > 25
    assert {s.form for s in read_images(fog.data_dir)} == set(Form)
    for form in Form:
        assert fog.metric(f'fogline_taken_images_total{{form="{form.text}"}}') == 1


def test_the_same_image_in_two_forms_is_one_image(start_fog: Any, device: Any) -> None:
    fog = start_fog(width=160)
    a, b = device(fog, "a"), device(fog, "b")
    original, roi = coded(1, Form.ORIGINAL), coded(1, Form.ROI)
    assert a.upload([roi])[roi.content_id] == MarkStored(roi.content_id, duplicate=False)
    assert b.upload([original])[roi.content_id] == MarkStored(roi.content_id, duplicate=True)
    assert len(device(fog, "c").notices(upto=1)) == 1
    (stats,) = read_images(fog.data_dir)
    assert stats.sources == ("a", "b")


def test_an_upload_survives_kill_9_and_goes_on(start_fog: Any, device: Any) -> None:
    fog = start_fog(width=160, encoder__max_wait_s=3600, encoder__batch=64)
    shot = coded(1, Form.RESIZED)
    a = device(fog, "a")
    half = len(shot.data) // 2
    outgoing: queue.SimpleQueue[pb.UploadRequest | None] = queue.SimpleQueue()
    outgoing.put(pb.UploadRequest(offer=shot.offer()))
    call = a.stub.Upload(iter(outgoing.get, None), timeout=20)
    assert next(call).accepted.offset == 0  # a chunk before that would break the contract
    outgoing.put(chunk(shot, 0, half))
    digest = hashlib.sha256(shot.data).digest()
    partial = fog.data_dir / "blobs" / "partial" / digest.hex()
    until(lambda: partial.exists() and partial.stat().st_size == half)
    fog.kill()
    fog.start()
    call.cancel()
    outgoing.put(None)
    b = device(fog, "b")
    (answer,) = b.raw_upload([pb.UploadRequest(offer=shot.offer())])
    assert answer.accepted.offset == half
    assert isinstance(b.upload([shot])[shot.content_id], MarkStored)
    assert blob(fog, hashlib.sha256(shot.data).digest()).is_file()
    fog.kill()
    fog.start()
    again = device(fog, "c")
    assert again.upload([shot])[shot.content_id] == MarkStored(shot.content_id, duplicate=True)
    until(lambda: fog.health()[1].get("queue") == 1)
    assert read_images(fog.data_dir)[0].form is Form.RESIZED


def test_sources_of_coded_forms_are_dropped_after_encoding(start_fog: Any, device: Any) -> None:
    fog = start_fog(width=160, keep_sources=False)
    shots = [coded(form.value, form) for form in Form]
    device(fog, "a").upload(shots)
    device(fog, "b").notices(upto=4)
    until(lambda: not any(blob(fog, hashlib.sha256(shot.data).digest()).exists() for shot in shots))


def test_regions_of_interest_are_not_coded_twice(start_fog: Any, device: Any) -> None:
    fog = start_fog(width=160, encoder__codec="avif2", encoder__params={"object_quality": 70})
    a, b = device(fog, "a"), device(fog, "b")
    advice = a.hello().uplink
    assert (advice.object_quality, advice.background_quality) == (70, 20)
    same, other, whole = coded(1, Form.ROI), coded(2, Form.ROI, width=100), coded(3, Form.AVIF)
    a.upload([same, other, whole])
    records = {r.content_id: r for r in map(from_bytes, b.records(b.notices(upto=3)).values())}
    assert records[same.content_id].layers == from_bytes(same.data).layers
    spent = {s.content_id: s.encode_s for s in read_images(fog.data_dir)}
    assert spent[same.content_id] == 0.0
    assert (spent[whole.content_id] or 0.0) > 0
    # Uploaded smaller than the fog node codes: coded at that size, never enlarged, and by the fog node.
    assert records[other.content_id].size == (100, 74)


def test_a_width_that_changed_meanwhile_loses_nothing(start_fog: Any, device: Any) -> None:
    fog = start_fog(width=96)
    shot = coded(1, Form.AVIF)  # 160 wide, as the edge was told before
    assert isinstance(device(fog, "a").upload([shot])[shot.content_id], MarkStored)
    b = device(fog, "b")
    (record,) = map(from_bytes, b.records(b.notices(upto=1)).values())
    assert record.size == (96, 72)


def test_bytes_that_are_no_such_upload_are_refused_for_good(start_fog: Any, device: Any) -> None:
    fog = start_fog(width=160)
    a = device(fog, "a")
    roi = coded(1, Form.ROI)
    record = from_bytes(roi.data)
    bad = {
        "it begins with": replace(roi, data=picture(1, *SIZE)),
        "of image": replace(roi, of=b"y" * 32),
        "belong in the offer": replace(roi, data=to_bytes(replace(record, camera="x"))),
        "it takes jpeg2 alone": replace(coded(2, Form.AVIF), form=Form.RESIZED.value),
        "layers instead of one": replace(coded(3, Form.ROI), form=Form.AVIF.value),
        "is no size of": replace(roi, data=to_bytes(replace(record, source_size=(320, 120)))),
        "outside the 320x240 frame": replace(coded(4, Form.AVIF), boxes=((400.0, 0.0, 5.0, 5.0, "x"),)),
    }
    for text, shot in bad.items():
        outcome = a.upload([shot])[shot.content_id]
        assert isinstance(outcome, Drop), text
        assert text in outcome.detail
        assert not blob(fog, hashlib.sha256(shot.data).digest()).exists()
    assert read_images(fog.data_dir) == []
    assert isinstance(a.upload([roi])[roi.content_id], MarkStored)  # refusing it harmed no one


def test_what_hello_did_not_offer_ends_the_stream(start_fog: Any, device: Any) -> None:
    fog = start_fog(uplink__accept=["avif"])
    a = device(fog, "a")
    assert list(a.hello().uplink.accepts) == [Form.AVIF.value]
    roi = coded(1, Form.ROI)
    offer = roi.offer()
    for changed, text in (
        ({}, "form 4 of an image; this fog node takes original, avif"),
        ({"form": 77}, "form 77"),
        ({"form": Form.AVIF.value, "digest": b"short"}, "a digest of 5 bytes"),
        ({"form": 0}, "a digest of 32 bytes with form original"),
    ):
        wrong = pb.ImageOffer()
        wrong.CopyFrom(offer)
        for key, value in changed.items():
            setattr(wrong, key, value)
        with pytest.raises(ProtocolError, match=text):
            a.raw_upload([pb.UploadRequest(offer=wrong)])


def test_nobody_gets_at_blobs_of_others_through_a_digest(start_fog: Any, device: Any) -> None:
    """Digests of records are told to every receiver; offered as an image, they must not be read or removed."""
    fog = start_fog(width=160)
    a, b = device(fog, "a"), device(fog, "b")
    mine = [coded(1, Form.ORIGINAL), coded(2, Form.ROI)]
    a.upload(mine)
    notices = b.notices(upto=2)
    held = [hashlib.sha256(shot.data).digest() for shot in mine] + [n.digest for n in notices]
    for digest in held:
        size = blob(fog, digest).stat().st_size
        offers = [
            pb.ImageOffer(content_id=b"z" * 32, size=size, camera="x", form=pb.UPLINK_FORM_ROI, digest=digest),
            pb.ImageOffer(content_id=b"z" * 32, size=size, camera="x", form=pb.UPLINK_FORM_RESIZED, digest=digest),
        ]
        if digest not in {shot.content_id for shot in mine}:
            offers.append(pb.ImageOffer(content_id=digest, size=size, camera="x"))
        for offer in offers:
            (answer,) = b.raw_upload([pb.UploadRequest(offer=offer)])
            assert answer.rejected.reason == pb.REJECT_REASON_INVALID
            assert "something else" in answer.rejected.detail
        assert blob(fog, digest).is_file()
    assert len(b.records(notices)) == 2


def test_a_digest_arrives_as_one_image_at_a_time(start_fog: Any, device: Any) -> None:
    fog = start_fog(width=160)
    a, b = device(fog, "a"), device(fog, "b")
    shot = coded(1, Form.ROI)
    outgoing = iter([pb.UploadRequest(offer=shot.offer())])
    call = a.stub.Upload(_held_open(outgoing), timeout=20)
    assert next(call).accepted.offset == 0
    thief = replace(shot, of=b"t" * 32)
    outcome = b.upload([thief])[thief.content_id]
    assert isinstance(outcome, RetryLater)
    call.cancel()
    until(lambda: isinstance(_once(b, thief), Drop))  # its turn has come, and it is of another image
    assert isinstance(a.upload([shot])[shot.content_id], MarkStored)


def _once(device: Device, shot: Shot) -> Any:
    return device.upload([shot])[shot.content_id]


def _held_open(requests: Any) -> Any:
    yield from requests
    time.sleep(20)


@pytest.mark.parametrize(
    ("settings", "keep", "expected"),
    [
        ({}, True, Form.ORIGINAL),
        ({}, False, Form.ROI),
        ({"accept": ("resized",)}, False, Form.RESIZED),
        ({"accept": ()}, False, Form.ORIGINAL),
        ({"advise": "avif"}, True, Form.AVIF),
    ],
)
def test_advice(settings: dict[str, Any], keep: bool, expected: Form) -> None:
    assert UplinkConfig(**settings).advice(keep) is expected


def test_advice_must_be_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not among uplink\.accept"):
        UplinkConfig(accept=("avif",), advise="roi")
    assert FogConfig(data_dir=tmp_path).uplink.forms == (Form.ORIGINAL, *CODED_FORMS)


def test_a_fog_node_that_can_not_read_avif_takes_no_form_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    assert UplinkConfig().forms == (Form.ORIGINAL, Form.RESIZED)
    assert UplinkConfig().advice(False) is Form.RESIZED
    assert UplinkConfig(advise="avif").advice(False) is Form.ORIGINAL


def test_layers_of_an_older_version_are_read_and_of_a_newer_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shot = coded(1, Form.RESIZED)
    monkeypatch.setattr("fogline.common.images.jpeg2.Jpeg2.version", 2)
    decode(Form.RESIZED, shot.data, shot.content_id)
    newer = coded(1, Form.RESIZED)
    monkeypatch.setattr("fogline.common.images.jpeg2.Jpeg2.version", 1)
    with pytest.raises(InputError, match="version 2"):
        decode(Form.RESIZED, newer.data, newer.content_id)
